"""Measures pgsched side by side with its peers and with the bare limits, in one run.

    make bench                     the main parts, less than twenty minutes
    make bench ONLY="herd drain"   some of them
    make bench ONLY=compare BASE=main~3   this build and that commit's in turn
    make bench ARGS=--quick        small sizes, to see whether everything works; the figures mean nothing

Only figures of one run can be compared; see README.md in this folder.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import environments
import results
from comparing import compare
from contestants import PGSCHED
from cost import cost
from curve import curve
from draining import drain
from expressions import expressions
from figures import Fault, Figures
from growth import growth
from latency import latency, million
from loops import LOOPS, loops
from psycopg import Error
from punctual import herd, lag
from queueing import enqueue
from rig import Server, server
from rounds import QUICK, Sizes
from sigkill import sigkill
from standing import idle, running
from starting import start

HERE = Path(__file__).parent
Part = Callable[[Server, Sizes, Figures], None]
# With the seconds that each has in a run of all: they sum up to less than twenty minutes.
PARTS: dict[str, tuple[Part, float]] = {
    "drain": (drain, 240),
    "herd": (herd, 230),
    "curve": (curve, 150),
    "lag": (lag, 70),
    "latency": (latency, 180),
    "growth": (growth, 95),
    "start": (start, 110),
    "idle": (idle, 75),
    "sigkill": (sigkill, 45),
}
REQUESTED: dict[str, Part] = {
    "million": million,
    "running": running,
    "cost": cost,
    "enqueue": enqueue,
    "expressions": expressions,
    "loops": loops,
}
NAMES = (*PARTS, *REQUESTED, "compare")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--base", metavar="COMMIT", help="the commit that `compare` compares with")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="the time of each part, 270 by default")
    parser.add_argument("--quick", action="store_true", help="small sizes, whose figures mean nothing")
    parser.add_argument("--dsn", help="a server to use instead of an embedded one, where we may create databases")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of pgsched's workers"
    )
    parser.add_argument("--loop", choices=LOOPS, help="the event loop of pgsched's workers")
    parser.add_argument("--python", type=Path, metavar="PATH", help="the Python of pgsched's processes")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="where tables, plots and numbers go")
    given = parser.parse_args()
    if any("=" not in pair for pair in given.set):
        parser.error("--set takes NAME=VALUE, such as max_running=2000")
    if "compare" in (given.only or ()) and not given.base:
        parser.error("compare needs a commit to compare with: --base COMMIT, or make bench ONLY=compare BASE=COMMIT")
    return given


def choose(given: argparse.Namespace) -> None:
    """Applies the options for pgsched's own processes."""
    if given.set:
        PGSCHED.work["settings"] = dict(pair.split("=", 1) for pair in given.set)
    if given.loop:
        PGSCHED.work["loop"] = given.loop
    if given.python:
        environments.use("bench", given.python)


def times(given: argparse.Namespace, sizes: Sizes) -> dict[str, float]:
    """The parts to measure, each with the seconds that it has."""
    if given.only:
        return dict.fromkeys(given.only, given.budget or sizes.budget)
    return {name: given.budget or seconds for name, (_, seconds) in PARTS.items()}


def leave(*_: object) -> None:
    """Ends the benchmark and all its processes. A second signal must not cut that short."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def main() -> int:
    """Measures the parts one after the other. If one fails, that is reported, and the others go on."""
    given = arguments()
    signal.signal(signal.SIGTERM, leave)
    sizes = QUICK if given.quick else Sizes()
    parts = {name: part for name, (part, _) in PARTS.items()} | REQUESTED | {"compare": partial(compare, given.base)}
    choose(given)
    figures = Figures()
    with server(given.dsn) as one:
        around = results.surroundings(one, "quick, which mean nothing" if given.quick else "full")
        for part, seconds in times(given, sizes).items():
            began = time.monotonic()
            print(f"{part} …", flush=True)
            try:
                parts[part](one, replace(sizes, budget=seconds), figures)
            except (Fault, Error, OSError) as fault:
                figures.faults.append(f"{part}: {fault}")
                print(f"{part}: not measured: {fault}", flush=True)
            print("\n".join(results.table(figures, part) if figures.of(part) else []), flush=True)
            print(f"{part}: {time.monotonic() - began:.0f} s\n", flush=True)
    folder = given.results or HERE / "results" / ("quick" if given.quick else around["date"][:10])
    results.write(folder, around, figures)
    print("\n".join(results.goals_table(results.goals(figures))))
    return 1 if figures.faults else 0


if __name__ == "__main__":
    sys.exit(main())
