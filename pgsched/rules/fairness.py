"""Decides the order that candidates start in, and nothing else. It is the specification of that order.

Due work comes before work that is not due yet, so that a claim ahead takes no place from due work. Then the highest
priority goes first. Within a priority the candidate that has been due longest goes first, no matter its kind or the
place it would run in. So a stream of new work never starves the run that has waited longest in its priority. If a
candidate cannot start because something it needs is used up, those behind it do not wait for it.

Everything here is pure. dispatcher and limiter read, lock and claim.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

# A run takes one of each of its needs: a slot, a place, or a start that a limit or an overlap leaves.
Need = Hashable
SLOT: Need = "slot"


class Kind(enum.StrEnum):
    """The kind of a candidate. If all else is equal they go in this order: a fire time after the existing runs."""

    WAITING = "waiting"  # a run that waits for its schedule's overlap
    LINE = "line"  # a run that stands in line at a limit
    QUEUED = "queued"  # any other queued run
    FIRE_TIME = "fire time"


_KINDS = {kind: number for number, kind in enumerate(Kind)}


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something that may start if all its needs are met. id: the run's, or for a fire time the schedule's."""

    kind: Kind
    id: int
    schedule_id: int | None
    entrypoint: str
    priority: int
    due_at: datetime
    ahead: bool = False  # not due yet
    needs: tuple[Need, ...] = ()


def order(candidate: Candidate) -> tuple[bool, int, datetime, int, int]:
    """The sort key: the smaller one goes first."""
    return candidate.ahead, -candidate.priority, candidate.due_at, _KINDS[candidate.kind], candidate.id


def choose(candidates: Iterable[Candidate], rooms: Mapping[Need, int]) -> list[Candidate]:
    """The candidates that start, in order. rooms: how much is left of each need; a missing need is unlimited."""
    left = dict(rooms)
    chosen = []
    for candidate in sorted(candidates, key=order):
        if all(left.get(need, 1) > 0 for need in candidate.needs):
            chosen.append(candidate)
            take(left, candidate.needs)
        if left.get(SLOT, 1) <= 0:
            break
    return chosen


def take(rooms: dict[Need, int], needs: Iterable[Need]) -> None:
    """Takes one of each need out of `rooms`."""
    for need in needs:
        if need in rooms:
            rooms[need] -= 1


def place(which: str) -> Need:
    """A place of this kind on this worker."""
    return "place", which


def on_worker(entrypoint: str) -> Need:
    """One of the runs of an entrypoint that its per-worker limit allows this worker."""
    return "worker", entrypoint


def overlap(schedule_id: int) -> Need:
    """One of the runs of a schedule that its overlap allows."""
    return "overlap", schedule_id
