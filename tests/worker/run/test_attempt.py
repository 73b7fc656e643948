"""An attempt calls the function with what it asks for, and what becomes of it decides the run's outcome."""

import asyncio
import threading
from datetime import timedelta

from support.workers import soon, working

from pgsched import Retry, Run, Schedule, Scheduler
from pgsched.rules.outcome import Stop
from pgsched.worker.run.attempt import Attempt


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
    deepest: list = []
    for _ in range(499):
        deepest = [deepest]
    bad = {
        "object": object(), "nan": float("nan"), "nul": "a\0b", "surrogate": "\ud800", "deep": [deepest],
        "long": "x" * 300_000, "bytes": b"x",
    }  # fmt: skip
    good = {"text": "\\u0000 ü €", "list": [1, None, {"a": True}], "zero": 0, "deepest": deepest}
    for name, value in {**bad, **good}.items():

        async def give(value=value):
            return value

        sc.entrypoint(name)(give)
    async with working(sc, settings):
        for name in sc.entrypoints:
            await db.all("select pgsched.enqueue(%s)", name)
        await db.until("select count(*) = 11 from pgsched.runs where status = 'succeeded'")
    rows = {r[0]: (r[1], r[2]) for r in await db.all("select entrypoint, result, reason from pgsched.runs")}
    for name in bad:
        assert rows[name][0] is None and "result" in rows[name][1], name
    for name, value in good.items():
        assert rows[name] == (value, None), name
    assert rows["deep"][1] == "the result has more than 500 levels of lists and dicts"


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
