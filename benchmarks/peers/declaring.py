"""One start of a worker whose code declares many schedules: seconds until it is ready, and its peak memory.

Verb: start.
"""

from __future__ import annotations

import asyncio
import resource
import time
from pathlib import Path

import probe
import psycopg

from pgsched import Scheduler
from pgsched.config import Settings
from pgsched.worker.worker import Worker

UNPLANNED = "select exists (select from pgsched.schedules where status = 'active' and next_run is null)"
FAR = "@at 2099-01-01T00:00:00Z"


async def start(count: int, own: bool) -> dict[str, float]:
    """Declares `count` schedules and starts a worker, once.

    own: whether each schedule has a function of its own.
    """
    scheduler = Scheduler(app="declaring")
    began = time.perf_counter()
    for number in range(count):
        name = f"declared-{number}"
        scheduler.schedule(name if own else "nothing", FAR, name=name)(function() if own else nothing)
    told = {"declaring in Python": time.perf_counter() - began}
    worker = Worker(scheduler, Settings(dsn=probe.DSN))
    began = time.perf_counter()
    running = asyncio.create_task(worker.run())
    ready = asyncio.create_task(scheduler.ready.wait())
    await asyncio.wait([running, ready], return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        await running
    told["until ready"] = time.perf_counter() - began
    async with await psycopg.AsyncConnection.connect(probe.DSN, autocommit=True) as connection:
        while (await (await connection.execute(UNPLANNED)).fetchone() or [False])[0]:
            await asyncio.sleep(0.05)
    told["until all are planned"] = time.perf_counter() - began
    worker.stop()
    await running
    return told | {"peak memory": peak()}


async def nothing() -> None: ...


def function():
    """A function of its own that does nothing."""

    async def nothing() -> None: ...

    return nothing


def peak() -> float:
    """Megabytes that this process has had at most. Linux counts the parent's memory in getrusage() as well."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS


if __name__ == "__main__":
    probe.main({"start": start})
