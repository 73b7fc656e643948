"""around_sync: context managers of the application around plain functions, in the run's own thread."""

import asyncio
import contextlib
import contextvars
import threading
from datetime import timedelta

import pytest
from support.workers import working

from pgsched import Executor, RegistrationError, Retry, Run, Scheduler

ONCE = Retry(attempts=1)
TENANT: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="none")


@pytest.fixture
def steps():
    return []


@pytest.fixture
def sc(steps):
    """A scheduler with two context managers that note their steps."""
    sc = Scheduler()

    def noting(name):
        @sc.around_sync
        @contextlib.contextmanager
        def around(run: Run):
            steps.append(f"{name} enters {run.entrypoint}")
            TENANT.set(f"tenant of {run.entrypoint}")
            thread = threading.current_thread()
            try:
                yield
            except BaseException as error:
                steps.append(f"{name} sees {type(error).__name__}")
                raise
            finally:
                assert thread is threading.current_thread() is not threading.main_thread()
                steps.append(f"{name} leaves")

    noting("outer")
    noting("inner")
    return sc


async def test_they_surround_a_plain_function_in_its_own_thread(settings, db, sc, steps):
    class Twice(Executor):
        async def execute(self, run: Run) -> list[str]:
            return [await self.call(run), "by an executor"]

    def plain() -> str:
        steps.append(f"called in {'main' if threading.current_thread() is threading.main_thread() else 'a thread'}")
        return TENANT.get()

    sc.entrypoint("plain")(plain)
    sc.entrypoint("own", executor=Twice)(lambda: plain())
    async with working(sc, settings):
        await db.all("select pgsched.enqueue('plain')")
        await db.until("select status = 'succeeded' from pgsched.runs")
        assert steps == [
            "outer enters plain",
            "inner enters plain",
            "called in a thread",
            "inner leaves",
            "outer leaves",
        ]
        await db.all("select pgsched.enqueue('own')")
        await db.until("select count(*) = 2 from pgsched.runs where status = 'succeeded'")
    assert steps[5:7] == ["outer enters own", "inner enters own"] and len(steps) == 10
    results = [result for (result,) in await db.all("select result from pgsched.runs order by id")]
    assert results == ["tenant of plain", ["tenant of own", "by an executor"]]


async def test_an_async_function_is_called_without_them(settings, db, sc, steps):
    @sc.entrypoint("job")
    async def job() -> str:
        return TENANT.get()

    async with working(sc, settings):
        await db.all("select pgsched.enqueue('job')")
        await db.until("select status = 'succeeded' from pgsched.runs")
    assert steps == [] and await db.value("select result from pgsched.runs") == "none"


async def test_they_see_the_functions_error_and_it_fails_the_attempt(settings, db, sc, steps):
    @sc.entrypoint("job", retry=ONCE)
    def job() -> None:
        raise KeyError("no")

    async with working(sc, settings):
        await db.all("select pgsched.enqueue('job')")
        await db.until("select status = 'failed' from pgsched.runs")
    assert steps[2:] == ["inner sees KeyError", "inner leaves", "outer sees KeyError", "outer leaves"]
    assert await db.value("select errors -> 0 ->> 'type' from pgsched.runs") == "KeyError"


@pytest.mark.parametrize("when", ["entering", "leaving"])
async def test_their_own_error_fails_the_attempt_and_it_is_tried_again(settings, db, when):
    sc, calls, left = Scheduler(), [], []

    @sc.around_sync
    @contextlib.contextmanager
    def broken(run: Run):
        try:
            if when == "entering" and run.attempt == 1:
                raise ConnectionError("gone")
            yield
            if when == "leaving" and run.attempt == 1:
                raise ConnectionError("gone")
        finally:
            left.append(run.attempt)

    @sc.entrypoint("job", retry=Retry(attempts=2, backoff=timedelta(0)))
    def job(run: Run) -> None:
        calls.append(run.attempt)

    async with working(sc, settings):
        await db.all("select pgsched.enqueue('job')")
        await db.until("select status = 'succeeded' from pgsched.runs")
    assert await db.value("select errors -> 0 ->> 'message' from pgsched.runs") == "gone"
    assert calls == ([2] if when == "entering" else [1, 2]) and left == [1, 2]


async def test_one_that_swallows_the_error_is_as_in_a_with_statement(settings, db):
    sc = Scheduler()
    sc.around_sync(lambda run: contextlib.suppress(KeyError))

    @sc.entrypoint("job", retry=ONCE)
    def job() -> None:
        raise KeyError("expected")

    async with working(sc, settings):
        await db.all("select pgsched.enqueue('job')")
        await db.until("select status = 'succeeded' and result is null from pgsched.runs")


async def test_its_time_counts(settings, db):
    sc, entered, gate = Scheduler(), threading.Event(), threading.Event()

    @sc.around_sync
    @contextlib.contextmanager
    def slow(run: Run):
        entered.set()
        gate.wait(20)
        yield

    @sc.entrypoint("job", retry=ONCE, timeout=timedelta(milliseconds=50))
    def job() -> None: ...

    async with working(sc, settings, cancel_timeout="50ms"):
        await db.all("select pgsched.enqueue('job')")
        await asyncio.to_thread(entered.wait, 10)
        await db.until("select status = 'failed' from pgsched.runs")
        gate.set()
    assert await db.value("select errors -> 0 ->> 'type' from pgsched.runs") == "Timeout"


async def test_one_that_returns_no_context_manager_is_named(settings, db):
    sc = Scheduler()

    @sc.around_sync
    def forgets(run: Run):
        return 7

    sc.entrypoint("job", retry=ONCE)(lambda: None)
    async with working(sc, settings):
        await db.all("select pgsched.enqueue('job')")
        await db.until("select status = 'failed' from pgsched.runs")
    message = await db.value("select errors -> 0 ->> 'message' from pgsched.runs")
    assert "forgets(), which is registered as around_sync, returned a value of type int: return a context" in message


def generator(run):
    yield


@contextlib.asynccontextmanager
async def asynchronous(run):
    yield


async def coroutine(run): ...


@contextlib.contextmanager
def nothing():
    yield


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (generator, "generator() is a generator, not yet a context manager: put @contextlib.contextmanager between"),
        (asynchronous, "asynchronous() is asynchronous, but is called in the thread of a plain function: make it"),
        (coroutine, "coroutine() is asynchronous, but"),
        (nothing, "nothing() is called with (Run), by position."),
        (contextlib.nullcontext(), "cannot be registered: a hook must be a function."),
        (contextlib.nullcontext, "cannot be registered: a hook must be a function."),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_one_is_refused_at_once(function, sentence):
    with pytest.raises(RegistrationError) as refused:
        Scheduler().around_sync(function)
    assert sentence in str(refused.value) and str(refused.value).startswith("around_sync: ")
