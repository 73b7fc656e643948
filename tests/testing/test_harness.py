"""`pgsched.testing`: what an application's tests see of its schedules, on a clock that they move."""

import asyncio
import threading
import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import psycopg
import pytest

from pgsched import Discard, Limits, Retry, RetryLater, Run, Schedule, Scheduler, every
from pgsched.errors import InvalidArguments, NotFound, PgschedError
from pgsched.testing import Harness, SyncHarness

MIDNIGHT = datetime(2031, 6, 2, tzinfo=UTC)  # a Monday
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def hours(*numbers: float) -> list[datetime]:
    return [MIDNIGHT + number * HOUR for number in numbers]


def make(expression: str = "0 * * * *", **options) -> Scheduler:
    """A scheduler with one schedule, `s`."""
    sc = Scheduler(app="tested")

    @sc.schedule("job", expression, name="s", **options)
    async def job(run: Run) -> str:
        return f"{run.fire_time:%H:%M}"

    return sc


async def skips(t: Harness, name: str = "s") -> list[tuple]:
    rows = await t.client.list_runs(name, "skipped")
    return [(row["reason"], row["fire_time"], row["skipped_count"]) for row in reversed(rows)]


async def test_a_day_is_lived_through(dsn):
    async with Harness(make(), dsn, now=MIDNIGHT) as t:
        assert await t.run_due() == []
        runs = await t.run_until(MIDNIGHT + DAY)
        assert [run["fire_time"] for run in runs] == hours(*range(1, 25))
        assert {run["status"] for run in runs} == {"succeeded"}
        assert runs[0]["result"] == "01:00"
        # All instants are the moved clock's.
        for name in ("due_at", "claimed_at", "started_at", "finished_at", "heartbeat_at", "created_at"):
            assert runs[5][name] == MIDNIGHT + 6 * HOUR, name
        assert t.clock.now == await t.client.now() == MIDNIGHT + DAY
        assert await skips(t) == []


@pytest.mark.parametrize(("year", "month", "day", "count"), [(2027, 3, 28, 23), (2027, 10, 31, 25), (2027, 7, 1, 24)])
async def test_daylight_saving(dsn, year, month, day, count):
    """A day has 23, 25 or 24 hours, and what runs at a time of day runs once on each."""
    berlin = ZoneInfo("Europe/Berlin")
    sc = make("@hourly", timezone="Europe/Berlin")
    sc.schedule("job", "30 2 * * *", name="nightly", timezone="Europe/Berlin")(sc.entrypoints["job"].function)
    first = datetime(year, month, day, tzinfo=berlin)
    start, end = first.astimezone(UTC), (first + DAY).astimezone(UTC)  # from midnight to midnight, on the wall clock
    async with Harness(sc, dsn, now=start) as t:
        runs = await t.run_until(end)
        assert sum(run["schedule"] == "s" for run in runs) == count
        assert sum(run["schedule"] == "nightly" for run in runs) == 1


@pytest.mark.parametrize(
    ("catch_up", "options", "runs", "missed"),
    [
        ("latest", {}, [71.0], [("missed", 1, 70)]),
        ("all", {"catch_up_limit": 5}, [67.0, 68.0, 69.0, 70.0, 71.0], [("missed", 1, 66)]),
        ("all", {"catch_up_limit": 500}, [float(n) for n in range(1, 72)], []),
        ("all", {"overlap": "allow", "grace": 2 * HOUR}, [70.0, 71.0], [("missed", 1, 69)]),
        ("none", {}, [], [("missed", 1, 71)]),
    ],
)
async def test_what_three_days_without_a_worker_leave(dsn, catch_up, options, runs, missed):
    async with Harness(make(catch_up=catch_up, **options), dsn, now=MIDNIGHT) as t:
        await t.run_due()
        await t.clock.advance(71.5 * HOUR)
        found = await t.run_due()
        assert sorted(run["fire_time"] for run in found) == hours(*runs)
        assert await skips(t) == [(reason, *hours(first), count) for reason, first, count in missed]
        assert [run["fire_time"] for run in await t.run_until(MIDNIGHT + 73 * HOUR)] == hours(72, 73)


async def test_retries_come_when_the_clock_is_moved(dsn):
    sc = Scheduler(app="tested")

    @sc.entrypoint("job", retry=Retry(attempts=3, backoff=timedelta(minutes=1), jitter=0))
    def job(run: Run) -> int:
        if run.attempt == 2:
            raise RetryLater(3 * HOUR, "the bank is closed")
        if run.attempt < 3:
            raise ConnectionError("no answer")
        return run.attempt

    async with Harness(sc, dsn, now=MIDNIGHT) as t:
        run_id = await t.client.enqueue("job")
        [run] = await t.run_due()
        assert (run["id"], run["status"], run["attempt"]) == (run_id, "queued", 1)
        assert run["due_at"] == MIDNIGHT + timedelta(minutes=1)
        await t.clock.advance(timedelta(seconds=59.999999))
        assert await t.run_due() == []
        await t.clock.advance(timedelta(microseconds=1))
        [run] = await t.run_due()
        assert (run["status"], run["attempt"], run["due_at"] - t.clock.now) == ("queued", 2, 3 * HOUR)
        [run] = await t.run_until(MIDNIGHT + DAY)
        assert (run["status"], run["result"], run["finished_at"]) == (
            "succeeded", 3, MIDNIGHT + 3 * HOUR + timedelta(minutes=1),
        )  # fmt: skip
        assert [error["message"] for error in run["errors"]] == ["no answer", "the bank is closed"]


async def test_jobs_with_a_due_time_a_priority_and_a_key(dsn):
    sc, order = Scheduler(app="tested"), []

    @sc.entrypoint("job")
    async def job(n: int) -> None:
        order.append(n)

    async with Harness(sc, dsn, now=MIDNIGHT) as t:
        await t.client.enqueue("job", {"n": 3}, due_at=MIDNIGHT + 2 * HOUR)
        first = await t.client.enqueue("job", {"n": 2}, due_at=MIDNIGHT + HOUR, unique_key="k")
        assert await t.client.enqueue("job", {"n": 9}, unique_key="k") == first
        await t.client.enqueue_many("job", [{"n": 1}])
        assert len(await t.run_due()) == 1
        await t.run_until(MIDNIGHT + 3 * HOUR)
        assert order == [1, 2, 3]


async def test_overlaps_are_seen_beside_a_run_that_goes_on(dsn):
    sc, gate, stopped = Scheduler(app="tested"), asyncio.Event(), []
    for overlap in ("skip", "queue", "cancel"):

        @sc.schedule(overlap, "@hourly", name=overlap, overlap=overlap)
        async def job(run: Run) -> None:
            if run.fire_time == MIDNIGHT + HOUR:
                try:
                    await gate.wait()
                except asyncio.CancelledError:
                    stopped.append(run.entrypoint)
                    raise

    async with Harness(sc, dsn, now=MIDNIGHT) as t:
        await t.run_due()
        await t.clock.advance(HOUR)
        assert [run["status"] for run in await t.start_due()] == ["running"] * 3
        await t.clock.advance(HOUR)
        await t.run_due()
        assert await skips(t, "skip") == [("overlap", MIDNIGHT + 2 * HOUR, 1)]
        waiting = await t.client.list_runs("queue", "queued")
        assert [run["fire_time"] for run in waiting] == hours(2)
        gate.set()
        runs = await t.settle()
        assert sorted(run["schedule"] for run in runs if run["status"] == "succeeded") == ["queue", "skip"]
        runs = await t.run_due()
        assert stopped == ["cancel"]
        assert ("queue", MIDNIGHT + 2 * HOUR) in [(run["schedule"], run["fire_time"]) for run in runs]
        assert [run["reason"] for run in await t.client.list_runs("cancel", "cancelled")] == [
            "replaced by the next fire time"
        ]
        [second] = await t.client.list_runs("cancel", "succeeded")
        assert second["fire_time"] == MIDNIGHT + 2 * HOUR


async def test_pauses(dsn):
    async with Harness(make(), dsn, now=MIDNIGHT) as t:
        await t.run_due()
        await t.client.pause("s", "holidays", until=MIDNIGHT + 3.5 * HOUR)
        runs = await t.run_until(MIDNIGHT + 5 * HOUR)
        assert [run["fire_time"] for run in runs] == hours(4, 5)
        assert await skips(t) == [("paused", MIDNIGHT + HOUR, 3)]
        await t.client.pause("s")
        assert await t.run_until(MIDNIGHT + 7 * HOUR) == []
        await t.client.resume("s", backlog=True)
        assert [run["fire_time"] for run in await t.run_due()] == hours(7)


async def test_a_pause_that_ended_while_the_clock_was_moved_is_over(dsn):
    async with Harness(make(), dsn, now=MIDNIGHT) as t:
        await t.run_due()
        await t.client.pause("s", until=MIDNIGHT + 1.5 * HOUR)
        await t.run_due()
        await t.clock.advance(2 * HOUR)
        assert [run["fire_time"] for run in await t.run_due()] == hours(2)


async def test_two_passes_at_one_instant_are_still_a_workers_and_no_clients_writes(dsn):
    """What waits for its jitter would be dropped, as what was claimed ahead is when a client changes a schedule."""
    sc = make(catch_up="all", overlap="allow", jitter=timedelta(minutes=30))
    async with Harness(sc, dsn, now=MIDNIGHT) as t:
        await t.run_due()
        await t.clock.advance(150 * HOUR)
        assert len(await t.run_due()) == 149  # a hundred a pass
        [waiting] = await t.client.list_runs("s", "queued")
        assert MIDNIGHT + 150 * HOUR == waiting["fire_time"] < waiting["due_at"]


async def test_fire_runs_one_fire_time_and_nothing_else(dsn):
    sc = make("30 9 * * mon-fri", timezone="Europe/Berlin")
    others = []

    @sc.entrypoint("other")
    async def other() -> None:
        others.append(1)

    at = datetime(2031, 6, 5, 9, 30, tzinfo=ZoneInfo("Europe/Berlin"))
    async with Harness(sc, dsn, now=MIDNIGHT) as t:
        await t.run_due()
        await t.client.enqueue("other")
        run = await t.fire("s", at=at)  # to come
        assert (run["status"], run["fire_time"], run["result"]) == ("succeeded", at, "07:30")
        assert run["previous_fire_time"] == at - DAY
        assert run["started_at"] == t.clock.now == MIDNIGHT
        past = await t.fire("s", at=at - 7 * DAY)
        assert (past["status"], past["fire_time"]) == ("succeeded", at - 7 * DAY)
        assert (await t.fire("s", at=at))["again"] == 1
        triggered = [await t.fire("s") for _ in range(3)]  # at one instant
        assert [run["origin"] for run in triggered] == ["trigger"] * 3
        assert others == []
        # What has run ahead does not run again.
        runs = await t.run_until(at + HOUR)
        assert [run["fire_time"] for run in runs if run["schedule"]] == [at - 3 * DAY, at - 2 * DAY, at - DAY]
        with pytest.raises(InvalidArguments, match=r"is no fire time of 's': there are 2031-06-04 .* and 2031-06-05"):
            await t.fire("s", at=at - HOUR)
        with pytest.raises(NotFound, match='no schedule "nothing"'):
            await t.fire("nothing")


async def test_triggers_of_the_application_do_not_meet_the_fire_time_of_the_same_instant(dsn):
    async with Harness(make(), dsn, now=MIDNIGHT) as t:
        await t.run_until(MIDNIGHT + HOUR)
        await t.client.trigger("s")
        await t.client.trigger("s")
        assert [run["status"] for run in await t.run_due()] == ["succeeded"] * 2


async def test_limits_bounds_and_backfills(dsn):
    sc = make(max_runs=3, starts_at=MIDNIGHT + 2 * HOUR)

    @sc.entrypoint("limited", limits=Limits(starts=2, period=HOUR))
    async def limited() -> None: ...

    async with Harness(sc, dsn, now=MIDNIGHT) as t:
        await t.client.enqueue_many("limited", [{}] * 5)
        assert len(await t.run_due()) == 2
        runs = await t.run_until(MIDNIGHT + 10 * HOUR)
        assert [run["fire_time"] for run in runs if run["schedule"]] == hours(2, 3, 4)
        assert len([run for run in runs if run["entrypoint"] == "limited"]) == 3
        assert (await t.client.get_schedule("s"))["status"] == "finished"
        await t.client.backfill("s", MIDNIGHT + 5 * HOUR, MIDNIGHT + 6 * HOUR)
        assert [run["fire_time"] for run in await t.run_due()] == hours(5, 6)


async def test_real_time_does_not_matter(dsn):
    """Sixty years cost no waiting, and a slow test moves no clock."""
    sc = make(every(timedelta(days=3650)))

    @sc.entrypoint("slow")
    def slow() -> None:
        time.sleep(0.2)

    async with Harness(sc, dsn, now=MIDNIGHT) as t:
        assert len(await t.run_until(MIDNIGHT + 22000 * DAY)) == 6
        await t.client.enqueue("slow")
        [run] = await t.run_due()
        assert run["started_at"] == run["finished_at"] == t.clock.now == MIDNIGHT + 22000 * DAY


async def test_it_starts_at_the_databases_time_and_may_start_in_the_past(dsn):
    async with Harness(make(), dsn) as t:
        with psycopg.connect(dsn) as connection:
            [real] = connection.execute("select clock_timestamp()").fetchone()
        assert timedelta(0) <= real - t.clock.now < timedelta(minutes=1)
    past = datetime(1999, 12, 31, 23, 30, tzinfo=UTC)
    async with Harness(make(), dsn, now=past) as t:
        [run] = await t.run_until(past + HOUR)
        assert (run["fire_time"], run["finished_at"]) == (datetime(2000, 1, 1, tzinfo=UTC),) * 2


async def test_the_clock_goes_back_only_when_told_to(dsn):
    async with Harness(make(), dsn, now=MIDNIGHT) as t:
        await t.run_until(MIDNIGHT + 2 * HOUR)
        with pytest.raises(InvalidArguments, match="say backward=True"):
            await t.clock.move_to(MIDNIGHT)
        with pytest.raises(InvalidArguments, match="datetime with a time zone"):
            await t.clock.move_to(datetime(2032, 1, 1, tzinfo=UTC).replace(tzinfo=None))
        with pytest.raises(InvalidArguments, match="takes a timedelta"):
            await t.clock.advance(60)
        with pytest.raises(InvalidArguments, match="from 2031-06-02 02:00"):
            await t.run_until(MIDNIGHT)
        await t.clock.move_to(MIDNIGHT, backward=True)
        # No fire time runs twice.
        assert [run["fire_time"] for run in await t.run_until(MIDNIGHT + 3 * HOUR)] == hours(3)


async def test_errors_are_told_or_raised(dsn):
    sc = Scheduler(app="tested")

    @sc.entrypoint("job", retry=Retry(attempts=1))
    async def job(how: str) -> None:
        raise {"key": KeyError("x"), "later": RetryLater(1), "discard": Discard("gone"), "exit": SystemExit(3)}[how]

    async with Harness(sc, dsn, now=MIDNIGHT) as t:
        for how, status in {"key": "failed", "later": "failed", "discard": "cancelled", "exit": "failed"}.items():
            await t.client.enqueue("job", {"how": how})
            assert [run["status"] for run in await t.run_due()] == [status]
        for how in ("later", "discard"):
            await t.client.enqueue("job", {"how": how})
            await t.run_due(raise_errors=True)
        await t.client.enqueue("job", {"how": "key"})
        with pytest.raises(KeyError, match="x"):
            await t.run_due(raise_errors=True)
        await t.client.enqueue("job", {"how": "exit"})
        with pytest.raises(RuntimeError, match="job raised SystemExit: 3"):
            await t.run_due(raise_errors=True)
        await t.client.enqueue_many("job", [{"how": "key"}, {"how": "exit"}])
        with pytest.raises(ExceptionGroup, match="Several runs failed"):
            await t.run_due(raise_errors=True)


async def test_what_takes_too_much_real_time_is_named(dsn):
    sc, gate = Scheduler(app="tested"), threading.Event()

    @sc.entrypoint("job")
    def job() -> None:
        gate.wait(30)

    async with Harness(sc, dsn, limit=timedelta(milliseconds=200)) as t:
        await t.client.enqueue("job")
        with pytest.raises(TimeoutError, match=r"after 0.2 s of real time this still runs: job"):
            await t.run_due()
        gate.set()


async def test_a_job_that_enqueues_itself_for_ever_is_noticed(dsn, monkeypatch):
    monkeypatch.setattr("pgsched.testing.harness._MOST", 20)
    sc = Scheduler(app="tested")

    @sc.entrypoint("job")
    async def job() -> None:
        await t.client.enqueue("job")

    async with Harness(sc, dsn) as t:
        await t.client.enqueue("job")
        with pytest.raises(RuntimeError, match="does a job enqueue itself"):
            await t.run_due()


async def test_hooks_are_through_when_a_call_returns(dsn):
    sc, seen = make(), []

    @sc.after_run
    async def after(run: Run, end) -> None:
        seen.append(end.status)

    @sc.on_skip
    def skipped(schedule: Schedule, skip) -> None:
        seen.append((schedule.name, str(skip.reason), skip.count))

    async with Harness(sc, dsn, now=MIDNIGHT) as t:
        await t.run_due()
        await t.clock.advance(3 * HOUR)
        await t.run_due()
    assert sorted(map(str, seen)) == ["('s', 'missed', 2)", "succeeded"]


async def test_a_run_can_be_cancelled_and_what_runs_at_the_end_is_given_back(dsn):
    sc, stopped = Scheduler(app="tested"), []

    @sc.entrypoint("job")
    async def job(run: Run) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.append(run.id)

    async with Harness(sc, dsn) as t:
        first = await t.client.enqueue("job")
        await t.start_due()
        await t.client.cancel(first)
        await t.run_due()
        await t.settle()
        assert (await t.client.get_run(first))["status"] == "cancelled"
        second = await t.client.enqueue("job")
        [run] = await t.start_due()
        assert (run["id"], run["status"], stopped) == (second, "running", [first])
    assert stopped == [first, second]


async def test_schemas_are_dropped_whatever_happens(dsn):
    with pytest.raises(ZeroDivisionError):
        async with Harness(make(), dsn) as t:
            raise ZeroDivisionError
    broken = make()
    broken.settings["stall_timeout"] = "1s"
    with pytest.raises(PgschedError, match="at most a quarter"):
        async with Harness(broken, dsn):
            pass
    with psycopg.connect(dsn) as connection:
        found = connection.execute("select count(*) from pg_namespace where nspname = %s", (t.schema,)).fetchone()
    assert found == (0,)
    with pytest.raises(InvalidArguments, match="takes the Scheduler that the factory returns"):
        Harness(make)


def test_synchronous_tests_need_no_event_loop(dsn):
    with SyncHarness(make(), dsn, now=MIDNIGHT) as t:
        t.client.create_schedule("more", "job", "30 * * * *")
        runs = t.run_until(MIDNIGHT + HOUR)
        assert [run["fire_time"] for run in runs] == hours(0.5, 1)
        t.clock.advance(HOUR)
        assert t.clock.now == MIDNIGHT + 2 * HOUR
        assert len(t.run_due()) == 2
        assert t.fire("more")["status"] == "succeeded"
        with pytest.raises(NotFound):
            t.fire("nothing")
