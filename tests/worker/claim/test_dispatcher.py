"""When the dispatcher makes claim passes, and when it looks next."""

import asyncio
import time
from datetime import timedelta
from types import SimpleNamespace

import psycopg
import pytest
from support.workers import Elapsed, Parts, until

from pgsched import Executor, Scheduler
from pgsched.db.statements.claims import ClaimStatements
from pgsched.db.statements.queries import in_schema
from pgsched.worker import kit as kit_module
from pgsched.worker.claim import dispatcher as dispatcher_module

DUE = (
    "insert into pgsched.schedules (name, entrypoint, expression, next_run)"
    " select 'd' || n, 'job', '@yearly', now() - interval '1 second' from generate_series(1, %s) n"
)


async def test_a_pass_that_follows_at_once_goes_by_priority_and_looks_ahead_now_and_then(settings, db, monkeypatch):
    monkeypatch.setattr(dispatcher_module, "MOST", 100)
    looks = []
    real = ClaimStatements.read_outlook

    async def seen(*args, **kwargs):
        looks.append(len(parts.taken))
        return await real(*args, **kwargs)

    monkeypatch.setattr(ClaimStatements, "read_outlook", seen)
    elapsed = Elapsed(lambda: 0.0)  # it stands still, however slow this machine is
    async with Parts(settings, elapsed=elapsed) as parts:
        await parts.dispatcher.claim_pass()
        await db.all("select pgsched.enqueue('job') from generate_series(1, 500)")
        await parts.dispatcher.claim_pass()
        await parts.dispatcher.claim_pass()
        assert looks == [0] and parts.dispatcher.next.at <= time.monotonic(), "the next one comes at once"
        await db.all(DUE, 100)
        await db.all("select pgsched.enqueue('job', priority => 5) from generate_series(1, 50)")
        await parts.dispatcher.claim_pass()
        assert sum(run.schedule_id is None for run in parts.taken[200:300]) == 50, "the urgent ones first"
        elapsed.advance(3600)
        await parts.dispatcher.claim_pass()
        assert looks == [0, 400], "not without a look for long"


async def test_a_wake_up_while_looking_is_not_lost(settings, db):
    async with Parts(settings) as parts:
        real = parts.dispatcher.claim_pass
        passes = 0

        async def counted():
            nonlocal passes
            passes += 1
            if passes == 1:
                parts.kit.wakeups.due.ask()  # as a notification that arrives in the middle of a pass
            else:
                parts.dispatcher.stop()
            return await real()

        parts.dispatcher.claim_pass = counted
        parts.kit.wakeups.due.ask()
        async with asyncio.timeout(10):
            await parts.dispatcher.run()
        assert passes == 2


async def test_a_run_that_ends_while_a_pass_is_under_way_is_looked_at_again(settings, db, monkeypatch):
    # The pass saw it live and leaves its schedule for the instant; the end comes before it has said so.
    await db.all(
        "insert into pgsched.schedules (name, entrypoint, expression, next_run)"
        " values ('d', 'job', '@yearly', now() + interval '5 seconds')"
    )
    await db.all(
        "insert into pgsched.runs (schedule_id, entrypoint, fire_time, status, worker, claimed_at, heartbeat_at)"
        " select id, 'job', now(), 'running', gen_random_uuid(), now(), now() from pgsched.schedules"
    )
    real = ClaimStatements.read_outlook

    async def overtaken(self, connection, *args, **kwargs):
        outlook = await real(self, connection, *args, **kwargs)
        if not passes:
            passes.append(1)
            await db.all("update pgsched.runs set status = 'succeeded', finished_at = now()")
            parts.roster.changed(ended)
        else:
            parts.dispatcher.stop()
        return outlook

    passes: list[int] = []
    monkeypatch.setattr(ClaimStatements, "read_outlook", overtaken)
    async with Parts(settings, lookahead="10s") as parts:
        ended = SimpleNamespace(claimed=SimpleNamespace(entrypoint="job", schedule_id=1))
        parts.kit.wakeups.due.ask()
        async with asyncio.timeout(4):
            await parts.dispatcher.run()
        assert [run.schedule_id for run in parts.taken] == [1], "claimed ahead, seconds before it is due"


async def test_a_resync_moves_the_alarm_and_asks_nothing_more(settings, db):
    await db.all(
        "insert into pgsched.schedules (name, entrypoint, expression, next_run)"
        " values ('d', 'job', '@yearly', now() + interval '1 hour')"
    )
    async with Parts(settings) as parts:
        passes = 0
        real = parts.dispatcher.claim_pass

        async def counted():
            nonlocal passes
            passes += 1
            return await real()

        parts.dispatcher.claim_pass = counted
        parts.kit.wakeups.due.ask()
        running = asyncio.create_task(parts.dispatcher.run())
        await until(parts.dispatcher.passed.is_set)
        store, kit = parts.kit.store, parts.kit
        for _ in range(20):  # the clock's bounds move a little each time
            async with kit.writes.use() as connection:
                before = time.monotonic()
                outlook = await store.claims.read_outlook(connection, kit.worker, ["job"], kit.settings.lookahead)
                kit.clock.observe(outlook.now, before, time.monotonic())
            parts.dispatcher.review(outlook)
            await asyncio.sleep(0)
        assert passes == 1
        await db.all("update pgsched.schedules set next_run = now()")  # no listener here: the resync brings it
        async with kit.writes.use() as connection:
            outlook = await store.claims.read_outlook(connection, kit.worker, ["job"], kit.settings.lookahead)
        parts.dispatcher.review(outlook)
        await until(lambda: parts.taken)
        parts.dispatcher.stop()
        await running


async def test_new_schedules_are_all_planned_without_a_wait_in_between(settings, db, monkeypatch):
    """A thousand at a time: a hundred thousand took as many pauses as there were passes."""
    monkeypatch.setattr(dispatcher_module, "MOST", 10)
    await db.all("select pgsched.create_schedule('n' || n, 'job', '@yearly') from generate_series(1, 25) n")
    async with Parts(settings) as parts:
        for planned, more in ((10, True), (20, True), (25, False)):
            assert await parts.dispatcher.claim_pass() == 0
            assert await db.value("select count(*) from pgsched.schedules where next_run is not null") == planned
            assert (parts.dispatcher.next.at <= time.monotonic()) is more


async def test_schedules_that_cannot_advance_make_no_pass_follow_the_other(settings, db, dsn, monkeypatch):
    """Each has to make way for its next fire time, and somebody has its run locked."""
    monkeypatch.setattr(dispatcher_module, "MOST", 10)
    await db.all(
        "insert into pgsched.schedules (name, entrypoint, expression, next_run, overlap)"
        " select 'b' || n, 'job', '@yearly', now() - interval '1 second', 'cancel' from generate_series(1, 10) n"
    )
    await db.all(
        "insert into pgsched.runs (schedule_id, entrypoint, fire_time, status, attempt, gated, worker, claimed_at,"
        " heartbeat_at) select id, 'job', next_run - interval '1 day', 'running', 1, true,"
        " gen_random_uuid(), now(), now() from pgsched.schedules"
    )
    async with Parts(settings) as parts, await psycopg.AsyncConnection.connect(dsn) as other:
        await other.execute(in_schema(b"select from pgsched.runs for update", settings.schema, parametrised=False))
        assert await parts.dispatcher.claim_pass() == 0
        assert parts.dispatcher.next.taken, "it waits a little: it would spin until the run is let go"
        assert await db.value("select count(*) from pgsched.schedules where next_run <= now()") == 10


async def test_more_than_one_pass_takes_is_all_claimed_ahead(settings, db, monkeypatch):
    monkeypatch.setattr(dispatcher_module, "MOST", 10)
    await db.all(
        "insert into pgsched.schedules (name, entrypoint, expression, next_run)"
        " select 'd' || n, 'job', '@yearly', now() + interval '8 seconds' from generate_series(1, 35) n"
    )
    async with Parts(settings, lookahead="10s") as parts:
        parts.kit.wakeups.due.ask()
        running = asyncio.create_task(parts.dispatcher.run())
        await until(lambda: len(parts.taken) == 35, 5)
        parts.dispatcher.stop()
        await running


async def passes_for(parts, monkeypatch, instants, claims=lambda: 0) -> int:
    """Runs the dispatcher's loop on a clock that goes by itself from one wake-up to the next. Returns how many passes
    there were."""
    now, left, count = 0.0, list(instants), 0
    monkeypatch.setattr(dispatcher_module, "time", SimpleNamespace(monotonic=lambda: now))
    part = parts.dispatcher

    async def wait(event, until):
        nonlocal now
        if left and (until is None or left[0] <= until):
            now = left.pop(0)
            parts.kit.wakeups.due.ask()
        elif until is not None:
            now = until
        else:
            part.stop()

    async def passed():
        nonlocal count
        count += 1
        return claims()

    monkeypatch.setattr(parts.kit.watch, "wait", wait)
    part.claim_pass = passed
    await part.run()
    return count


@pytest.mark.parametrize(
    ("wakes", "claims", "expected"),
    [
        ([n / 300 for n in range(300)], 0, range(35, 46)),
        ([n / 300 for n in range(300)], 1, range(300, 301)),
        ([n * 0.03 for n in range(100)], 0, range(100, 101)),
    ],
    ids=["a storm in vain is paced", "a storm of work is not", "one after a quiet moment is served at once"],
)
async def test_wake_ups(settings, monkeypatch, wakes, claims, expected):
    async with Parts(settings) as parts:
        with monkeypatch.context() as patch:
            count = await passes_for(parts, patch, wakes, lambda: claims)
    assert count in expected


async def test_a_plan_that_takes_longer_than_locks_may_be_held_is_made_all_the_same(settings, db, monkeypatch):
    sc = Scheduler()

    class Slow(Executor):
        async def execute(self, run): ...

        def next_fire_time(self, schedule, after):
            time.sleep(0.3)
            return after + timedelta(hours=1)

    @sc.schedule("job", "@daily", executor=Slow)
    async def job(): ...

    await db.all("insert into pgsched.schedules (name, entrypoint, expression) values ('job @daily', 'job', '@daily')")
    monkeypatch.setattr(kit_module, "LOCKED_FOR", timedelta(milliseconds=100))
    async with Parts(settings, sc) as parts:
        dispatching = asyncio.create_task(parts.dispatcher.run())
        parts.kit.wakeups.due.ask()
        await db.until("select next_run is not null from pgsched.schedules")
        dispatching.cancel()
