"""Writes a run's results into a folder: the numbers as JSON, the tables as Markdown, one plot for each part."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import environments
import plots
import psutil
from contestants import CONTESTANTS, Contestant
from figures import Figures, cell, shown
from goals import Goal, goals
from rig import Server

SETTINGS = ("server_version", "fsync", "synchronous_commit", "shared_buffers", "max_wal_size", "autovacuum")
MEASURED = (
    *("python", environments.NODE, "pgsched", "pgqueuer", "graphile-worker", "pg", "awa-pg", "procrastinate"),
    *("apscheduler", "psycopg", "asyncpg", "sqlalchemy", "anyio", "uvloop"),
)


def surroundings(server: Server, sizes: str) -> dict[str, Any]:
    """The hardware, versions and settings that the figures depend on, without the name of the machine."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processors": os.cpu_count(),
        "memory in GiB": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load before": round(os.getloadavg()[0], 2),
        "sizes": sizes,
        "server": {name: server.show(name) for name in SETTINGS},
        "contestants": {who.name: contestant(who) for who in CONTESTANTS},
    }


def contestant(who: Contestant) -> dict[str, Any]:
    """A contestant's versions and settings; or why it is not here."""
    if reason := environments.missing(who.environment):
        return {"versions": {}, "defaults": f"not measured: {reason}", "tuned": None}
    found = environments.versions(who.environment)
    given = "".join(f", {name} {value}" for name, value in who.work.items())
    return {
        "versions": {name: number for name, number in found.items() if name in MEASURED},
        "defaults": who.defaults + given,
        "tuned": who.tuned or None,
    }


def write(folder: Path, around: dict[str, Any], figures: Figures) -> None:
    """Writes all files. Tables and numbers of an earlier run in this folder are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {**around, "figures": figures.as_json(), "goals": [goal_json(goal) for goal in goals(figures)]}
    (folder / "figures.json").write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    drawn = {part: plots.draw(folder, part, figures) for part in figures.parts()}
    (folder / "README.md").write_text(page(around, figures, drawn))


def goal_json(goal: Goal) -> dict[str, Any]:
    """A goal for a file of JSON."""
    return {"goal": goal.name, "value": goal.value, "bound": goal.bound, "unit": goal.unit, "reached": goal.reached}


def page(around: dict[str, Any], figures: Figures, drawn: dict[str, list[str]]) -> str:
    """The page that holds the tables and shows the plots."""
    lines = [f"# Measured on {around['date'][:10]}", "", machine(around), "", *contestants(around), ""]
    if reached := goals(figures):
        lines += ["## Goals", "", *goals_table(reached), ""]
    for part in figures.parts():
        lines += [f"## {part}", "", *table(figures, part), ""]
        lines += [f"![{part}]({name})" for name in drawn.get(part, [])]
        lines += [""]
    return "\n".join(lines).rstrip() + "\n"


def machine(around: dict[str, Any]) -> str:
    """The machine of the measurement, in a sentence."""
    server = ", ".join(f"{name} {value}" for name, value in around["server"].items() if name != "server_version")
    return (
        f"{around['processors']} processors, {around['memory in GiB']} GiB, {around['system']},"
        f" Python {around['python']}, PostgreSQL {around['server']['server_version']} on the same machine ({server});"
        f" load before the run {around['load before']}; sizes: {around['sizes']}. Medians of the rounds, least and"
        " most in brackets. Figures of one run only can be compared."
    )


def contestants(around: dict[str, Any]) -> list[str]:
    """Versions and settings."""
    rows = [["contestant", "versions", "defaults", "tuned"]]
    for name, told in around["contestants"].items():
        versions = ", ".join(f"{package} {number}" for package, number in told["versions"].items())
        rows.append([name, versions, told["defaults"], told["tuned"] or ""])
    return markdown(rows)


def goals_table(reached: list[Goal]) -> list[str]:
    """The table of the goals, with the measured values."""
    rows = [["goal of pgsched at its defaults", "measured", "bound", ""]]
    for goal in reached:
        unit = f" {goal.unit}".rstrip()
        sign = "≥" if goal.at_least else "≤"
        rows.append([goal.name, f"{shown(goal.value)}{unit}", f"{sign} {shown(goal.bound)}{unit}",
                     "reached" if goal.reached else "**not reached**"])  # fmt: skip
    return markdown(rows)


def table(figures: Figures, part: str) -> list[str]:
    """A part's table: a row for each contestant, a column for each measurement."""
    found = figures.of(part)
    whats, whos = (list(dict.fromkeys(key(f) for f in found)) for key in (lambda f: f.what, lambda f: f.who))
    whos.sort(key=lambda who: 0 if who.startswith(("the bare", "bare")) else 1 if who.startswith("pgsched") else 2)
    head = [""]
    for what in whats:
        unit = next((f.unit for f in found if f.what == what and f.unit), "")
        head.append(f"{what}, {unit}" if unit else what)
    rows = [head]
    for who in whos:
        rows.append([who, *(cell(next(iter(figures.of(part, what, who)), None)) for what in whats)])
    if len(head) > 7:  # a wide table is easier to read on its side
        rows = [list(column) for column in zip(*rows, strict=True)]
    return markdown(rows)


def markdown(rows: list[list[str]]) -> list[str]:
    """A table."""
    lines = ["| " + " | ".join(text.replace("|", "/") for text in row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]
