"""What runs in processes of its own: the app that the workers run, and the bare limits it is compared with.

The limits use no part of pgsched. Each prints one line of JSON: how late it was, when it heard, what it did.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psycopg
from psycopg import sql

from pgsched import Run, Scheduler

BATCH = 1000
SETTLE = 1.0  # seconds between arming a herd of timers and its instant


def create_scheduler() -> Scheduler:
    """The app of all workers: no schedules, and three entrypoints that do next to nothing."""
    sc = Scheduler(app="benchmark")

    @sc.entrypoint("nothing")
    async def nothing() -> None: ...

    @sc.entrypoint("clocks")
    async def clocks() -> dict[str, float]:
        """When the function was entered, on this machine's two clocks."""
        return {"monotonic": time.monotonic(), "wall": time.time()}

    @sc.entrypoint("sleeper")
    async def sleeper(run: Run) -> None:
        """Notes when it is entered, and ends only in a second attempt."""
        note({"run": run.id, "attempt": run.attempt, "pid": os.getpid(), "monotonic": time.monotonic()})
        if run.attempt == 1:
            await asyncio.sleep(3600)

    return sc


def note(told: dict[str, float]) -> None:
    """Writes a line for the benchmark to read at once; a result would come with the end only."""
    with Path(os.environ["BENCH_NOTES"]).open("a") as notes:
        notes.write(json.dumps(told) + "\n")


async def every_second(count: int) -> list[float]:
    """One timer a second. At half past each second, since what is measured beside it comes at the full one."""
    loop = asyncio.get_running_loop()
    late: list[float] = []
    aim = loop.time() + 1.5 - time.time() % 1
    for _ in range(count):
        fired = asyncio.Event()
        loop.call_at(aim, lambda aim: late.append(loop.time() - aim), aim)
        loop.call_at(aim, fired.set)
        await fired.wait()
        aim += 1
    return late


async def herd(count: int) -> list[float]:
    """So many timers at one instant."""
    loop = asyncio.get_running_loop()
    late: list[float] = []
    aim = loop.time() + SETTLE + count / 20_000
    for _ in range(count):
        loop.call_at(aim, lambda: late.append(loop.time() - aim))
    done = asyncio.Event()
    loop.call_at(aim + 1e-6, done.set)  # a timer of a later instant comes after them all
    await done.wait()
    return late


def listen(count: int) -> list[float]:
    """When each of so many notifications was heard, on the monotonic clock."""
    heard: list[float] = []
    with psycopg.connect(os.environ["BENCH_DSN"], autocommit=True) as connection:
        connection.execute("listen bench")
        print("listening", flush=True)
        while len(heard) < count:
            select.select([connection.fileno()], [], [], 30)
            at = time.monotonic()
            connection.pgconn.consume_input()
            while connection.pgconn.notifies() is not None:
                heard.append(at)
    return heard


CLAIM = """
with due as materialized (
    select id from {}.runs where status = 'queued' and due_at <= now()
    order by priority desc, due_at, id limit %s for no key update skip locked
)
update {}.runs r
set status = 'running', attempt = attempt + 1, worker = %s, claimed_at = clock_timestamp(),
    heartbeat_at = clock_timestamp()
from due where r.id = due.id returning r.id
"""
FINISH = """
update {}.runs set status = 'succeeded', started_at = claimed_at, finished_at = clock_timestamp()
where id = any(%s) and worker = %s and status = 'running'
"""


def drain(_count: int) -> int:
    """Claims and finishes batches, two transactions each, until nothing is due; runs nothing in between."""
    schema = sql.Identifier(os.environ["BENCH_SCHEMA"])
    claim, finish = sql.SQL(CLAIM).format(schema, schema), sql.SQL(FINISH).format(schema)
    worker, done = uuid.uuid4(), 0
    with psycopg.connect(os.environ["BENCH_DSN"], autocommit=True, application_name="pgsched bare") as connection:
        connection.prepare_threshold = 0
        while ids := [row[0] for row in connection.execute(claim, (BATCH, worker)).fetchall()]:
            connection.execute(finish, (ids, worker))
            done += len(ids)
    return done


if __name__ == "__main__":
    limits: dict[str, Callable[[int], object]] = {
        "every_second": lambda count: asyncio.run(every_second(count)),
        "herd": lambda count: asyncio.run(herd(count)),
        "listen": listen,
        "drain": drain,
    }
    print(json.dumps(limits[sys.argv[1]](int(sys.argv[2]))))
