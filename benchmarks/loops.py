"""The part `loops`: pgsched on asyncio's own event loop and on uvloop, each with two versions of Python, in turn.

The first is the Python that runs the benchmark, the other the newest that this machine can have. A ratio compares
figures of one round with the first Python on asyncio's loop. Only on request, because a round takes minutes.
"""

from __future__ import annotations

import platform
from dataclasses import replace

import environments
from comparing import in_turn, measures
from contestants import PGSCHED, Contestant
from figures import Figures
from rig import Server
from rounds import Sizes

LOOPS = ("asyncio", "uvloop")


def loops(server: Server, sizes: Sizes, figures: Figures) -> None:
    """Measures all four, or two if there is no newer Python."""
    builds = variants(platform.python_version(), PGSCHED.environment)
    try:
        version = environments.make_newest()
    except environments.Unavailable as why:
        figures.add("loops", "newest Python", "pgsched", "", None, f"not there: {why}")
    else:
        if version != platform.python_version():
            builds += variants(version, "newest")
    in_turn("loops", builds, measures(sizes), server, sizes, figures)


def variants(version: str, environment: str) -> list[Contestant]:
    """pgsched on each loop with one Python."""
    return [
        replace(
            PGSCHED,
            name=f"pgsched, Python {version}, {loop}",
            environment=environment,
            work=PGSCHED.work | ({"loop": loop} if loop == "uvloop" else {}),
        )
        for loop in LOOPS
    ]
