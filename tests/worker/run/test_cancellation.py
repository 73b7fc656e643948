"""Runs that shall stop: how they hear of it, and what becomes of those that do not listen."""

import asyncio
import contextlib
import threading
from datetime import timedelta

from structlog.testing import capture_logs
from support.workers import soon, until, working

from pgsched import Retry, Run, Scheduler

# Only a notification can bring the request, and nobody takes the claim away.
FAR = {"heartbeat_interval": "30s", "stall_timeout": "1h"}


def events(logs, name: str) -> list[dict]:
    return [entry for entry in logs if entry["event"] == name]


async def test_a_run_that_swallows_its_cancellation_is_asked_again_and_told(settings, db, client):
    sc, swallowed, started = Scheduler(), [], asyncio.Event()

    @sc.entrypoint("job")
    async def job(run: Run) -> str:
        started.set()
        while len(swallowed) < 3:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed.append(1)
        return "done all the same"

    with capture_logs() as logs:
        async with working(sc, settings, **FAR):
            run_id = await client.enqueue("job")
            await asyncio.wait_for(started.wait(), 20)
            await client.cancel(run_id)
            await db.until("select status = 'succeeded' from pgsched.runs")
    run = await client.get_run(run_id)
    assert run["reason"] == "finished, having swallowed its cancellation 2 times"
    assert run["result"] == "done all the same"
    assert [entry["times"] for entry in events(logs, "run_ignores_cancellation")] == [1, 2]
    assert not events(logs, "result_not_stored")


async def test_one_that_swallows_its_timeout_is_told_in_its_error(settings, db, client):
    sc, gate = Scheduler(), asyncio.Event()

    @sc.entrypoint("job", timeout=timedelta(milliseconds=50), retry=Retry(attempts=1))
    async def job() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await gate.wait()  # here it is cancelled once more

    async with working(sc, settings, **FAR):
        run_id = await client.enqueue("job")
        await db.until("select status = 'failed' from pgsched.runs")
    run = await client.get_run(run_id)
    message = "ran longer than its timeout of 0.05 s, having swallowed its cancellation 1 times"
    assert [(error["type"], error["message"]) for error in run["errors"]] == [("Timeout", message)]


async def test_a_thread_that_never_looks_is_left_behind_and_told(settings, db, client):
    sc, started, gate = Scheduler(), threading.Event(), threading.Event()

    @sc.entrypoint("job")
    def job() -> None:
        started.set()
        gate.wait(30)

    async with working(sc, settings, **FAR, cancel_timeout="100ms") as worker:
        run_id = await client.enqueue("job")
        await asyncio.to_thread(started.wait, 20)
        await client.cancel(run_id)
        await db.until("select status = 'cancelled' from pgsched.runs")
        assert (await client.get_run(run_id))["reason"] == "cancelled on request, but its thread goes on"
        assert (worker.roster.slots_used, worker.roster.threads_used) == (0, 1)
        gate.set()
        await until(lambda: worker.roster.threads_used == 0)


async def test_a_thread_whose_claim_is_lost_is_left_behind_however_often_that_is_heard(settings, db, client):
    """Each beat finds it lost again: none of them may give it more time, or it would hold its slot for ever."""
    sc, started, gate = Scheduler(), threading.Event(), threading.Event()

    @sc.entrypoint("job")
    def job(run: Run) -> None:
        started.set()
        gate.wait(30)

    with capture_logs() as logs:
        async with working(sc, settings, heartbeat_interval="50ms", cancel_timeout="500ms") as worker:
            await client.enqueue("job")
            await asyncio.to_thread(started.wait, 20)
            await db.all("update pgsched.runs set worker = gen_random_uuid(), heartbeat_at = now() + interval '1 hour'")
            await until(lambda: worker.roster.slots_used == 0)
            assert not gate.is_set()
            gate.set()
    assert len(events(logs, "claim_lost")) == 1


async def test_a_run_that_never_stops_does_not_hold_up_a_drain_past_its_limit(settings, db, client):
    sc, started, gate = Scheduler(), asyncio.Event(), asyncio.Event()
    ended: list[int] = []

    @sc.entrypoint("job")
    async def job() -> None:
        started.set()
        while not gate.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await gate.wait()

    def hard_exit(code: int) -> None:
        ended.append(code)
        gate.set()

    async with working(
        sc, settings, hard_exit=hard_exit, **FAR, drain_timeout="100ms", cancel_timeout="100ms"
    ) as worker:
        run_id = await client.enqueue("job")
        await asyncio.wait_for(started.wait(), 20)
        await client.cancel(run_id)  # in vain
        await db.until("select cancel_requested_at is not null from pgsched.runs")
        worker.stop()
        # Written while the function goes on: nobody starts it again, for somebody wanted it to stop.
        await db.until("select status = 'cancelled' from pgsched.runs")
    assert ended == [75]


async def test_sync_code_sees_that_it_shall_stop(settings, db):
    sc = Scheduler()
    started = threading.Event()

    @soon(sc, "slow")
    def slow(run: Run):
        started.set()
        while not run.cancelled:
            pass

    async with working(sc, settings):
        await asyncio.to_thread(started.wait, 10)
        await db.all("select pgsched.cancel(id) from pgsched.runs")
        await db.until("select count(*) = 1 from pgsched.runs where status = 'cancelled'")
    assert await db.value("select reason from pgsched.runs") == "cancelled on request"


async def test_cancel_reaches_a_running_coroutine(settings, db):
    sc = Scheduler()

    @soon(sc, "slow")
    async def slow():
        await asyncio.sleep(60)

    # The beat is far off, so only the notification can bring the request.
    async with working(sc, settings, heartbeat_interval="10s", stall_timeout="60s"):
        await db.until("select count(*) = 1 from pgsched.runs where status = 'running'")
        assert await db.value("select pgsched.cancel(id) from pgsched.runs") == "requested"
        await db.until("select count(*) = 1 from pgsched.runs where status = 'cancelled'", limit=8)
