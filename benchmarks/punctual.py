"""The parts `lag` and `herd`: how late jobs with a known instant start.

The jobs themselves note when their function was entered; lateness counts from the nominal instant.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from contestants import (
    APSCHEDULER3,
    APSCHEDULER4,
    AWA,
    BARE_LIMIT,
    CONTESTANTS,
    GRAPHILE,
    PGQUEUER,
    PGSCHED,
    PROCRASTINATE,
    Contestant,
)
from draining import named
from figures import BARE, Fault, Figures, percentile
from rig import Server
from rounds import Case, Sizes, repeat

LIMIT = 30.0  # seconds after its instant within which a herd has to have started
READY = 3.5  # seconds until a database and a worker are ready for a herd, and one second more


def lag(server: Server, sizes: Sizes, figures: Figures) -> None:
    """How late an every-second schedule starts; with each contestant, one bare timer a second runs."""
    cases = [Case("p50", who.name, "ms", partial(fired, server, sizes, figures, who)) for who in CONTESTANTS]
    repeat("lag", figures, cases, sizes)


def fired(server: Server, sizes: Sizes, figures: Figures, who: Contestant) -> float:
    """The median lag of a round, in milliseconds; adds the other figures."""
    late, bare, seconds = lags(server, who, sizes.fires)
    figures.add("lag", "p99", who.name, "ms", percentile(late, 0.99))
    figures.add("lag", "fired", who.name, "%", min(100.0, 100 * len(late) / max(1, seconds)))
    if who is PGSCHED:
        for what, share in (("p50", 0.5), ("p99", 0.99)):
            figures.add("lag", what, BARE, "ms", percentile(bare, share))
        figures.add("lag", "fired", BARE, "%", 100.0)
    return percentile(late, 0.5)


def lags(server: Server, who: Contestant, fires: int) -> tuple[list[float], list[float], int]:
    """How late the starts and the bare timers were, in milliseconds, and how many seconds had to fire."""
    with server.database(who) as database, server.database(BARE_LIMIT) as bare_database, ExitStack() as stack:
        worker = stack.enter_context(database.worker(schedule={"kind": "every_second"}))
        with bare_database.process("every_second", count=fires) as timer:
            begin = time.time()
            bare = [late * 1000 for late in timer.answer()]
            end = time.time()
        every = worker.stop()
    seconds = int(end) - int(begin)  # the full seconds in between, which had to fire
    starts = [start for start in every if begin <= start <= end]
    if not starts:
        raise Fault("nothing fired")
    return [lateness(start, every) * 1000 for start in starts], bare, seconds


def lateness(start: float, starts: list[float]) -> float:
    """Seconds after the nominal second: the last full one, or the one before it if starts come a second late.

    A start that is 1,003 ms late must not be taken for one that is 3 ms late. A contestant that fires every second
    starts once in each second. If two seconds pass between starts, it has skipped one, and the start belongs to that
    one.
    """
    late = start % 1
    earlier = [other for other in starts if other < start - 0.5]
    skipped = bool(earlier) and start - max(earlier) > 1.5
    return late + 1 if skipped else late


def herd(server: Server, sizes: Sizes, figures: Figures) -> None:
    """How long after an instant the last of many jobs that are due then starts, with one worker."""
    cases: list[Case] = []
    left_out: list[tuple[str, str]] = []
    for count in sizes.herds:
        cases.append(Case(f"of {count:,}", BARE, "ms", partial(timers, server, count)))
        for who, tuned, how, repeated, most in (
            (PGSCHED, False, own, 10_000, 10_000), (PGSCHED, False, schedules, 10_000, 10_000),
            (PGSCHED, False, delayed, 10_000, 10_000), (PGQUEUER, True, delayed, 10_000, 10_000),
            (GRAPHILE, True, delayed, 10_000, 10_000), (AWA, True, delayed, 1_000, 10_000),
            (PGQUEUER, False, schedules, 1_000, 1_000), (PROCRASTINATE, True, delayed, 100, 1_000),
            (APSCHEDULER3, True, schedules, 1_000, 10_000), (APSCHEDULER4, True, schedules, 100, 1_000),
        ):  # fmt: skip
            name = f"{named(who, tuned)}: {KINDS[how]}"
            measure = partial(together, server, who, tuned, how, count)
            if who is PGSCHED and count == sizes.herds[-1]:
                measure = partial(watched, server, how, count, figures)
            if count <= most:
                cases.append(Case(f"of {count:,}", name, "ms", measure, once=count > repeated))
            else:
                left_out.append((f"of {count:,}", name))
    repeat("herd", figures, cases, sizes)
    for what, name in left_out:
        figures.add("herd", what, name, "ms", None, "not tried")


def timers(server: Server, count: int) -> float:
    """The bare limit: when the last of `count` timers called, in milliseconds after the instant."""
    with server.database(BARE_LIMIT) as database:
        return max(database.call("herd", count=count)) * 1000


Params = tuple[dict[str, object], dict[str, object]]  # for `enqueue`, and for the worker


def schedules(at: float, count: int) -> Params:
    """Parameters for `count` schedules that fire at one instant."""
    return {}, {"schedule": {"kind": "herd", "count": count, "at": at}}


def own(at: float, count: int) -> Params:
    """Parameters for `count` schedules that fire at one instant, declared in code with a function each."""
    return {}, {"schedule": {"kind": "herd", "count": count, "at": at, "own": True}}


def delayed(at: float, count: int) -> Params:
    """Parameters for `count` single jobs for one instant."""
    return {"count": count, "at": at}, {}


How = Callable[[float, int], Params]
KINDS: dict[How, str] = {own: "schedules, a function each", schedules: "schedules", delayed: "delayed jobs"}


class LateWorkerError(Fault):
    """The worker was not ready at the instant of a herd."""


def instant(who: Contestant, how: How, count: int, stretch: int) -> float:
    """A full second by which a database and a worker are ready for a herd."""
    each = {delayed: who.fills, own: 1.5 * who.registers}.get(how, who.registers)
    return float(math.ceil(time.time() + stretch * (READY + each * count / 1000)))


def together(server: Server, who: Contestant, tuned: bool, how: How, count: int) -> float:
    """Milliseconds from the instant to the last start."""
    at, starts = gathered(server, who, tuned, how, count)
    return (max(whole(starts, count)) - at) * 1000


def watched(server: Server, how: How, count: int, figures: Figures) -> float:
    """The same for pgsched, with a schedule of every second beside the herd; adds its lateness and the loop's."""
    at, told = gathered(server, PGSCHED, False, how, count, watch=True)
    last = max(whole(told["starts"], count))
    beside(figures, "herd", f"of {count:,}", f"pgsched: {KINDS[how]}", at, last, told)
    return (last - at) * 1000


def beside(figures: Figures, part: str, what: str, who: str, at: float, last: float, told: Any) -> None:
    """Adds the figures of what went on beside a herd, from two seconds before its instant until its last start."""
    ticks = [(fire, start) for fire, start in told["ticks"] if at - 2 <= fire <= last]
    late = [1000 * (start - fire) for fire, start in ticks]
    missing = int(last - min((fire for fire, _ in ticks), default=at)) + 1 - len(ticks)
    lags = [1000 * late for when, late in told["lags"] if at - 1 <= when <= last + 0.5]
    for name, values, share in (
        ("every-second schedule, p99", late, 0.99), ("every-second schedule, max", late, 1.0),
        ("lag of the loop, p99", lags, 0.99), ("lag of the loop, max", lags, 1.0),
    ):  # fmt: skip
        note = f"{missing} not fired" if missing > 0 and values is late else ""
        figures.add(part, f"{what}: {name}", who, "ms", percentile(values, share) if values else None, note)


def gathered(
    server: Server, who: Contestant, tuned: bool, how: How, count: int, **more: object
) -> tuple[float, Any]:  # fmt: skip
    """The instant of a herd, and the worker's answer after it: its starts. A slow machine gets more time before it."""
    server.template(who)
    for stretch in (1, 2, 4):
        try:
            return herded(server, who, tuned, how, count, instant(who, how, count, stretch), **more)
        except LateWorkerError:
            if stretch == 4:
                raise
    raise AssertionError


def herded(
    server: Server, who: Contestant, tuned: bool, how: How, count: int, at: float, **more: object
) -> tuple[float, Any]:  # fmt: skip
    """The same for this instant."""
    jobs, worker_params = how(at, count)
    with server.database(who) as database:
        if jobs:
            database.call("enqueue", tuned=tuned, **jobs)
        with database.worker(tuned=tuned, expected=count, **worker_params, **more) as worker:
            if time.time() > at - 0.5:
                raise LateWorkerError("the worker was not ready at the instant")
            time.sleep(at + 0.5 - time.time())  # without looking, which would disturb the measurement
            while time.time() < at + LIMIT and f"all {count}" not in worker.lines():
                time.sleep(0.1)
            return at, worker.stop()


def whole(starts: list[float], count: int) -> list[float]:
    """The starts of a herd, if there are as many as jobs. Raises Fault if not."""
    if len(starts) < count:
        raise Fault(f"{len(starts):,} of {count:,} started within {LIMIT:g} s")
    return starts
