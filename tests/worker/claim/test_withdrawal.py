"""A schedule changes while a fire time of it is claimed and has not begun: the holder answers, and nothing else does.

Nothing here waits for an instant: the fire time is some seconds ahead, within the lookahead, and whether its function
was called is what the holder's beat says. `anna` holds the claim, `ben` is another worker.
"""

import asyncio
import itertools

import psycopg
import pytest
from support.withdrawals import AHEAD, CHANGES, ROWS, begun, change, claimed, looks
from support.workers import Parts, reap, until, working

from pgsched import Run, Scheduler
from pgsched.db.statements.queries import in_schema
from pgsched.model import Claim, Outcome, RunStatus
from pgsched.worker.upkeep.reaper import Reaper
from pgsched.worker.wakeups import Wakeup

RUNS_AGAIN = {
    "alter", "plain update", "remove and make again", "retime", "retime, remove and make again",
    "truncate and make again", "remove, make again and retime",
}  # fmt: skip


SHAPES = [*itertools.product(["skip", "queue", "allow", "cancel", "2"], ["latest"]), ("skip", "all"), ("skip", "none")]


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize(("overlap", "catch_up"), SHAPES)
async def test_a_claim_that_has_not_begun_is_dropped_by_its_holder(settings, db, name, overlap, catch_up):
    async with Parts(settings, lookahead=AHEAD) as anna, Parts(settings, lookahead=AHEAD) as ben:
        at = await claimed(db, anna, overlap, catch_up)
        await change(db, name, at)
        assert await looks(ben) == 0, "until the holder answers nobody plans the schedule"
        assert len(await db.all(ROWS)) == 1
        assert await anna.answer() == 1
        assert await anna.answer() == 0
        assert await looks(ben) == (1 if name in RUNS_AGAIN else 0)
        rows = await db.all(ROWS)
        assert [row[0] for row in rows] == (["running"] if name in RUNS_AGAIN else [])
        if name == "alter":
            assert rows[0][1] == {"v": 1}
        if name == "pause":
            assert await db.value("select next_run > now() and run_count = 0 from pgsched.schedules")


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize(("overlap", "catch_up"), SHAPES)
async def test_a_run_that_has_begun_before_its_holder_hears_of_a_change_goes_on(settings, db, name, overlap, catch_up):
    async with Parts(settings, lookahead=AHEAD) as anna, Parts(settings, lookahead=AHEAD) as ben:
        at = await claimed(db, anna, overlap, catch_up)
        await change(db, name, at)
        assert await looks(ben) == 0
        await begun(anna)
        assert await looks(ben) == 0
        assert await db.all(ROWS) == [("running", {}, True)], "one call, one row, and no skip of the same fire time"
        [run] = anna.taken
        end = Outcome(Claim(run.id, run.token, anna.kit.worker), RunStatus.SUCCEEDED)
        async with anna.kit.writes.use() as connection:
            assert len(await anna.kit.store.runs.finish_runs(connection, anna.kit.worker, [end], None)) == 1
        assert await looks(ben) == 0
        if name == "pause":
            await db.all("select pgsched.resume('s')")
            assert await looks(ben) == 0
        assert await db.all(ROWS) == [("succeeded", {}, True)]


@pytest.mark.parametrize("name", ["alter", "plain update", "pause", "remove"])
@pytest.mark.parametrize("constraints", [False, True])
async def test_a_change_that_commits_late(settings, db, dsn, name, constraints):
    """Also a commit that waits for a standby, and an update of many rows: they are seen as late by all others."""
    async with (
        Parts(settings, lookahead=AHEAD) as anna,
        Parts(settings, lookahead=AHEAD) as ben,
        await psycopg.AsyncConnection.connect(dsn) as client,
    ):
        at = await claimed(db, anna)
        for statement in CHANGES[name].replace("{at}", f"'{at}'").split("; "):
            await client.execute(in_schema(statement.encode(), settings.schema, parametrised=False))
        if constraints:
            await client.execute("set constraints all immediate")
        assert set((await begun(anna)).values()) == {0}, "nobody has heard of it"
        await client.commit()
        assert await looks(ben) == 0
        assert await db.all(ROWS) == [("running", {}, True)]


async def test_a_change_that_comes_after_a_beat_was_answered_is_written_by_the_next(settings, db, monkeypatch):
    """The holder was sure of its claim, begins, and hears of the change after that."""
    sc, starts = Scheduler(), []

    @sc.entrypoint("job")
    async def job(run: Run):
        starts.append(run)
        await go.wait()

    go = asyncio.Event()
    async with (
        working(sc, settings, lookahead="10s", heartbeat_interval="10s", stall_timeout="60s") as worker,
        Parts(settings, lookahead="10s") as ben,
    ):
        await db.all(
            "insert into pgsched.schedules (name, entrypoint, expression, next_run, max_runs)"
            " values ('s', 'job', '@yearly', now() + interval '1500 ms', 1)"
        )
        await db.until("select count(*) = 1 from pgsched.runs where status = 'running'")
        monkeypatch.setattr(
            Wakeup, "ask", lambda hint: None
        )  # notifications are on their way for as long as the test wants
        await db.all(CHANGES["alter"])
        assert await looks(ben) == 0
        await until(lambda: starts)
        assert await looks(ben) == 0
        monkeypatch.undo()
        worker.kit.wakeups.beat.ask()
        await db.until("select started_at is not null from pgsched.runs")
        assert await looks(ben) == 0
        go.set()
        await db.until("select status = 'succeeded' from pgsched.runs")
    assert len(starts) == 1


async def test_a_holder_hears_at_once_and_the_change_takes_effect(settings, db):
    sc, starts = Scheduler(), []

    @sc.entrypoint("job")
    async def job(run: Run, v: int = 0):
        starts.append(run.args)

    async with working(sc, settings, lookahead="10s"):
        await db.all(
            "insert into pgsched.schedules (name, entrypoint, expression, next_run, max_runs)"
            " values ('s', 'job', '@yearly', now() + interval '2 s', 1)"
        )
        await db.until("select count(*) = 1 from pgsched.runs where status = 'running'")
        await db.all(CHANGES["alter"])
        await db.until("select count(*) = 1 from pgsched.runs where status = 'running' and args <> '{}'")
        await db.until("select count(*) = 1 from pgsched.runs where status = 'succeeded'")
    assert starts == [{"v": 1}]


@pytest.mark.parametrize("name", CHANGES)
async def test_a_reaper_answers_for_a_dead_holder(settings, db, name):
    async with Parts(settings, lookahead=AHEAD) as anna, Parts(settings, lookahead=AHEAD, stall_timeout="3s") as ben:
        at = await claimed(db, anna)
        await change(db, name, at)
        assert await looks(ben) == 0
        await db.all("update pgsched.runs set heartbeat_at = now() - interval '1 hour'")
        await reap(Reaper(ben.kit, ben.roster), ben.kit)
        status, withdrawn, lost = await db.one(
            "select status, withdrawn_at is not null, errors -> 0 ->> 'type' from pgsched.runs"
        )
        goes_on = name in {"alter", "plain update"}
        assert (status, withdrawn, lost) == ("queued" if goes_on else "cancelled", not goes_on, "WorkerLost")
        if name == "alter":
            assert await db.value("select args from pgsched.runs") == {"v": 1}
        if name == "pause":
            assert await db.value("select next_run > now() and run_count = 0 from pgsched.schedules")
        assert await looks(ben, 3) == (1 if name in RUNS_AGAIN else 0)
        assert await db.value("select count(*) from pgsched.runs where status = 'running'") == (name in RUNS_AGAIN)


async def test_a_held_run_that_is_given_back_by_a_drain_does_not_outlive_a_pause(settings, db):
    """The holder stops before it hears of the change: what it gives back is looked at beside the schedule."""
    async with Parts(settings, lookahead=AHEAD) as anna, Parts(settings, lookahead=AHEAD) as ben:
        await claimed(db, anna, "allow")
        await db.all(CHANGES["pause"])
        [run] = anna.taken
        claim = Claim(run.id, run.token, anna.kit.worker)
        async with anna.kit.writes.use() as connection:
            await anna.kit.store.runs.give_back_runs(connection, anna.kit.worker, [claim])
        assert await looks(ben) == 0
        assert await db.all(ROWS) == []


async def test_a_give_back_waits_for_no_client(settings, db, dsn):
    async with Parts(settings, lookahead=AHEAD) as anna, await psycopg.AsyncConnection.connect(dsn) as client:
        await claimed(db, anna)
        await db.all(CHANGES["alter"])
        await client.execute(
            in_schema(b"select from pgsched.schedules for update", settings.schema, parametrised=False)
        )
        [run] = anna.taken
        back = Outcome(Claim(run.id, run.token, anna.kit.worker), RunStatus.QUEUED, refund=True, unbegun=True)
        async with asyncio.timeout(5):
            answers = await anna.finisher.send([back])
        assert [int(landing) for landing in answers.values()] == [0], "tried again once the lock is gone"
        await client.rollback()
        assert [int(x) for x in (await anna.finisher.send([back])).values()] == [1]


async def test_a_pause_that_ends_before_the_holder_answers_is_recorded_as_one(settings, db):
    async with Parts(settings, lookahead=AHEAD) as anna, Parts(settings, lookahead=AHEAD) as ben:
        await claimed(db, anna)
        await db.all(CHANGES["pause"])
        # The instant has passed meanwhile, as far as the rows say; the holder stood still.
        await db.all(
            "update pgsched.schedules set expression = '@at 2020-01-01T00:00:00Z', planned_at = clock_timestamp(),"
            " paused_at = '2019-01-01Z', created_at = '2018-01-01Z', timed_at = '2018-01-01Z',"
            " accounted_through = '2020-01-01Z'"
        )
        await db.all("update pgsched.runs set fire_time = '2020-01-01Z', due_at = '2020-01-01Z'")
        await db.all("select pgsched.resume('s')")
        assert await looks(ben) == 0
        assert await anna.answer() == 1
        assert await looks(ben) == 0
    assert await db.all("select status, reason, detail from pgsched.runs") == [("skipped", "paused", "audit")]
