"""The part `compare`: this build and another commit's in turn, to judge a change.

    make bench ONLY=compare BASE=main~3                      until the part's five minutes are over
    make bench ONLY=compare BASE=main~3 ARGS="--budget 900"  for a finer look

Both builds run this commit's adapter, each in an environment of its own, on one server. Each round measures both
builds, and the order changes from round to round. A ratio compares figures of one round; its median and its spread are
shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import environments
from contestants import PGSCHED, Contestant
from draining import drained
from figures import Fault, Figures, percentile
from latency import WARM, late
from psycopg import Error
from punctual import KINDS, How, delayed, lags, own, schedules, together
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


def herd(how: How, count: int, server: Server, who: Contestant) -> Values:
    """When the last of `count` schedules or delayed jobs for one instant starts."""
    return {f"herd of {count:,} {KINDS[how]}": together(server, who, False, how, count)}


def drain(count: int, workers: int, server: Server, who: Contestant) -> Values:
    """Jobs a second until the last end is written."""
    return {f"drain of {count:,} by {workers}": drained(server, who, count, workers, tuned=False)}


def start(how: str, count: int, server: Server, who: Contestant) -> Values:
    """From a call in another process to the start."""
    with server.database(who) as database:
        after = [ms for ms, committing in late(database, WARM + count, how) if not committing]
    return {f"{how} to start, {name}": percentile(after, share) for name, share in PERCENTILES.items()}


def measures(sizes: Sizes) -> tuple[Measure, ...]:
    """All measurements of a comparison."""
    most, jobs, calls = sizes.herds[-1], sizes.drains[0], sizes.calls // 3
    return (
        Measure("ms", partial(lag, sizes)),
        *(Measure("ms", partial(herd, how, most)) for how in (own, schedules, delayed)),
        Measure("jobs/s", partial(drain, jobs, 1)),
        Measure("jobs/s", partial(drain, jobs, 2)),
        Measure("ms", partial(start, "enqueue", calls)),
        Measure("ms", partial(start, "trigger", calls)),
    )


def compare(commit: str, server: Server, sizes: Sizes, figures: Figures) -> None:
    """Compares this build with that of a commit."""
    base = replace(PGSCHED, name=f"pgsched at {commit}", environment=environments.make_base(commit))
    in_turn("compare", (base, PGSCHED), measures(sizes), server, sizes, figures)


def in_turn(
    part: str, builds: Sequence[Contestant], whole: Sequence[Measure], server: Server, sizes: Sizes, figures: Figures
) -> None:
    """Runs whole rounds, at least one, until the part's time is over. Ratios compare with the first build."""
    base, order = builds[0], list(builds)
    end, longest = time.monotonic() + sizes.budget, 0.0
    while not longest or (sizes.rounds > 1 and time.monotonic() + longest < end):
        began = time.monotonic()
        for measure in whole:
            found = {who.name: one(part, measure, server, who, figures) for who in order}
            for who in builds:
                for what, value in found[who.name].items():
                    figures.add(part, what, who.name, measure.unit, value)
                    if who is not base and what in found[base.name]:
                        ratio = "ratio" if len(builds) < 3 else f"ratio of {who.name.removeprefix('pgsched, ')}"
                        figures.add(part, what, ratio, "x", value / found[base.name][what])
        order.reverse()
        longest = max(longest, time.monotonic() - began)
        print(f"  {part}: a round of {time.monotonic() - began:.0f} s", flush=True)


def one(part: str, measure: Measure, server: Server, who: Contestant, figures: Figures) -> Values:
    """One build's values. If a measurement fails, that is reported, and there are none."""
    try:
        return measure.once(server, who)
    except (Fault, Error, OSError) as fault:
        figures.faults.append(f"{part}: {who.name}: {fault}")
        print(f"  {part}: {who.name}: {fault}", flush=True)
        return {}
