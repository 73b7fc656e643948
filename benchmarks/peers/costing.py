"""The cost of one run and one heartbeat of pgsched: WAL, row versions, pages, statements, CPU time of both sides.

A whole worker at its defaults runs in this process. Verb: cost. The figures include the client that makes the work.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import probe
import psutil
import psycopg

from pgsched import Scheduler
from pgsched.config import Settings
from pgsched.db import session
from pgsched.worker.worker import Worker

DONE = "select count(*) from pgsched.runs where status = 'succeeded'"
UNPLANNED = "select exists (select from pgsched.schedules where next_run is null)"
ENQUEUE = "select pgsched.enqueue_many(%s, array_fill('{}'::jsonb, array[%s]))"
HERD = "update pgsched.schedules set next_run = now(), planned_at = clock_timestamp()"
SCHEDULES = """
insert into pgsched.schedules (name, entrypoint, expression) select 's' || n, 'nothing', '@yearly'
from generate_series(1, %s) n
"""
TOUCHED = "select blks_hit + blks_read from pg_stat_database where datname = current_database()"
WRITTEN = "select coalesce(sum(n_tup_ins + n_tup_upd), 0)::bigint from pg_stat_user_tables"
WAL = "select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint"


@dataclass
class Sent:
    """Statements that the worker has sent; BEGIN and COMMIT are not counted."""

    count: int = 0


async def cost(kind: str, count: int, seconds: int = 0) -> dict[str, float]:
    """The cost of one of `count` runs of a kind; or of one beat of `count` running runs, over some seconds."""
    sent = Sent()
    watch(sent)
    scheduler = Scheduler(app="cost")
    scheduler.entrypoint("nothing")(nothing)
    scheduler.entrypoint("sleeper")(sleeper)
    running = asyncio.create_task(Worker(scheduler, Settings(dsn=probe.DSN, log_level="error")).run())
    await scheduler.ready.wait()
    async with await psycopg.AsyncConnection.connect(probe.DSN, autocommit=True) as client:
        work = await KINDS[kind](client, count)
        before = await stand(client, sent)
        began = time.perf_counter()
        await work()
        while not seconds and await value(client, DONE) < count:
            await asyncio.sleep(0.2)
        await asyncio.sleep(seconds)
        took = time.perf_counter() - began
        after = await stand(client, sent)
    scheduler.shutdown()
    running.cancel()
    names = ("WAL, bytes", "row versions", "pages", "statements", "server's processor, us", "worker's processor, us")
    told = {n: (a - b) / count / (seconds or 1) for n, a, b in zip(names, after, before, strict=True)}
    return told | {"a second": count / took} if not seconds else told


def watch(sent: Sent) -> None:
    """Counts the statements of the worker's sessions."""

    class Counting(psycopg.AsyncCursor[Any]):
        async def execute(self, *args: Any, **options: Any) -> Any:
            sent.count += 1
            return await super().execute(*args, **options)

    prepare = session.prepare

    async def prepared(connection: psycopg.AsyncConnection[Any]) -> bool:
        direct = await prepare(connection)
        connection.cursor_factory = Counting
        return direct

    session.prepare = prepared


async def stand(client: psycopg.AsyncConnection[Any], sent: Sent) -> tuple[float, ...]:
    """Reads all meters. Full-page images after a checkpoint are left out, as they do not belong to a run."""
    wal, statements, ours, server = await value(client, WAL), sent.count, time.process_time(), await spent(client)
    await asyncio.sleep(1.5)  # sessions report their statistics once a second
    return wal, await value(client, WRITTEN), await value(client, TOUCHED), statements, server * 1e6, ours * 1e6


async def spent(client: psycopg.AsyncConnection[Any]) -> float:
    """Processor seconds of the server's live processes."""
    backend = psutil.Process(await value(client, "select pg_backend_pid()"))
    return sum(sum(process.cpu_times()[:2]) for process in (backend.parent() or backend).children())


async def value(client: psycopg.AsyncConnection[Any], statement: str) -> Any:
    row = await (await client.execute(statement)).fetchone()
    assert row is not None
    return row[0]


async def in_bulk(client: psycopg.AsyncConnection[Any], count: int) -> Callable[[], Awaitable[Any]]:
    async def work() -> None:
        for _ in range(0, count, 1000):
            await client.execute(ENQUEUE, ("nothing", min(count, 1000)))

    return work


async def one_by_one(client: psycopg.AsyncConnection[Any], count: int) -> Callable[[], Awaitable[Any]]:
    async def work() -> None:
        for _ in range(count):
            await client.execute("select pgsched.enqueue('nothing')")
            await asyncio.sleep(0.01)

    return work


async def scheduled(client: psycopg.AsyncConnection[Any], count: int) -> Callable[[], Awaitable[Any]]:
    await client.execute(SCHEDULES, (count,))
    while await value(client, UNPLANNED):
        await asyncio.sleep(0.1)

    async def work() -> None:
        await client.execute(HERD)
        await client.execute("notify pgsched")

    return work


async def beats(client: psycopg.AsyncConnection[Any], count: int) -> Callable[[], Awaitable[Any]]:
    await client.execute(ENQUEUE, ("sleeper", count))
    await asyncio.sleep(5)  # all are running and have sent a heartbeat
    return lambda: asyncio.sleep(0)


KINDS = {"bulk": in_bulk, "single": one_by_one, "scheduled": scheduled, "beats": beats}


async def nothing() -> None: ...


async def sleeper() -> None:
    await asyncio.sleep(3600)


if __name__ == "__main__":
    probe.main({"cost": cost})
