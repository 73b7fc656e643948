"""PGQueuer on asyncpg, under uvloop, as its own command line runs it.

Tuned as its guide "Performance Tuning" says: a bigger batch_size for short jobs, `pgq autovac` after installation,
one plain connection for the worker. Durability stays at its default, `durable`, as with all contestants.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import asyncpg
import probe
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job, Schedule
from pgqueuer.queries import Queries

BATCH = 10_000
TUNED_BATCH = 1_000  # among the best of 100, 250, 500, 1,000 and 2,000 for no-ops


async def queries() -> Queries:
    return Queries(AsyncpgDriver(await asyncpg.connect(probe.DSN)))


async def install() -> None:
    made = await queries()
    await made.install()
    await made.optimize_autovacuum()


async def enqueue(count: int, at: float | None = None, job: str = "nothing", tuned: bool = False) -> None:
    client = await queries()
    after = datetime.fromtimestamp(at, UTC) - datetime.now(UTC) if at else None
    for first in range(0, count, BATCH):
        size = min(BATCH, count - first)
        await client.enqueue([job] * size, [None] * size, [0] * size, [after] * size)


# Jobs of a far future, and the log of finished ones.
FAR = """
with queued as (
    insert into pgqueuer (priority, status, entrypoint, execute_after)
    select 0, 'queued', 'nothing', '2099-01-01Z' from generate_series(1, {count})
)
insert into pgqueuer_log (job_id, status, priority, entrypoint, aggregated)
select -n, 'successful', 0, 'nothing', true from generate_series(1, {finished}) n
"""


async def far(count: int, finished: int) -> str:
    """Inserts far-future jobs and finished ones. Returns the statement."""
    statement = FAR.format(count=count, finished=finished)
    connection = await asyncpg.connect(probe.DSN)
    await connection.execute(statement, timeout=200)
    await connection.execute("vacuum analyze pgqueuer", timeout=200)
    await connection.execute("vacuum analyze pgqueuer_log", timeout=200)
    return statement


def add_schedules(pgq: PgQueuer, schedule: dict[str, Any]) -> None:
    """Declares the schedules of a measurement in code, as PGQueuer does."""
    kind, count = schedule["kind"], schedule.get("count", 1)
    at = datetime.fromtimestamp(schedule.get("at", 0), UTC)
    herd = f"{at.minute} {at.hour} {at.day} {at.month} * {at.second}"
    expression = {"every_second": "* * * * * *", "herd": herd, "far": "0 0 1 1 *"}[kind]

    async def tick(schedule: Schedule) -> None:
        probe.nothing()

    for number in range(count):
        pgq.schedule(f"bench-{number}", expression)(tick)


async def worker(tuned: bool, schedule: dict[str, Any] | None, batch: int | None) -> list[float]:
    connection = await asyncpg.connect(probe.DSN)
    pgq = PgQueuer.from_asyncpg_connection(connection)

    @pgq.entrypoint("nothing")
    async def nothing(job: Job) -> None:
        probe.nothing()

    @pgq.entrypoint("sleeper")
    async def sleeper(job: Job) -> None:
        await probe.sleeper()

    if schedule:
        add_schedules(pgq, schedule)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, pgq.shutdown.set)
    chosen = batch or (TUNED_BATCH if tuned else None)
    runs = asyncio.create_task(pgq.run(**({"batch_size": chosen} if chosen else {})))
    ready = asyncio.create_task(listens(connection))
    await runs
    ready.cancel()
    return probe.started


async def listens(mine: asyncpg.Connection) -> None:
    """Reports that the worker's connection listens."""
    while not mine._listeners:
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.2)  # for the look that follows
    probe.say("ready")


def work(tuned: bool, schedule: dict[str, Any] | None = None, batch: int | None = None) -> list[float]:
    return uvloop.run(worker(tuned, schedule, batch))


async def produce(count: int, pause: float, how: str = "enqueue") -> list[tuple[float, bool]]:
    if how != "enqueue":
        raise probe.Lack("schedules cannot be triggered")
    connection = await asyncpg.connect(probe.DSN)
    client = Queries(AsyncpgDriver(connection))

    async def put_in_transaction() -> Callable[[], Awaitable[None]]:
        transaction = connection.transaction()
        await transaction.start()
        await client.enqueue("nothing", None)
        return transaction.commit

    return await probe.produced(count, pause, lambda: client.enqueue("nothing", None), put_in_transaction)


if __name__ == "__main__":
    probe.main({"install": install, "enqueue": enqueue, "far": far, "work": work, "produce": produce})
