"""Figures: the samples of one contestant's measurements, and how they are shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

BARE = "the bare limit"  # measured next to all contestants


class Fault(Exception):
    """Why a measurement is not possible, in one sentence."""


@dataclass(slots=True)
class Figure:
    """The values of one contestant's measurement, one for each round."""

    part: str
    what: str
    who: str
    unit: str
    values: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def median(self) -> float | None:
        """The median of the rounds."""
        return percentile(self.values, 0.5) if self.values else None

    def as_json(self) -> dict[str, Any]:
        """For a file of JSON."""
        spread = {"median": self.median, "least": min(self.values), "most": max(self.values)} if self.values else {}
        return asdict(self) | spread


class Figures:
    """All figures of a run, in the order of the first measurement."""

    def __init__(self) -> None:
        self._all: dict[tuple[str, str, str], Figure] = {}
        self.faults: list[str] = []

    def add(self, part: str, what: str, who: str, unit: str, value: float | None, note: str = "") -> None:
        """Adds a round's value to a figure, or the reason that there is none."""
        figure = self._all.setdefault((part, what, who), Figure(part, what, who, unit))
        if value is not None:
            figure.values.append(value)
        if note and note not in figure.notes:
            figure.notes.append(note)

    def of(self, part: str, what: str | None = None, who: str | None = None) -> list[Figure]:
        """The figures of a part; or only those of one measurement, or of one contestant."""
        return [f for f in self._all.values() if f.part == part and what in (None, f.what) and who in (None, f.who)]

    def median(self, part: str, what: str, who: str) -> float | None:
        """The median of a figure, or None if it was not measured."""
        found = self.of(part, what, who)
        return found[0].median if found else None

    def parts(self) -> list[str]:
        """The parts that were measured."""
        return list(dict.fromkeys(f.part for f in self._all.values()))

    def as_json(self) -> list[dict[str, Any]]:
        """For a file of JSON."""
        return [figure.as_json() for figure in self._all.values()]


def percentile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that at least this share of them does not exceed."""
    return sorted(samples)[max(0, math.ceil(share * len(samples)) - 1)]


def shown(value: float) -> str:
    """A number with three significant digits."""
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def cell(figure: Figure | None, number: Callable[[float], str] = shown) -> str:
    """A figure as a table shows it: median, spread, notes."""
    if figure is None:
        return ""
    notes = "; ".join(figure.notes)
    if not figure.values:
        return notes
    median = number(percentile(figure.values, 0.5))
    least, most = number(min(figure.values)), number(max(figure.values))
    text = median if least == most else f"{median} ({least} - {most})"
    if 1 < len(figure.values) < 3:
        notes = "; ".join(filter(None, [notes, f"of {len(figure.values)}"]))
    return f"{text} [{notes}]" if notes else text
