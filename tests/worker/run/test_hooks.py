"""Hooks see what happens to runs, and can do nothing to them."""

import asyncio
import contextlib
import contextvars
import threading
from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs
from support.workers import until, working

from pgsched import RegistrationError, Retry, Run, RunEnd, RunFailure, Schedule, Scheduler, Skip
from pgsched.hooks import Hooks
from pgsched.model import SkipReason
from pgsched.worker.run.hook_calls import Caller, SkipHooks

NONE = timedelta(0)
USER: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")
TENANT: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="none")


def ended(number: int) -> str:
    return f"select count(*) = {number} from pgsched.runs where status in ('succeeded', 'failed', 'cancelled')"


async def test_they_surround_the_function_and_share_its_context(settings, db, client):
    sc, seen = Scheduler(), []
    tokens = {}

    @sc.before_run
    async def enter(run: Run) -> None:
        tokens[run.id] = USER.set(f"user of {run.id}")
        seen.append((run.entrypoint, "enter"))

    @sc.before_run
    def tenant(run: Run) -> None:
        assert threading.current_thread() is not threading.main_thread()
        TENANT.set(USER.get().replace("user", "tenant"))
        seen.append((run.entrypoint, "tenant"))

    @sc.after_run
    async def leave(run: Run, end: RunEnd) -> None:
        USER.reset(tokens[run.id])
        seen.append((run.entrypoint, "leave", end.status, end.result, end.error, end.landed, end.retry_in, USER.get()))

    @sc.after_run
    def late(run: Run, end: RunEnd) -> None:
        assert end.duration >= NONE
        seen.append((run.entrypoint, "late"))

    @sc.entrypoint("loop")
    async def loop(run: Run) -> list[str]:
        return [USER.get(), TENANT.get()]

    @sc.entrypoint("thread")
    def thread(run: Run) -> list[str]:
        return [USER.get(), TENANT.get()]

    async with working(sc, settings):
        for entrypoint in ("loop", "thread"):
            run_id = await client.enqueue(entrypoint)
            await until(lambda: seen and seen[-1][1] == "late")
            result = [f"user of {run_id}", f"tenant of {run_id}"]
            assert seen == [
                (entrypoint, "enter"), (entrypoint, "tenant"),
                (entrypoint, "leave", "succeeded", result, None, True, None, "nobody"), (entrypoint, "late"),
            ]  # fmt: skip
            # It is recorded by then.
            assert await db.value("select status from pgsched.runs where id = %s", run_id) == "succeeded"
            seen.clear()


async def test_failures_tell_whether_they_are_final(settings, db, client):
    sc, told = Scheduler(), []

    @sc.on_failure
    def failed(run: Run, failure: RunFailure) -> None:
        told.append((run.attempt, type(failure.error).__name__, str(failure.error), failure.final, failure.retry_in))

    @sc.after_run
    def after(run: Run, end: RunEnd) -> None:
        told.append((run.attempt, end.status, end.retry_in))

    @sc.entrypoint("broken", retry=Retry(attempts=2, backoff=NONE))
    async def broken() -> None:
        raise OSError("no disk")

    @sc.entrypoint("slow", retry=Retry(attempts=1), timeout=timedelta(milliseconds=50))
    async def slow() -> None:
        await asyncio.Event().wait()

    async with working(sc, settings):
        await client.enqueue("broken")
        await until(lambda: len(told) == 4)
        assert told == [
            (1, "OSError", "no disk", False, NONE), (1, "queued", NONE),
            (2, "OSError", "no disk", True, None), (2, "failed", None),
        ]  # fmt: skip
        told.clear()
        await client.enqueue("slow")
        await until(lambda: len(told) == 2)
        assert told == [(1, "TimeoutError", "ran longer than its timeout of 0.05 s", True, None), (1, "failed", None)]


ERRORS = [
    RuntimeError("x"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit(),
    ExceptionGroup("g", [ValueError()]), StopIteration(),
]  # fmt: skip


async def test_what_they_raise_is_logged_and_goes_no_further(settings, db, client):
    sc, after = Scheduler(), []

    def raising(error: BaseException, asynchronous: bool):
        async def in_task(*_: object) -> None:
            raise error

        def in_thread(*_: object) -> None:
            raise error

        return in_task if asynchronous else in_thread

    for error in ERRORS:
        for asynchronous in (True, False):
            sc.before_run(raising(error, asynchronous))
            sc.after_run(raising(error, asynchronous))
            sc.on_failure(raising(error, asynchronous))

    @sc.before_run
    async def suicidal(run: Run) -> None:
        asyncio.current_task().cancel()
        await asyncio.sleep(0)

    @sc.before_run
    def forgotten(run: Run):  # its coroutine is never awaited
        return asyncio.sleep(0)

    @sc.after_run
    async def last(run: Run, end: RunEnd) -> None:
        after.append((run.entrypoint, end.status))

    @sc.entrypoint("good")
    async def good() -> None: ...

    @sc.entrypoint("bad", retry=Retry(attempts=1))
    def bad() -> None:
        raise LookupError

    with capture_logs() as logs:
        async with working(sc, settings):
            await client.enqueue("good")
            await client.enqueue("bad")
            await until(lambda: len(after) == 2)
    assert sorted(after) == [("bad", "failed"), ("good", "succeeded")]
    failed = [entry for entry in logs if entry["event"] == "hook_failed"]
    kinds = [entry["kind"] for entry in failed]
    assert (kinds.count("before_run"), kinds.count("after_run"), kinds.count("on_failure")) == (32, 28, 14)
    assert {entry["error"] for entry in failed} >= {"RuntimeError", "SystemExit", "KeyboardInterrupt", "TypeError"}
    assert any(entry["hook"].endswith("raising.<locals>.in_thread") for entry in failed)
    assert any(entry.get("at", "").startswith("test_hooks.py:") for entry in failed)


@pytest.mark.parametrize("kind", ["waits", "swallows", "blocks"])
async def test_one_that_hangs_is_left_behind_and_rests_until_it_is_back(settings, db, client, kind):
    sc, calls, gate = Scheduler(), [], threading.Event()
    ends = 0

    async def waits(run: Run) -> None:
        calls.append(run.id)
        await asyncio.Event().wait()

    async def swallows(run: Run) -> None:
        calls.append(run.id)
        while not gate.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    def blocks(run: Run) -> None:
        calls.append(run.id)
        gate.wait(30)

    sc.before_run({"waits": waits, "swallows": swallows, "blocks": blocks}[kind])

    @sc.after_run
    async def count(run: Run, end: RunEnd) -> None:
        nonlocal ends
        ends += 1

    @sc.entrypoint("job")
    async def job() -> None: ...

    with capture_logs() as logs:
        async with working(sc, settings, hook_timeout="100ms"):
            for number in (1, 2, 3):
                await client.enqueue("job")
                await until(lambda number=number: ends == number)
            assert len(calls) == (3 if kind == "waits" else 1)
            gate.set()
            await until(lambda: not any(hook.hanging for hook in sc.hooks.before_run))
            gate.clear()
            await client.enqueue("job")
            await until(lambda: ends == 4)
            assert len(calls) == (4 if kind == "waits" else 2)
            gate.set()
    assert await db.value("select array_agg(distinct status) from pgsched.runs") == ["succeeded"]
    told = [entry["event"] for entry in logs if entry["event"].startswith("hook_")]
    assert told.count("hook_skipped") == (0 if kind == "waits" else 1)
    assert told.count("hook_failed") == (4 if kind == "waits" else 2)


async def test_a_plain_one_that_blocks_does_not_block_the_event_loop(settings, client):
    sc, gate, done = Scheduler(), threading.Event(), asyncio.Event()

    @sc.before_run
    def blocks(run: Run) -> None:
        assert gate.wait(20)  # only the event loop opens it

    @sc.entrypoint("job")
    async def job() -> None:
        done.set()

    async with working(sc, settings, hook_timeout="30s") as worker:
        await client.enqueue("job")
        await until(worker.roster.running)
        gate.set()
        await asyncio.wait_for(done.wait(), 20)


@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize("how", ["cancel", "lose"])
async def test_a_run_that_is_stopped_while_a_hook_runs_never_starts(settings, db, client, threaded, how):
    sc, entered, called, told = Scheduler(), asyncio.Event(), [], []

    @sc.before_run
    async def holds(run: Run) -> None:
        entered.set()
        await asyncio.Event().wait()

    @sc.after_run
    async def after(run: Run, end: RunEnd) -> None:
        told.append((end.status, end.landed))

    def plain() -> None:
        called.append(1)

    async def waiting() -> None:
        called.append(1)

    sc.entrypoint("job")(plain if threaded else waiting)
    async with working(sc, settings, hook_timeout="30s"):
        run_id = await client.enqueue("job")
        await asyncio.wait_for(entered.wait(), 20)
        if how == "cancel":
            await client.cancel(run_id)
            await until(lambda: told == [("cancelled", True)])
        else:
            await db.all("update pgsched.runs set worker = gen_random_uuid()")
            await until(lambda: told == [(None, False)])
    assert called == []


async def test_their_time_does_not_count_as_the_functions(settings, db, client):
    sc, durations = Scheduler(), []

    @sc.before_run
    async def slow(run: Run) -> None:
        await asyncio.sleep(0.7)

    @sc.after_run
    def after(run: Run, end: RunEnd) -> None:
        durations.append(end.duration)

    @sc.entrypoint("job", timeout=timedelta(seconds=0.6), retry=Retry(attempts=1))
    async def job() -> None: ...

    async with working(sc, settings):
        await client.enqueue("job")
        await until(lambda: durations)
    assert await db.one("select status, errors from pgsched.runs") == ("succeeded", [])
    assert durations[0] < timedelta(seconds=0.6)


async def test_a_claim_that_was_lost_is_told_as_such_and_not_as_a_failure(settings, db, client):
    sc, told, gate = Scheduler(), [], asyncio.Event()

    @sc.on_failure
    async def failed(run: Run, failure: RunFailure) -> None:
        told.append("failed")

    @sc.after_run
    async def after(run: Run, end: RunEnd) -> None:
        told.append((end.status, type(end.error)))

    @sc.entrypoint("job")
    async def job() -> None:
        await gate.wait()
        raise OSError

    # No beat comes before the end is written, and finds the claim gone.
    async with working(sc, settings, heartbeat_interval="30s", stall_timeout="1h"):
        await client.enqueue("job")
        await db.until("select count(*) = 1 from pgsched.runs where status = 'running'")
        await db.all("update pgsched.runs set worker = gen_random_uuid()")
        gate.set()
        await until(lambda: told)
    assert told == [(None, OSError)]


async def test_a_drain_is_not_held_up_and_a_run_is_over_before_its_hooks(settings, db, client):
    sc, entered = Scheduler(), asyncio.Event()

    @sc.after_run
    async def hangs(run: Run, end: RunEnd) -> None:
        entered.set()
        await asyncio.Event().wait()

    @sc.after_run
    async def hangs_too(run: Run, end: RunEnd) -> None:
        await asyncio.Event().wait()

    for _ in range(60):  # the drain waits for one hook_timeout in all, not for each
        sc.after_run(hangs_too)

    @sc.entrypoint("job")
    async def job() -> None: ...

    with capture_logs() as logs:
        async with working(sc, settings, hook_timeout="500ms") as worker:
            await client.enqueue("job")
            await asyncio.wait_for(entered.wait(), 20)
            assert await db.value("select status from pgsched.runs") == "succeeded"
            assert (worker.roster.slots_used, worker.roster.attempts) == (0, {})
    assert [entry["event"] for entry in logs][-1] == "drain_finished"
    assert worker.given_back == 0
    assert not worker.runner.caller.stuck


async def test_skips_are_told_after_they_are_recorded_and_no_claim_waits_for_it(settings, db, client):
    sc, told, entered, gate = Scheduler(), [], asyncio.Event(), asyncio.Event()

    @sc.on_skip
    async def skipped(schedule: Schedule, skip: Skip) -> None:
        recorded = await client.list_runs(schedule.name, "skipped")
        entered.set()
        await gate.wait()
        told.append((schedule.name, str(skip.reason), skip.count, len(recorded)))

    @sc.on_skip
    def broken(schedule: Schedule, skip: Skip) -> None:
        raise RuntimeError

    @sc.entrypoint("job")
    async def job() -> None: ...

    async with working(sc, settings, hook_timeout="30s"):
        await client.create_schedule("s", "job", "@hourly")
        await db.until("select next_run is not null from pgsched.schedules")
        await db.all("""
            update pgsched.schedules set next_run = date_trunc('hour', now()) - interval '3 hours', planned_at = now(),
                accounted_through = date_trunc('hour', now()) - interval '4 hours'
        """)
        await db.all("select pgsched.enqueue('job')")  # wakes the worker
        await asyncio.wait_for(entered.wait(), 20)
        # While the hook holds, claims go on.
        await client.enqueue("job")
        await db.until(ended(3))
        gate.set()
        await until(lambda: told)
    assert told == [("s", "missed", 3, 1)]


async def test_skips_that_nobody_hears_of_in_time_are_dropped_and_counted(settings):
    hooks, heard = Hooks(), []

    async def hook(schedule, skip) -> None:
        heard.append(skip.count)

    hooks.add("on_skip", hook)
    skips = SkipHooks(hooks, Caller(timedelta(seconds=5)))
    now = datetime(2026, 1, 1, tzinfo=UTC)
    for number in range(1005):
        skips.put(None, Skip(SkipReason.OVERLAP, now, now, number))
    with capture_logs() as logs:
        await skips.deliver()
    assert heard == list(range(5, 1005))
    assert [(entry["event"], entry["count"]) for entry in logs] == [("hook_skips_dropped", 5)]


async def test_the_variables_that_a_skip_hook_sets_reach_the_next_hook_but_not_the_next_skip():
    hooks, seen = Hooks(), []

    def sets(schedule, skip) -> None:
        seen.append(USER.get())
        USER.set(f"user of {skip.count}")

    async def reads(schedule, skip) -> None:
        seen.append(USER.get())

    hooks.add("on_skip", sets)
    hooks.add("on_skip", reads)
    skips = SkipHooks(hooks, Caller(timedelta(seconds=5)))
    now = datetime(2026, 1, 1, tzinfo=UTC)
    for number in (1, 2):
        skips.put(None, Skip(SkipReason.OVERLAP, now, now, number))
    await skips.deliver()
    assert seen == ["nobody", "user of 1", "nobody", "user of 2"]


@pytest.mark.parametrize(
    ("kind", "function", "sentence"),
    [
        ("before_run", lambda: None, r"is called with \(Run\), by position"),
        ("after_run", lambda run: None, r"is called with \(Run, RunEnd\)"),
        ("on_failure", lambda run, failure, more: None, r"is called with \(Run, RunFailure\)"),
        ("on_skip", lambda schedule, *, skip: None, r"is called with \(Schedule, Skip\)"),
        ("before_run", "print", "a hook must be a function"),
        ("before_run", int, "a hook must be a function"),
    ],
)
def test_what_cannot_be_called_is_refused(kind, function, sentence):
    with pytest.raises(RegistrationError, match=sentence):
        getattr(Scheduler(), kind)(function)


def test_a_generator_is_refused():
    def generator(run):
        yield

    with pytest.raises(RegistrationError, match="is a generator"):
        Scheduler().before_run(generator)
