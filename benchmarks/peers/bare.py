"""The bare limits of the loop, the server and the driver, if nothing is coordinated, kept or promised.

It uses no part of pgsched. Its verbs are its own, except `install` and `produce`.
"""

from __future__ import annotations

import asyncio
import select
import time
import uuid
from collections.abc import Awaitable, Callable

import probe
import psycopg

SETTLE = 1.0  # seconds between arming a herd of timers and its instant
CLAIM = """
with due as materialized (
    select id from pgsched.runs where status = 'queued' and due_at <= now()
    order by priority desc, due_at, id limit %s for no key update skip locked
)
update pgsched.runs r set status = 'running', attempt = attempt + 1, worker = %s, claimed_at = clock_timestamp(),
    heartbeat_at = clock_timestamp()
from due where r.id = due.id returning r.id
"""
FINISH = """
update pgsched.runs set status = 'succeeded', started_at = claimed_at, finished_at = clock_timestamp()
where id = any(%s) and worker = %s and status = 'running'
"""


def install() -> None:
    """Does nothing: the drain uses a database of pgsched."""


async def every_second(count: int) -> list[float]:
    """One timer a second, at half past, because the contestant measured meanwhile starts at the full second."""
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
    """Sets `count` timers for one instant. Returns how late each was."""
    loop = asyncio.get_running_loop()
    late: list[float] = []
    aim = loop.time() + SETTLE + count / 20_000
    for _ in range(count):
        loop.call_at(aim, lambda: late.append(loop.time() - aim))
    done = asyncio.Event()
    loop.call_at(aim + 1e-6, done.set)  # a timer of a later instant fires after all others
    await done.wait()
    return late


def listen(count: int) -> list[float]:
    """When each of `count` notifications was received."""
    heard: list[float] = []
    with psycopg.connect(probe.DSN, autocommit=True) as connection:
        connection.execute("listen bench")
        probe.say("ready")
        while len(heard) < count:
            select.select([connection.fileno()], [], [], 30)
            at = time.time()
            connection.pgconn.consume_input()
            while connection.pgconn.notifies() is not None:
                heard.append(at)
    return heard


async def produce(count: int, pause: float) -> list[tuple[float, bool]]:
    async with (
        await psycopg.AsyncConnection.connect(probe.DSN, autocommit=True) as connection,
        await psycopg.AsyncConnection.connect(probe.DSN) as other,
    ):

        async def put_in_transaction() -> Callable[[], Awaitable[None]]:
            await other.execute("notify bench")
            return other.commit

        return await probe.produced(count, pause, lambda: connection.execute("notify bench"), put_in_transaction)


def drain(batch: int) -> list[float]:
    """Claims and finishes batches, two transactions each, until nothing is due; runs nothing in between."""
    worker = uuid.uuid4()
    with psycopg.connect(probe.DSN, autocommit=True) as connection:
        connection.prepare_threshold = 0
        while ids := [row[0] for row in connection.execute(CLAIM, (batch, worker)).fetchall()]:
            connection.execute(FINISH, (ids, worker))
    return []


if __name__ == "__main__":
    probe.main(
        {
            "install": install,
            "every_second": every_second,
            "herd": herd,
            "listen": listen,
            "produce": produce,
            "drain": drain,
        }
    )
