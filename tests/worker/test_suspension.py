"""A worker whose wall clock is wrong or stepped, whose machine sleeps, whose database's clock is set."""

import asyncio
import itertools
import uuid
from datetime import timedelta

import psycopg
import pytest
from structlog.testing import capture_logs
from support.workers import QUICK, Elapsed, reap, until, working
from support.worlds import HOUR, World, make_skewed, skewed

from pgsched import Run, Scheduler
from pgsched.db.statements.queries import Queries
from pgsched.worker.clocks import TURN, Watch
from pgsched.worker.kit import Kit
from pgsched.worker.run.roster import Roster
from pgsched.worker.run.surroundings import State
from pgsched.worker.upkeep.reaper import Reaper

QUICK_TURN = 0.05
NO_TURN = 600.0  # nobody compares the clocks by the way
SLOW_BEAT = {"heartbeat_interval": "60s", "stall_timeout": "600s"}
TAKEN = f"update pgsched.runs set worker = '{uuid.uuid4()}', attempt = 2, heartbeat_at = clock_timestamp()"
IN_AN_HOUR = skewed(
    "insert into pgsched.schedules (name, entrypoint, expression, next_run)"
    " values ('s', 'job', '@yearly', now() + interval '1 hour')"
)
SOON = skewed(
    "insert into pgsched.schedules (name, entrypoint, expression, next_run)"
    " values ('s', 'job', '@yearly', now() + interval '2 seconds') returning next_run"
)


@pytest.fixture
def schema(dsn, monkeypatch):
    """A schema and statements that read a clock which the test can move."""
    name = f"skewed {uuid.uuid4().hex[:8]}"
    texts = {query: skewed(text.decode()).encode() for query, text in Queries.texts().items()}
    monkeypatch.setattr(Queries, "texts", staticmethod(lambda: texts))
    make_skewed(dsn, name)
    yield name
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f'drop schema "{name}" cascade')


@pytest.fixture(params=[True, False], ids=["boottime", "wall only"])
def world(dsn, schema, request):
    """A machine that has a clock which counts suspension, and one that has not: there the wall clock is the hint."""
    world = World(dsn, schema, has_boottime=request.param)
    yield world
    world.close()


def app():
    """A job that counts its starts, and waits for a gate where there is one."""
    sc = Scheduler()
    sc.started = []
    sc.cancelled = 0
    sc.gate = None

    @sc.entrypoint("job")
    async def job(run: Run):
        sc.started.append(run)
        try:
            if sc.gate is not None:
                await sc.gate.wait()
        except asyncio.CancelledError:
            sc.cancelled += 1
            raise

    return sc


async def held(worker):
    """Waits for a run that is claimed and not started."""
    await until(lambda: any(live.state is State.HELD for live in worker.roster.attempts.values()))
    return next(iter(worker.roster.attempts.values()))


async def done_in_time(db, count=1):
    """Waits for the runs' ends: each started at or after its instant, by the database's clock, and soon after."""
    await db.until("select count(*) = %s from pgsched.runs where status = 'succeeded'", count)
    for due, started, finished in await db.all("select due_at, started_at, finished_at from pgsched.runs"):
        assert timedelta(0) <= started - due < timedelta(seconds=10)
        assert started <= finished


@pytest.mark.parametrize("resync", ["0", "60s"])
async def test_a_fire_time_that_comes_while_the_machine_sleeps_runs_as_soon_as_it_wakes(settings, db, world, resync):
    sc = app()
    await db.all(IN_AN_HOUR)
    with capture_logs() as logs:
        async with working(sc, settings, watch=Watch(world, QUICK_TURN), resync_interval=resync) as worker:
            await until(lambda: worker.dispatcher.next.at is not None)
            world.suspend()
            await done_in_time(db)
    [told] = [entry for entry in logs if entry["event"] == "clocks_jumped"]
    assert told["slept_s"] == pytest.approx(HOUR if world.has_boottime else 0, abs=1)
    assert len(sc.started) == 1


@pytest.mark.parametrize("turn", [QUICK_TURN, NO_TURN], ids=["seen before the timer", "seen by the timer"])
async def test_a_run_that_was_taken_while_its_holder_slept_is_not_started(settings, db, world, turn):
    sc = app()
    await db.all(SOON)
    async with working(sc, settings, watch=Watch(world, turn), lookahead="5s", **SLOW_BEAT) as worker:
        live = await held(worker)
        world.suspend(HOUR, TAKEN)
        await until(lambda: not worker.roster.attempts)
        assert live.started_at is None
    assert sc.started == []
    assert await db.one("select attempt, started_at, status from pgsched.runs") == (2, None, "running")


@pytest.mark.parametrize("turn", [QUICK_TURN, NO_TURN], ids=["seen before the timer", "seen by the timer"])
async def test_a_run_that_nobody_took_while_its_holder_slept_is_asked_about_and_runs_once(settings, db, world, turn):
    sc = app()
    await db.all(SOON)
    async with working(sc, settings, watch=Watch(world, turn), lookahead="5s", **SLOW_BEAT) as worker:
        await held(worker)
        world.suspend()
        await db.until("select count(*) = 1 from pgsched.runs where status = 'succeeded'")
    assert len(sc.started) == 1
    started, late = await db.one("select started_at, started_at - due_at from pgsched.runs")
    assert timedelta(minutes=59) < late < timedelta(minutes=61), "it is stamped with the hour that it is now"
    assert started is not None


async def test_a_suspension_at_the_end_of_the_pass_that_claimed_is_noticed_before_the_start(settings, db, world):
    sc = app()
    async with working(sc, settings, watch=Watch(world, NO_TURN), **SLOW_BEAT) as worker:
        take = worker.runner.take

        def late(runs, asked_at=None):
            if runs:  # its commit was answered, and then the lid was closed
                world.suspend(HOUR, TAKEN)
            take(runs, asked_at)

        worker.runner.take = late
        await db.all("select pgsched.enqueue('job')")
        await db.until("select attempt = 2 from pgsched.runs")
        await until(lambda: not worker.roster.attempts)
    assert sc.started == []


async def test_a_run_that_was_taken_while_the_machine_slept_is_cancelled_at_once(settings, db, world):
    sc = app()
    async with working(sc, settings, watch=Watch(world, QUICK_TURN), **SLOW_BEAT) as worker:
        sc.gate = asyncio.Event()
        await db.all("select pgsched.enqueue('job')")
        await until(lambda: sc.started)
        world.suspend(HOUR, TAKEN)
        await until(lambda: sc.cancelled, 10)  # a beat would be due in a minute
        await until(lambda: not worker.roster.attempts)
    assert await db.one("select attempt, status from pgsched.runs") == (2, "running")


async def test_a_run_that_ends_as_the_machine_wakes_is_stamped_with_the_hour_that_it_is(settings, db, world):
    sc = app()
    async with working(sc, settings, watch=Watch(world, NO_TURN), **SLOW_BEAT):
        sc.gate = asyncio.Event()
        await db.all("select pgsched.enqueue('job')")
        await until(lambda: sc.started)
        world.suspend()
        sc.gate.set()
        await db.until("select count(*) = 1 from pgsched.runs where status = 'succeeded'")
    took = await db.value("select finished_at - started_at from pgsched.runs")
    assert timedelta(minutes=59) < took < timedelta(minutes=61)


@pytest.mark.parametrize("hours", [1, -1])
async def test_a_wall_clock_that_is_off_and_steps_changes_nothing(settings, db, world, hours):
    sc = Scheduler()
    seen: list[Run] = []

    @sc.schedule("tick", "* * * * * *")
    async def tick(run: Run):
        seen.append(run)

    world.wall_off = hours * HOUR
    async with working(sc, settings, watch=Watch(world, QUICK_TURN)) as worker:
        for step in (-2 * hours, 2 * hours, 0.001, -hours):
            count = len(seen)
            world.wall_off += step * HOUR
            await until(lambda count=count: len(seen) > count)
        assert worker.kit.clock.known
    rows = await db.all("select fire_time, started_at, attempt from pgsched.runs where attempt = 1 order by 1")
    assert all(b[0] - a[0] == timedelta(seconds=1) for a, b in itertools.pairwise(rows))
    assert all(timedelta(0) <= started - fired < timedelta(seconds=1) for fired, started, _ in rows)
    assert [run.fire_time for run in seen] == [row[0] for row in rows]


async def test_the_databases_clock_set_forward_is_noticed_by_the_resync(settings, db, world):
    sc = app()
    await db.all(IN_AN_HOUR)
    async with working(sc, settings, watch=Watch(world, NO_TURN), resync_interval="0") as worker:
        world.step_database(HOUR)
        assert sc.started == []
        await worker.listener.resync()
        await done_in_time(db)


async def test_the_databases_clock_set_back_puts_off_what_is_held(settings, db, world):
    sc = app()
    fire_time = (await db.one(SOON))[0]
    async with working(sc, settings, watch=Watch(world, NO_TURN), lookahead="5s", **SLOW_BEAT) as worker:
        live = await held(worker)
        instants = worker.runner.held.instants
        [before] = instants
        world.step_database(-HOUR)
        await worker.listener.resync()
        await until(lambda: set(instants) - {before})
        [instant] = set(instants) - {before}
        assert instant - asyncio.get_running_loop().time() > HOUR - 5
        assert live.state is State.HELD
        world.step_database(HOUR)
        await worker.listener.resync()
        await db.until("select count(*) = 1 from pgsched.runs where status = 'succeeded'")
    assert [run.fire_time for run in sc.started] == [fire_time]
    assert await db.value("select started_at >= due_at from pgsched.runs")


async def test_a_reaper_that_slept_does_not_take_silence_for_death(settings, db, world):
    """As on a laptop: the database's host, this worker and the other one slept, and this one is up first."""
    kit = Kit.build(Scheduler(), settings.merged(QUICK, "test"), Watch(world, NO_TURN), Elapsed())
    reaper = Reaper(kit, Roster(kit.settings))
    kit.watch.subscribe(lambda jump: reaper.distrust())
    world.step_database(HOUR)  # so that the server has been up for long
    kit.watch.look()
    await db.all(skewed(
        "insert into pgsched.runs (entrypoint, status, attempt, max_attempts, worker, claimed_at, heartbeat_at)"
        " values ('job', 'running', 1, 3, gen_random_uuid(), now(), now())"
    ))  # fmt: skip
    try:
        world.suspend()
        await reap(reaper, kit, rested=False)
        assert await db.value("select status from pgsched.runs") == "running"
        # Nor is one that really died forgotten: once the owners had time to beat, silence counts again.
        await reap(reaper, kit)
        assert await db.value("select status from pgsched.runs") == "queued"
    finally:
        await kit.control.discard()
        await kit.writes.discard()


@pytest.mark.parametrize("silent", ["due", "resync"])
async def test_one_that_notices_has_the_dispatcher_and_the_listener_look_at_once(
    settings, db, world, silent, monkeypatch
):
    """Nobody else compares the clocks. Each of the two is enough to find what came due, should the other fail."""
    sc = app()
    await db.all(IN_AN_HOUR)
    async with working(sc, settings, watch=Watch(world, NO_TURN), **SLOW_BEAT) as worker:
        await until(lambda: worker.dispatcher.next.at is not None)
        monkeypatch.setattr(getattr(worker.kit.wakeups, silent), "ask", lambda: None)
        world.suspend()
        assert worker.kit.watch.look()
        await until(lambda: sc.started)


async def test_one_that_notices_has_the_reaper_distrust_silence(settings, db, world):
    sc = app()
    async with working(
        sc, settings, watch=Watch(world, NO_TURN), heartbeat_interval="2s", stall_timeout="8s"
    ) as worker:
        world.step_database(HOUR)  # so that the server has been up for long
        await db.all(skewed(
            "insert into pgsched.runs (entrypoint, status, attempt, max_attempts, worker, claimed_at, heartbeat_at)"
            " values ('other', 'running', 1, 3, gen_random_uuid(), now(), now())"
        ))  # fmt: skip
        worker.kit.elapsed.advance(3600)  # it has got over its own start
        world.suspend(9)  # longer than the stall timeout, and shorter than the gap between looks that is an outage
        assert worker.kit.watch.look()
        await reap(worker.reaper, worker.kit, rested=False)
        assert await db.value("select status from pgsched.runs") == "running"
        await reap(worker.reaper, worker.kit)
        assert await db.value("select status from pgsched.runs") == "queued"


async def test_no_sleep_of_an_idle_worker_is_longer_than_a_turn(settings, db, world, monkeypatch):
    sc = app()
    await db.all(IN_AN_HOUR)
    loop, timers = asyncio.get_running_loop(), []
    real = loop.call_at
    monkeypatch.setattr(loop, "call_at", lambda *args, **named: (timers.append(real(*args, **named)), timers[-1])[1])
    async with working(sc, settings, resync_interval="0", **SLOW_BEAT) as worker:
        sc.gate = asyncio.Event()
        await db.all("select pgsched.enqueue('job')")
        await until(lambda: sc.started)
        await worker.heartbeat.beat()
        await until(lambda: worker.dispatcher.next.at is not None)
        await asyncio.sleep(0.1)
        left = [timer.when() - loop.time() for timer in timers if not timer.cancelled() and timer.when() > loop.time()]
        assert len(left) >= 3, "dispatcher, heartbeat and listener sleep"
        assert max(left) <= TURN
        sc.gate.set()
