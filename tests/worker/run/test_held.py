"""Runs that are claimed ahead of their instant and held until it: changed, cancelled, given back or started."""

import asyncio

import psycopg
import pytest
from support.workers import until, working

from pgsched import Run, Scheduler
from pgsched.db.statements.queries import in_schema


async def test_held_claims_are_given_back_on_drain(settings, db):
    sc = Scheduler()

    @sc.entrypoint("later")
    async def later(): ...

    async with working(sc, settings, lookahead="10s"):
        await db.all(
            "insert into pgsched.schedules (name, entrypoint, expression, next_run)"
            " values ('l', 'later', '@yearly', now() + interval '8 seconds')"
        )
        await db.until("select count(*) = 1 from pgsched.runs where status = 'running'")
    assert await db.one("select status, attempt from pgsched.runs") == ("queued", 0)


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("when", ["while it is held", "as its instant comes"])
async def test_a_held_run_whose_task_somebody_cancels_is_no_failed_attempt_and_holds_no_other_up(
    settings, db, hooked, when
):
    sc = Scheduler()

    @sc.entrypoint("later")
    async def later(): ...

    if hooked:

        @sc.after_run
        async def after(run, end): ...

    async with working(sc, settings, lookahead="10s") as worker:
        await db.all(
            "insert into pgsched.runs (entrypoint, due_at)"
            " select 'later', now() + interval '2 seconds' from generate_series(1, 5)"
        )
        await until(lambda: len(worker.roster.attempts) == 5)
        task = next(iter(worker.roster.attempts.values())).task
        if when == "while it is held":
            task.cancel()
        else:
            asyncio.get_running_loop().call_at(next(iter(worker.runner.held.instants)) - 1e-5, task.cancel)
        await db.until("select count(*) = 5 from pgsched.runs where status = 'succeeded'")
    assert await db.one("select max(attempt), max(errors::text), bool_and(started_at >= due_at) from pgsched.runs") == (
        1, "[]", True,
    )  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        "select pgsched.pause('l')",
        "select pgsched.remove('l')",
        "update pgsched.schedules set expression = '@daily'",
        "update pgsched.schedules set next_run = now() + interval '1 day'",
        "update pgsched.schedules set args = '{\"new\": 1}'",
    ],
)
async def test_a_change_drops_what_was_claimed_ahead(settings, db, change):
    sc = Scheduler()
    started = asyncio.Event()

    @sc.entrypoint("later")
    async def later(**args):
        started.set()

    async with working(sc, settings, lookahead="10s") as worker:
        await db.all(
            "insert into pgsched.schedules (name, entrypoint, expression, next_run)"
            " values ('l', 'later', '@yearly', now() + interval '9 seconds')"
        )
        await db.until("select count(*) = 1 from pgsched.runs where status = 'running'")
        old = await db.value("select id from pgsched.runs")
        await db.all(change)
        await db.until("select not exists (select from pgsched.runs where id = %s)", old)
        await until(lambda: (old, 1) not in worker.roster.attempts, 8)
        if "args" in change:  # the same fire time, claimed again with what it has now
            await db.until("select args = '{\"new\": 1}' from pgsched.runs where status = 'running'")
    assert not started.is_set()


async def test_a_held_run_can_be_cancelled(settings, db):
    sc = Scheduler()

    @sc.entrypoint("later")
    async def later(): ...

    async with working(sc, settings, lookahead="10s"):
        await db.all("select pgsched.enqueue('later', due_at => now() + interval '8 seconds')")
        await db.until("select status = 'running' from pgsched.runs")
        assert await db.value("select pgsched.cancel(id) from pgsched.runs") == "requested"
        await db.until("select status = 'cancelled' from pgsched.runs", limit=5)


HELD = (
    "insert into pgsched.schedules (name, entrypoint, expression, next_run, max_runs)"
    " values ('l', 'later', '@yearly', now() + interval '3 seconds', 1)"
)


def later_scheduler():
    sc = Scheduler()
    starts = []

    @sc.entrypoint("later")
    async def later(run: Run):
        starts.append(run)

    return sc, starts


async def test_the_last_fire_time_survives_a_change_while_it_is_held(settings, db):
    sc, starts = later_scheduler()
    async with working(sc, settings, lookahead="10s"):
        await db.all(HELD)
        await db.until("select status = 'running' from pgsched.runs")
        assert await db.one("select status, run_count from pgsched.schedules") == ("finished", 1)
        await db.all("update pgsched.schedules set priority = 5")
        await db.until("select status = 'succeeded' and priority = 5 from pgsched.runs")
    assert await db.one("select status, run_count, last_run is not null from pgsched.schedules") == (
        "finished",
        1,
        True,
    )
    assert [run.previous_fire_time for run in starts] == [None]


async def test_the_last_fire_time_can_be_paused_while_it_is_held(settings, db):
    sc, starts = later_scheduler()
    async with working(sc, settings, lookahead="10s"):
        await db.all(HELD)
        await db.until("select status = 'running' from pgsched.runs")
        await db.all("select pgsched.pause('l')")
        await db.until("select status = 'paused' and next_run > now() and run_count = 0 from pgsched.schedules")
        await db.until("select now() > next_run + interval '200 ms' from pgsched.schedules")
        await db.all("select pgsched.resume('l')")
        await db.until("select reason = 'paused' from pgsched.runs where status = 'skipped'")
    assert starts == []


async def test_a_change_that_commits_after_the_start_does_not_run_the_fire_time_twice(settings, db, dsn):
    sc, starts = later_scheduler()
    async with working(sc, settings, lookahead="10s"):
        await db.all(HELD)
        await db.until("select status = 'running' from pgsched.runs")
        async with await psycopg.AsyncConnection.connect(dsn) as other:
            change = b"update pgsched.schedules set priority = 7"
            await other.execute(in_schema(change, settings.schema, parametrised=False))
            await until(lambda: starts, 8)
            await other.commit()
        await db.until("select status = 'succeeded' from pgsched.runs")
    assert len(starts) == 1
    assert await db.one("select status, next_run from pgsched.schedules") == ("finished", None)


def fire_late(runner):
    """The one instant that is waited for, within ten seconds, comes now. The claims were last confirmed long ago."""
    [(instant, due)] = runner.held.instants.items()
    for attempt in due[1]:
        attempt.asked_at -= 100
    due[0].cancel()
    runner.held.start(instant)


async def test_a_held_run_whose_instant_is_long_gone_is_asked_about_first(settings, db):
    sc, starts = later_scheduler()
    async with working(sc, settings, lookahead="10s", heartbeat_interval="10s", stall_timeout="60s") as worker:
        await db.all(HELD)
        await db.until("select status = 'running' from pgsched.runs")
        live, = worker.roster.attempts.values()  # fmt: skip
        # Taken away without a word to us; then the loop wakes up late.
        await db.all("update pgsched.runs set worker = gen_random_uuid() where id = %s", live.claimed.id)
        fire_late(worker.runner)
        await until(lambda: not worker.roster.attempts)
        assert starts == []
        await db.all("update pgsched.runs set status = 'queued', attempt = 0")
        await until(lambda: worker.roster.attempts)
        fire_late(worker.runner)  # and this one is still ours
        await until(lambda: starts)
