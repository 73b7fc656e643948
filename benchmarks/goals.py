"""The goals that pgsched should reach at its defaults, and whether a run reached them: ratios within that run."""

from __future__ import annotations

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
        value(f"herd of 10,000 {kind}, last start", ours("herd", "of 10,000", f"pgsched: {kind}"), 300, "ms")
    limit = next(
        (f.median for f in figures.of("drain", who=f"{BARE}: pgbench, batches of 100") if "1 w" in f.what), None
    )
    for figure in figures.of("drain", who="pgsched"):
        peers = [
            f.median for f in figures.of("drain", figure.what) if not f.who.startswith(("pgsched", BARE)) and f.median
        ]
        if peers:
            ratio(f"drain of {figure.what}, to the fastest peer's", figure.median, max(peers), 1.1, True)
        if figure.what.endswith("1 worker"):
            ratio(f"drain of {figure.what}, to pgbench's one client with batches of 100", figure.median,
                  limit, 0.8, True)  # fmt: skip
    for how in ("trigger", "enqueue"):
        who = f"pgsched: {how}"
        for what, bound in (("p50", 2.0), ("p99", 6.0)):
            value(f"{how}, COMMIT to start, {what}", ours("latency", f"from COMMIT, {what}", who), bound, "ms")
        for what in ("p50", "p99"):
            figure = f"from COMMIT, {what}"
            ratio(f"{how}, COMMIT to start, {what} with a million of each, to that without",
                  ours("million", figure, who), ours("latency", figure, who), 1.2)  # fmt: skip
    value("idle, statements a minute", ours("idle", "statements a minute"), 1, "")
    value("SIGKILL to the next attempt", ours("sigkill", "kill to next attempt"), 5, "s")
    return found
