"""The part `enqueue`: how fast jobs are put into the queue, beside bare inserts of the same rows."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable

import psycopg
from psycopg import sql
from rig import Figure, Rig

from pgsched import connect, connect_sync

ARGS = {"to": "ada@example.org", "template": "welcome", "number": 12345}
TABLE = """
create table {}.bare (id bigint generated always as identity primary key, entrypoint text not null,
    args jsonb not null, due_at timestamptz not null default clock_timestamp())
"""
ONE = "insert into {}.bare (entrypoint, args) values ('nothing', %s::text::jsonb)"
MANY = "insert into {}.bare (entrypoint, args) select 'nothing', a from unnest(%s::text[]::jsonb[]) a"


def enqueue(rig: Rig, count: int, batch: int) -> list[Figure]:
    """Jobs a second, from one client after the other; no worker looks on."""
    rig.fresh()
    alone, together, whole = bare(rig, count, batch)
    jobs, keys = [ARGS] * batch, [f"key {n}" for n in range(batch)]
    with connect_sync(rig.dsn, schema=rig.schema) as client, psycopg.connect(rig.dsn) as mine:
        client.enqueue("nothing")  # opens its connection
        found = {
            "one by one": (rate(count, lambda: repeat(count, lambda: client.enqueue("nothing", ARGS))), alone),
            "one by one, asynchronous": (asyncio.run(awaited(rig, count)), alone),
            "one by one, in one transaction": (
                rate(count, lambda: repeat(count, lambda: client.enqueue("nothing", ARGS, connection=mine))), together,
            ),
        }  # fmt: skip
        mine.commit()
        for case, given in {"": None, ", unique keys": keys, ", all of them live already": keys}.items():

            def whole_batch(keys: list[str] | None = given) -> object:
                return client.enqueue_many("nothing", jobs, unique_keys=keys)

            found[f"{batch:,} at once{case}"] = rate(batch, whole_batch), whole
    return [Figure("enqueue", case, value, "jobs/s", limit) for case, (value, limit) in found.items()]


def bare(rig: Rig, count: int, batch: int) -> tuple[float, float, float]:
    """Rows a second into a table without triggers: each in a transaction, all in one, all in one statement."""
    one, many, table = (sql.SQL(text).format(sql.Identifier(rig.schema)) for text in (ONE, MANY, TABLE))
    rig.connection.execute(table)
    text = json.dumps(ARGS)
    with psycopg.connect(rig.dsn, autocommit=True) as connection:
        alone = rate(count, lambda: repeat(count, lambda: connection.execute(one, (text,))))
        with connection.transaction():
            together = rate(count, lambda: repeat(count, lambda: connection.execute(one, (text,))))
        return alone, together, rate(batch, lambda: connection.execute(many, ([text] * batch,)))


async def awaited(rig: Rig, count: int) -> float:
    """The asynchronous client's, one awaited after the other."""
    async with connect(rig.dsn, schema=rig.schema) as client:
        await client.enqueue("nothing")
        began = time.perf_counter()
        for _ in range(count):
            await client.enqueue("nothing", ARGS)
        return count / (time.perf_counter() - began)


def repeat(count: int, work: Callable[[], object]) -> None:
    """Does it so often."""
    for _ in range(count):
        work()


def rate(count: int, work: Callable[[], object]) -> float:
    """How many a second, where the work does so many."""
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began)
