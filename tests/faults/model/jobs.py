"""The two applications of the model, "a" and "b": the same entrypoint names, with different code.

Each call of a function is a row of model_calls, committed on the recorder's own connection before the function does
anything, and completed when it ends. A daemon process finds its factories here:
create_a and create_b, those of the next version, create_a2 and create_b2, and of one that declares nothing.
"""

import asyncio
import contextlib
import functools
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg

from pgsched import Discard, Limits, ProcessExecutor, RetryLater, Run, Scheduler
from pgsched.db.statements.queries import in_schema
from pgsched.rules.retry import Retry

RETRY = Retry(attempts=3, backoff=timedelta(milliseconds=50), max_backoff=timedelta(milliseconds=200))
CAPPED = {"a": 2, "b": 3}
KEYED = 1
POOLED = 2  # of both applications together
RATED = 5  # starts in any RATED_PERIOD
RATED_PERIOD = timedelta(seconds=1)
SHARED = ("quick", "slow", "thread", "flaky", "blocks", "pays", "capped", "keyed", "rated", "pooled")
ENTRYPOINTS = (*SHARED, "only-a", "only-b")
HUNG_TIMEOUT = timedelta(milliseconds=400)
# Schedules that the code declares: name, entrypoint, expression, overlap.
DECLARED = {
    code: (
        (f"{code}-tick", "quick", "* * * * * *", "skip"),
        (f"{code}-slow", "slow", "*/2 * * * * *", "queue"),
        (f"{code}-many", "thread", "* * * * * *", "allow"),
    )
    for code in ("a", "b")
}
# The next version: one has changed, one is gone, one is new.
SECOND = {
    code: (
        (f"{code}-tick", "quick", "*/2 * * * * *", "allow"),
        (f"{code}-slow", "slow", "*/2 * * * * *", "queue"),
        (f"{code}-new", "quick", "* * * * * *", "skip"),
    )
    for code in ("a", "b")
}

_BEGAN = """
insert into pgsched.model_calls (run_id, token, attempt, fire_time, schedule_id, entrypoint, code, worker, pid, key)
values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s) returning id
"""
_ENDED = "update pgsched.model_calls set ended = clock_timestamp(), how = %s where id = %s"


class Recorder:
    """Writes the calls of one process, over one connection that its threads share."""

    def __init__(self, dsn: str, schema: str) -> None:
        self._lock = threading.Lock()
        self._connection = psycopg.connect(dsn, autocommit=True, application_name="model recorder")
        self._began, self._ended = (in_schema(text.encode(), schema) for text in (_BEGAN, _ENDED))
        self.pay = in_schema(b"insert into pgsched.model_paid (run_id) values (%s)", schema)

    @contextlib.contextmanager
    def call(self, run: Run, code: str, key: str = "") -> Iterator[None]:
        """Records one call, from before its first step until after its last."""
        schedule = run.schedule.id if run.schedule is not None else None
        values = (run.id, getattr(run, "token", None), run.attempt, run.fire_time, schedule, run.entrypoint, code,
                  run.worker, os.getpid(), key)  # fmt: skip
        with self._lock:
            row = self._connection.execute(self._began, values).fetchone()
        how = "returned"
        try:
            yield
        except BaseException as error:
            how = type(error).__name__
            raise
        finally:
            with self._lock:
                self._connection.execute(self._ended, (how, row[0]))

    def close(self) -> None:
        with self._lock:
            self._connection.close()


def chance(run: Run) -> float:
    """A number from 0 to 1, the same for a run's attempt in each replay that gives it the same id."""
    digest = hashlib.blake2b(f"{run.id} {run.attempt}".encode(), digest_size=4).digest()
    return int.from_bytes(digest) / 2**32


def build(code: str, recorder: Recorder, version: int = 1) -> Scheduler:
    """The application with this code. Its second version declares other schedules, version 0 none."""
    sc = Scheduler(app=f"model-{code}")

    @sc.entrypoint("quick")
    async def quick(run: Run, n: int = 0, seconds: float = 0.01) -> None:
        with recorder.call(run, code):
            await asyncio.sleep(seconds)

    @sc.entrypoint(f"only-{code}")
    async def only(run: Run, n: int = 0, seconds: float = 0.01) -> None:
        with recorder.call(run, code):
            await asyncio.sleep(seconds)

    @sc.entrypoint("slow", retry=RETRY)
    async def slow(run: Run, n: int = 0, seconds: float = 0.7) -> str:
        with recorder.call(run, code):
            await asyncio.sleep(seconds)
        return "done"

    @sc.entrypoint("thread", retry=RETRY)
    def thread(run: Run, n: int = 0, seconds: float = 0.2) -> None:
        with recorder.call(run, code):
            end = time.monotonic() + seconds
            while time.monotonic() < end and not run.cancelled:
                time.sleep(0.02)

    @sc.entrypoint("flaky", retry=RETRY)
    async def flaky(run: Run, n: int = 0, seconds: float = 0.02) -> None:
        with recorder.call(run, code):
            await asyncio.sleep(seconds)
            luck = chance(run)
            if luck < 0.3:
                raise RuntimeError("bad luck")
            if luck < 0.4:
                raise RetryLater(timedelta(milliseconds=100))
            if luck < 0.45:
                raise Discard("no use")

    @sc.entrypoint("blocks")
    async def blocks(run: Run, n: int = 0, seconds: float = 0.6) -> None:
        with recorder.call(run, code):
            time.sleep(seconds)

    @sc.entrypoint("pays", retry=RETRY)
    async def pays(run: Run, n: int = 0, seconds: float = 0.05) -> None:
        with recorder.call(run, code):
            async with run.transaction() as connection:
                await connection.execute(recorder.pay, (run.id,))
                await asyncio.sleep(seconds)

    @sc.entrypoint("capped", limits=Limits(concurrency=CAPPED[code]))
    async def capped(run: Run, n: int = 0, seconds: float = 0.15) -> None:
        with recorder.call(run, code):
            await asyncio.sleep(seconds)

    @sc.entrypoint("keyed", limits=Limits(concurrency_key="k"))
    async def keyed(run: Run, n: int = 0, k: str = "", seconds: float = 0.1) -> None:
        with recorder.call(run, code, k):
            await asyncio.sleep(seconds)

    @sc.entrypoint("pooled", limits=Limits(concurrency=POOLED, shared="pool"))
    async def pooled(run: Run, n: int = 0, seconds: float = 0.15) -> None:
        with recorder.call(run, code):
            await asyncio.sleep(seconds)

    @sc.entrypoint("rated", limits=Limits(starts=RATED, period=RATED_PERIOD))
    async def rated(run: Run, n: int = 0, seconds: float = 0.01) -> None:
        with recorder.call(run, code):
            await asyncio.sleep(seconds)

    @sc.entrypoint("hung", retry=Retry(attempts=1), timeout=HUNG_TIMEOUT)
    def hung(run: Run, n: int = 0, seconds: float = 1.5) -> None:
        """Looks at nothing: its thread goes on after its run has ended."""
        with recorder.call(run, code):
            time.sleep(seconds)

    sc.entrypoint("process", executor=ProcessExecutor, retry=RETRY)(PROCESSES[code])
    functions: dict[str, Any] = {"quick": quick, "slow": slow, "thread": thread}
    for name, entrypoint, expression, overlap in ((), DECLARED[code], SECOND[code])[version]:
        sc.schedule(entrypoint, expression, name=name, overlap=overlap)(functions[entrypoint])
    return sc


def process_a(run: Run, n: int = 0, seconds: float = 0.1) -> None:
    with _own().call(run, "a"):
        time.sleep(seconds)


def process_b(run: Run, n: int = 0, seconds: float = 0.1) -> None:
    with _own().call(run, "b"):
        time.sleep(seconds)


PROCESSES = {"a": process_a, "b": process_b}


@functools.cache
def _own() -> Recorder:
    return Recorder(os.environ["MODEL_DSN"], os.environ["MODEL_SCHEMA"])


def create_a() -> Scheduler:
    return build("a", _own())


def create_b() -> Scheduler:
    return build("b", _own())


def create_a0() -> Scheduler:
    return build("a", _own(), 0)


def create_b0() -> Scheduler:
    return build("b", _own(), 0)


def create_a2() -> Scheduler:
    return build("a", _own(), 2)


def create_b2() -> Scheduler:
    return build("b", _own(), 2)
