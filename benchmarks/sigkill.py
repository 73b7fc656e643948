"""The part `sigkill`: one of two workers is killed in the middle of a job; seconds until the job starts again."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import psycopg
from contestants import APSCHEDULER4, AWA, GRAPHILE, PGQUEUER, PGSCHED, PROCRASTINATE, Contestant
from figures import Fault, Figures
from rig import Process, Server, wait_for
from rounds import Sizes

WHAT = "kill to next attempt"
WHO = (PGSCHED, PGQUEUER, GRAPHILE, AWA, PROCRASTINATE, APSCHEDULER4)


def sigkill(server: Server, sizes: Sizes, figures: Figures) -> None:
    """Measures with all defaults. pgsched runs first, alone; then the others run side by side, since they only wait."""
    figures.add("sigkill", WHAT, "APScheduler 3", "s", None, "one process only")
    uptime = server.connection.execute(
        "select extract(epoch from clock_timestamp() - pg_postmaster_start_time())::float8"
    ).fetchone()
    # After an outage of the server, workers have the stall timeout to beat again before any run is reaped.
    time.sleep(max(0.0, 32.0 - (uptime[0] if uptime else 0.0)))
    for number in range(sizes.kills):
        record(server, sizes, figures, PGSCHED, number)
    for who in WHO[1:]:
        try:
            server.template(who)  # now, because two threads must not make it at once
        except Fault as fault:
            figures.add("sigkill", WHAT, who.name, "s", None, str(fault))
    with ThreadPoolExecutor(2 * len(WHO)) as pool:
        for who in WHO[1:]:
            for number in range(sizes.kills):
                pool.submit(record, server, sizes, figures, who, number)


def record(server: Server, sizes: Sizes, figures: Figures, who: Contestant, number: int) -> None:
    """Adds the figure of one kill, or the reason that there is none."""
    try:
        value, note = killed(server, who, 2 + 0.37 * number, sizes.bounded), ""
        if value is None:
            note = f"not within {sizes.bounded:g} s"
    except (Fault, psycopg.Error, OSError) as fault:
        value, note = None, " ".join(str(fault).split())
    figures.add("sigkill", WHAT, who.name, "s", value, note)


def killed(server: Server, who: Contestant, after: float, bounded: float) -> float | None:
    """Seconds from the kill to the next start, or None if there is none within the bound.

    after: seconds from the job's start to the kill, so that it comes at various points between two beats.
    """
    with ExitStack() as stack:
        database = stack.enter_context(server.database(who))
        workers = [stack.enter_context(database.worker()) for _ in range(2)]
        database.call("enqueue", count=1, job="sleeper")
        victim = wait_for(lambda: next((w for w in workers if starts(w)), None), "start", 30)
        (other,) = (w for w in workers if w is not victim)
        time.sleep(after)
        at = time.time()
        victim.kill()
        while not starts(other):
            other.alive()
            if time.time() > at + bounded:
                return None
            time.sleep(0.05)
        return starts(other)[0] - at


def starts(worker: Process) -> list[float]:
    """When its jobs reported that they began."""
    return [float(line.split()[1]) for line in worker.lines() if line.startswith("started ")]
