"""The part `start`: a worker whose code declares many schedules, in its first start and in one that changes nothing.

Each start is a process of its own. Once the table holds nothing else, and once a million schedules of others: half of
them of another application, half made through the interface.
"""

from __future__ import annotations

import time

import psycopg
from contestants import PGSCHED, Contestant
from figures import Fault, Figures
from rig import Database, Server
from rounds import Sizes

DECLARING = Contestant("pgsched", "bench", "declaring.py", "pgsched.runs", "")
FOREIGN = """
insert into pgsched.schedules
    (name, app, owner, entrypoint, expression, next_run, planned_at, accounted_through)
select 'foreign-' || n, case n % 2 when 1 then 'other' end, case n % 2 when 1 then 'code:other' else 'api' end,
    'foreign', '@yearly', timestamptz '2099-01-01Z', now(), now()
from generate_series(1, {count}) n
"""
UNITS = {"peak memory": "MB"}


def start(server: Server, sizes: Sizes, figures: Figures) -> None:
    """Measures rounds as the part's time allows: first starts and unchanged ones, alone and beside a million."""
    end, longest = time.monotonic() + sizes.budget, 0.0
    for number in range(sizes.rounds):
        began = time.monotonic()
        for foreign in (0, sizes.million):
            for own in (False, True) if number == 0 and not foreign else (False,):
                try:
                    twice(server, figures, sizes.declared, own, foreign)
                except (Fault, psycopg.Error, OSError) as fault:
                    figures.add("start", "until ready", label(sizes.declared, own, foreign, "first start"), "s", None,
                                " ".join(str(fault).split()))  # fmt: skip
        longest = max(longest, time.monotonic() - began)
        print(f"  start: a round of {time.monotonic() - began:.0f} s", flush=True)
        if time.monotonic() + longest > end:
            break


def twice(server: Server, figures: Figures, count: int, own: bool, foreign: int) -> None:
    """Measures a first start, and one that changes nothing."""
    with server.database(PGSCHED) as database:
        if foreign:
            fill(database, foreign)
        for which in ("first start", "unchanged start"):
            with database.process("start", by=DECLARING, count=count, own=own) as process:
                told = process.answer(150)
            for what, value in told.items():
                figures.add("start", what, label(count, own, foreign, which), UNITS.get(what, "s"), value)


def label(count: int, own: bool, foreign: int, which: str) -> str:
    """The name of a start."""
    functions = ", a function each" if own else ""
    beside = f", beside {foreign:,} of others" if foreign else ""
    return f"pgsched: {count:,} declared{functions}{beside}: {which}"


def fill(database: Database, foreign: int) -> None:
    """Inserts the schedules of others without triggers, as years leave them, and does the work of autovacuum."""
    run = database.connection.execute
    run("alter table pgsched.schedules disable trigger user")
    run(FOREIGN.format(count=foreign))
    run("alter table pgsched.schedules enable trigger user")
    run("vacuum analyze pgsched.schedules")
