"""awa-pg: a core in Rust that calls asynchronous functions of Python, with its queue storage.

Tuned with the settings that its page "Configuration" names for a hot queue of short jobs: more `max_workers`, a larger
`claim_batch_size`, and for delayed jobs a shorter `promote_interval_ms`. Partitioned queues, which it recommends too,
were no faster here. Finished jobs are kept for a day, its default.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import asyncpg
import awa
import probe
import uvloop
from awa.bridge import insert_job

BATCH = 10_000
QUEUE = "bench"
DSN = probe.DSN.replace(":@/", "@localhost/").replace("@/", "@localhost/")  # it wants a host even beside `?host=`
# Among the best of 50, 500, 1,000 and 2,000 workers with batches of 512, 1,000 and 2,000 for no-ops.
TUNED = {"max_workers": 1_000, "claim_batch_size": 1_000}
TUNED_PROMOTION = {"promote_interval_ms": 50}  # the default is 250


@dataclass
class Nothing:
    pass


@dataclass
class Sleeper:
    pass


JOBS = {"nothing": Nothing, "sleeper": Sleeper}


async def install() -> None:
    async with awa.AsyncClient(DSN) as client:
        await client.migrate()
        await client.install_queue_storage()  # without it, jobs go to the tables of its old storage


async def enqueue(count: int, at: float | None = None, job: str = "nothing", tuned: bool = False) -> None:
    when = datetime.fromtimestamp(at, UTC) if at else None
    async with awa.AsyncClient(DSN) as client:
        for first in range(0, count, BATCH):
            size = min(BATCH, count - first)
            await client.enqueue_many_copy([JOBS[job]()] * size, queue=QUEUE, run_at=when)


async def far(count: int, finished: int) -> None:
    """Enqueues jobs of a far future. Finished ones are rows of thousands in its storage, and are left out."""
    await enqueue(count, at=datetime(2099, 1, 1, tzinfo=UTC).timestamp())


async def worker(tuned: bool, schedule: dict[str, Any] | None, concurrent: int | None) -> list[float]:
    client = awa.AsyncClient(DSN)

    @client.task(Nothing, queue=QUEUE)
    async def nothing(job: awa.Job) -> None:
        probe.nothing()

    @client.task(Sleeper, queue=QUEUE)
    async def sleeper(job: awa.Job) -> None:
        await probe.sleeper()

    for number in range(schedule.get("count", 1) if schedule else 0):
        client.periodic(f"bench-{number}", cron(schedule or {}), Nothing, Nothing(), queue=QUEUE)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    limits = TUNED if tuned else {"max_workers": concurrent or 50}
    await client.start([{"name": QUEUE, **limits}], **(TUNED_PROMOTION if tuned else {}))
    ready = asyncio.create_task(listens())
    await stop.wait()
    ready.cancel()
    await client.shutdown()
    return probe.started


def cron(schedule: dict[str, Any]) -> str:
    """The expression of a measurement's schedules."""
    at = datetime.fromtimestamp(schedule.get("at", 0), UTC)
    herd = f"{at.second} {at.minute} {at.hour} {at.day} {at.month} *"
    return {"every_second": "* * * * * *", "herd": herd, "far": "0 0 1 1 *"}[schedule["kind"]]


async def listens() -> None:
    """Reports that the worker listens."""
    connection = await asyncpg.connect(probe.DSN)
    look = "select true from pg_stat_activity where datname = current_database() and query = $1"
    while not await connection.fetchval(look, f'LISTEN "awa:{QUEUE}"'):
        await asyncio.sleep(0.05)
    await connection.close()
    await asyncio.sleep(0.2)  # for the look that follows
    probe.say("ready")


def work(tuned: bool, schedule: dict[str, Any] | None = None, concurrent: int | None = None) -> list[float]:
    return uvloop.run(worker(tuned, schedule, concurrent))


async def produce(count: int, pause: float, how: str = "enqueue") -> list[tuple[float, bool]]:
    if how != "enqueue":
        raise probe.Lack("schedules cannot be triggered")
    connection = await asyncpg.connect(probe.DSN)
    async with awa.AsyncClient(DSN) as client:

        async def put_in_transaction() -> Callable[[], Awaitable[None]]:
            transaction = connection.transaction()
            await transaction.start()
            await insert_job(connection, Nothing(), queue=QUEUE)
            return transaction.commit

        return await probe.produced(count, pause, lambda: client.insert(Nothing(), queue=QUEUE), put_in_transaction)


if __name__ == "__main__":
    probe.main({"install": install, "enqueue": enqueue, "far": far, "work": work, "produce": produce})
