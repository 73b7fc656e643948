"""The part `enqueue`: how fast pgsched's clients enqueue jobs, compared with bare inserts of the same rows."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable

import psycopg
from contestants import PGSCHED
from figures import Figures
from rig import Database, Server
from rounds import Sizes

from pgsched import connect, connect_sync

ARGS = {"to": "ada@example.org", "template": "welcome", "number": 12345}
TABLE = """
create table bare (id bigint generated always as identity primary key, entrypoint text not null,
    args jsonb not null, due_at timestamptz not null default clock_timestamp())
"""
ONE = "insert into bare (entrypoint, args) values ('nothing', %s::text::jsonb)"
MANY = "insert into bare (entrypoint, args) select 'nothing', a from unnest(%s::text[]::jsonb[]) a"
BARE = "bare inserts"


def enqueue(server: Server, sizes: Sizes, figures: Figures) -> None:
    """Measures jobs a second, one client after the other, without a worker."""
    for _ in range(sizes.rounds):
        with server.database(PGSCHED) as database:
            bare(database, sizes.enqueued, sizes.batch, figures)
            ours(database, sizes.enqueued, sizes.batch, figures)


def ours(database: Database, count: int, batch: int, figures: Figures) -> None:
    """The rates of pgsched's clients."""
    jobs, keys = [ARGS] * batch, [f"key {n}" for n in range(batch)]
    with connect_sync(database.dsn) as client, psycopg.connect(database.dsn) as mine:
        client.enqueue("nothing")  # opens its connection
        add(figures, "one by one", rate(count, lambda: repeat(count, lambda: client.enqueue("nothing", ARGS))))
        add(figures, "one by one, asynchronous", asyncio.run(awaited(database.dsn, count)))
        joined = rate(count, lambda: repeat(count, lambda: client.enqueue("nothing", ARGS, connection=mine)))
        mine.commit()
        add(figures, "one by one, in one transaction", joined)
        for case, given in (("", None), (", unique keys", keys), (", all of them live already", keys)):

            def whole_batch(keys: list[str] | None = given) -> object:
                return client.enqueue_many("nothing", jobs, unique_keys=keys)

            add(figures, f"{batch:,} at once{case}", rate(batch, whole_batch))


def bare(database: Database, count: int, batch: int, figures: Figures) -> None:
    """Rows a second into a table without triggers: each in a transaction, all in one, all in one statement."""
    database.connection.execute(TABLE)
    text = json.dumps(ARGS)
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        alone = rate(count, lambda: repeat(count, lambda: connection.execute(ONE, (text,))))
        with connection.transaction():
            together = rate(count, lambda: repeat(count, lambda: connection.execute(ONE, (text,))))
        whole = rate(batch, lambda: connection.execute(MANY, ([text] * batch,)))
    for what, value in (
        ("one by one", alone), ("one by one, in one transaction", together), (f"{batch:,} at once", whole),
    ):  # fmt: skip
        add(figures, what, value, BARE)


def add(figures: Figures, what: str, value: float, who: str = "pgsched") -> None:
    """Adds one figure."""
    figures.add("enqueue", what, who, "jobs/s", value)


async def awaited(dsn: str, count: int) -> float:
    """The rate of the asynchronous client, with one call awaited after the other."""
    async with connect(dsn) as client:
        await client.enqueue("nothing")
        began = time.perf_counter()
        for _ in range(count):
            await client.enqueue("nothing", ARGS)
        return count / (time.perf_counter() - began)


def repeat(count: int, work: Callable[[], object]) -> None:
    """Does the work `count` times."""
    for _ in range(count):
        work()


def rate(count: int, work: Callable[[], object]) -> float:
    """How many a second, if the work does `count`."""
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began)
