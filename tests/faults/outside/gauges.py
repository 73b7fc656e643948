"""Samples each daemon's memory, descriptors, threads, tasks and sessions, and says whether they stay flat."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import psutil
import psycopg

from outside.notes import Call
from outside.scene import LASTING, Scene

EVERY = 5.0  # seconds between samples
MB = 1 << 20
# How much the last quarter's median may exceed the second quarter's: a share of it, and so much more.
MARGINS = {"memory, MB": (0.10, 6.0), "descriptors": (0.0, 4.0), "threads": (0.0, 4.0), "tasks": (0.0, 5.0),
           "sessions": (0.0, 3.0)}  # fmt: skip
SESSIONS = """
    select w.pid, count(*) as sessions from pgsched.workers w
    join pg_stat_activity a on a.application_name like 'pgsched%' and a.application_name like '%' || w.id || '%'
    group by w.pid
"""


@dataclass
class Gauges:
    """All samples: for each daemon and gauge, the time and the value."""

    begun: float = field(default_factory=time.monotonic)
    samples: dict[tuple[str, str], list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    _seen: int = 0

    async def sample(self, scene: Scene, *, sessions: bool) -> None:
        """sessions: whether the database can be asked."""
        for name, daemon in scene.daemons.items():
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(daemon.pid)
                if process.status() != psutil.STATUS_ZOMBIE:
                    self._put(name, "memory, MB", process.memory_info().rss / MB)
                    self._put(name, "descriptors", process.num_fds())
                    self._put(name, "threads", process.num_threads())
        self._put("soak", "memory, MB", psutil.Process().memory_info().rss / MB)
        if sessions:
            with contextlib.suppress(psycopg.Error, TimeoutError):
                names = {daemon.pid: name for name, daemon in scene.daemons.items()}
                counted = Counter({names.get(row["pid"]): row["sessions"] for row in await scene.ask(SESSIONS)})
                for name in scene.daemons:
                    self._put(name, "sessions", counted[name])
                [row] = await scene.ask("select count(*) as n from pg_stat_activity where datname is not null")
                self._put("server", "sessions", row["n"])

    def tasks(self, calls: list[Call]) -> None:
        """Takes over the numbers of tasks that the functions have noted."""
        for call in calls[self._seen :]:
            if call.tasks is not None:
                self._put(call.daemon, "tasks", call.tasks, call.began)
        self._seen = len(calls)

    def _put(self, name: str, gauge: str, value: float, at: float | None = None) -> None:
        self.samples[name, gauge].append((at or time.monotonic(), value))

    def quarters(self) -> dict[tuple[str, str], list[list[float]]]:
        """The values in each quarter of the time."""
        length = (time.monotonic() - self.begun) / 4
        found: dict[tuple[str, str], list[list[float]]] = {}
        for which, samples in self.samples.items():
            found[which] = [[], [], [], []]
            for at, value in samples:
                found[which][max(0, min(3, int((at - self.begun) / length)))].append(value)
        return found

    def table(self) -> list[str]:
        lines = [f"{'':24}{'':14}" + "".join(f"{f'quarter {n}':>20}" for n in (1, 2, 3, 4))]
        for (name, gauge), quarters in sorted(self.quarters().items()):
            shown = "".join(
                f"{f'{q[0]:.0f} / {statistics.median(q):.0f} / {max(q):.0f}' if q else '-':>20}" for q in quarters
            )
            lines.append(f"{name:24}{gauge:14}{shown}")
        return [*lines, "(first / median / most)"]

    def grown(self) -> list[str]:
        """A sentence for each gauge of a lasting daemon, or of the server, that is not flat."""
        return [
            f"{name}: {gauge} grew from {statistics.median(second):.0f} in the second quarter to "
            f"{statistics.median(last):.0f} in the last"
            for (name, gauge), (_, second, _, last) in sorted(self.quarters().items())
            if name in (*LASTING, "server") and second and last and _exceeds(gauge, second, last)
        ]


def _exceeds(gauge: str, second: list[float], last: list[float]) -> bool:
    share, more = MARGINS[gauge]
    return statistics.median(last) > statistics.median(second) * (1 + share) + more
