"""The parts `idle` and `running`: the cost of idle workers, and of workers with a thousand running jobs.

Every contestant has a PostgreSQL of its own. So all can be measured in the same minute, and the log and the writes of a
server belong to one contestant.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import psutil  # comes with the extra `embedded`
import psycopg
from contestants import APSCHEDULER3, APSCHEDULER4, AWA, CONTESTANTS, GRAPHILE, PROCRASTINATE, Contestant
from figures import Fault, Figures
from rig import Database, Process, Server, wait_for
from rounds import Sizes

SETTLE = 5.0  # seconds until a worker that was started is really idle
RUNNING = tuple(who for who in CONTESTANTS if who is not APSCHEDULER3)
FAR = {"kind": "far", "count": 100}
# A worker's limit, lifted for those whose default is below a thousand jobs at once.
LIFTED = {
    PROCRASTINATE.name: "concurrency",
    APSCHEDULER4.name: "concurrent",
    GRAPHILE.name: "concurrent",
    AWA.name: "concurrent",
}


def idle(server: Server, sizes: Sizes, figures: Figures) -> None:
    """The load of a worker with 100 schedules, none due, on the database and the processor, minute by minute."""
    window = 60.0 if sizes.minutes else 5.0
    side_by_side(server, figures, "idle", partial(stand_idle, figures, max(1, sizes.minutes), window))


def stand_idle(figures: Figures, minutes: int, window: float, who: Contestant, one: Server) -> None:
    """Measures one idle contestant."""
    with one.database(who) as database, database.worker(schedule=FAR) as worker:
        time.sleep(SETTLE)
        with one.logged() as count:
            process = psutil.Process(worker.pid)
            before, cpu = count(), sum(process.cpu_times()[:2])
            for _ in range(minutes):
                time.sleep(window)
                after, used = count(), sum(process.cpu_times()[:2])
                for what, value in (
                    ("statements a minute", after[0] - before[0]), ("transactions a minute", after[1] - before[1]),
                ):  # fmt: skip
                    figures.add("idle", what, who.name, "", value * 60 / window)
                figures.add("idle", "CPU seconds a minute", who.name, "s", (used - cpu) * 60 / window)
                before, cpu = after, used
        worker.alive()


def running(server: Server, sizes: Sizes, figures: Figures) -> None:
    """The memory of a worker with running jobs, and the server's cost of keeping them alive for a minute."""
    figures.add("running", FIRST["running"], APSCHEDULER3.name, "MB", None, "another process cannot wake it")
    side_by_side(server, figures, "running", partial(run_jobs, figures, sizes), RUNNING)


def run_jobs(figures: Figures, sizes: Sizes, who: Contestant, one: Server) -> None:
    """Measures one contestant: the memory a few times, and the heartbeats once, for a minute."""
    for number in range(sizes.rounds):
        with one.database(who) as database, with_jobs(database, sizes.running) as (process, empty):
            used = process.memory_full_info().uss
            figures.add("running", "memory per 1,000 jobs", who.name, "MB",
                        (used - empty) / 1e6 * 1000 / sizes.running)  # fmt: skip
            if number == sizes.rounds - 1:
                beats(figures, database, process, sizes.beats)


@contextmanager
def with_jobs(database: Database, count: int) -> Iterator[tuple[psutil.Process, int]]:
    """A worker with `count` running jobs, and its memory before them in bytes. Its process is killed in the end."""
    lifted = LIFTED.get(database.who.name)
    params = {lifted: count} if lifted else {}
    with database.worker(tuned=True, **params) as worker:
        process = psutil.Process(worker.pid)
        time.sleep(1)
        empty = process.memory_full_info().uss
        database.call("enqueue", count=count, job="sleeper", tuned=True)
        wait_for(lambda: starts(worker) >= count, f"{count:,} running jobs", 60, 0.1)
        time.sleep(1)
        yield process, empty


def starts(worker: Process) -> int:
    """How many jobs have reported that they began."""
    return sum(line.startswith("started ") for line in worker.lines())


def beats(figures: Figures, database: Database, process: psutil.Process, seconds: int) -> None:
    """Statements, WAL and updates of a minute with nothing but running jobs, without full-page images."""
    one, who = database.server, database.who.name
    one.connection.execute("checkpoint")
    time.sleep(
        min(16, seconds)
    )  # after this, every page that the beats touch has its full image, also with PGQueuer, which beats each 15 s
    with one.logged() as count:
        before, updates, wal = count(), updated(database), position(one)
        cpu = sum(process.cpu_times()[:2])
        time.sleep(seconds)
        wal, cpu = position(one) - wal, sum(process.cpu_times()[:2]) - cpu
        after = count()
    time.sleep(2)  # for the statistics that the sessions send
    updates = [new - old for new, old in zip(updated(database), updates, strict=True)]
    scale = 60 / seconds
    for what, unit, value in (
        ("statements a minute", "", (after[0] - before[0]) * scale),
        ("WAL a minute", "kB", wal / 1000 * scale),
        ("row updates a minute", "", updates[0] * scale),
        ("HOT share", "%", 100 * updates[1] / updates[0] if updates[0] else None),
        ("CPU seconds a minute", "s", cpu * scale),
    ):
        figures.add("running", what, who, unit, value, "" if value is not None else "no updates")


def position(one: Server) -> int:
    """Bytes of WAL so far."""
    row = one.connection.execute("select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')").fetchone()
    return int(row[0]) if row else 0


def updated(database: Database) -> Sequence[int]:
    """The row updates until now, and how many of them touched no index."""
    row = database.connection.execute(
        "select coalesce(sum(n_tup_upd), 0)::bigint, coalesce(sum(n_tup_hot_upd), 0)::bigint from pg_stat_user_tables"
    ).fetchone()
    return list(row) if row else [0, 0]


def side_by_side(
    server: Server,
    figures: Figures,
    part: str,
    measure: Callable[[Contestant, Server], None],
    whom: Sequence[Contestant] = CONTESTANTS,
) -> None:
    """Measures all contestants at once, each with a server of its own."""

    def one_of(who: Contestant, one: Server) -> None:
        try:
            measure(who, one)
        except (Fault, psycopg.Error, OSError, psutil.Error) as fault:
            figures.add(part, FIRST[part], who.name, "", None, " ".join(str(fault).split()))

    with ThreadPoolExecutor(len(whom)) as pool:
        list(pool.map(one_of, whom, server.others(len(whom))))


FIRST = {"idle": "statements a minute", "running": "memory per 1,000 jobs"}
