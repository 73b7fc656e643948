"""Decides, and only decides: which version of an application's declared schedules counts, and how a start changes them.

Everything here is pure. The reconciler reads and writes the tables, and `check` shows the differences.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

from pgsched.expression.instants import BEGINNING, TICK
from pgsched.model import ScheduleStatus

# After a change of any of these, next_run is planned again.
TIMING = frozenset({"expression", "timezone", "starts_at", "ends_at", "max_runs"})


# --- which version counts -------------------------------------------------------------------------------


class Verdict(StrEnum):
    """How a worker should treat its declarations."""

    FIRST = "first"  # the application has none in force: apply them
    CURRENT = "current"  # they are in force: undo other people's changes
    NEW = "new"  # never seen: a new version, apply them
    BACK = "back"  # seen before, and no live worker has those in force: a roll-back, apply them
    DEFERRED = "deferred"  # seen before, but a live worker has those in force: leave the schedules alone


@dataclass(frozen=True, slots=True)
class Standing:
    """The history of an application's declarations, by the database's clock.

    in_force: the fingerprint in force, or None.
    applied_at: since when it has been in force.
    known: whether the asking worker's declarations have been in force before.
    alive: how many live workers have the declarations in force.
    """

    now: datetime
    in_force: str | None
    applied_at: datetime | None
    known: bool
    alive: int


def fingerprint(rows: Iterable[Mapping[str, Any]], limits: Iterable[Mapping[str, Any]] = ()) -> str:
    """A hash over declared schedules and limits, the same on every machine and for every order of declaration."""
    ordered = sorted(rows, key=lambda row: str(row["name"]))
    ordered += sorted(limits, key=lambda row: str(row["entrypoint"]))
    text = json.dumps(ordered, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def verdict(ours: str, standing: Standing) -> Verdict:
    """How a worker with these declarations should treat them.

    An old process that starts again during a deploy looks like a roll-back. The difference is that the newer version
    still has live workers, so as long as it has, an older version waits.
    """
    if standing.in_force is None:
        return Verdict.FIRST
    if standing.in_force == ours:
        return Verdict.CURRENT
    if not standing.known:
        return Verdict.NEW
    return Verdict.DEFERRED if standing.alive else Verdict.BACK


# --- whose they are -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Holder:
    """A live worker. project: the project of its code; None if it is unknown."""

    host: str
    pid: int
    project: str | None

    def __str__(self) -> str:
        return f"host {self.host}, pid {self.pid}" + (f", project {self.project}" if self.project else "")


@dataclass(frozen=True, slots=True)
class Other:
    """Another application that owns a name which ours declares.

    schedules: how many schedules it has in force.
    shared: how many of these our application declares too.
    alive: how many of its workers are alive.
    """

    app: str
    schedules: int
    shared: int
    alive: int


def stranger(holders: Sequence[Holder], project: str, *, shares: bool) -> Holder | None:
    """A live worker of the version in force that belongs to another application of the same name.

    It is not an older version of ours if its code is another project's, or if it shares no schedule with ours.
    """
    for holder in holders:
        if not shares or (holder.project and project and holder.project != project):
            return holder
    return None


def why_refused(app: str, compared: Sequence[Compared], holders: Sequence[Holder], project: str) -> str | None:
    """Why the start of a new version is refused: it would retire schedules that a stranger serves. Else None.

    holders: the live workers of the version in force.
    """
    own = [each for each in compared if each.owner == f"code:{app}" and not each.retired]
    retired = [each.name for each in own if not each.declared]
    holder = stranger(holders, project, shares=len(retired) < len(own))
    if not retired or holder is None:
        return None
    names = ", ".join(map(repr, retired[:5])) + (", …" if len(retired) > 5 else "")
    many = f"{len(retired)} schedule{'s' if len(retired) > 1 else ''}"
    return (
        f"This start would retire {many} of the application {app!r}: {names}. A worker with other code serves them "
        f"({holder}). Give one of the two applications another name with Scheduler(app='…'), or stop that worker "
        "first."
    )


def is_ours(other: Other, ours: str, former: Collection[str], is_gone: Callable[[str], bool]) -> bool:
    """Whether another application is ours under an earlier name.

    Either our factory had that name before, or the name belongs to a factory of our project that is no longer in this
    code. At least half of its schedules must be ours too: in a project with several services, another service's
    factory may not be importable here.

    ours: the name of our project, or empty.
    former: the names that our factory had before.
    is_gone: whether an import path is no longer in this code.
    """
    if 2 * other.shared < other.schedules:
        return False
    project, _, path = other.app.rpartition("/")
    return other.app in former or (bool(project) and project == ours and is_gone(path))


def whose(owner: str | None, app: str) -> str:
    """The advice for a declared name that belongs to another owner."""
    if owner == "api":
        return "a client made a schedule with that name: remove it, or declare another name"
    if owner is None or not owner.startswith("code:"):
        return "another application owns that name: declare another name"
    old = owner.removeprefix("code:")
    return (
        f"the application {old!r} owns that name: declare another name; or, if this application used to have that "
        f"name, take its schedules over with `{adopt_command(old, app)}`"
    )


def adopt_command(old: str, new: str) -> str:
    """The command that takes over the schedules of a renamed application."""
    return shlex.join(["pgsched", "schedules", "adopt", old, new])


# --- what differs ---------------------------------------------------------------------------------------


class Kind(StrEnum):
    """How a schedule differs between the code and the database."""

    NEW = "new"
    CHANGED = "changed"
    RETURNING = "returning"  # it was retired, and is declared again
    RETIRED = "retired"  # it will be retired: the code no longer declares it
    FOREIGN = "not ours"  # the name belongs to the API or to another application, and is left alone
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class Compared:
    """One row of the comparison: a schedule that is declared, stored (id is not None), or both.

    paused: whether it is paused, or was when it was retired.
    changes: option -> (stored, declared), for the options that differ.
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


def kind(compared: Compared, owner: str, ours: Collection[str] = (), awaited: Collection[str] = ()) -> Kind:
    """The effect of a start of the owner's code on one schedule.

    ours: earlier owners that the start takes over from.
    awaited: earlier owners that it will take over from when their workers are gone; until then, the schedules that
        they have retired stay theirs too.
    """
    if compared.id is None:
        return Kind.NEW
    if compared.owner != owner and compared.owner not in ours:
        # A schedule that another application has retired may be taken over, with its history; the API's may not.
        free = compared.retired and (compared.owner or "").startswith("code:") and compared.owner not in awaited
        return Kind.RETURNING if free else Kind.FOREIGN
    if not compared.declared:
        return Kind.RETIRED
    if compared.retired:
        return Kind.RETURNING
    if compared.changes or compared.status == ScheduleStatus.INVALID:
        return Kind.CHANGED
    return Kind.UNCHANGED


class Next(Protocol):
    """The fire times of one schedule, from its expression."""

    def next(self, after: datetime) -> datetime | None:
        """The first fire time strictly after `after`, or None."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The effect of a start of the code on one schedule: *_before is in the database, *_after would be.

    The next run of a paused schedule means nothing.
    own_times: an executor computes its fire times, so the next run is not known here.
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


# The fire times of a declared row, anchored at an instant; None if its executor computes them.
TimesOf = Callable[[Mapping[str, Any], datetime], Next | None]


def difference(
    compared: Compared,
    row: Mapping[str, Any] | None,
    owner: str,
    now: datetime,
    times_of: TimesOf,
    *,
    ours: Collection[str] = (),
    awaited: Collection[str] = (),
) -> Difference:
    """The effect of a start at `now` on one schedule.

    row: the declared schedule, or None.
    ours, awaited: as in kind().
    """
    found = kind(compared, owner, ours, awaited)
    if found is Kind.UNCHANGED and compared.owner != owner:
        found = Kind.CHANGED
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
    """Its status and next run after a start, and whether only its executor knows the next run."""
    replanned = found in (Kind.NEW, Kind.RETURNING) or compared.status == ScheduleStatus.INVALID
    retimed = not TIMING.isdisjoint(compared.changes)
    if compared.paused and (found is Kind.RETURNING or compared.status == ScheduleStatus.PAUSED):
        kept = None if replanned or retimed else compared.next_run
        return ScheduleStatus.PAUSED, kept, False
    if not replanned and not retimed:
        return compared.status or ScheduleStatus.ACTIVE, compared.next_run, False
    times = times_of(row, _instant(row["starts_at"]) or compared.created_at or now)
    if times is None:
        return ScheduleStatus.ACTIVE, None, True
    coming = first_fire_time(times, row, compared.run_count, now)
    return ScheduleStatus.FINISHED if coming is None else ScheduleStatus.ACTIVE, coming, False


def first_fire_time(times: Next, row: Mapping[str, Any], run_count: int, now: datetime) -> datetime | None:
    """The first fire time of a schedule that is planned at `now`, or None if nothing more fires.

    A single instant counts even if it is past.
    """
    if row["max_runs"] is not None and run_count >= row["max_runs"]:
        return None
    starts_at, ends_at = _instant(row["starts_at"]), _instant(row["ends_at"])
    after = BEGINNING if str(row["expression"]).lstrip()[:3].lower() == "@at" else now
    coming = times.next(after if starts_at is None else max(after, starts_at - TICK))
    return None if coming is None or (ends_at is not None and coming > ends_at) else coming


def _instant(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
