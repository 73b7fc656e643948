"""The parts `latency` and `million`: from a trigger or an enqueue on another connection to the start of its job.

If the contestant can join a transaction of the client, every second job is enqueued in one: its latency counts from
sending the COMMIT. The others are enqueued by one call, and their latency counts from just before it, with its insert
and its commit. The bare limit is a NOTIFY to another process, in the same two ways.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from contestants import APSCHEDULER4, BARE_LIMIT, PGQUEUER, PGSCHED, PROCRASTINATE
from figures import BARE, Fault, Figures, percentile
from rig import Database, Server
from rounds import Sizes

PAUSE = 0.012  # seconds between two calls
SLOW = {PGQUEUER.name: 0.05, PROCRASTINATE.name: 0.1}  # contestants that need more with a million: calls would queue up
WARM = 10  # calls of a round that do not count
CALL = "from the call, p50"
WHO = ((PGSCHED, "trigger"), (PGSCHED, "enqueue"), (PGQUEUER, "enqueue"), (PROCRASTINATE, "enqueue"),
       (APSCHEDULER4, "enqueue"))  # fmt: skip
WHOM = (PGSCHED, PROCRASTINATE, PGQUEUER, APSCHEDULER4)


def latency(server: Server, sizes: Sizes, figures: Figures) -> None:
    """Measures in a database that holds nothing else."""
    for _ in range(sizes.rounds):
        bare(server, sizes, figures, "latency")
        for who, how in WHO:
            try:
                with server.database(who) as database:
                    measure(database, sizes, figures, "latency", how)
            except Fault as fault:
                figures.add("latency", CALL, f"{who.name}: {how}", "ms", None, str(fault))
    figures.add("latency", CALL, "APScheduler 3", "ms", None, "another process cannot wake it")


def million(server: Server, sizes: Sizes, figures: Figures) -> None:
    """Measures in a database with a million far-future schedules (jobs, if it has no schedules) and finished runs."""
    with ExitStack() as stack:
        databases = [stack.enter_context(server.database(who)) for who in WHOM]
        with ThreadPoolExecutor(2) as two:  # one for each processor
            fills = [two.submit(fill, database, sizes, figures) for database in databases]
        filled = {d.who.name: d for d, each in zip(databases, fills, strict=True) if each.result()}
        server.connection.execute("checkpoint")
        for _ in range(sizes.rounds):
            bare(server, sizes, figures, "million")
            for who, how in WHO:
                if who.name in filled:
                    try:
                        measure(filled[who.name], sizes, figures, "million", how)
                    except Fault as fault:
                        figures.add("million", CALL, f"{who.name}: {how}", "ms", None, str(fault))
                        del filled[who.name]


def fill(database: Database, sizes: Sizes, figures: Figures) -> bool:
    """Inserts the millions of rows."""
    try:
        database.call("far", count=sizes.million, finished=sizes.million, limit=150)
    except Fault as fault:
        figures.add("million", CALL, f"{database.who.name}: enqueue", "ms", None, f"not filled: {fault}")
        return False
    return True


def measure(database: Database, sizes: Sizes, figures: Figures, part: str, how: str) -> None:
    """One round: a worker, and one call after the other."""
    pause = SLOW.get(database.who.name, PAUSE) if part == "million" else PAUSE
    count = WARM + int(sizes.calls * min(1, 2 * PAUSE / pause)) // sizes.rounds
    record(figures, part, f"{database.who.name}: {how}", late(database, count, how, pause))


def late(database: Database, count: int, how: str, pause: float = PAUSE) -> list[tuple[float, bool]]:
    """For each call the milliseconds to its start, and whether they count from sending its COMMIT.

    A worker is running. The first calls, while it warms up, are left out.
    """
    with database.worker(expected=count) as worker:
        time.sleep(0.5)
        calls = database.call("produce", count=count, pause=pause, how=how)
        deadline = time.monotonic() + 20
        while f"all {count}" not in worker.lines() and time.monotonic() < deadline:
            time.sleep(0.02)
        starts = worker.stop()
    if len(starts) != count:
        raise Fault(f"{len(starts)} of {count} started within 20 s")
    return paired(calls, starts)


def bare(server: Server, sizes: Sizes, figures: Figures, part: str) -> None:
    """Milliseconds from a NOTIFY until another process received it."""
    count = WARM + sizes.calls // sizes.rounds
    with server.database(BARE_LIMIT) as database, database.process("listen", count=count) as listener:
        listener.said("ready")
        calls = database.call("produce", count=count, pause=PAUSE)
        record(figures, part, BARE, paired(calls, listener.answer()))


def paired(calls: Sequence[tuple[float, bool]], starts: Sequence[float]) -> list[tuple[float, bool]]:
    """How late each start was. Jobs start in the order of the calls, as each call waits for the job before it."""
    pairs = list(zip(sorted(starts), calls, strict=True))[WARM:]
    return [((start - at) * 1000, committing) for start, (at, committing) in pairs]


def record(figures: Figures, part: str, who: str, pairs: Sequence[tuple[float, bool]]) -> None:
    """Adds the figures of a round."""
    for name, committing in (("COMMIT", True), ("the call", False)):
        found = [ms for ms, how in pairs if how == committing]
        if found:
            figures.add(part, f"from {name}, p50", who, "ms", percentile(found, 0.5))
            figures.add(part, f"from {name}, p99", who, "ms", percentile(found, 0.99))
