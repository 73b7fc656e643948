"""Decides, and only decides: which version of an application's declared schedules counts, and what a start changes.

Everything here is pure. Who reads and writes the tables is the reconciler's business, and who shows it `check`'s.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Protocol

from pgsched.model import ScheduleStatus
from pgsched.rules.projects import Home

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


# --- whose they are -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Holder:
    """A live worker. project: whose code it runs; None if it does not say."""

    host: str
    pid: int
    project: str | None

    def __str__(self) -> str:
        return f"host {self.host}, pid {self.pid}" + (f", project {self.project}" if self.project else "")


@dataclass(frozen=True, slots=True)
class Other:
    """Another application that owns a name which ours declares: how many schedules it has in force, how many of them
    ours declares too, how many of its workers are alive."""

    app: str
    schedules: int
    shared: int
    alive: int


def stranger(holders: Sequence[Holder], project: str, *, shares: bool) -> Holder | None:
    """A live worker of the version in force whose code is another project's, or that has not one schedule in common
    with ours: an application of the same name, and no older version of ours."""
    for holder in holders:
        if not shares or (holder.project and project and holder.project != project):
            return holder
    return None


def refused(app: str, compared: Sequence[Compared], holders: Sequence[Holder], project: str) -> str | None:
    """Why the start of a new version is refused: it would retire schedules that a stranger serves. None if it is not.
    holders: the live workers of the version in force."""
    own = [each for each in compared if each.owner == f"code:{app}" and not each.retired]
    retired = [each.name for each in own if not each.declared]
    holder = stranger(holders, project, shares=len(retired) < len(own))
    if not retired or holder is None:
        return None
    names = ", ".join(map(repr, retired[:5])) + (", …" if len(retired) > 5 else "")
    many = f"{len(retired)} schedule{'s' if len(retired) > 1 else ''}"
    return (
        f"This start would retire {many} of the application {app!r}: {names}. A worker with other code serves them "
        f"({holder}). Give one of the two applications a name of its own with Scheduler(app='…'), or stop that worker "
        "first."
    )


def is_ours(other: Other, home: Home, former: Collection[str], is_gone: Callable[[str], bool]) -> bool:
    """Whether another application is ours under an earlier name: our factory had that name before, or the name is that
    of a factory of our project which is not in this code any more. At least half of its schedules must be ours, too: in
    a project of several services, another service's factory may not be importable here."""
    if 2 * other.shared < other.schedules:
        return False
    project, _, path = other.app.rpartition("/")
    return other.app in former or (bool(project) and project == home.project and is_gone(path))


def whose(owner: str | None, app: str) -> str:
    """What to do about a declared name that belongs to somebody else."""
    if owner == "api":
        return "a client made a schedule of that name: remove it, or declare another name"
    if owner is None or not owner.startswith("code:"):
        return "another application owns that name: declare another name"
    old = owner.removeprefix("code:")
    return (
        f"the application {old!r} owns that name: declare another name; or, if this application was called so before, "
        f"take its schedules over with `{adopt_command(old, app)}`"
    )


def adopt_command(old: str, new: str) -> str:
    """What takes the schedules of an application over that has another name now."""
    return shlex.join(["pgsched", "schedules", "adopt", old, new])


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


def kind(compared: Compared, owner: str, ours: Collection[str] = (), awaited: Collection[str] = ()) -> Kind:
    """What a start of the owner's code means for one schedule. ours: earlier owners that the start takes over from.
    awaited: those that it would, were their workers not alive; what these have retired is theirs, too."""
    if compared.id is None:
        return Kind.NEW
    if compared.owner != owner and compared.owner not in ours:
        # What another application has let go of may be taken over, with its history; what the API made may not.
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
    compared: Compared,
    row: Mapping[str, Any] | None,
    owner: str,
    now: datetime,
    times_of: TimesOf,
    *,
    ours: Collection[str] = (),
    awaited: Collection[str] = (),
) -> Difference:
    """What a start at `now` would make of one schedule. row: as it is declared, None where it is not. ours, awaited: as
    kind() has them."""
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
