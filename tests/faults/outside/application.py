"""The application of the soak's daemons. Each call notes its beginning and its end in a file, not in the database.

Entrypoints that end with a daemon's name belong to that daemon alone: they prove that this very daemon works.
"""

import asyncio
import contextlib
import json
import os
import random
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from pgsched import Limits, Retry, Run, Scheduler

LIMITED, PER_TENANT = 2, 1
PAY = "insert into soak.paid (key, run, token) values (%s, %s, %s)"
# Faults must not use up the attempts of a job that would succeed.
PATIENT = Retry(attempts=50, backoff=timedelta(milliseconds=300), max_backoff=timedelta(seconds=2))


def key_of(run: Run) -> str:
    """The name of a job or fire time. It holds on every server, while ids can be given out again after a failover."""
    if run.schedule is None or run.fire_time is None:
        return str(run.args["job"])
    return f"{run.schedule.name} {run.fire_time.isoformat()}"


class Notes:
    """The file of one daemon."""

    def __init__(self, path: str, daemon: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._daemon = daemon

    def write(self, run: Run, what: str, **more: Any) -> None:
        line = {
            "what": what, "at": time.monotonic(), "key": key_of(run), "run": run.id, "token": run.token,
            "attempt": run.attempt, "worker": str(run.worker), "pid": os.getpid(), "daemon": self._daemon,
            "entrypoint": run.entrypoint,
            **more,
        }  # fmt: skip
        os.write(self._file, json.dumps(line).encode() + b"\n")

    @contextlib.contextmanager
    def call(self, run: Run, **more: Any) -> Iterator[None]:
        """Notes a call's beginning, and how it ended."""
        self.write(run, "began", **more)
        try:
            yield
        except BaseException as error:
            cancelled = isinstance(error, asyncio.CancelledError)
            self.write(run, "cancelled" if cancelled else "failed", error=f"{type(error).__name__}: {error}"[:300])
            raise
        self.write(run, "ended")


def create() -> Scheduler:
    name = os.environ["SOAK_DAEMON"]
    notes = Notes(os.environ["SOAK_NOTES"], name)
    sc = Scheduler(app="soak")

    @sc.entrypoint(f"tick {name}", retry=PATIENT)
    async def tick(run: Run) -> None:
        with notes.call(run, tasks=len(asyncio.all_tasks())):
            pass

    @sc.entrypoint("pay", retry=PATIENT)
    @sc.entrypoint(f"pay {name}", retry=PATIENT)
    async def pay(run: Run, job: str = "") -> None:
        with notes.call(run):
            async with run.transaction() as connection:
                await connection.execute(PAY, (key_of(run), run.id, run.token))

    @sc.entrypoint("pay sync", retry=PATIENT)
    @sc.entrypoint(f"pay sync {name}", retry=PATIENT)
    def pay_sync(run: Run, job: str = "") -> None:
        with notes.call(run), run.transaction() as connection:
            connection.execute(PAY, (key_of(run), run.id, run.token))

    @sc.entrypoint("work", retry=PATIENT)
    async def work(run: Run, longest: float, job: str = "") -> None:
        with notes.call(run):
            await asyncio.sleep(random.uniform(0, longest))

    @sc.entrypoint("work sync", retry=PATIENT)
    def work_sync(run: Run, longest: float, job: str = "") -> None:
        with notes.call(run):
            end = time.monotonic() + random.uniform(0, longest)
            while time.monotonic() < end:
                if run.cancelled:
                    raise TimeoutError("asked to stop")
                time.sleep(0.02)

    @sc.entrypoint("flaky", retry=PATIENT)
    async def flaky(run: Run, fails: int, job: str = "") -> None:
        with notes.call(run):
            if run.attempt <= fails:
                raise ValueError("it fails on purpose")

    @sc.entrypoint("limited", retry=PATIENT, limits=Limits(concurrency=LIMITED))
    async def limited(run: Run, job: str = "") -> None:
        with notes.call(run):
            await asyncio.sleep(random.uniform(0, 1))

    @sc.entrypoint("keyed", retry=PATIENT, limits=Limits(concurrency_key="tenant", per_key=PER_TENANT))
    async def keyed(run: Run, tenant: str, job: str = "") -> None:
        with notes.call(run, tenant=tenant):
            await asyncio.sleep(random.uniform(0, 1))

    return sc
