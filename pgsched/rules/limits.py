"""Decides, and only decides: how many of the runs that stand in line an entrypoint's limits let start.

fairness decides which of these go first. Everything here is pure. limiter locks the limits, reads the lines and claims.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pgsched.rules import fairness
from pgsched.rules.fairness import Kind, Need

# How many notes of past starts are kept for a rate: one for each such part of its period, with the last start in it.
# A rate may let a run start up to a sixty-fourth of its period late, and never early. The parts have fixed limits, no
# matter when runs start: if each note began with its first start, or moved along with its last, a steady stream of
# starts would count as one that has just come.
NOTES = 64
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Limits:
    """How many runs of an entrypoint may be running at once, and how many may start in a period; None: any number.

    concurrency: at most this many on all workers together.
    concurrency_key: the name of an argument, or a tuple of names. Runs with equal values of these share a key.
    per_key: at most this many runs with the same key on all workers together. Default 1.
    per_worker: at most this many on each worker.
    starts, period: at most this many starts in any period, on all workers together.
    shared: a name. All entrypoints of all applications with this name count together; by default each entrypoint of
        each application counts alone. If two declare different limits under one name, the last start wins.

    Limits are enforced when runs are claimed. Runs over a limit stay queued and start by priority, then due time.
    Raises ValueError for values out of range.
    """

    concurrency: int | None = None
    concurrency_key: str | tuple[str, ...] | None = None
    per_key: int | None = None
    per_worker: int | None = None
    starts: int | None = None
    period: timedelta | None = None
    shared: str | None = None

    def __post_init__(self) -> None:
        for name in ("concurrency", "per_key", "per_worker", "starts"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31):
                raise ValueError(f"Limits({name}=…) must be a whole number of 1 or more, not {value!r}.")
        key = self.concurrency_key
        names = (key,) if isinstance(key, str) else key
        if names is not None and not (
            isinstance(names, tuple) and 1 <= len(names) <= 8 and all(isinstance(name, str) for name in names)
        ):
            raise ValueError(
                f"Limits(concurrency_key=…) must be an argument's name, or a tuple of up to 8 names, not {key!r}."
            )
        if self.per_key is not None and key is None:
            raise ValueError("Limits(per_key=…) needs concurrency_key=…: the argument that distinguishes runs.")
        if (self.starts is None) != (self.period is None):
            raise ValueError(
                "Limits(starts=…) and Limits(period=…) need each other: at most `starts` runs start in any `period`."
            )
        if self.shared is not None:
            if not isinstance(self.shared, str) or not 1 <= len(self.shared) <= 200 or not self.shared.isprintable():
                raise ValueError(
                    f"Limits(shared=…) must be a name of 1 to 200 printable characters, not {str(self.shared)[:60]!r}."
                )
            if not self.together:
                raise ValueError("Limits(shared=…) needs limits to share: concurrency, concurrency_key or starts.")
        if self.period is not None:
            if not isinstance(self.period, timedelta):
                raise ValueError(f"Limits(period=…) must be a timedelta, not {self.period!r}.")
            if not timedelta(0) < self.period <= timedelta(days=366):
                raise ValueError(f"Limits(period=…) must be more than 0 s and at most 366 days, not {self.period!s}.")

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of the arguments that make the concurrency key."""
        return (self.concurrency_key,) if isinstance(self.concurrency_key, str) else self.concurrency_key or ()

    @property
    def together(self) -> bool:
        """Whether there are limits that all workers keep together."""
        return not (self.concurrency is None and self.concurrency_key is None and self.starts is None)

    def row(self) -> dict[str, Any]:
        """The limits that all workers keep together, as columns; empty if there are none."""
        row: dict[str, Any] = {
            "concurrency": self.concurrency,
            "concurrency_key": list(self.keys) or None,
            "per_key": (self.per_key or 1) if self.keys else None,
            "starts": self.starts,
            "period": None if self.period is None else f"{self.period.total_seconds():.6f} seconds",
        }
        if self.shared is not None:
            row["shared"] = self.shared
        return row if self.together else {}


@dataclass(frozen=True, slots=True)
class LockedLimits:
    """Limits, as the claim has locked them, with their recent starts.

    gate: their key.
    now: the database's clock.
    """

    gate: str
    concurrency: int | None
    concurrency_key: list[str] | None
    per_key: int | None
    starts: int | None
    period: timedelta | None
    started_at: list[datetime]
    started: list[int]
    now: datetime


@dataclass(frozen=True, slots=True)
class Candidate:
    """A run that stands first in a line.

    gate: the key of the limits that count it.
    running: how many runs are running under these limits.
    key_running: how many of these have its concurrency key.
    size: the size of its arguments, as stored.
    """

    id: int
    schedule_id: int | None
    entrypoint: str
    gate: str
    key: str
    priority: int
    due_at: datetime
    running: int
    key_running: int
    size: int = 0


def rate_room(limits: LockedLimits) -> int | None:
    """How many starts the rate leaves now; None if there is no rate."""
    return None if limits.starts is None else max(0, limits.starts - sum(count for _, count in _recent(limits)))


def opens_at(limits: LockedLimits) -> datetime | None:
    """When a used-up rate lets the next run start; None if it is not used up."""
    room = rate_room(limits)
    if limits.period is None or limits.starts is None or room is None or room > 0:
        return None
    used = sum(count for _, count in _recent(limits))
    for at, count in _recent(limits):
        used -= count
        if used < limits.starts:
            return at + limits.period
    return None


def noted(limits: LockedLimits, count: int) -> list[tuple[datetime, int]]:
    """The notes of starts, with `count` starts added now."""
    notes = _recent(limits)
    if limits.period is None or count == 0:
        return notes
    part = -(-limits.period // NOTES)  # rounded up
    merged: dict[int, tuple[datetime, int]] = {}
    for at, number in [*notes, (limits.now, count)]:
        which = (at - _EPOCH) // part
        merged[which] = (at, number + merged.get(which, (at, 0))[1])
    return list(merged.values())


def _recent(limits: LockedLimits) -> list[tuple[datetime, int]]:
    """The notes within the last period. After a clock was set back, the rate must not block for as long as the step."""
    if limits.period is None:
        return []
    pairs = sorted(zip(limits.started_at, limits.started, strict=True))
    return [(min(at, limits.now), count) for at, count in pairs if min(at, limits.now) > limits.now - limits.period]


def within(candidates: Sequence[Candidate], most: int) -> list[Candidate]:
    """The first candidates, up to the one whose arguments bring the total to `most` bytes or more."""
    before = itertools.accumulate((each.size for each in candidates), initial=0)
    return [each for each, size in zip(candidates, before, strict=False) if size < most]


def contest(
    candidates: Iterable[Candidate], locked: Sequence[LockedLimits], schedule_rooms: Mapping[int, int]
) -> tuple[list[fairness.Candidate], dict[Need, int]]:
    """The candidates for fairness.choose(), and the rooms that the limits and overlaps leave.

    schedule_rooms: for each schedule that limits overlap, how many more runs it allows; 0 for schedules that could not
        be locked.
    """
    rooms: dict[Need, int] = {fairness.overlap(schedule): room for schedule, room in schedule_rooms.items()}
    by_key = {limits.gate: limits for limits in locked}
    for limits in locked:
        if (room := rate_room(limits)) is not None:
            rooms["rate", limits.gate] = room
    contesting = []
    for each in candidates:
        limits = by_key[each.gate]
        rate, whole, key = ("rate", limits.gate), ("limit", limits.gate), ("key", limits.gate, each.key)
        if limits.concurrency is not None:
            rooms[whole] = limits.concurrency - each.running
        if limits.per_key is not None:
            rooms[key] = limits.per_key - each.key_running
        needs: list[Need] = [rate, whole, key]
        if each.schedule_id is not None:
            needs.append(fairness.overlap(each.schedule_id))
        contesting.append(
            fairness.Candidate(
                Kind.LINE, each.id, each.schedule_id, each.entrypoint, each.priority, each.due_at, needs=tuple(needs)
            )
        )
    return contesting, rooms
