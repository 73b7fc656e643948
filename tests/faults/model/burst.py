"""Runs one burst in a fresh schema, brings the world to rest, and returns what it found."""

import asyncio
import os
import tempfile
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from model import clients, ledger, odd, violence
from model.invariants import INVARIANTS, LEFT_DUE, LEFT_RUNS, LEFT_SCHEDULES, LEFT_SILENT
from model.plan import Burst, Operation
from model.story import Finding, finding
from model.workers import STALL
from model.world import World, collecting
from pgsched.db import migrate

assert odd  # its operation is among clients.ACTS
READY, REST, UNAIDED = 20.0, 30.0, 20.0  # seconds
IDLE_LOOKS = 24
SESSIONS = """
    select a.pid, a.application_name, a.state, a.state_change, left(a.query, 200) as query
    from pg_stat_activity a join pgsched.workers w on a.application_name = 'pgsched ' || w.id
"""
# The database refuses or loses these on purpose; what else is logged as an error is a finding.
EXPECTED = (
    "hook_failed", "outcome_reduced", "outcome_refused", "outcomes_not_written", "row_set_aside", "statement_refused",
)  # fmt: skip


async def run(dsn: str, burst: Burst) -> tuple[World, list[Finding]]:
    """Runs a burst. The schema is gone afterwards; the world still says what was done."""
    schema = f'Mo"del %s {os.getpid()} {burst.name}'
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await migrate.migrate(connection, schema)
    with tempfile.TemporaryDirectory(prefix="pgsched-model-") as folder:
        world = World(dsn, schema, Path(folder))
        watch = asyncio.create_task(world.watch())
        try:
            with collecting(world.events):
                await world.open()
                try:
                    found = await _play(world, burst)
                finally:
                    await world.close()
        finally:
            watch.cancel()
            async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
                await connection.execute(sql.SQL("drop schema if exists {} cascade").format(sql.Identifier(schema)))
    return world, found


async def _play(world: World, burst: Burst) -> list[Finding]:
    world.version = int(not burst.sparse)
    for spec in burst.workers:
        world.add(**spec)
    if not await world.until(lambda: all(worker.ready or not worker.alive for worker in world.workers), READY):
        return [Finding("every worker becomes ready", world.problems(), [])]
    await world.begin()
    surprises = await asyncio.gather(*(_do(world, operation) for operation in burst.operations))
    found = [surprise for surprise in surprises if surprise is not None]
    lost = await _served(world) if burst.sparse else []
    restless = lost + await _rest(world)
    found += restless + await _check(world, settled=not restless)
    if not restless and not burst.quick and not burst.odd:  # an end that is refused is offered again
        found += await _idle(world)
    found += await _stop(world)
    if problems := [p for p in world.problems() if not _explained(p, burst)]:
        found.append(Finding("no worker logs an error or ends by itself", problems, []))
    return found


def _explained(problem: dict[str, Any], burst: Burst) -> bool:
    names = {operation.name for operation in burst.operations}
    if problem["event"] in ("database_lost", "guard_failed", "statement_failed"):
        # An operator ended the session, the server that of a frozen transaction, or nobody said why. Or a client held
        # a row for longer than these workers, whose stall timeout is short, wait for an answer.
        states = {state for state in ("57P01", "25P03", "55P03") if state in problem["error"]}
        severed = names & {"terminate", "freeze"} and (
            states & {"57P01", "25P03"} or "SQLSTATE" not in problem["error"]
        )
        held = names & {"hold", "lock"} and ("55P03" in states or "TimeoutError" in problem["error"])
        if severed or held:
            return True
    if problem["event"] == "worker_failed":
        return "abort" in names and problem["error"] == "CancelledError"
    return problem["event"] in EXPECTED and burst.odd


async def _do(world: World, operation: Operation) -> Finding | None:
    """Does one operation at its instant, and notes what came of it."""
    await asyncio.sleep(max(0.0, operation.at - world.now))
    begun = world.now
    surprise = None
    try:
        async with world.connect() as connection:
            outcome = repr(await clients.ACTS[operation.name](world, connection, **operation.values))[:160]
    except Exception as error:
        outcome = clients.short(error)
        if not clients.expected(error):
            rows = [{"operation": str(operation), "error": outcome}]
            surprise = Finding("an operation ends well or is refused in a sentence", rows, [])
    world.done.append(f"{begun:7.3f} to {world.now:7.3f}  {str(operation)[9:]}: {outcome}")
    return surprise


# --- rest ---------------------------------------------------------------------------------------------------


async def _served(world: World) -> list[Finding]:
    """Waits until all that is due has been done, without a word to the workers."""
    end = asyncio.get_running_loop().time() + UNAIDED
    while rows := [*await world.look(LEFT_RUNS), *await world.look(LEFT_DUE)]:
        if asyncio.get_running_loop().time() > end:
            name = f"within {UNAIDED:.0f} s all that is due is done, though no resync helps"
            return [await finding(world, name, rows)]
        await asyncio.sleep(0.1)
    return []


async def _rest(world: World) -> list[Finding]:
    """Ends all schedules, whatever is paused, and waits until nothing is left to do."""
    for code in "ab":
        if not any(w.alive and not w.ending and w.code == code for w in world.workers):
            world.add(code=code, version=world.version)
    # A worker that starts sets back what it declares.
    await world.until(lambda: all(worker.ready or not worker.alive for worker in world.workers), READY)
    async with world.connect() as connection:
        await world.rows(connection, "update pgsched.schedules set status = 'active' where status = 'paused'")
        await world.rows(
            connection,
            "update pgsched.schedules set ends_at = greatest(coalesce(starts_at, clock_timestamp()), "
            "clock_timestamp()) where status in ('active', 'finished') and ends_at is distinct from now()",
        )
    loop = asyncio.get_running_loop()
    end = loop.time() + REST
    silent = LEFT_SILENT.format(seconds=2 * STALL + 3)
    while loop.time() < end:
        runs, schedules = await world.look(LEFT_RUNS), await world.look(LEFT_SCHEDULES)
        if not runs and not schedules:
            return []
        if (stale := await world.look(silent)) and world.still < 1.0:
            return [await finding(world, "no run stays running with a stale heartbeat", stale)]
        await asyncio.sleep(0.1)
    found = []
    if runs:
        found.append(await finding(world, f"within {REST:.0f} s every run that a worker can run has ended", runs))
    if schedules:
        found.append(await finding(world, f"within {REST:.0f} s every schedule is planned to its end", schedules))
    return found


async def _check(world: World, *, settled: bool) -> list[Finding]:
    """settled: whether nothing is left to do, so that the books can be balanced."""
    found = []
    for name, query in INVARIANTS.items():
        if rows := await world.look(query):
            found.append(await finding(world, name, rows))
    rows = ledger.unaccounted(
        await world.look(ledger.TRAIL), await world.look(ledger.MADE),
        {row["id"] for row in await world.look(ledger.MOVED)},
    )  # fmt: skip
    if rows and settled:
        found.append(await finding(world, "every fire time is accounted for, and every run is of a fire time", rows))
    return found


async def _idle(world: World) -> list[Finding]:
    """Workers that have nothing to do send next to nothing: the resync is once a minute, and may fall into this."""
    before: dict[Any, Any] = {}
    quiet = 0
    for _ in range(IDLE_LOOKS):
        await asyncio.sleep(0.5)
        now = {row["pid"]: row["state_change"] for row in await world.look(SESSIONS)}
        quiet = quiet + 1 if sum(now.get(pid) != at for pid, at in before.items()) <= 1 else 0
        if quiet == 4:
            return []
        before = now
    return [Finding("workers at rest send at most a statement a minute", await world.look(SESSIONS), [])]


async def _stop(world: World) -> list[Finding]:
    """Drains all workers, which have nothing to do."""
    living = [worker for worker in world.workers if worker.alive]
    for worker in living:
        if not worker.ending:
            worker.stop()
    if await world.until(lambda: not any(worker.alive for worker in living), violence.LONG):
        return []
    left = [{"code": worker.code, "daemon": worker.daemon} for worker in living if worker.alive]
    return [Finding(f"an idle worker ends within {violence.LONG:.0f} s", left, [])]
