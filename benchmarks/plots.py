"""Draws the figures: bars side by side with their spread, on a logarithmic axis if they are far apart."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from figures import Figure, Figures, shown
from matplotlib import pyplot

COLOURS = {
    "the bare limit": "#9a9a9a", "bare inserts": "#9a9a9a", "pgsched": "#1f6feb", "PGQueuer": "#d97706",
    "graphile-worker": "#0f766e", "awa": "#b45309",
    "procrastinate": "#15803d", "APScheduler 3": "#a855f7", "APScheduler 4 alpha": "#db2777",
}  # fmt: skip
PANELS = 3  # side by side
POINT = "started: "  # the names of a curve's points begin with it


def draw(folder: Path, part: str, figures: Figures) -> list[str]:
    """Draws one picture of a part, with a panel for each measurement. Returns the names of the files."""
    if part == "curve":
        return curve(folder, figures)
    panels: dict[tuple[str, str], list[Figure]] = {}
    for figure in figures.of(part):
        if figure.values:
            panels.setdefault((figure.what, figure.unit), []).append(figure)
    if not panels:
        return []
    columns = min(PANELS, len(panels))
    rows = math.ceil(len(panels) / columns)
    most = max(len(found) for found in panels.values())
    size = (5.2 * columns, rows * (0.9 + 0.36 * most))
    picture, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, ((what, unit), found) in zip(axes.flat, panels.items(), strict=False):
        panel(axis, f"{what}, {unit}" if unit else what, found)
    name = f"{part}.png"
    picture.savefig(folder / name, dpi=110, metadata={"Software": None})
    pyplot.close(picture)
    return [name]


def curve(folder: Path, figures: Figures) -> list[str]:
    """Draws how many have started by when, a line for each kind."""
    lines: dict[str, list[tuple[float, int]]] = {}
    for figure in figures.of("curve"):
        if figure.what.startswith(POINT) and figure.median is not None:
            share = int(figure.what.removeprefix(POINT).removesuffix(" %"))
            lines.setdefault(figure.who, []).append((figure.median / 1000, share))
    if not lines:
        return []
    picture, axis = pyplot.subplots(figsize=(8, 4), layout="constrained")
    for who, points in lines.items():
        axis.plot(*zip(*points, strict=True), marker="o", label=who)
    axis.set_xlabel("seconds after the instant")
    axis.set_ylabel("started, %")
    axis.legend(fontsize=8)
    picture.savefig(folder / "curve.png", dpi=110, metadata={"Software": None})
    pyplot.close(picture)
    return ["curve.png"]


def panel(axis: pyplot.Axes, title: str, found: list[Figure]) -> None:
    """Draws the bars of one measurement, the best at the top."""
    higher = any(unit in title for unit in ("/s", "%"))
    found = sorted(found, key=lambda f: f.median or 0.0, reverse=not higher)
    medians = [f.median or 0.0 for f in found]
    spread = [[m - min(f.values) for m, f in zip(medians, found, strict=True)],
              [max(f.values) - m for m, f in zip(medians, found, strict=True)]]  # fmt: skip
    axis.barh([f.who for f in found], medians, xerr=spread, color=[colour(f.who) for f in found], ecolor="#444444")
    positive = [m for m in medians if m > 0]
    if positive and max(positive) > 20 * min(positive):
        axis.set_xscale("log")
        axis.set_xlim(left=min(positive) / 3)
    for number, median in enumerate(medians):
        axis.annotate(shown(median), (max(median, axis.get_xlim()[0]), number), xytext=(4, 0),
                      textcoords="offset points", va="center", fontsize=8)  # fmt: skip
    axis.set_title(title, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.margins(x=0.18)
    axis.spines[["top", "right"]].set_visible(False)


def colour(who: str) -> str:
    """A contestant's colour, the same in all pictures; the longest name that fits decides."""
    fits = [name for name in COLOURS if who.startswith(name)]
    return COLOURS[max(fits, key=len)] if fits else "#666666"
