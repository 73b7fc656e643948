"""Decides, and only decides: what an entrypoint's limits leave for the runs that stand in line at them. Which of these
then go first, beside all others, is fairness's.

Everything here is pure. Who locks the limits, reads the lines and claims is limiter's business.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pgsched.rules import fairness
from pgsched.rules.fairness import Kind, Need

# How many notes of past starts are kept for a rate, one for each such part of its period, with the last time in it: a
# rate may let a run start up to a sixty-fourth of its period late, and never early. The parts lie where they lie,
# whatever starts when: if each note began with its first start, or moved along with its last, a steady stream of starts
# would count as one that has just come.
NOTES = 64
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Gate:
    """Limits, as the claim has locked them, with their recent starts. gate: their key. now: the database's clock."""

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
    """A run that stands first in a line. gate: the key of the limits that count it. running, key_running: how many
    runs are running there, in all and of its key. size: of its arguments, as stored."""

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


def rate_room(gate: Gate) -> int | None:
    """How many starts the rate leaves for now; None where it sets no limit."""
    return None if gate.starts is None else max(0, gate.starts - sum(count for _, count in _recent(gate)))


def opens_at(gate: Gate) -> datetime | None:
    """When a used-up rate lets the next run start; None where it is not used up."""
    room = rate_room(gate)
    if gate.period is None or gate.starts is None or room is None or room > 0:
        return None
    used = sum(count for _, count in _recent(gate))
    for at, count in _recent(gate):
        used -= count
        if used < gate.starts:
            return at + gate.period
    return None


def noted(gate: Gate, count: int) -> list[tuple[datetime, int]]:
    """The notes of starts, with these added."""
    notes = _recent(gate)
    if gate.period is None or count == 0:
        return notes
    part = -(-gate.period // NOTES)  # rounded up
    merged: dict[int, tuple[datetime, int]] = {}
    for at, number in [*notes, (gate.now, count)]:
        which = (at - _EPOCH) // part
        merged[which] = (at, number + merged.get(which, (at, 0))[1])
    return list(merged.values())


def _recent(gate: Gate) -> list[tuple[datetime, int]]:
    """The notes within the last period. A clock that was set back must not shut the gate for as long."""
    if gate.period is None:
        return []
    pairs = sorted(zip(gate.started_at, gate.started, strict=True))
    return [(min(at, gate.now), count) for at, count in pairs if min(at, gate.now) > gate.now - gate.period]


def within(candidates: Sequence[Candidate], most: int) -> list[Candidate]:
    """The first ones, whose arguments together hold no more than so many bytes, but for those of the last one."""
    before = itertools.accumulate((each.size for each in candidates), initial=0)
    return [each for each, size in zip(candidates, before, strict=False) if size < most]


def contest(
    candidates: Iterable[Candidate], gates: Sequence[Gate], schedule_rooms: Mapping[int, int]
) -> tuple[list[fairness.Candidate], dict[Need, int]]:
    """The candidates as fairness.choose() has them compete, and what the limits and the overlaps leave.

    schedule_rooms: of each schedule that does not allow overlap, how many more runs it allows; those that could not be
    locked have none.
    """
    rooms: dict[Need, int] = {fairness.overlap(schedule): room for schedule, room in schedule_rooms.items()}
    by_key = {gate.gate: gate for gate in gates}
    for gate in gates:
        if (room := rate_room(gate)) is not None:
            rooms["rate", gate.gate] = room
    contesting = []
    for each in candidates:
        gate = by_key[each.gate]
        rate, whole, key = ("rate", gate.gate), ("limit", gate.gate), ("key", gate.gate, each.key)
        if gate.concurrency is not None:
            rooms[whole] = gate.concurrency - each.running
        if gate.per_key is not None:
            rooms[key] = gate.per_key - each.key_running
        needs: list[Need] = [rate, whole, key]
        if each.schedule_id is not None:
            needs.append(fairness.overlap(each.schedule_id))
        contesting.append(
            fairness.Candidate(
                Kind.LINE, each.id, each.schedule_id, each.entrypoint, each.priority, each.due_at, needs=tuple(needs)
            )
        )
    return contesting, rooms
