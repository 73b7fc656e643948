"""The parts `latency` and `million`: from a trigger or an enqueue on another connection to the start of its job.

If the contestant can join a transaction of the client, every second job is enqueued in one: its latency counts from
sending the COMMIT. The others are enqueued by one call, and their latency counts from just before it, with its insert
and its commit. The bare limit is a NOTIFY to another process, in the same two ways.

`latency` measures all contestants in empty databases. Then it measures pgsched and PGQueuer with a million far-future
schedules in the tables (delayed jobs, if there are no stored schedules) and a million finished runs. These two take
turns, in changing order, and a ratio compares figures of one round. `million` is the same for other contestants.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from contestants import (
    APSCHEDULER4,
    AWA,
    BARE_LIMIT,
    GRAPHILE,
    PGQUEUER,
    PGSCHED,
    PROCRASTINATE,
    Contestant,
)
from figures import BARE, Fault, Figures, percentile
from rig import Database, Server
from rounds import Sizes

PAUSE = 0.012  # seconds between two calls
# Contestants that need more with a million: calls would queue up.
SLOW = {PGQUEUER.name: 0.05, GRAPHILE.name: 0.1, PROCRASTINATE.name: 0.1}
WARM = 10  # calls of a round that do not count
CALL = "from the call, p50"
Who = tuple[Contestant, str]
PAIR: tuple[Who, ...] = ((PGSCHED, "trigger"), (PGSCHED, "enqueue"), (PGQUEUER, "enqueue"))
OTHERS: tuple[Who, ...] = tuple((who, "enqueue") for who in (GRAPHILE, AWA, PROCRASTINATE, APSCHEDULER4))
FILLED = (GRAPHILE, PROCRASTINATE, APSCHEDULER4)  # in `million`
Late = list[tuple[float, bool]]  # for each call the milliseconds, and whether they count from sending its COMMIT


def latency(server: Server, sizes: Sizes, figures: Figures) -> None:
    """Measures all in empty databases, then pgsched and PGQueuer with a million of each."""
    end = time.monotonic() + sizes.budget
    figures.add("latency", CALL, "APScheduler 3", "ms", None, "another process cannot wake it")
    for number in range(sizes.rounds):
        bare(server, sizes, figures, "latency")
        pair(server, sizes, figures, number, {})
        for who, how in OTHERS:
            try:
                with server.database(who) as database:
                    record(figures, "latency", f"{who.name}: {how}", late(database, WARM + sizes.calls // 9, how))
            except Fault as fault:
                figures.add("latency", CALL, f"{who.name}: {how}", "ms", None, str(fault))
    with ExitStack() as stack:
        filled = fill_all(server, stack, (PGSCHED, PGQUEUER), sizes, figures, "latency")
        longest = 0.0
        for number in range(sizes.rounds):
            began = time.monotonic()
            if began + longest < end:
                pair(server, sizes, figures, number, filled)
            longest = max(longest, time.monotonic() - began)


def pair(server: Server, sizes: Sizes, figures: Figures, number: int, filled: dict[str, Database]) -> None:
    """One round of pgsched and PGQueuer, in this order or the other; in filled databases if there are any."""
    beside = f", with {sizes.million:,} of each" if filled else ""
    found: dict[Who, dict[str, float]] = {}
    for who, how in PAIR[:: 1 if number % 2 else -1]:
        name = f"{who.name}: {how}{beside}"
        try:
            with ExitStack() as stack:
                database = filled[who.name] if filled else stack.enter_context(server.database(who))
                pairs = measure(database, sizes, how, bool(filled))
            found[who, how] = record(figures, "latency", name, pairs)
        except (Fault, KeyError) as fault:
            figures.add("latency", CALL, name, "ms", None, str(fault))
    theirs = found.get(PAIR[-1], {})
    for (who, how), values in found.items():
        for what, value in values.items():
            if who is PGSCHED and what in theirs:
                figures.add(
                    "latency", f"{what}: to PGQueuer's", f"{who.name}: {how}{beside}", "x", value / theirs[what]
                )


def million(server: Server, sizes: Sizes, figures: Figures) -> None:
    """Measures other contestants with a million of each, as the part's time allows."""
    end, longest = time.monotonic() + sizes.budget, 0.0
    with ExitStack() as stack:
        filled = fill_all(server, stack, FILLED, sizes, figures, "million")
        for _ in range(sizes.rounds):
            if time.monotonic() + longest > end:
                break
            began = time.monotonic()
            bare(server, sizes, figures, "million")
            for who in FILLED:
                if who.name in filled:
                    try:
                        record(figures, "million", f"{who.name}: enqueue",
                               measure(filled[who.name], sizes, "enqueue", True))  # fmt: skip
                    except Fault as fault:
                        figures.add("million", CALL, f"{who.name}: enqueue", "ms", None, str(fault))
                        del filled[who.name]
            longest = max(longest, time.monotonic() - began)


def fill_all(
    server: Server, stack: ExitStack, whom: Sequence[Contestant], sizes: Sizes, figures: Figures, part: str
) -> dict[str, Database]:
    """Databases that hold millions of rows, by contestant. Those that cannot be filled are reported."""
    databases = []
    for who in whom:
        try:
            databases.append(stack.enter_context(server.database(who)))
        except Fault as fault:
            figures.add(part, CALL, f"{who.name}: enqueue", "ms", None, str(fault))
    with ThreadPoolExecutor(2) as two:  # one for each processor
        fills = [two.submit(fill, database, sizes, figures, part) for database in databases]
    server.connection.execute("checkpoint")
    return {d.who.name: d for d, each in zip(databases, fills, strict=True) if each.result()}


def fill(database: Database, sizes: Sizes, figures: Figures, part: str) -> bool:
    """Inserts the millions of rows, and shows how."""
    name, began = database.who.name, time.monotonic()
    try:
        statement = database.call("far", count=sizes.million, finished=sizes.million, limit=200)
    except Fault as fault:
        figures.add(part, CALL, f"{name}: enqueue", "ms", None, f"not filled: {fault}")
        return False
    print(f"  {part}: {name}: filled within {time.monotonic() - began:.0f} s", flush=True)
    if statement:
        print(f"    by: {' '.join(statement.split())}", flush=True)
    return True


def measure(database: Database, sizes: Sizes, how: str, filled: bool) -> Late:
    """One round: a worker, and one call after the other."""
    pause = SLOW.get(database.who.name, PAUSE) if filled else PAUSE
    return late(database, WARM + int(sizes.calls * min(1, 2 * PAUSE / pause)) // sizes.rounds, how, pause)


def late(database: Database, count: int, how: str, pause: float = PAUSE) -> Late:
    """How late the start of each call's job was.

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


def paired(calls: Sequence[tuple[float, bool]], starts: Sequence[float]) -> Late:
    """How late each start was. Jobs start in the order of the calls, as each call waits for the job before it."""
    pairs = list(zip(sorted(starts), calls, strict=True))[WARM:]
    return [((start - at) * 1000, committing) for start, (at, committing) in pairs]


def record(figures: Figures, part: str, who: str, pairs: Late) -> dict[str, float]:
    """Adds the figures of a round, and returns them."""
    told: dict[str, float] = {}
    for name, committing in (("COMMIT", True), ("the call", False)):
        if found := [ms for ms, how in pairs if how == committing]:
            told |= {f"from {name}, p{share:.0%}"[:-1]: percentile(found, share) for share in (0.5, 0.99)}
    for what, value in told.items():
        figures.add(part, what, who, "ms", value)
    return told
