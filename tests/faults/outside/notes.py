"""Reads the notes of the daemons' functions, and knows which calls a hindered worker or a failover excuses."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outside.scene import STALL, Excuse

# A worker that was hindered for so long may lose its claims. Faults are clearly shorter or longer.
LONG = STALL - 3
_AFTER = 90.0  # seconds after a call's end within which its outcome is surely written, if its worker is well


@dataclass
class Call:
    """One call of a function. how: "ended", "failed" or "cancelled"; None if it has not come to its end."""

    key: str
    run: int
    token: int
    attempt: int
    pid: int
    worker: str
    daemon: str
    entrypoint: str
    began: float
    tenant: str | None = None
    tasks: int | None = None
    ended: float | None = None
    how: str | None = None
    error: str = ""

    @property
    def claim(self) -> tuple[str, int, int]:
        return self.key, self.run, self.token

    def __str__(self) -> str:
        end = "no end" if self.ended is None else f"{self.how} at {self.ended:.2f} {self.error}"
        return (f"run {self.run}, attempt {self.attempt}, token {self.token}, {self.daemon} (pid {self.pid}): "
                f"began at {self.began:.2f}, {end}")  # fmt: skip


class Reader:
    """All calls so far, read from the files of a folder bit by bit."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets: dict[Path, int] = {}
        self._open: dict[tuple[str, int, int, int], Call] = {}
        self.calls: list[Call] = []

    def read(self) -> list[Call]:
        for path in self._folder.glob("notes *"):
            with path.open("rb") as file:
                file.seek(self._offsets.get(path, 0))
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._offsets[path] = self._offsets.get(path, 0) + len(line)
                    self.take(json.loads(line))
        return self.calls

    def take(self, note: dict[str, Any]) -> None:
        which = note["key"], note["run"], note["token"], note["pid"]
        if note["what"] == "began":
            names = ("key", "run", "token", "attempt", "pid", "worker", "daemon", "entrypoint")
            more = {name: note.get(name) for name in ("tenant", "tasks")}
            call = Call(**{name: note[name] for name in names}, began=note["at"], **more)
            self._open[which] = call
            self.calls.append(call)
        elif call := self._open.pop(which, None):
            call.ended, call.how, call.error = note["at"], note["what"], note.get("error", "")


@dataclass
class Mercy:
    """What may rightly go wrong: for workers that were hindered, and for transactions that PostgreSQL has lost.

    lost: rows of the trail that an asynchronous standby did not have when it was promoted.
    """

    excuses: list[Excuse] = field(default_factory=list)
    lost: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.claims = {(row["key"], row["run"], row["token"]) for row in self.lost}
        self.keys = {row["key"] for row in self.lost}
        self._spans = _merged(self.excuses)

    def covers(self, call: Call) -> bool:
        """Whether another call of the same run may follow, or go on beside it."""
        return call.claim in self.claims or self.hindered(call.pid, call.began, call.ended)

    def hindered(self, pid: int, since: float, until: float | None) -> bool:
        """Whether a worker was killed, drained or hindered for long, so that it may have lost what it did then."""
        last = float("inf") if until is None else until + _AFTER
        return any(
            excuse.since <= last and (excuse.kind in ("killed", "drained") or excuse.until >= since)
            for excuse in self._spans.get(pid, ())
        )


def _merged(excuses: list[Excuse]) -> dict[int, list[Excuse]]:
    """Of each process, the excuses that count. Stops and cuts that follow each other closely count together."""
    found: dict[int, list[Excuse]] = {}
    for each in sorted(excuses, key=lambda each: each.since):
        mine, excuse = found.setdefault(each.pid, []), each
        if excuse.kind in ("stopped", "cut") and mine and mine[-1].until > excuse.since - 10 and mine[-1].kind == "cut":
            last = mine.pop()
            excuse = Excuse(excuse.pid, "cut", last.since, max(last.until, excuse.until))
        elif excuse.kind == "stopped":
            excuse = Excuse(excuse.pid, "cut", excuse.since, excuse.until)
        mine.append(excuse)
    return {
        pid: [each for each in mine if each.kind != "cut" or each.until - each.since >= LONG]
        for pid, mine in found.items()
    }
