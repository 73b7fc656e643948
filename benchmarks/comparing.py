"""The part `compare`: this build and another commit's in turn, to judge a change.

    make bench ONLY=compare BASE=main~3                      until the part's five minutes are over
    make bench ONLY=compare BASE=main~3 ARGS="--budget 900"  for a finer look

Both builds run this commit's adapter, each in an environment of its own, on one server. Each round measures both
builds, and the order changes from round to round. A ratio compares figures of one round; its median and its spread are
shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import environments
from contestants import PGSCHED, Contestant
from draining import drained
from figures import Fault, Figures, percentile
from latency import late
from psycopg import Error
from punctual import delayed, lags, schedules, together
from rig import Server
from rounds import Sizes

Values = dict[str, float]
PERCENTILES = {"p50": 0.5, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class Measure:
    """One measurement of one build, and the unit of its values. It returns them by name."""

    unit: str
    once: Callable[[Server, Contestant], Values]


def lag(sizes: Sizes, server: Server, who: Contestant) -> Values:
    """How late a schedule of every second starts."""
    return {"every second, p50": percentile(lags(server, who, sizes.fires)[0], 0.5)}


def herd(kind: str, count: int, server: Server, who: Contestant) -> Values:
    """When the last of `count` schedules or delayed jobs for one instant starts."""
    how = delayed if kind == "delayed jobs" else schedules
    return {f"herd of {count:,} {kind}": together(server, who, False, how, count)}


def drain(count: int, workers: int, server: Server, who: Contestant) -> Values:
    """Jobs a second until the last end is written."""
    return {f"drain of {count:,} by {workers}": drained(server, who, count, workers, tuned=False)}


def start(how: str, count: int, server: Server, who: Contestant) -> Values:
    """From a call in another process to the start."""
    with server.database(who) as database:
        after = [ms for ms, committing in late(database, count, how) if not committing]
    return {f"{how} to start, {name}": percentile(after, share) for name, share in PERCENTILES.items()}


def measures(sizes: Sizes) -> tuple[Measure, ...]:
    """All measurements of a comparison."""
    most, jobs, calls = sizes.herds[-1], sizes.drains[0], sizes.calls // sizes.rounds * 2
    return (
        Measure("ms", partial(lag, sizes)),
        Measure("ms", partial(herd, "schedules", most)),
        Measure("ms", partial(herd, "delayed jobs", most)),
        Measure("jobs/s", partial(drain, jobs, 1)),
        Measure("jobs/s", partial(drain, jobs, 2)),
        Measure("ms", partial(start, "enqueue", calls)),
        Measure("ms", partial(start, "trigger", calls)),
    )


def compare(commit: str, server: Server, sizes: Sizes, figures: Figures) -> None:
    """Runs whole rounds, at least one, until the part's time is over."""
    base = replace(PGSCHED, name=f"pgsched at {commit}", environment=environments.make_base(commit))
    builds = [base, PGSCHED]
    end, longest = time.monotonic() + sizes.budget, 0.0
    while not longest or (sizes.rounds > 1 and time.monotonic() + longest < end):
        began = time.monotonic()
        for measure in measures(sizes):
            found = {who.name: one(measure, server, who, figures) for who in builds}
            for what, value in found[PGSCHED.name].items():
                if what in found[base.name]:
                    figures.add("compare", what, base.name, measure.unit, found[base.name][what])
                    figures.add("compare", what, PGSCHED.name, measure.unit, value)
                    figures.add("compare", what, "ratio", "x", value / found[base.name][what])
        builds.reverse()
        longest = max(longest, time.monotonic() - began)
        print(f"  compare: a round of {time.monotonic() - began:.0f} s", flush=True)


def one(measure: Measure, server: Server, who: Contestant, figures: Figures) -> Values:
    """One build's values. If a measurement fails, that is reported, and there are none."""
    try:
        return measure.once(server, who)
    except (Fault, Error, OSError) as fault:
        figures.faults.append(f"compare: {who.name}: {fault}")
        print(f"  compare: {who.name}: {fault}", flush=True)
        return {}
