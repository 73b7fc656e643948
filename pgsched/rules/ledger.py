"""Keeps the account of one schedule's fire times: how far they are decided, and what was skipped on the way.

Settles what lay before the last start, pause, retirement or change; what is due after that is plan's to decide.
Pure: nothing here knows a clock or a database.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from pgsched.errors import InvalidExpression
from pgsched.expression.expression import Expression, parse
from pgsched.model import Schedule, SkipReason

TICK = timedelta(microseconds=1)
_BEGINNING = datetime(1900, 1, 1, tzinfo=UTC)


class FireTimes(Protocol):
    """The fire times of one schedule, as an expression or an executor gives them. All instants are aware."""

    def next(self, after: datetime) -> datetime | None:
        """The first fire time strictly after `after`, None when there is none."""

    def latest(self, after: datetime, until: datetime) -> datetime | None:
        """The last fire time in (after, until], None when there is none."""

    def count(self, after: datetime, until: datetime) -> int:
        """How many fire times lie in (after, until]."""


@dataclass(frozen=True, slots=True)
class Skip:
    """Fire times that do not become runs: `count` of them, from `fire_time` through `through`.

    detail: how it came to that, for people.
    """

    reason: SkipReason
    fire_time: datetime
    through: datetime
    count: int
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Interruption:
    """A stretch that the next plan has to settle, as schedule_changed() in SQL noted it.

    kind: "paused" or "retired" from `since` through `through`; or "changed", when `through` ended the timing that had
    held since `since`, and the rest says what that timing was.
    """

    kind: str
    since: datetime
    through: datetime
    note: str | None = None
    accounted_through: datetime | None = None
    next_run: datetime | None = None
    expression: str = ""
    timezone: str = "UTC"
    starts_at: datetime | None = None
    ends_at: datetime | None = None


_INSTANTS = ("since", "through", "accounted_through", "next_run", "starts_at", "ends_at")


def interruptions_of(entries: Sequence[Mapping[str, Any]]) -> list[Interruption]:
    """What is to be settled, oldest first, from the column's JSON."""

    def read(name: str, value: Any) -> Any:
        return datetime.fromisoformat(value).astimezone(UTC) if name in _INSTANTS and value is not None else value

    return [Interruption(**{name: read(name, value) for name, value in entry.items()}) for entry in entries]


def undecided_since(schedule: Schedule) -> datetime | None:
    """After which instant a run of the schedule may have ended that its plan does not know. None: all are accounted
    for, or what is to be settled cannot be read, of which the plan will complain."""
    found, set_back = _undecided_since(schedule), schedule.next_run
    if set_back is None or schedule.accounted_through is None or set_back > schedule.accounted_through:
        return found
    # A client has set next_run back over fire times that are decided.
    return set_back - TICK if found is None else min(found, set_back - TICK)


def _undecided_since(schedule: Schedule) -> datetime | None:
    if schedule.interruptions_json is None:
        return schedule.timed_at if schedule.accounted_through is None else None
    with contextlib.suppress(Exception):
        first = interruptions_of(json.loads(schedule.interruptions_json))[0]
        found = first.accounted_through or first.since
        if found >= _BEGINNING:
            return found
    return None


@dataclass(frozen=True, slots=True)
class _From:
    """Fire times from the stored next_run on, which is one whatever the expression says: a client may have set it."""

    times: FireTimes
    first: datetime

    def next(self, after: datetime) -> datetime | None:
        return self.first if after < self.first else self.times.next(after)

    def latest(self, after: datetime, until: datetime) -> datetime | None:
        last = self.times.latest(max(after, self.first), until) if until > self.first else None
        return self.first if last is None and after < self.first <= until else last

    def count(self, after: datetime, until: datetime) -> int:
        rest = self.times.count(max(after, self.first), until) if until > self.first else 0
        return rest + (after < self.first <= until)


@dataclass(frozen=True, slots=True)
class _After:
    """Fire times without those that other time zone rules named earlier: they have come, although their instants by
    the present rules lie ahead."""

    times: FireTimes
    passed: datetime

    def next(self, after: datetime) -> datetime | None:
        return self.times.next(max(after, self.passed))

    def latest(self, after: datetime, until: datetime) -> datetime | None:
        after = max(after, self.passed)
        return self.times.latest(after, until) if after < until else None

    def count(self, after: datetime, until: datetime) -> int:
        after = max(after, self.passed)
        return self.times.count(after, until) if after < until else 0


class Account:
    """One schedule's account, on its way from the last fire time that is decided to the next that is not.

    times: the fire times that count from here on. reached: all before, and this instant, are decided. taken: fire times
    that have a run already: they are decided, and no run of theirs is ever an earlier one in their way.
    """

    times: FireTimes
    reached: datetime

    def __init__(self, taken: Sequence[datetime] = ()) -> None:
        self.skips: list[Skip] = []
        self.passed = False  # a fire time that is taken has been passed
        self._taken = sorted(taken)
        self._ends_at: datetime | None = None

    def next(self) -> datetime | None:
        """The first fire time that is not decided, None where there is none any more."""
        coming = self.times.next(self.reached)
        while coming is not None and self.pass_taken(coming):
            coming = self.times.next(coming)
        return None if coming is None or (self._ends_at is not None and coming > self._ends_at) else coming

    def skip(self, reason: SkipReason, through: datetime, detail: str | None = None) -> None:
        """Decides that the fire times up to `through` (inclusive) do not become runs."""
        if self._ends_at is not None:
            through = min(through, self._ends_at)
        for each in self._taken:
            if self.reached < each <= through:
                self._skip(reason, each - TICK, detail)
                self.pass_taken(each)
        self._skip(reason, through, detail)

    def pass_taken(self, fire_time: datetime) -> bool:
        """Passes a fire time, with all before it decided, if it has a run. Returns whether it has."""
        if fire_time not in self._taken:
            return False
        self.reached, self.passed = max(self.reached, fire_time), True
        return True

    def _skip(self, reason: SkipReason, through: datetime, detail: str | None) -> None:
        if through <= self.reached:
            return
        first, last = self.times.next(self.reached), self.times.latest(self.reached, through)
        if first is None or last is None:
            return
        count = self.times.count(self.reached, last)
        before = self.skips[-1] if self.skips else None
        # Another timing may name earlier fire times: those are a row of their own.
        if before is not None and (before.reason, before.detail) == (reason, detail) and before.through < first:
            self.skips.pop()
            first, count = before.fire_time, before.count + count
        self.skips.append(Skip(reason, first, last, count, detail))
        self.reached = last

    def follow(
        self,
        times: FireTimes,
        opening: datetime,
        now: datetime,
        *,
        starts_at: datetime | None,
        ends_at: datetime | None,
        next_run: datetime | None,
    ) -> None:
        """Goes over to a timing whose fire times count from `opening` on; those before its start are skipped, once
        that has come."""
        self.times, self.reached, self._ends_at = times, opening, ends_at
        if starts_at is not None:
            if starts_at <= now:
                self.skip(SkipReason.BOUNDS, starts_at - TICK, "before its starts_at")
            self.reached = max(self.reached, starts_at - TICK)
        if next_run is not None:
            self.times, self.reached = _From(times, next_run), next_run - TICK

    def pass_over(self, stretches: Sequence[Interruption]) -> None:
        """Skips what lay in pauses and retirements, and what nobody had run before them: a resume begins afresh."""
        for stretch in stretches:
            self.skip(SkipReason.MISSED, stretch.since, f"no worker claimed it before the schedule was {stretch.kind}")
            if stretch.kind == "retired":
                self.skip(SkipReason.RETIRED, stretch.through, "its application did not declare the schedule then")
            else:
                self.skip(SkipReason.PAUSED, stretch.through, stretch.note)


def open_account(
    schedule: Schedule, times: FireTimes, now: datetime, taken: Sequence[datetime] = (), *, shifted: bool = False
) -> Account:
    """The account with all settled that lies before the present timing, and before the last pause ended.

    now: the database's clock, or up to when fire times are looked at. taken: fire times that have a run. shifted:
    other time zone rules than those of `times` planned the schedule before; what their clock has shown counts as shown.
    """
    if shifted:
        times = _not_again(schedule, times)
    account = Account(taken)
    entries = interruptions_of(json.loads(schedule.interruptions_json or "[]"))
    pending: list[Interruption] = []
    timings = [(e.expression, e.timezone) for e in entries if e.kind == "changed"]
    timings.append((schedule.expression, schedule.timezone))
    decided: datetime | None = None  # how far a single instant is, whose timing was changed around it
    for entry in entries:
        if entry.kind != "changed":
            pending.append(entry)
            continue
        timing, following = timings.pop(0), timings[0]
        same = _is_single(entry.expression) and timing == following
        recorded = account.skips[-1:]
        # An expression that cannot be read had no fire times, and so nothing to account for.
        with contextlib.suppress(InvalidExpression):
            account.follow(
                parse(
                    entry.expression, entry.timezone, name=schedule.name,
                    anchor=entry.starts_at or schedule.created_at,
                ),
                decided or _opening(entry.expression, entry.accounted_through, entry.since), entry.through,
                starts_at=entry.starts_at, ends_at=entry.ends_at, next_run=entry.next_run,
            )  # fmt: skip
            account.pass_over(pending)
            if not same:
                account.skip(SkipReason.MISSED, entry.through, "its timing was changed before a worker claimed it")
            if not same:
                decided = None
            elif account.skips[-1:] != recorded:  # else it is only bounded, and may count again
                decided = account.reached
        pending = []
    account.follow(
        times, decided or _opening(schedule.expression, schedule.accounted_through, schedule.timed_at), now,
        starts_at=schedule.starts_at, ends_at=schedule.ends_at, next_run=schedule.next_run,
    )  # fmt: skip
    account.pass_over(pending)
    inherited = schedule.inherited_through
    # Those of a schedule that was made later count from then on, but for the one instant that both name.
    if inherited is not None and (inherited > schedule.created_at or account.next() == inherited):
        account.skip(SkipReason.OVERLAP, inherited, "a removed schedule of this name had begun it")
    return account


def _not_again(schedule: Schedule, times: FireTimes) -> FireTimes:
    # If next_run stands it comes as it was planned, and with it what the clock shows then by the rules of the plan.
    wall = schedule.accounted_wall if schedule.next_run is None else schedule.next_wall
    passed = times.passed(wall) if wall is not None and isinstance(times, Expression) else None
    return times if passed is None else _After(times, passed)


def _opening(expression: str, accounted_through: datetime | None, since: datetime) -> datetime:
    """The instant after which fire times count. A single one that nobody has decided yet counts though it be past."""
    if accounted_through is not None:
        return accounted_through
    return _BEGINNING if _is_single(expression) else since


def _is_single(expression: str) -> bool:
    return expression.lstrip()[:3].lower() == "@at"
