"""Keeps the ledger of one schedule's fire times: how far they are decided, and which were skipped on the way.

It settles the fire times before the last start, pause, retirement or change; plan decides those that are due later.
Pure: nothing here knows a clock or a database.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from pgsched.errors import InvalidExpression
from pgsched.expression.expression import Expression, parse
from pgsched.expression.instants import BEGINNING, TICK
from pgsched.model import Schedule, SkipReason


class FireTimes(Protocol):
    """The fire times of one schedule, from its expression or executor. All instants are aware."""

    def next(self, after: datetime) -> datetime | None:
        """The first fire time strictly after `after`, or None."""

    def latest(self, after: datetime, until: datetime) -> datetime | None:
        """The last fire time in (after, until], or None."""

    def count(self, after: datetime, until: datetime) -> int:
        """The number of fire times in (after, until]."""


@dataclass(frozen=True, slots=True)
class Skip:
    """Fire times that do not become runs: `count` of them, from `fire_time` through `through`.

    detail: the explanation, for people.
    """

    reason: SkipReason
    fire_time: datetime
    through: datetime
    count: int
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Interruption:
    """A stretch that the next plan has to settle, as schedule_changed() in SQL recorded it.

    kind: "paused" or "retired" from `since` through `through`; or "changed": at `through` a timing ended that had
    applied since `since`, and the other fields describe that timing.
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
    """The stretches to settle, oldest first, from the column's JSON."""

    def read(name: str, value: Any) -> Any:
        return datetime.fromisoformat(value).astimezone(UTC) if name in _INSTANTS and value is not None else value

    return [Interruption(**{name: read(name, value) for name, value in entry.items()}) for entry in entries]


def undecided_since(schedule: Schedule) -> datetime | None:
    """After this instant, a run of the schedule may have ended that its plan does not know.

    None if all are accounted for, or if the stretches to settle cannot be read: the plan will report that.
    """
    found, set_back = _undecided_since(schedule), schedule.next_run
    if set_back is None or schedule.accounted_through is None or set_back > schedule.accounted_through:
        return found
    # A client has set next_run back, before fire times that are decided.
    return set_back - TICK if found is None else min(found, set_back - TICK)


def _undecided_since(schedule: Schedule) -> datetime | None:
    if schedule.interruptions_json is None:
        return schedule.timed_at if schedule.accounted_through is None else None
    with contextlib.suppress(Exception):
        first = interruptions_of(json.loads(schedule.interruptions_json))[0]
        found = first.accounted_through or first.since
        if found >= BEGINNING:
            return found
    return None


@dataclass(frozen=True, slots=True)
class _From:
    """Fire times from the stored next_run on. next_run itself is one even if the expression does not name it: a client
    may have set it."""

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
    """Fire times without those that have already come by earlier time zone rules, although by the current rules their
    instants are still ahead."""

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


class Ledger:
    """One schedule's ledger, on its way from the last decided fire time to the next undecided one.

    times: the fire times that count from here on.
    reached: this instant and all before it are decided.
    taken: fire times that already have a run. They are decided, and their run never counts as an earlier run in their
        way.
    """

    times: FireTimes
    reached: datetime

    def __init__(self, taken: Sequence[datetime] = ()) -> None:
        self.skips: list[Skip] = []
        self.passed = False  # a fire time that is taken has been passed
        self._taken = sorted(taken)
        self._ends_at: datetime | None = None

    def next(self) -> datetime | None:
        """The first fire time that is not decided, or None if none is left."""
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
        """If a fire time has a run, decides it and all before it. Returns whether it has a run."""
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
        # Another timing may name earlier fire times: these get another row.
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
        """Switches to a timing whose fire times count from `opening` on.

        Once starts_at has come, the fire times before it are skipped.
        """
        self.times, self.reached, self._ends_at = times, opening, ends_at
        if starts_at is not None:
            if starts_at <= now:
                self.skip(SkipReason.BOUNDS, starts_at - TICK, "before its starts_at")
            self.reached = max(self.reached, starts_at - TICK)
        if next_run is not None:
            self.times, self.reached = _From(times, next_run), next_run - TICK

    def pass_over(self, stretches: Sequence[Interruption]) -> None:
        """Skips the fire times in pauses and retirements, and those that no worker had claimed before them."""
        for stretch in stretches:
            self.skip(SkipReason.MISSED, stretch.since, f"no worker claimed it before the schedule was {stretch.kind}")
            if stretch.kind == "retired":
                self.skip(SkipReason.RETIRED, stretch.through, "its application did not declare the schedule then")
            else:
                self.skip(SkipReason.PAUSED, stretch.through, stretch.note)


def open_ledger(
    schedule: Schedule, times: FireTimes, now: datetime, taken: Sequence[datetime] = (), *, shifted: bool = False
) -> Ledger:
    """The ledger, with everything settled before the current timing and before the end of the last pause.

    now: the database's clock, or the end of the fire times to consider.
    taken: fire times that have a run.
    shifted: the schedule was planned before with other time zone rules than those of `times`. Readings that the clock
        has shown by those rules count as shown.
    """
    if shifted:
        times = _not_again(schedule, times)
    ledger = Ledger(taken)
    entries = interruptions_of(json.loads(schedule.interruptions_json or "[]"))
    pending: list[Interruption] = []
    timings = [(e.expression, e.timezone) for e in entries if e.kind == "changed"]
    timings.append((schedule.expression, schedule.timezone))
    decided: datetime | None = None  # how far a single instant is decided whose timing was changed around it
    for entry in entries:
        if entry.kind != "changed":
            pending.append(entry)
            continue
        timing, following = timings.pop(0), timings[0]
        same = _is_single(entry.expression) and timing == following
        recorded = ledger.skips[-1:]
        # An expression that cannot be read had no fire times to account for.
        with contextlib.suppress(InvalidExpression):
            ledger.follow(
                parse(
                    entry.expression, entry.timezone, name=schedule.name,
                    anchor=entry.starts_at or schedule.created_at,
                ),
                decided or _opening(entry.expression, entry.accounted_through, entry.since), entry.through,
                starts_at=entry.starts_at, ends_at=entry.ends_at, next_run=entry.next_run,
            )  # fmt: skip
            ledger.pass_over(pending)
            if not same:
                ledger.skip(SkipReason.MISSED, entry.through, "its timing was changed before a worker claimed it")
            if not same:
                decided = None
            elif ledger.skips[-1:] != recorded:  # otherwise it is only out of bounds, and may count again
                decided = ledger.reached
        pending = []
    ledger.follow(
        times, decided or _opening(schedule.expression, schedule.accounted_through, schedule.timed_at), now,
        starts_at=schedule.starts_at, ends_at=schedule.ends_at, next_run=schedule.next_run,
    )  # fmt: skip
    ledger.pass_over(pending)
    inherited = schedule.inherited_through
    # The fire times of a schedule that was made later count from then on, except an instant that both name.
    if inherited is not None and (inherited > schedule.created_at or ledger.next() == inherited):
        ledger.skip(SkipReason.OVERLAP, inherited, "a removed schedule of this name had begun it")
    return ledger


def _not_again(schedule: Schedule, times: FireTimes) -> FireTimes:
    # If next_run is set it comes as planned, and so does the clock's reading at it by the rules of that plan.
    wall = schedule.accounted_wall if schedule.next_run is None else schedule.next_wall
    passed = times.passed(wall) if wall is not None and isinstance(times, Expression) else None
    return times if passed is None else _After(times, passed)


def _opening(expression: str, accounted_through: datetime | None, since: datetime) -> datetime:
    """Fire times after this instant count. A single undecided fire time counts even if it is past."""
    if accounted_through is not None:
        return accounted_through
    return BEGINNING if _is_single(expression) else since


def _is_single(expression: str) -> bool:
    return expression.lstrip()[:3].lower() == "@at"
