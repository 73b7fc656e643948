"""Decides, and only decides: which of all that may start goes first. It is the specification of the order.

What is due comes before what will be, so that a claim ahead takes no place from it. Then the highest priority goes
first, and within a priority what has been due longest, whatever kind it is and wherever it would run. So work that
keeps coming never starves the run that has waited longest of its priority. What cannot start, because something that it
needs is used up, holds up nothing behind it.

Everything here is pure. Who reads, locks and claims is dispatcher's and limiter's business.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

# Something of which a run takes one: a slot, a place, or a start that a limit or an overlap leaves.
Need = Hashable
SLOT: Need = "slot"


class Kind(enum.StrEnum):
    """What a candidate is. In this order they go if all else is equal: a fire time after the runs that exist."""

    WAITING = "waiting"  # a run that waits for its schedule's overlap
    LINE = "line"  # one that stands in line at a limit
    QUEUED = "queued"  # any other queued run
    FIRE_TIME = "fire time"


_KINDS = {kind: number for number, kind in enumerate(Kind)}


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something that may start, if all that it needs is there. id: the run's, or of a fire time its schedule's."""

    kind: Kind
    id: int
    schedule_id: int | None
    entrypoint: str
    priority: int
    due_at: datetime
    ahead: bool = False  # not due yet
    needs: tuple[Need, ...] = ()


def order(candidate: Candidate) -> tuple[bool, int, datetime, int, int]:
    """By this they are sorted: which of two goes first."""
    return candidate.ahead, -candidate.priority, candidate.due_at, _KINDS[candidate.kind], candidate.id


def choose(candidates: Iterable[Candidate], rooms: Mapping[Need, int]) -> list[Candidate]:
    """Those that start, first ones first. rooms: how much there is of what they need; any number if it is missing."""
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
    """Takes one of each of these out of `rooms`."""
    for need in needs:
        if need in rooms:
            rooms[need] -= 1


def place(which: str) -> Need:
    """A place of this kind on this worker."""
    return "place", which


def on_worker(entrypoint: str) -> Need:
    """One of the runs of an entrypoint that its own limit lets this worker have."""
    return "worker", entrypoint


def overlap(schedule_id: int) -> Need:
    """One of the runs of a schedule that its overlap lets run."""
    return "overlap", schedule_id
