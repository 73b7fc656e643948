"""Decides, and only decides: which version of an application's declared schedules counts, and what a start changes.

Everything here is pure. Who reads and writes the tables is the reconciler's business, and who shows it `check`'s.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Protocol

from pgsched.model import ScheduleStatus

# A change of any of these has next_run planned anew.
TIMING = frozenset({"expression", "timezone", "starts_at", "ends_at", "max_runs"})
_TICK = timedelta(microseconds=1)
_BEGINNING = datetime(1900, 1, 1, tzinfo=UTC)


# --- which version counts -------------------------------------------------------------------------------


class Verdict(StrEnum):
    """What a worker shall do about its declarations."""

    FIRST = "first"  # the application has none in force: apply them
    CURRENT = "current"  # they are in force: set back what somebody changed
    NEW = "new"  # never seen: a new version, apply them
    BACK = "back"  # seen before, and nobody alive has the ones in force: a roll-back, apply them
    DEFERRED = "deferred"  # seen before, and somebody alive has the ones in force: leave the schedules alone


@dataclass(frozen=True, slots=True)
class Standing:
    """Where an application's declarations stand, by the database's clock.

    in_force: the fingerprint that is, None where none is yet. applied_at: since when. known: whether the asker's
    were in force before. alive: how many live workers have those in force.
    """

    now: datetime
    in_force: str | None
    applied_at: datetime | None
    known: bool
    alive: int


def fingerprint(rows: Iterable[Mapping[str, Any]], limits: Iterable[Mapping[str, Any]] = ()) -> str:
    """A hash over declared schedules and limits, the same on every machine, in whatever order they are declared."""
    ordered = sorted(rows, key=lambda row: str(row["name"]))
    ordered += sorted(limits, key=lambda row: str(row["entrypoint"]))
    text = json.dumps(ordered, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def verdict(ours: str, standing: Standing) -> Verdict:
    """What a worker with these declarations shall do.

    An old process that starts again during a deploy looks like a roll-back. What tells them apart is that the
    newer version is still there, so as long as it is, whoever is older waits.
    """
    if standing.in_force is None:
        return Verdict.FIRST
    if standing.in_force == ours:
        return Verdict.CURRENT
    if not standing.known:
        return Verdict.NEW
    return Verdict.DEFERRED if standing.alive else Verdict.BACK


# --- what differs ---------------------------------------------------------------------------------------


class Kind(StrEnum):
    """How a schedule differs between the code and the database."""

    NEW = "new"
    CHANGED = "changed"
    RETURNING = "returning"  # it was retired, and is declared again
    RETIRED = "retired"  # it will be: the code does not declare it any more
    FOREIGN = "not ours"  # the name belongs to the API or to another application, and is left alone
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class Compared:
    """One row of the comparison: a schedule that is declared, stored (id is not None), or both.

    paused: whether it is, or was when it was retired. changes: option -> (stored, declared), without the equal ones.
    """

    name: str
    declared: bool
    id: int | None = None
    owner: str | None = None
    timezone: str | None = None
    status: str | None = None
    retired: bool = False
    paused: bool = False
    paused_until: datetime | None = None
    next_run: datetime | None = None
    created_at: datetime | None = None
    run_count: int = 0
    changes: dict[str, tuple[Any, Any]] = field(default_factory=dict)


def kind(compared: Compared, owner: str) -> Kind:
    """What a start of the owner's code means for one schedule."""
    if compared.id is None:
        return Kind.NEW
    if compared.owner != owner:
        # What another application has let go of may be taken over, with its history; what the API made may not.
        free = compared.retired and (compared.owner or "").startswith("code:")
        return Kind.RETURNING if free else Kind.FOREIGN
    if not compared.declared:
        return Kind.RETIRED
    if compared.retired:
        return Kind.RETURNING
    if compared.changes or compared.status == ScheduleStatus.INVALID:
        return Kind.CHANGED
    return Kind.UNCHANGED


class Next(Protocol):
    """The fire times of one schedule, as an expression gives them."""

    def next(self, after: datetime) -> datetime | None:
        """The first fire time strictly after `after`, None when there is none."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What a start of the code would make of one schedule. *_before is in the database, *_after would be.

    A paused schedule has no next run to speak of. own_times: an executor computes its fire times, and only it
    could tell the next.
    """

    name: str
    kind: Kind
    owner: str | None
    changes: dict[str, tuple[Any, Any]]
    timezone_before: str | None = None
    timezone_after: str | None = None
    status_before: str | None = None
    status_after: str | None = None
    paused_until: datetime | None = None
    next_run_before: datetime | None = None
    next_run_after: datetime | None = None
    own_times: bool = False


# The fire times of a declared row, anchored at an instant; None where its executor computes them.
TimesOf = Callable[[Mapping[str, Any], datetime], Next | None]


def difference(
    compared: Compared, row: Mapping[str, Any] | None, owner: str, now: datetime, times_of: TimesOf
) -> Difference:
    """What a start at `now` would make of one schedule. row: as it is declared, None where it is not."""
    found = kind(compared, owner)
    stays = Difference(
        compared.name,
        found,
        compared.owner,
        changes={},
        timezone_before=compared.timezone,
        timezone_after=compared.timezone,
        status_before=compared.status,
        status_after=compared.status,
        paused_until=compared.paused_until if compared.paused else None,
        next_run_before=compared.next_run,
        next_run_after=compared.next_run,
    )
    if found in (Kind.UNCHANGED, Kind.FOREIGN):
        return stays
    if found is Kind.RETIRED or row is None:
        return replace(stays, status_after=str(ScheduleStatus.FINISHED), next_run_after=None)
    changes = dict(compared.changes)
    if compared.owner not in (None, owner):
        changes["owner"] = (compared.owner, owner)
    status, next_run, own_times = _after(compared, found, row, now, times_of)
    return replace(
        stays,
        owner=owner,
        changes=changes,
        timezone_after=row["timezone"],
        status_after=str(status),
        next_run_after=next_run,
        own_times=own_times,
    )


def _after(
    compared: Compared, found: Kind, row: Mapping[str, Any], now: datetime, times_of: TimesOf
) -> tuple[ScheduleStatus | str, datetime | None, bool]:
    """Its status and next run after a start, and whether only its executor knows the latter."""
    planned_anew = found in (Kind.NEW, Kind.RETURNING) or compared.status == ScheduleStatus.INVALID
    retimed = not TIMING.isdisjoint(compared.changes)
    if compared.paused and (found is Kind.RETURNING or compared.status == ScheduleStatus.PAUSED):
        kept = None if planned_anew or retimed else compared.next_run
        return ScheduleStatus.PAUSED, kept, False
    if not planned_anew and not retimed:
        return compared.status or ScheduleStatus.ACTIVE, compared.next_run, False
    times = times_of(row, _instant(row["starts_at"]) or compared.created_at or now)
    if times is None:
        return ScheduleStatus.ACTIVE, None, True
    coming = first_fire_time(times, row, compared.run_count, now)
    return ScheduleStatus.FINISHED if coming is None else ScheduleStatus.ACTIVE, coming, False


def first_fire_time(times: Next, row: Mapping[str, Any], run_count: int, now: datetime) -> datetime | None:
    """The fire time that a schedule starts with which is planned anew at `now`; a single instant counts though
    it be past. None where nothing more fires."""
    if row["max_runs"] is not None and run_count >= row["max_runs"]:
        return None
    starts_at, ends_at = _instant(row["starts_at"]), _instant(row["ends_at"])
    after = _BEGINNING if str(row["expression"]).lstrip()[:3].lower() == "@at" else now
    coming = times.next(after if starts_at is None else max(after, starts_at - _TICK))
    return None if coming is None or (ends_at is not None and coming > ends_at) else coming


def _instant(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
