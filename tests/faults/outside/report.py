"""Prints a line for each fault, each finding at once with its history, and the tables at the end."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

from outside import books
from outside.gauges import Gauges
from outside.notes import Call, Mercy, Reader
from outside.scene import Scene
from outside.traffic import Traffic

HISTORY = "select at, op, run, token, attempt, worker, status from soak.trail where key = %s order by number limit 40"
SHOWN = 20  # findings of one comparison that are printed

START = "Error: The database cannot be reached: "  # the last words of a start that met no database


class Report:
    """All that was done and found under one seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.findings: list[str] = []
        self.ask: Callable[..., Awaitable[list[dict[str, Any]]]] | None = None
        self.traffic: Traffic | None = None
        self._known: set[str] = set()
        self._begun = time.monotonic()
        self._recent: list[str] = []
        self._times: Counter[str] = Counter()
        self._recoveries: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._offsets: dict[str, int] = {}
        self._events: Counter[str] = Counter()
        self._pending: list[str] = []
        self.counts: Counter[str] = Counter()

    def line(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._begun), 60)
        print(f"{minutes:3}:{seconds:02}  {text}", flush=True)

    def fault(self, number: int, names: list[str], shown: str, first: float, everything: float) -> None:
        """A fault that is healed. first, everything: the seconds until something, and until everything worked."""
        self._times.update(names)
        self._recoveries[names[0] if len(names) == 1 else "(two at once)"].append((first, everything))
        text = f"#{number}  {shown}: fires after {first:.1f} s, everything works after {everything:.1f} s"
        self._recent = [*self._recent[-2:], text]
        self.line(text)

    def note(self, text: str) -> None:
        """A finding that is printed with the next comparison."""
        self._pending.append(text)

    async def finding(self, text: str) -> None:
        key = text.split(": ", 1)[0]
        breach = text[:200]
        if breach in self._known:
            return
        self._known.add(breach)
        self.findings.append(text)
        print(f"\nFINDING (seed {self.seed}, at {time.monotonic():.2f})  {text}", flush=True)
        for line in self._recent:
            print(f"    {line}", flush=True)
        if self.ask is not None:
            try:
                rows = await self.ask(HISTORY, key)
            except Exception as error:  # the database may be away; the finding counts all the same
                rows = [{"history": error}]
            for row in rows:
                print("      " + "  ".join(f"{k} {v}" for k, v in row.items()), flush=True)
        print(flush=True)

    async def compare(self, scene: Scene, traffic: Traffic, reader: Reader, *, settled: bool) -> list[Call]:
        """Compares the notes with the database. settled: whether nothing is left to do. Returns all calls."""
        enqueued = {key: dataclasses.replace(job) for key, job in traffic.enqueued.items()}
        orders = list(traffic.orders)
        until = time.monotonic()
        rows = await scene.ask(books.ROWS)
        halves = await scene.ask(books.HALVES)
        there = {row["key"] for row in await scene.ask("select key from soak.orders")}
        calls = reader.read()
        mercy = Mercy(scene.excuses, scene.lost)
        breaches = await asyncio.to_thread(
            lambda: [
                *books.unaccounted(rows), *books.doubled(calls, mercy),
                *books.over_limits(calls, mercy, time.monotonic()), *books.torn(rows, calls, mercy),
                *books.unknown(rows, calls, mercy, until), *books.forgotten(rows, calls, enqueued, mercy),
                *books.taken_away(rows, calls, mercy, time.monotonic() - time.time()), *books.waiting(rows),
                *([f"{books.key_of(row)}: is still {row['status']}" for row in rows
                   if row["status"] in ("queued", "running")] if settled else []),
            ]
        )  # fmt: skip
        breaches += [row["breach"] for row in halves if row["key"] not in mercy.keys]
        breaches += [f"{key}: the order of an acknowledged transaction is gone" for key in orders
                     if key not in there and key not in mercy.keys]  # fmt: skip
        breaches += self._pending + traffic.findings + self._logs(scene)
        self._pending = []
        for breach in breaches[:SHOWN]:
            await self.finding(breach)
        self._count(rows, calls, mercy)
        return calls

    def _count(self, rows: list[books.Row], calls: list[Call], mercy: Mercy) -> None:
        fires = [row for row in rows if row["schedule"] is not None]
        again = len(calls) - len({call.key for call in calls})
        excused = sum(call.how != "failed" and mercy.covers(call) for call in calls)
        self.counts = Counter({
            "fire times that ran": sum(row["status"] != "skipped" for row in fires),
            "fire times recorded as skipped": sum(row["skipped_count"] or 1 for row in fires
                                                  if row["status"] == "skipped"),
            "jobs": len(rows) - len(fires),
            "transactions of runs": sum(row["payments"] or 0 for row in rows),
            "calls of functions": len(calls),
            "calls beyond the first of a run": again,
            "calls of workers that were killed, drained, or hindered for longer than the stall timeout": excused,
            "claims that a reaper took away": sum(len(row["losses"]) for row in rows),
            "runs that failed": sum(row["status"] == "failed" for row in rows),
        })  # fmt: skip

    def _logs(self, scene: Scene) -> list[str]:
        """Counts what the daemons have logged. An end by an error, and a traceback, are findings."""
        found = []
        for path in sorted(scene.folder.glob("daemon-*.log")):
            with path.open("rb") as file:
                file.seek(self._offsets.get(path.name, 0))
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._offsets[path.name] = self._offsets.get(path.name, 0) + len(line)
                    try:
                        event = json.loads(line)
                    except ValueError:
                        event = {"event": "text", "level": "error", "text": line.decode(errors="replace")}
                    if event["level"] in ("warning", "error"):
                        self._events[f"{event['level']} {event['event']}"] += 1
                    refused_start = event["event"] == "text" and event["text"].startswith(START)
                    if event["event"] in ("text", "worker_failed") and not refused_start:
                        found.append(f"{path.name}: {event}")
        return found

    def summary(self, scene: Scene, traffic: Traffic, gauges: Gauges, seconds: float) -> None:
        print(f"\n{sum(self._times.values())} faults of seed {self.seed} in {seconds / 60:.0f} min")
        print(f"{'':28}{'times':>6}{'fires after, s':>22}{'everything works, s':>22}\n{'':28}{'':>6}"
              f"{'median':>14}{'worst':>8}{'median':>14}{'worst':>8}")  # fmt: skip
        for name in sorted({*self._times, *self._recoveries}):
            shown = ""
            if recoveries := self._recoveries.get(name):
                for which in zip(*recoveries, strict=True):
                    shown += f"{statistics.median(which):14.1f}{max(which):8.1f}"
            times = self._times.get(name) or len(recoveries or ())
            print(f"{name:28}{times:6}{shown or '        (only with another one)'}")
        print("\nA recovery of two at once is counted there, and each fault in its own line.\n")
        for name, number in self.counts.items():
            print(f"{number:8}  {name}")
        print(f"{traffic.calls:8}  calls of clients; the slowest took {traffic.slowest:.1f} s; refused:")
        for name, number in traffic.refused.most_common(12):
            print(f"{number:12}  {name}")
        keys = {row["key"] for row in scene.lost}
        print(f"{len(scene.lost):8}  changes of {len(keys)} runs lost by PostgreSQL itself in asynchronous failovers")
        print(f"{scene.unacknowledged:8}  changes not replicated in synchronous ones; nobody was told of them")
        print("\nlogged: " + ", ".join(f"{number} {name}" for name, number in self._events.most_common(30)) + "\n")
        print("\n".join(gauges.table()) + "\n")
        for text in gauges.grown() if seconds > 240 else []:
            self.findings.append(text)
            print(f"FINDING  {text}")
        for text in scene.missing:
            print(f"NOT AVAILABLE HERE  {text}")
        print(f"{len(self.findings)} findings" if self.findings else "no findings, no losses", flush=True)
