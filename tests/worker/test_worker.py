"""The daemon end to end, in one process, on a real database."""

import asyncio
import itertools
import os
import threading
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from support.workers import until, working

from pgsched import Executor, Retry, Run, Schedule, Scheduler, at, every
from pgsched.db.statements.statements import in_schema
from pgsched.db.statements.store import Store
from pgsched.rules.outcome import Stop
from pgsched.worker.run import runner as runner_module
from pgsched.worker.run.attempt import Attempt
from pgsched.worker.worker import _write_fresh

SECOND = timedelta(seconds=1)
PAST = datetime(2020, 1, 1, tzinfo=UTC)


def soon(sc: Scheduler, entrypoint: str, **options):
    """A schedule that fires once, at once."""
    return sc.schedule(entrypoint, at(PAST), **options)


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


async def test_injection_by_annotation_and_name(settings, db):
    sc = Scheduler(resources={"answer": 42})

    @soon(sc, "report", args={"format": "pdf"}, name="a")
    async def report(run: Run, format: str, schedule: "Schedule | None", pages: int = 3):
        assert schedule is not None
        return {"format": format, "pages": pages, "name": schedule.name, "answer": run.resources["answer"]}

    @soon(sc, "plain", args={"x": 1})
    async def plain(**anything):
        return anything

    @soon(sc, "nothing")
    async def nothing():
        return None

    async with working(sc, settings):
        await db.until("select count(*) = 3 from pgsched.runs where status = 'succeeded'")
    results = dict(await db.all("select entrypoint, result from pgsched.runs"))
    assert results == {
        "report": {"format": "pdf", "pages": 3, "name": "a", "answer": 42},
        "plain": {"x": 1},
        "nothing": None,
    }


async def test_sync_functions_run_in_threads(settings, db):
    sc = Scheduler()
    loop_thread = threading.get_ident()
    both = threading.Barrier(2, timeout=10)

    def work(run: Run):
        both.wait()  # passes only if two of them run at once
        return threading.get_ident() != loop_thread

    soon(sc, "a")(work)
    soon(sc, "b")(work)
    async with working(sc, settings):
        await db.until("select count(*) = 2 from pgsched.runs where status = 'succeeded' and result = 'true'")


async def test_threads_are_claimed_no_further_than_there_are(settings, db):
    sc = Scheduler()
    gate = threading.Event()

    @sc.entrypoint("slow")
    def slow():
        assert gate.wait(20)

    async with working(sc, settings, max_threads=2):
        await db.all("select pgsched.enqueue('slow') from generate_series(1, 5)")
        await db.until("select count(*) = 2 from pgsched.runs where status = 'running'")
        await db.all("select pgsched.enqueue('slow')")  # wakes the worker, which must not take more
        assert await db.value("select count(*) from pgsched.runs where status = 'running'") == 2
        gate.set()
        await db.until("select count(*) = 6 from pgsched.runs where status = 'succeeded'")


async def test_failed_attempts_are_kept_and_retried(settings, db):
    sc = Scheduler()

    @soon(sc, "bad", retry=Retry(attempts=3, backoff=timedelta(milliseconds=20)))
    async def bad(run: Run):
        secret = "canary"  # noqa: F841 - a local that must not get into the traceback
        if run.attempt < 3:
            raise ValueError(f"attempt {run.attempt} \0 \ud800")
        return "at last"

    async with working(sc, settings):
        await db.until("select count(*) = 1 from pgsched.runs where status = 'succeeded'")
    attempt, errors, result = await db.one("select attempt, errors, result from pgsched.runs")
    assert (attempt, result) == (3, "at last")
    assert [(e["attempt"], e["type"], e["message"]) for e in errors] == [
        (1, "ValueError", "attempt 1 \\x00 \\ud800"),
        (2, "ValueError", "attempt 2 \\x00 \\ud800"),
    ]
    assert "raise ValueError" in errors[0]["traceback"]
    assert "secret =" not in errors[0]["traceback"] and "runner.py" not in errors[0]["traceback"]


async def test_attempts_end(settings, db):
    sc = Scheduler()

    @soon(sc, "bad", retry=Retry(attempts=2, backoff=timedelta(0)))
    async def bad():
        raise RuntimeError("x" * 100_000)

    async with working(sc, settings):
        await db.until("select count(*) = 1 from pgsched.runs where status = 'failed'")
        await db.until("select last_status = 'failed' from pgsched.schedules")
    attempt, errors = await db.one("select attempt, errors from pgsched.runs")
    assert attempt == 2 and len(errors) == 2
    assert len(errors[0]["message"]) == 8192


async def test_arguments_that_do_not_fit_fail_at_once(settings, db):
    sc = Scheduler()

    @sc.entrypoint("mail")
    async def mail(to: str): ...

    async with working(sc, settings):
        await db.all("select pgsched.enqueue('mail', '{\"too\": 1}')")
        await db.until("select count(*) = 1 from pgsched.runs where status = 'failed'")
    attempt, errors = await db.one("select attempt, errors from pgsched.runs")
    assert attempt == 1 and "needs the argument 'to'" in errors[0]["message"]


async def test_timeout_cancels_and_counts_as_an_attempt(settings, db):
    sc = Scheduler()
    cancelled = asyncio.Event()

    @soon(sc, "slow", timeout=timedelta(milliseconds=100), retry=Retry(attempts=1))
    async def slow():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with working(sc, settings):
        await db.until("select count(*) = 1 from pgsched.runs where status = 'failed'")
    assert cancelled.is_set()
    assert (await db.value("select errors -> 0 ->> 'type' from pgsched.runs")) == "Timeout"


async def test_a_thread_that_outlives_its_timeout_is_not_tried_again_beside_itself(settings, db):
    sc = Scheduler()
    gate, calls = threading.Event(), []

    @soon(sc, "slow", timeout=timedelta(milliseconds=50), retry=Retry(attempts=3, backoff=timedelta(0)))
    def slow(run: Run):
        calls.append(run.attempt)
        assert gate.wait(20)

    async with working(sc, settings, cancel_timeout="100ms") as worker:
        await db.until("select count(*) = 1 from pgsched.runs where status = 'failed'")
        assert worker.roster.threads_used == 1, "the thread is still at work"
        gate.set()
    assert calls == [1]


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


async def test_what_jobs_raise_never_ends_the_daemon(settings, db):
    sc = Scheduler()

    class Odd(BaseException):
        def __str__(self):
            raise RuntimeError("no message either")

    for name, error in {
        "exit": SystemExit(3), "interrupt": KeyboardInterrupt(), "stop": StopIteration(),
        "generator": GeneratorExit(), "cancel": asyncio.CancelledError(), "odd": Odd(),
    }.items():  # fmt: skip

        def sync(error=error):
            raise error

        async def plain(error=error):
            raise error

        once = Retry(attempts=1)
        sc.entrypoint(f"sync {name}", retry=once)(lambda error=error: sync(error))
        sc.entrypoint(f"async {name}", retry=once)(plain)
    async with working(sc, settings) as worker:
        for name in sc.entrypoints:
            await db.all("select pgsched.enqueue(%s)", name)
        await db.until("select count(*) = 12 from pgsched.runs where status = 'failed'")
        assert worker.roster.slots_used == 0 and worker.roster.threads_used == 0


async def test_results_that_cannot_be_stored_do_not_undo_the_work(settings, db):
    sc = Scheduler()
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    bad = {
        "object": object(), "nan": float("nan"), "nul": "a\0b", "surrogate": "\ud800", "deep": deep,
        "long": "x" * 300_000, "bytes": b"x",
    }  # fmt: skip
    good = {"text": "\\u0000 ü €", "list": [1, None, {"a": True}], "zero": 0}
    for name, value in {**bad, **good}.items():

        async def give(value=value):
            return value

        sc.entrypoint(name)(give)
    async with working(sc, settings):
        for name in sc.entrypoints:
            await db.all("select pgsched.enqueue(%s)", name)
        await db.until("select count(*) = 10 from pgsched.runs where status = 'succeeded'")
    rows = {r[0]: (r[1], r[2]) for r in await db.all("select entrypoint, result, reason from pgsched.runs")}
    for name in bad:
        assert rows[name][0] is None and "result" in rows[name][1], name
    for name, value in good.items():
        assert rows[name] == (value, None), name


async def test_own_executor_given_as_class_and_as_object(settings, db):
    class Loud(Executor):
        async def execute(self, run: Run):
            return ["loud", await self.call(run)]

    class Quiet(Executor):
        def __init__(self, word: str) -> None:  # does not call the base: it need not know of it
            self.word = word

        async def execute(self, run: Run):
            return [self.word, run.entrypoint]

    sc = Scheduler()

    @soon(sc, "a", executor=Loud)
    def a():
        return 1

    soon(sc, "a", executor=Quiet("quiet"), name="other")(a)
    async with working(sc, settings):
        await db.until("select count(*) = 2 from pgsched.runs where status = 'succeeded'")
        await db.all("select pgsched.enqueue('a')")
        await db.until("select count(*) = 3 from pgsched.runs where status = 'succeeded'")
    results = [r[0] for r in await db.all("select result from pgsched.runs order by result")]
    assert results == [1, ["loud", 1], ["quiet", "a"]]


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


async def test_what_is_claimed_and_cannot_be_taken_is_given_back_and_costs_no_attempt(settings, db, monkeypatch):
    sc = Scheduler()

    @sc.entrypoint("job")
    async def job(): ...

    real, lost = Store.get_schedules, []

    async def dies(self, connection, ids):
        if not lost:
            lost.append(ids)
            connection.pgconn.finish()
            raise psycopg.OperationalError("gone")
        return await real(self, connection, ids)

    monkeypatch.setattr(Store, "get_schedules", dies)
    async with working(sc, settings):
        await db.all("select pgsched.create_schedule('s', 'job', '@yearly', options => '{\"overlap\": \"allow\"}')")
        await db.until("select next_run is not null from pgsched.schedules")  # then nothing else is due
        await db.all("select pgsched.trigger('s')")
        await db.until("select status = 'succeeded' from pgsched.runs")
    assert lost and await db.one("select attempt, errors from pgsched.runs") == (1, [])


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


async def test_a_run_that_is_stopped_before_its_first_step_is_given_back(settings, db, monkeypatch):
    sc = Scheduler()

    @sc.entrypoint("job")
    async def job():
        await asyncio.sleep(60)

    async with working(sc, settings, drain_timeout="0") as worker:
        real = Attempt.start

        def start_and_stop(attempt):
            real(attempt)
            attempt.end(Stop.DRAIN)  # in the same turn of the loop: the task has not begun

        monkeypatch.setattr(Attempt, "start", start_and_stop)
        await db.all("select pgsched.enqueue('job')")
        await db.until("select status = 'queued' and worker is not null from pgsched.runs")
        worker.dispatcher.stop()
    assert worker.roster.attempts == {} and worker.roster.slots_used == 0


async def test_a_lost_run_that_is_claimed_here_again_does_not_end_the_worker(settings, db):
    sc = Scheduler()
    first, release = asyncio.Event(), asyncio.Event()

    @sc.entrypoint("job")
    async def job(run: Run):
        if run.attempt == 1:
            first.set()
            try:
                await asyncio.sleep(60)
            finally:
                await release.wait()  # takes its time to end
        return run.attempt

    async with working(sc, settings) as worker:
        await db.all("select pgsched.enqueue('job')")
        await first.wait()
        await db.all("update pgsched.runs set status = 'queued', worker = null")  # as a reaper elsewhere
        await db.until("select status = 'succeeded' and result = '2' from pgsched.runs")
        release.set()
        await until(lambda: not worker.roster.attempts)
        assert worker.roster.slots_used == 0
        await db.all("select pgsched.enqueue('job')")
        await until(lambda: worker.roster.attempts)


async def test_an_object_that_misbehaves_when_it_is_stored_ends_its_run_only(settings, db):
    class Odd(dict):
        def items(self):
            raise KeyError("odd")

    sc = Scheduler()

    @sc.entrypoint("odd")
    async def odd():
        return Odd(a=1)

    async with working(sc, settings):
        await db.all("select pgsched.enqueue('odd')")
        await db.until("select status = 'succeeded' and reason like '%%not JSON%%' from pgsched.runs")


async def test_a_plan_that_the_database_refuses_makes_only_its_own_schedule_invalid(settings, db):
    sc = Scheduler()

    @sc.entrypoint("job")
    async def job(): ...

    # PostgreSQL counts a month as 30 days here, and Python writes it back as longer than it may be.
    make = "select pgsched.create_schedule(%s, 'job', '@at 2020-01-01T00:00:00Z', options => %s)"
    await db.all(make, "bad", '{"backoff": "101 years"}')
    await db.all(make, "good", "{}")
    async with working(sc, settings):
        await db.until("select status = 'succeeded' from pgsched.runs")
        await db.until("select note like '%%refused%%' from pgsched.schedules where status = 'invalid'")


async def test_a_free_thread_is_used_at_once_beside_async_entrypoints(settings, db):
    sc = Scheduler()

    @sc.entrypoint("async")
    async def other(): ...

    @sc.entrypoint("sync")
    def sync(): ...

    async with working(sc, settings, max_threads=1) as worker:
        await db.all("select pgsched.enqueue('sync') from generate_series(1, 50)")
        await db.until("select count(*) = 50 from pgsched.runs where status = 'succeeded'", limit=8)
        assert worker.roster.threads_used == 0


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


async def test_while_ends_cannot_be_written_no_more_is_claimed_than_may_be_lost(settings, db, monkeypatch):
    monkeypatch.setattr(runner_module, "UNWRITTEN", 30)
    sc = Scheduler()

    @sc.entrypoint("job")
    async def job(): ...

    async with working(sc, settings, max_running=10) as worker:
        async with worker.kit.writes.use():  # ends and beats have to wait
            await db.all("select pgsched.enqueue_many('job', array_fill('{}'::jsonb, array[100]))")
            await until(lambda: worker.runner.room == 0 and not worker.roster.slots_used)
            assert await worker.dispatcher.claim_pass() == 0
            assert worker.finisher.pending == 30
        await db.until("select count(*) = 100 from pgsched.runs where status = 'succeeded'")


def test_a_health_file_replaces_what_was_planted_under_its_names_and_follows_no_link(tmp_path):
    other = tmp_path / "other"
    other.write_text("mine")
    for name in ("health", f"health.{os.getpid()}"):
        (tmp_path / name).symlink_to(other)
    _write_fresh(tmp_path / "health", "1.5\n")
    assert (tmp_path / "health").read_text() == "1.5\n" and not (tmp_path / "health").is_symlink()
    assert other.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["health", "other"]
