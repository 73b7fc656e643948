"""The daemon end to end, in one process, on a real database."""

import asyncio
import itertools
import os
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

import pytest
from structlog.testing import capture_logs
from support.workers import soon, working

from pgsched import Executor, Run, Schedule, Scheduler, every
from pgsched.db.migrate import migrations
from pgsched.worker.worker import _write_fresh

SECOND = timedelta(seconds=1)


async def test_every_second_fires_at_each_second_and_never_early(settings, db):
    sc = Scheduler()
    seen: list[Run] = []

    @sc.schedule("tick", "* * * * * *", name="tick")
    async def tick(run: Run, schedule: Schedule):
        assert schedule.name == "tick"
        seen.append(run)

    async with working(sc, settings):
        await db.until("select count(*) >= 4 from pgsched.runs where status = 'succeeded'")
    # The newest may have been claimed ahead, and was given back then.
    rows = await db.all("select fire_time, started_at, claimed_at from pgsched.runs where attempt = 1 order by 1")
    times = [row[0] for row in rows]
    assert all(b - a == SECOND for a, b in itertools.pairwise(times)), times
    assert all(row[1] >= row[0] for row in rows), "a run started before its fire time"
    assert any(row[2] < row[0] for row in rows), "nothing was claimed ahead"
    assert [run.fire_time for run in seen] == times
    assert [run.previous_fire_time for run in seen] == [None, *times[:-1]]


async def test_a_worker_starts_on_a_newer_schema_that_serves_it(settings, db):
    """An old process that starts again in the middle of a rolling deploy."""
    ours = len(migrations())
    insert = "insert into pgsched.migrations (version, name, checksum, serves) values (%s, 'newer', 'x', %s)"
    await db.all(insert, ours + 1, ours)
    sc = Scheduler()
    sc.schedule("tick", "* * * * * *")(lambda: None)
    with capture_logs() as logs:
        async with working(sc, settings):
            await db.until("select count(*) >= 1 from pgsched.runs where status = 'succeeded'")
            assert await db.value("select schema_version from pgsched.workers") == ours
    [said] = [log for log in logs if log["event"] == "schema_newer"]
    assert (said["version"], said["built_for"]) == (ours + 1, ours)


async def test_executor_may_say_when(settings, db):
    class Often(Executor):
        async def execute(self, run: Run):
            return await self.call(run)

        def next_fire_time(self, schedule: Schedule, after: datetime) -> datetime | None:
            ms = after.microsecond // 250_000 * 250 + 250
            return after.replace(microsecond=0) + timedelta(milliseconds=ms)

    sc = Scheduler()

    @sc.schedule("often", "@yearly", executor=Often)
    async def often(): ...

    async with working(sc, settings):
        await db.until("select count(*) >= 3 from pgsched.runs where status = 'succeeded'")
    times = [r[0] for r in await db.all("select fire_time from pgsched.runs order by 1")]
    assert all(t.microsecond % 250_000 == 0 for t in times)


async def test_overlap_skip_is_recorded_and_allow_is_not(settings, db):
    sc = Scheduler()
    gate = asyncio.Event()

    @sc.schedule("skips", "* * * * * *", overlap="skip", name="skips")
    async def skips():
        await gate.wait()

    @sc.schedule("allows", "* * * * * *", overlap="allow", name="allows")
    async def allows():
        await gate.wait()

    @sc.schedule("two", "* * * * * *", overlap=2, name="two")
    async def two():
        await gate.wait()

    async with working(sc, settings):
        await db.until("select count(*) >= 3 from pgsched.runs where entrypoint = 'allows' and status = 'running'")
        await db.until(
            "select sum(skipped_count) >= 2 from pgsched.runs where entrypoint = 'skips' and status = 'skipped'"
        )
        await db.until("select count(*) >= 1 from pgsched.runs where entrypoint = 'two' and status = 'skipped'")
        running = dict(
            await db.all("select entrypoint, count(*) from pgsched.runs where status = 'running' group by 1")
        )
        assert running["skips"] == 1 and running["two"] == 2 and running["allows"] >= 3
        gate.set()
    reasons = await db.all("select distinct entrypoint, reason from pgsched.runs where status = 'skipped'")
    assert sorted(reasons) == [("skips", "overlap"), ("two", "overlap")]


async def test_missed_fire_times_one_run_and_a_record(settings, db):
    sc = Scheduler()

    @sc.entrypoint("job")
    async def job(run: Run):
        return run.fire_time.isoformat()

    # Five minutes without any worker, as a schedule's next_run tells.
    await db.all(
        "insert into pgsched.schedules (name, entrypoint, expression, next_run, catch_up)"
        " select c, 'job', '* * * * *', date_trunc('minute', now()) - interval '5 minutes', c"
        " from unnest(array['latest', 'none', 'all']) c"
    )
    await db.all("update pgsched.schedules set overlap = 'allow' where name = 'all'")
    before = await db.value("select date_trunc('minute', now())")
    async with working(sc, settings):
        await db.until("select count(*) >= 7 from pgsched.runs where status = 'succeeded'")
    if await db.value("select date_trunc('minute', now())") != before:
        pytest.skip("the minute turned in the middle of it")
    rows = await db.all(
        "select s.name, r.status, count(*), sum(r.skipped_count), max(r.fire_time) from pgsched.runs r"
        " join pgsched.schedules s on s.id = r.schedule_id group by 1, 2 order by 1, 2"
    )
    told = [(r[0], r[1], r[2], r[3]) for r in rows]
    late = await db.value("select now() - %s > interval '10 seconds'", before)
    assert ("all", "succeeded", 6, None) in told
    assert ("latest", "skipped", 1, 5) in told and ("latest", "succeeded", 1, None) in told
    assert late or ("none", "skipped", 1, 5) in told


async def test_drain_gives_back_what_does_not_end(settings, db):
    sc = Scheduler()

    @soon(sc, "slow")
    async def slow():
        await asyncio.sleep(60)

    async with working(sc, settings, drain_timeout="100ms") as worker:
        await db.until("select count(*) = 1 from pgsched.runs where status = 'running'")
    assert worker.given_back == 1
    assert await db.one("select status, attempt, errors from pgsched.runs") == ("queued", 0, [])
    assert await db.value("select count(*) from pgsched.workers") == 0


async def test_a_run_given_back_goes_to_another_worker_at_once(settings, db):
    one, two = Scheduler(), Scheduler()
    done = asyncio.Event()

    @one.entrypoint("slow")
    async def slow():
        await asyncio.sleep(60)

    @two.entrypoint("slow")
    async def quick(run: Run):
        assert run.attempt == 1
        done.set()

    async with working(one, settings, drain_timeout="0") as first:
        await db.all("select pgsched.enqueue('slow')")
        await db.until("select count(*) = 1 from pgsched.runs where status = 'running'")
        # The second worker's resync is off: only the notification of the give-back can wake it.
        async with working(two, settings, resync_interval="0"):
            first.stop()
            async with asyncio.timeout(10):
                await done.wait()
            await db.until("select count(*) = 1 from pgsched.runs where status = 'succeeded'")


async def test_unknown_entrypoints_are_left_for_others(settings, db):
    one, two = Scheduler(), Scheduler()

    @one.entrypoint("one")
    async def first(): ...

    @two.entrypoint("two")
    async def second(): ...

    async with working(one, settings):
        await db.all(
            "select pgsched.create_schedule(n, n, '@at 2020-01-01T00:00:00Z') from unnest('{one,two}'::text[]) n"
        )
        await db.all("select pgsched.enqueue('two')")
        await db.until("select status = 'succeeded' from pgsched.runs where entrypoint = 'one'")
        assert await db.value("select next_run is null and status = 'active' from pgsched.schedules where name = 'two'")
        assert await db.value("select status from pgsched.runs where entrypoint = 'two'") == "queued"
        async with working(two, settings):
            await db.until("select count(*) = 2 from pgsched.runs where entrypoint = 'two' and status = 'succeeded'")


async def test_declared_schedules_are_reconciled_and_others_left_alone(settings, db):
    def version(*declared: tuple[str, str]) -> Scheduler:
        sc = Scheduler(app="app")

        async def job(): ...

        for name, expression in declared:
            sc.schedule("job", expression, name=name)(job)
        return sc

    await db.all("select pgsched.create_schedule('api', 'job', '@yearly')")
    async with working(version(("a", "@yearly"), ("b", "@yearly")), settings):
        pass
    await db.all("update pgsched.schedules set status = 'paused' where name = 'a'")
    async with working(version(("a", "@monthly"), ("api", "@daily")), settings):
        pass
    rows = {r[0]: r[1:] for r in await db.all("select name, expression, status, owner from pgsched.schedules")}
    assert rows == {
        "a": ("@monthly", "paused", "code:app"),  # what an operator paused stays paused
        "b": ("@yearly", "finished", "code:app"),
        "api": ("@yearly", "active", "api"),
    }
    async with working(version(("b", "@yearly")), settings):
        pass
    assert await db.one("select status, retired_at, next_run > now() from pgsched.schedules where name = 'b'") == (
        "active", None, True,
    )  # fmt: skip


async def test_from_ones_own_program(settings, db):
    sc = Scheduler(settings.dsn, schema=settings.schema, drain_timeout=timedelta(seconds=5))

    @sc.schedule("poll", every(timedelta(seconds=1)))
    async def poll():
        sc.shutdown()

    async with asyncio.timeout(20):
        assert await sc.run() == 0
    assert await db.value("select count(*) from pgsched.runs where status = 'succeeded'") == 1


async def test_shutdown_before_and_during_start(settings):
    for turns in (0, 1, 3, 10, 50):
        sc = Scheduler()
        sc.entrypoint("x")(asynccontextmanager)
        task = asyncio.create_task(sc.run(dsn=settings.dsn, schema=settings.schema))
        for _ in range(turns):
            await asyncio.sleep(0)
        sc.shutdown()
        async with asyncio.timeout(20):
            assert await task == 0


def test_a_health_file_replaces_what_was_planted_under_its_names_and_follows_no_link(tmp_path):
    other = tmp_path / "other"
    other.write_text("mine")
    for name in ("health", f"health.{os.getpid()}"):
        (tmp_path / name).symlink_to(other)
    _write_fresh(tmp_path / "health", "1.5\n")
    assert (tmp_path / "health").read_text() == "1.5\n" and not (tmp_path / "health").is_symlink()
    assert other.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["health", "other"]
