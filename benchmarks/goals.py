"""The goals that pgsched should reach at its defaults, and whether a run reached them: ratios within that run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from figures import BARE, Figures


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal: its text, the measured value, the bound, and whether it was reached."""

    name: str
    value: float
    bound: float
    at_least: bool
    unit: str = ""

    @property
    def reached(self) -> bool:
        """Whether the value is on the right side of the bound."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def goals(figures: Figures) -> list[Goal]:
    """The goals that the parts of this run have measured."""
    found: list[Goal] = []

    def ratio(name: str, one: float | None, other: float | None, bound: float, at_least: bool = False) -> None:
        if one is not None and other:
            found.append(Goal(name, one / other, bound, at_least, "x"))

    def value(name: str, measured: float | None, bound: float, unit: str) -> None:
        if measured is not None:
            found.append(Goal(name, measured, bound, False, unit))

    def ours(part: str, what: str, who: str = "pgsched") -> float | None:
        return figures.median(part, what, who)

    for what, bound in (("p50", 1.5), ("p99", 2.0)):
        ratio(f"start of an every-second schedule, {what}, to the bare timer's", ours("lag", what),
              ours("lag", what, BARE), bound)  # fmt: skip
    for kind in ("schedules", "delayed jobs"):
        ratio(f"herd of 1,000 {kind}, last start, to the bare timers'", ours("herd", "of 1,000", f"pgsched: {kind}"),
              ours("herd", "of 1,000", BARE), 3.0)  # fmt: skip
    for kind in ("schedules, a function each", "schedules", "delayed jobs"):
        who = f"pgsched: {kind}"
        value(f"herd of 10,000 {kind}, last start", ours("herd", "of 10,000", who), 150, "ms")
        ratio(f"herd of 10,000 {kind}, last start, to PGQueuer's tuned herd", ours("herd", "of 10,000", who),
              ours("herd", "of 10,000", "PGQueuer, tuned: delayed jobs"), 0.3)  # fmt: skip
        for part, size in (("herd", "10,000"), ("curve", "100,000")):
            value(f"every-second schedule beside {size} {kind}, latest start",
                  worst(figures, part, f"of {size}: every-second schedule, max", who), 50, "ms")  # fmt: skip
    drains(figures, ratio)
    for how in ("trigger", "enqueue"):
        for beside in ("", ", with 1,000,000 of each"):
            for what in ("from the call, p50", "from the call, p99"):
                value(f"{how}{beside}, {what}, to that of PGQueuer's enqueue",
                      ours("latency", f"{what}: to PGQueuer's", f"pgsched: {how}{beside}"), 1.0, "x")  # fmt: skip
    for what in ("statements", "bytes sent", "server's time"):
        for kind in ("finds nothing", "claims 20"):
            name = f"a pass that {kind}: {what}"
            least = ours("growth", name, "pgsched: 1 entrypoint")
            ratio(f"{name}, with 10,000 entrypoints, to that with 1",
                  ours("growth", name, "pgsched: 10,000 entrypoints"), least, 1.2)  # fmt: skip
    declared = "pgsched: 100,000 declared"
    for beside in ("", ", beside 1,000,000 of others"):
        who = f"{declared}{beside}: first start"
        value(f"100,000 declared schedules{beside}, ready", ours("start", "until ready", who), 3, "s")
        value(f"100,000 declared schedules{beside}, peak memory", ours("start", "peak memory", who), 150, "MB")
        value(f"100,000 declared schedules{beside}, unchanged, ready",
              ours("start", "until ready", f"{declared}{beside}: unchanged start"), 1.5, "s")  # fmt: skip
    value("idle, statements a minute", ours("idle", "statements a minute"), 1, "")
    value("SIGKILL to the next attempt", ours("sigkill", "kill to next attempt"), 5, "s")
    return found


def worst(figures: Figures, part: str, what: str, who: str) -> float | None:
    """The greatest value of all rounds."""
    return max((value for figure in figures.of(part, what, who) for value in figure.values), default=None)


def drains(figures: Figures, ratio: Callable[..., None]) -> None:
    """The goals of all drains: to the tuned peers, and to a bare loop of one client."""
    limits = figures.of("drain", who=f"{BARE}: pgbench, batches of 100")
    limit = next((figure.median for figure in limits if "1 w" in figure.what), None)
    for figure in figures.of("drain", who="pgsched"):
        for who, bound in (("graphile-worker, tuned", 1.0), ("PGQueuer, tuned", 1.5)):
            ratio(f"drain of {figure.what}, to that of {who}", figure.median,
                  figures.median("drain", figure.what, who), bound, True)  # fmt: skip
        if figure.what.endswith("1 worker"):
            ratio(f"drain of {figure.what}, to pgbench's one client with batches of 100", figure.median,
                  limit, 0.8, True)  # fmt: skip
