"""The part `curve`: many schedules or jobs of one instant, two workers, and how many have started by when.

It is shown, without a goal for the last start. What must not suffer is measured beside it: a schedule of every second,
the event loops, and the heartbeat of a job that runs all the while.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import psycopg
from contestants import PGSCHED
from figures import Fault, Figures
from punctual import KINDS, How, LateWorkerError, beside, delayed, own, schedules
from rig import Database, Process, Server, wait_for
from rounds import Sizes

WORKERS = 2
LIMIT = 45.0  # seconds after the instant
READY = {delayed: 0.2, own: 0.7, schedules: 0.6}  # seconds until both workers are ready, for 1,000
SHARES = (1, 10, 25, 50, 75, 90, 99, 100)  # percent
AGE = """
select extract(epoch from clock_timestamp() - heartbeat_at)::float8
from pgsched.runs where entrypoint = 'sleeper' and status = 'running'
"""
STARTED = "select count(*) from pgsched.runs where status = 'succeeded' and entrypoint <> 'tick'"


def curve(server: Server, sizes: Sizes, figures: Figures) -> None:
    """Measures each kind once, as the part's time allows."""
    end = time.monotonic() + sizes.budget
    for how, each in READY.items():
        who = f"pgsched: {KINDS[how]}"
        if time.monotonic() + each * sizes.crowd / 1000 > end:
            figures.add("curve", label(100), who, "ms", None, "no time was left")
            continue
        began = time.monotonic()
        try:
            try:
                one(server, figures, how, who, sizes.crowd, 1)
            except LateWorkerError:
                one(server, figures, how, who, sizes.crowd, 2)
        except (Fault, psycopg.Error, OSError) as fault:
            figures.add("curve", label(100), who, "ms", None, " ".join(str(fault).split()))
        print(f"  curve: {who}: {time.monotonic() - began:.0f} s", flush=True)


def label(share: int) -> str:
    """The name of a point of the curve."""
    return f"started: {share} %"


def one(server: Server, figures: Figures, how: How, who: str, count: int, stretch: int) -> None:
    """Measures one kind.

    stretch: how many times the usual seconds the workers have to be ready.
    """
    server.template(PGSCHED)
    at = float(math.ceil(time.time() + stretch * (4 + READY[how] * count / 1000)))
    jobs, params = how(at, count)
    with server.database(PGSCHED) as database, ExitStack() as stack:
        if jobs:
            database.call("enqueue", **jobs)
        first = stack.enter_context(database.worker(ready=None, watch=True, **params))
        if how is schedules:
            ready(first, at)  # it has made them
        second = stack.enter_context(database.worker(ready=None, watch=True, **(params if how is own else {})))
        for worker in (first, second):
            ready(worker, at)
        oldest = look_on(database, at, count)
        told = both(first, second)
    starts = sorted(told["starts"])
    for share in SHARES:
        index = math.ceil(share / 100 * count) - 1
        if index < len(starts):
            figures.add("curve", label(share), who, "ms", (starts[index] - at) * 1000)
    if len(starts) < count:
        note = f"{len(starts):,} of {count:,} started within {LIMIT:g} s"
        figures.add("curve", label(100), who, "ms", None, note)
    last = max(starts, default=at) if len(starts) == count else at + LIMIT
    beside(figures, "curve", f"of {count:,}", who, at, last, told)
    figures.add("curve", "oldest heartbeat", who, "s", oldest)


def ready(worker: Process, at: float) -> None:
    """Waits until a worker is ready. Raises LateWorkerError if it is not half a second before the instant."""
    try:
        worker.said("ready", max(0.1, at - 0.5 - time.time()))
    except Fault as fault:
        raise LateWorkerError(str(fault)) from None


def look_on(database: Database, at: float, count: int) -> float:
    """Waits until all have started, or the limit. Returns the greatest age of the job's heartbeat, in seconds."""
    database.call("enqueue", count=1, job="sleeper")
    wait_for(lambda: database.value(AGE) is not None, "running job", max(1.0, at - time.time()), 0.1)
    time.sleep(max(0.0, at - 1 - time.time()))
    oldest, counted = 0.0, at
    while time.time() < at + LIMIT:
        oldest = max(oldest, database.value(AGE) or 0.0)
        if time.time() > counted + 1:  # seldom, because a count of them all disturbs the workers
            counted = time.time()
            if database.value(STARTED) >= count:
                break
        time.sleep(0.05)
    database.connection.execute("select pgsched.cancel(id) from pgsched.runs where entrypoint = 'sleeper'")
    return oldest


def both(*workers: Process) -> dict[str, Sequence[Any]]:
    """The answers of all workers in one. Ends them."""
    time.sleep(1.5)  # the cancellation comes with a heartbeat
    told = [worker.stop() for worker in workers]
    return {name: [each for one in told for each in one[name]] for name in ("starts", "ticks", "lags")}
