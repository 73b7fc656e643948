"""The part `cost`: the cost of one run and of one heartbeat of pgsched. docs/scaling.md computes with it."""

from __future__ import annotations

from typing import Any

from contestants import PGSCHED, Contestant
from figures import Figures
from rig import Server
from rounds import Sizes

COSTING = Contestant("pgsched", "bench", "costing.py", "pgsched.runs", "")
CASES: dict[str, dict[str, Any]] = {
    "a job, enqueued by the thousand": {"kind": "bulk", "count": 20_000},
    "a job, enqueued alone": {"kind": "single", "count": 500},
    "a fire time, of 10,000 at once": {"kind": "scheduled", "count": 10_000},
    "a heartbeat, of 1,000 that run": {"kind": "beats", "count": 1_000, "seconds": 12},
}


def cost(server: Server, sizes: Sizes, figures: Figures) -> None:
    """Measures every case in a database of its own, right after a checkpoint."""
    for number in range(sizes.rounds):
        for who, params in CASES.items():
            if "seconds" in params and number:
                continue
            with server.database(PGSCHED) as database:
                server.connection.execute("checkpoint")
                with database.process("cost", by=COSTING, **params) as process:
                    for what, value in process.answer(120).items():
                        figures.add("cost", what, f"pgsched: {who}", "/s" if what == "a second" else "", value)
