"""pgsched's workers as tables grow: claim passes, many workers at one queue.

Runs the parts of pgsched's workers in this process. Verbs: passes, contend, drained, look.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import probe
import psycopg
from psycopg.rows import tuple_row

from pgsched import Scheduler
from pgsched.config import Settings
from pgsched.db.statements.queries import Numbered, Queries
from pgsched.model import Claim, ClaimedRun, Outcome, RunStatus
from pgsched.worker.claim.dispatcher import Dispatcher
from pgsched.worker.kit import Kit
from pgsched.worker.run.roster import Roster
from pgsched.worker.upkeep.reaper import Reaper

EXPLAIN = b"explain (analyze, buffers, format json) "
MANY = "select pgsched.enqueue_many('nothing', array_fill('{}'::jsonb, array[%s]))"
DUE = 10  # how many fire times a pass has to claim, and how many jobs


class Taker:
    """Starts nothing, and keeps its claims."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.taken: list[Any] = []

    def take(self, runs: Iterable[ClaimedRun], asked_at: float | None = None) -> None:
        """Keeps the claims."""
        self.taken.extend(runs)

    def give_back(self, runs: Iterable[ClaimedRun]) -> None:
        """Nobody asks for it: every claim is taken."""


class Part:
    """A worker's claim pass. Claimed runs are finished at once, without being executed."""

    def __init__(self, most: int = 1000, names: Sequence[str] = ("nothing",)) -> None:
        scheduler = Scheduler(app="growing")
        for name in names:
            scheduler.entrypoint(name)(nothing)
        self.kit = Kit.build(scheduler, Settings(dsn=probe.DSN, max_running=most))
        self.roster = Roster(self.kit.settings)
        self.runner = Taker(most)
        self.taken = self.runner.taken
        self.dispatcher = Dispatcher(self.kit, self.roster, self.runner)
        self.dispatcher.claim_ahead(True)

    async def finish(self) -> None:
        """Ends the claimed runs."""
        ends = [Outcome(Claim(r.id, r.token, self.kit.worker), RunStatus.SUCCEEDED) for r in self.taken]
        self.taken.clear()
        if ends:
            async with self.kit.writes.use() as connection:
                await self.kit.store.runs.finish_runs(connection, self.kit.worker, ends)

    async def close(self) -> None:
        await self.kit.control.discard()
        await self.kit.writes.discard()


async def nothing() -> None: ...


# --- one worker's pass ---------------------------------------------------------------------------------------


async def passes(rounds: int) -> dict[str, Any]:
    """The pages that each statement of a pass touches, and the time of a whole pass. All passes claim equally much."""
    part = Part()
    try:
        pages = await watched(part)
        times = []
        for _ in range(rounds + 3):
            await due()
            part.dispatcher.next = replace(part.dispatcher.next, gated=False)  # as in a worker with free places
            began = time.perf_counter()
            claimed = await part.dispatcher.claim_pass()
            times.append((time.perf_counter() - began) * 1000)
            assert claimed == 2 * DUE, claimed
            await part.finish()
        return {"pages": pages, "milliseconds": statistics.median(times[3:])}
    finally:
        await part.close()


async def due() -> None:
    """Makes work for a pass: some of the filled-in schedules become due, and jobs are enqueued."""
    async with await psycopg.AsyncConnection.connect(probe.DSN, autocommit=True) as connection:
        await connection.execute(
            "update pgsched.schedules set next_run = now(), planned_at = clock_timestamp() where id in"
            " (select id from pgsched.schedules where status = 'active' and next_run > now() order by id limit %s)",
            (DUE,),
        )
        await connection.execute(MANY, (DUE,))


async def watched(part: Part) -> dict[str, int]:
    """The pages by statement, for one pass that looks at everything and for the reaper's look."""
    names: dict[bytes, str] = {}
    for name in Queries.texts():
        text = part.kit.store.claims.query(name)
        names |= {text: name, Numbered.of(text).text: name}
    pages: dict[str, int] = {}
    execute = psycopg.AsyncCursor.execute

    async def explained(cursor: psycopg.AsyncCursor[Any], query: Any, params: Any = None, **options: Any) -> Any:
        if isinstance(query, bytes) and query in names:
            kept, cursor.row_factory = cursor.row_factory, tuple_row
            # The changes of an analysed statement are rolled back; then it runs as always.
            async with cursor.connection.transaction(force_rollback=True):
                await execute(cursor, EXPLAIN + query, params, **options)
                row = await cursor.fetchone()
            cursor.row_factory = kept
            assert row is not None
            plan = row[0][0]["Plan"]
            touched = int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
            pages[names[query]] = max(pages.get(names[query], 0), touched)
        return await execute(cursor, query, params, **options)

    await due()
    psycopg.AsyncCursor.execute = explained  # of all cursors: statements are sent with several kinds
    await part.dispatcher.claim_pass()
    await Reaper(part.kit, part.roster).reap_pass()
    psycopg.AsyncCursor.execute = execute
    await part.finish()
    return pages


# --- many workers at one queue -------------------------------------------------------------------------------


async def contend(workers: int, jobs: int, most: int) -> dict[str, Any]:
    """The claim passes of many workers at one queue until it is empty. Each pass takes at most `most` runs."""
    parts = [Part(most) for _ in range(workers)]
    try:
        for part in parts:
            await part.kit.control.connect()
        async with await psycopg.AsyncConnection.connect(probe.DSN, autocommit=True) as connection:
            waits = asyncio.create_task(count_waits(connection))
            began = time.perf_counter()
            told = await asyncio.gather(*(drain(part) for part in parts))
            took = time.perf_counter() - began
            waits.cancel()
            looks, waiting = waits_seen
    finally:
        for part in parts:
            await part.close()
    passes = [one for each in told for one in each]
    assert sum(claimed for _, claimed in passes) == jobs, "claimed twice or not at all"
    useful = [ms for ms, claimed in passes if claimed]
    # Each worker's last pass finds nothing, and does not count as one in vain.
    return {
        "claims a second": jobs / took,
        "pass, p50": statistics.median(useful),
        "pass, p99": sorted(useful)[int(len(useful) * 0.99)],
        "passes that found nothing": 100 * max(0, len(passes) - len(useful) - workers) / len(passes),
        "sessions that wait for a lock": waiting / max(1, looks),
    }


waits_seen = [0, 0]  # looks, and the sessions that waited for a lock


async def drain(part: Part) -> list[tuple[float, int]]:
    """Passes of one worker until the queue is empty: for each its milliseconds and the number of claims."""
    told = []
    while True:
        began = time.perf_counter()
        claimed = await part.dispatcher.claim_pass()
        told.append(((time.perf_counter() - began) * 1000, claimed))
        if not claimed:
            async with part.kit.control.use() as connection:
                row = await (await connection.execute(
                    "select exists (select from pgsched.runs where status = 'queued' and not gated)"
                )).fetchone()  # fmt: skip
            if row is None or not row[0]:
                return told
        part.taken.clear()


async def count_waits(connection: psycopg.AsyncConnection[Any]) -> None:
    """Counts now and then the sessions that wait for a lock, of rows or inside the server."""
    while True:
        row = await (await connection.execute(
            "select count(*) from pg_stat_activity where datname = current_database()"
            " and wait_event_type in ('Lock', 'LWLock', 'BufferPin') and state = 'active'"
        )).fetchone()  # fmt: skip
        waits_seen[0] += 1
        waits_seen[1] += row[0] if row else 0
        await asyncio.sleep(0.02)


# --- the dead rows of a drain ------------------------------------------------------------------------------


async def drained(jobs: int) -> dict[str, float]:
    """Milliseconds of a pass that claims one job, after `jobs` jobs were worked off since the last vacuum."""
    told: dict[str, float] = {}
    part = Part()
    async with await psycopg.AsyncConnection.connect(probe.DSN, autocommit=True) as client:
        await client.execute("alter table pgsched.runs set (autovacuum_enabled = off)")
        for how, snapshot in (("", False), (", with a transaction open since before", True)):
            for _ in range(0, jobs, 10_000):
                await client.execute(MANY, (min(jobs, 10_000),))
            async with await psycopg.AsyncConnection.connect(probe.DSN) as other:
                if snapshot:
                    await other.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
                    await other.execute("select 1")
                while await part.dispatcher.claim_pass():
                    await part.finish()
                told[f"not vacuumed{how}"] = await alone(part, client)
            if not snapshot:
                row = await (await client.execute("select pg_total_relation_size('pgsched.runs')")).fetchone()
                told["bytes"] = row[0] / jobs if row else 0
            await client.execute("vacuum pgsched.runs")
            told["vacuumed"] = await alone(part, client)
    await part.close()
    return told


async def look() -> float:
    """A pass that claims one job and looks at everything, also at runs that wait for their overlap."""
    part = Part()
    async with await psycopg.AsyncConnection.connect(probe.DSN, autocommit=True) as client:
        told = await alone(part, client, gated=True)
    await part.close()
    return told


async def alone(part: Part, client: psycopg.AsyncConnection[Any], gated: bool = False) -> float:
    """The median of passes that claim one job each."""
    times = []
    for _ in range(30):
        await client.execute("select pgsched.enqueue('nothing')")
        part.dispatcher.next = replace(part.dispatcher.next, gated=gated)
        began = time.perf_counter()
        await part.dispatcher.claim_pass()
        times.append((time.perf_counter() - began) * 1000)
        await part.finish()
    return statistics.median(times)


if __name__ == "__main__":
    probe.main({"passes": passes, "contend": contend, "drained": drained, "look": look})
