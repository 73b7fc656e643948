"""The part `growth`: the cost of a claim, and of a worker's memory, as entrypoints, tables and fleets grow.

With 10,000,000 finished runs as well: BENCH_GROWTH_MOST=10000000.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
from contestants import PGSCHED, Contestant
from figures import Figures
from rig import Database, Server
from rounds import Sizes

from pgsched.db import embedded

GROWING = Contestant("pgsched", "bench", "growing.py", "pgsched.runs", "")
STEPS = (1_000, 10_000, 100_000, 1_000_000)
QUICK_STEPS = (100, 1_000)
QUICK_BELOW = 10_000  # of Sizes.million: then everything is small
PASSING = Contestant("pgsched", "bench", "passing.py", "pgsched.runs", "")
ENTRYPOINTS = (1, 100, 10_000)
FLEETS = (1, 10, 100)
JOBS, AT_ONCE = 20_000, 20
DRAINED = 100_000
SCHEDULES = """
insert into pgsched.schedules (name, entrypoint, expression, next_run, planned_at, accounted_through)
select 'far-' || n, 'nothing', '@yearly', timestamptz '2099-01-01Z' + n * interval '1 second', now(), now()
from generate_series({first}, {last}) n
"""
RUNS = """
insert into pgsched.runs (schedule_id, entrypoint, fire_time, status, attempt, claimed_at, started_at, finished_at)
select n % {schedules} + 1, 'nothing', i, 'succeeded', 1, i, i, i
from generate_series({first}, {last}) n, lateral (select now() - n * interval '1 s' as i) _
"""

# The rows that a look has to step over, and how many.
BESIDE = {
    "nothing": ("select {n}", 0),
    "schedules of an entrypoint that nobody has": (
        "insert into pgsched.schedules (name, entrypoint, expression, next_run, planned_at)"
        " select 'other-' || n, 'other', '@yearly', timestamptz '2098-01-01Z', now() from generate_series(1, {n}) n",
        100_000,
    ),
    "due jobs of an entrypoint that nobody has": (
        "insert into pgsched.runs (entrypoint, due_at) select 'other', now() from generate_series(1, {n}) n", 100_000,
    ),
    "schedules of which a run waits for its jitter": (
        "with made as (" + SCHEDULES.format(first=1, last="{n}") + " returning id) insert into pgsched.runs"
        " (schedule_id, entrypoint, fire_time, due_at, gated)"
        " select id, 'nothing', now(), now() + interval '1 hour', true from made", 10_000,
    ),
}  # fmt: skip


def growth(server: Server, sizes: Sizes, figures: Figures) -> None:
    """Measures everything once: counts do not vary, and each time is the median of many."""
    quick = sizes.million < QUICK_BELOW
    for count in ENTRYPOINTS:
        entrypoints(server, figures, count, 5 if quick else 20)
    most = int(os.environ.get("BENCH_GROWTH_MOST", "0"))
    tables(server, figures, QUICK_STEPS if quick else STEPS, most)
    with roomy() as one:
        for workers in FLEETS:
            fleet(one, figures, workers, JOBS // 20 if quick else JOBS)
    left(server, figures, DRAINED // 100 if quick else DRAINED)
    beside(server, figures, 100 if quick else 1)


def entrypoints(server: Server, figures: Figures, count: int, rounds: int) -> None:
    """Measures a pass of a worker that has many entrypoints: what it sends, and the time that it takes the server."""
    who = f"pgsched: {count:,} entrypoint{'s' if count > 1 else ''}"
    began = time.monotonic()
    params = {"entrypoints": count, "rounds": rounds}
    with server.database(PGSCHED) as database, database.process("weigh", by=PASSING, **params) as process:
        for what, unit, value in process.answer(120):
            figures.add("growth", what, who, unit, value)
    print(f"  growth: {who}: {time.monotonic() - began:.1f} s", flush=True)


def tables(server: Server, figures: Figures, steps: tuple[int, ...], most: int) -> None:
    """Measures a pass and a worker with more and more schedules and finished runs in the tables."""
    with server.database(PGSCHED) as database:
        schedules = runs = 0
        for step in steps + ((most,) if most > steps[-1] else ()):
            began = time.monotonic()
            if step <= steps[-1]:
                fill(database, SCHEDULES, "schedules", schedules, step)
                schedules = step
            fill(database, RUNS, "runs", runs, step, schedules)
            runs = step
            who = f"pgsched: {schedules:,} schedules, {runs:,} finished runs"
            with database.process("passes", by=GROWING, rounds=20) as process:
                told = process.answer()
            figures.add("growth", "a pass that claims 20", who, "ms", told["milliseconds"])
            figures.add("growth", "pages a pass", who, "", sum(told["pages"].values()))
            for name, pages in sorted(told["pages"].items()):
                figures.add("growth", f"pages: {name}", who, "", pages)
            with database.worker() as worker:
                time.sleep(1)
                used = psutil.Process(worker.pid).memory_full_info().uss / 1e6
            figures.add("growth", "memory of a worker", who, "MB", used)
            print(f"  growth: {who}: {time.monotonic() - began:.1f} s", flush=True)


def fill(database: Database, statement: str, table: str, before: int, after: int, schedules: int = 0) -> None:
    """Inserts the missing rows without triggers, as after years of work. Then does the work of autovacuum."""
    run = database.connection.execute
    run(f"alter table pgsched.{table} disable trigger user")
    run(statement.format(first=before + 1, last=after, schedules=schedules))
    run(f"alter table pgsched.{table} enable trigger user")
    run(f"vacuum analyze pgsched.{table}")


@contextmanager
def roomy() -> Iterator[Server]:
    """A server that allows more sessions than the default of a hundred."""
    with tempfile.TemporaryDirectory(prefix="pgsched-", ignore_cleanup_errors=True) as name:
        data = f"{name}/postgres"
        with embedded.start(data) as dsn, psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("alter system set max_connections = 300")
        with embedded.start(data) as dsn:  # the last user has stopped it
            one = Server(dsn, Path(name), None)
            try:
                yield one
            finally:
                one.close()


def fleet(server: Server, figures: Figures, workers: int, jobs: int) -> None:
    """Measures the passes of many workers at one queue. They have real sessions, but share one process."""
    who = f"pgsched: {workers} worker{'s' if workers > 1 else ''}"
    with server.database(PGSCHED) as database:
        database.call("enqueue", count=jobs)
        database.connection.execute("vacuum analyze pgsched.runs")
        before = pages(database)
        with database.process("contend", by=GROWING, workers=workers, jobs=jobs, most=AT_ONCE) as process:
            told = process.answer(120)
        time.sleep(1)  # ended sessions have reported the pages that they touched
        for what, unit in (
            ("claims a second", "/s"), ("pass, p50", "ms"), ("pass, p99", "ms"), ("passes that found nothing", "%"),
            ("sessions that wait for a lock", ""),
        ):  # fmt: skip
            figures.add("growth", what, who, unit, told[what])
        figures.add("growth", "pages a claim", who, "", (pages(database) - before) / jobs)


def pages(database: Database) -> int:
    """Pages that all sessions of the database have touched so far."""
    return int(database.value(
        "select blks_hit + blks_read from pg_stat_database where datname = current_database()"
    ))  # fmt: skip


def left(server: Server, figures: Figures, jobs: int) -> None:
    """Measures passes among the dead rows that a drain leaves behind until the next vacuum."""
    who = f"pgsched: after {jobs:,} jobs"
    with server.database(PGSCHED) as database, database.process("drained", by=GROWING, jobs=jobs) as process:
        told = process.answer(120)
    figures.add("growth", "bytes a finished run, with indexes", who, "", told.pop("bytes"))
    for what, value in told.items():
        figures.add("growth", f"a pass that claims one, {what}", who, "ms", value)


def beside(server: Server, figures: Figures, share: int) -> None:
    """Measures looks at runs and schedules that cannot be claimed, which make a look longer."""
    for what, (statement, count) in BESIDE.items():
        number = count // share
        with server.database(PGSCHED) as database:
            for table in ("schedules", "runs"):
                database.connection.execute(f"alter table pgsched.{table} disable trigger user")
            database.connection.execute(statement.format(n=number))
            for table in ("schedules", "runs"):
                database.connection.execute(f"alter table pgsched.{table} enable trigger user")
            database.connection.execute("vacuum analyze pgsched.schedules, pgsched.runs")
            with database.process("look", by=GROWING) as process:
                who = f"pgsched: beside {number:,} {what}" if count else f"pgsched: beside {what}"
                figures.add("growth", "a pass that claims one and looks at everything", who, "ms", process.answer())
