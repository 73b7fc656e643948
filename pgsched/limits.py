"""Decides, and only decides: which of the runs that stand in line at an entrypoint's limits may be claimed.

Everything here is pure. Who locks the limits, reads the lines and claims is limiter's business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

# How many notes of past starts are kept for a rate. Beyond it neighbours become one, with the later time: a rate may
# then let a run start up to a sixty-fourth of its period late, and never early.
NOTES = 64


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
    runs are running there, in all and of its key."""

    id: int
    schedule_id: int | None
    entrypoint: str
    gate: str
    key: str
    priority: int
    due_at: datetime
    running: int
    key_running: int


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
    if notes and (gate.now - notes[-1][0] < gate.period / NOTES or len(notes) >= NOTES):
        notes[-1] = (gate.now, notes[-1][1] + count)
    else:
        notes.append((gate.now, count))
    return notes


def _recent(gate: Gate) -> list[tuple[datetime, int]]:
    """The notes within the last period. A clock that was set back must not shut the gate for as long."""
    if gate.period is None:
        return []
    pairs = sorted(zip(gate.started_at, gate.started, strict=True))
    return [(min(at, gate.now), count) for at, count in pairs if min(at, gate.now) > gate.now - gate.period]


def admit(
    candidates: Iterable[Candidate], gates: Sequence[Gate], schedule_rooms: Mapping[int, int], limit: int
) -> list[Candidate]:
    """The candidates to be claimed, at most `limit`, most urgent first.

    schedule_rooms: of each schedule that does not allow overlap, how many more runs it allows; those that could not be
    locked have none.
    """
    by_key = {gate.gate: gate for gate in gates}
    taken: Counter[str] = Counter()
    taken_keys: Counter[tuple[str, str]] = Counter()
    taken_schedules: Counter[int] = Counter()
    admitted: list[Candidate] = []
    for each in sorted(candidates, key=lambda c: (-c.priority, c.due_at, c.id)):
        if len(admitted) >= limit:
            break
        gate = by_key[each.gate]
        key, room = (each.gate, each.key), rate_room(gate)
        full = (
            (room is not None and taken[each.gate] >= room)
            or (gate.concurrency is not None and each.running + taken[each.gate] >= gate.concurrency)
            or (gate.per_key is not None and each.key_running + taken_keys[key] >= gate.per_key)
            or (
                each.schedule_id is not None
                and taken_schedules[each.schedule_id] >= schedule_rooms.get(each.schedule_id, limit)
            )
        )
        if full:
            continue
        admitted.append(each)
        taken[each.gate] += 1
        taken_keys[key] += 1
        if each.schedule_id is not None:
            taken_schedules[each.schedule_id] += 1
    return admitted
