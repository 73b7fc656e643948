"""A claim pass of a worker with many entrypoints: statements, bytes sent, and the server's time for it.

Bytes are counted in libpq's own trace of the connection. The server's time is the sum of the durations that it logs for
the connection, which include reading the statement and its parameters. Each has passes of its own. Verb: weigh.
"""

from __future__ import annotations

import re
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import probe
import psycopg
from growing import DUE, Part
from psycopg import pq

WARM = 12  # passes; after these, all statements are prepared
SENT = re.compile(r"^F\t(\d+)\t(\w+)", re.MULTILINE)
DURATION = re.compile(r"duration: ([\d.]+) ms")
FILL = """
insert into pgsched.schedules (name, entrypoint, expression, next_run, planned_at, accounted_through)
select 'far-' || n, (%(names)s::text[])[n %% cardinality(%(names)s::text[]) + 1], '@yearly',
    timestamptz '2099-01-01Z', now(), now()
from generate_series(0, 999) n
"""
FIRE = """
update pgsched.schedules set next_run = now(), planned_at = clock_timestamp()
where id in (select id from pgsched.schedules where next_run > now() order by id limit %s)
"""
ENQUEUE = "select pgsched.enqueue(e) from unnest(%s::text[]) e"
Row = tuple[str, str, float]


async def weigh(entrypoints: int, rounds: int) -> list[Row]:
    """The rows of a table: what was measured, its unit and its value for one pass."""
    names = ["nothing", *(f"nothing-{number}" for number in range(1, entrypoints))]
    part = Part(names=names)
    told: list[Row] = []
    try:
        async with await psycopg.AsyncConnection.connect(probe.DSN, autocommit=True) as client:
            await client.execute(FILL, {"names": names})
            await client.execute("vacuum analyze pgsched.schedules")
            connection = await part.kit.control.connect()
            with traced(connection) as sent:
                await part.dispatcher.claim_pass()
            told.append(("the first pass: bytes sent", "", sent()[1]))

            async def work() -> None:
                await client.execute(FIRE, (DUE,))
                await client.execute(ENQUEUE, ([names[number % entrypoints] for number in range(DUE)],))

            async def idle() -> None:
                """Leaves nothing to claim."""

            for kind, claims, make in (("finds nothing", 0, idle), ("claims 20", 2 * DUE, work)):
                each = Passes(part, connection, make, claims)
                told += [(f"a pass that {kind}: {what}", unit, value) for what, unit, value in await each.all(rounds)]
    finally:
        await part.close()
    return told


class Passes:
    """Passes of one kind."""

    def __init__(
        self, part: Part, connection: psycopg.AsyncConnection[Any], make: Callable[[], Awaitable[None]], claims: int
    ) -> None:
        self._part, self._connection, self._make, self._claims = part, connection, make, claims

    async def all(self, rounds: int) -> list[Row]:
        """All figures of one pass."""
        await self._some(WARM)
        milliseconds = statistics.median(await self._some(rounds))
        with traced(self._connection) as sent:
            await self._some(rounds)
        statements, size = sent()
        durations: list[float] = []

        def notice(diagnostic: psycopg.errors.Diagnostic) -> None:
            if found := DURATION.match(diagnostic.message_primary or ""):
                durations.append(float(found[1]))

        self._connection.add_notice_handler(notice)
        await self._connection.execute("set client_min_messages = log")
        await self._connection.execute("set log_duration = on")
        durations.clear()
        await self._some(rounds)
        spent = sum(durations)
        await self._connection.execute("reset log_duration")
        await self._connection.execute("reset client_min_messages")
        self._connection.remove_notice_handler(notice)
        return [
            ("statements", "", statements / rounds), ("bytes sent", "", size / rounds),
            ("server's time", "ms", spent / rounds), ("all of its time", "ms", milliseconds),
        ]  # fmt: skip

    async def _some(self, count: int) -> list[float]:
        """The milliseconds of each pass."""
        times = []
        for _ in range(count):
            await self._make()
            self._part.dispatcher.next = replace(self._part.dispatcher.next, gated=False)  # as with free places
            began = time.perf_counter()
            claimed = await self._part.dispatcher.claim_pass()
            times.append((time.perf_counter() - began) * 1000)
            assert claimed == self._claims, claimed
            await self._part.finish()
        return times


@contextmanager
def traced(connection: psycopg.AsyncConnection[Any]) -> Iterator[Callable[[], tuple[int, int]]]:
    """Traces a connection in the block. Afterwards the yielded function returns the statements and bytes that it sent.

    BEGIN and COMMIT count as statements. A message's length leaves out the byte of its type.
    """
    with tempfile.TemporaryFile("w+b") as file:
        connection.pgconn.trace(file.fileno())
        connection.pgconn.set_trace_flags(pq.Trace.SUPPRESS_TIMESTAMPS)
        found: list[tuple[str, str]] = []
        try:
            yield lambda: (
                sum(kind in {"Query", "Execute"} for _, kind in found), sum(int(size) + 1 for size, _ in found),
            )  # fmt: skip
        finally:
            connection.pgconn.untrace()
            file.seek(0)
            found += SENT.findall(file.read().decode(errors="replace"))


if __name__ == "__main__":
    probe.main({"weigh": weigh})
