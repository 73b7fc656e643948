"""Values that statements take and return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from pgsched.model import ClaimedRun, Schedule
from pgsched.rules.plan import Plan
from pgsched.rules.retry import Retry


@dataclass(frozen=True, slots=True)
class Due:
    """What is due if a claim of queued runs was to be made alone, and was not because there is more than them.

    unplanned: schedules that were never planned. fire_times: others to be planned. waiting: runs that wait for their
    schedule's overlap. lines: runs that stand in line at a limit. queued: the others. Counts go up to one more than
    there is room for.
    """

    unplanned: bool
    fire_times: int
    waiting: int
    lines: bool
    queued: int

    @property
    def mixed(self) -> bool:
        """Whether there is more than queued runs."""
        return bool(self.unplanned or self.fire_times or self.waiting or self.lines)


@dataclass(frozen=True, slots=True)
class Share:
    """How many runs, or schedules, of some entrypoints a statement takes.

    pool: shares of the same one together take no more than `pool_room`. Of schedules, fresh: those that were never
    planned; idle: those whose overlap lets no run start now, or those of which it does.
    """

    entrypoints: Sequence[str]
    room: int
    pool: int = 0
    pool_room: int = 2**31 - 1
    fresh: bool = False
    idle: bool | None = None


@dataclass(frozen=True, slots=True)
class EntrypointDefaults:
    """What an entrypoint of this worker says of runs that say nothing themselves."""

    entrypoint: str
    max_attempts: int
    backoff: timedelta
    max_backoff: timedelta
    timeout: timedelta | None


class Withheld(NamedTuple):
    """What a claim pass leaves to others: schedules of these zones, if their entrypoint is among the covered ones."""

    zones: tuple[str, ...] = ()
    covered: tuple[str, ...] = ()


class Zoned(NamedTuple):
    """What a plan notes of its time zone: the rules it went by, and what the zone's clock shows by them at next_run
    and at accounted_through. All None for UTC."""

    rules: str | None = None
    next_wall: datetime | None = None
    accounted_wall: datetime | None = None


@dataclass(frozen=True, slots=True)
class Planned:
    """A locked schedule, what was decided for it, and the rules its runs get."""

    schedule: Schedule
    plan: Plan
    max_attempts: int
    backoff: timedelta
    max_backoff: timedelta
    timeout: timedelta | None
    zoned: Zoned = Zoned()

    @classmethod
    def of(
        cls,
        schedule: Schedule,
        plan: Plan,
        retry: Retry | None = None,
        timeout: timedelta | None = None,
        zoned: Zoned | None = None,
    ) -> Planned:
        """With the schedule's own rules, and where it has none those of its entrypoint."""
        retry = retry or Retry()
        return cls(
            schedule=schedule,
            plan=plan,
            max_attempts=schedule.max_attempts or retry.attempts,
            backoff=retry.backoff if schedule.backoff is None else schedule.backoff,
            max_backoff=retry.max_backoff if schedule.max_backoff is None else schedule.max_backoff,
            timeout=schedule.timeout or timeout,
            zoned=zoned or Zoned(),
        )

    def claimed(self, run_id: int, fire_time: datetime, token: int) -> ClaimedRun:
        """The run as it was just made and claimed."""
        run = next(r for r in self.plan.runs if r.fire_time == fire_time)
        return ClaimedRun(
            id=run_id,
            schedule_id=self.schedule.id,
            entrypoint=self.schedule.entrypoint,
            args_json=self.schedule.args_json,
            fire_time=fire_time,
            previous_fire_time=run.previous,
            due_at=run.due_at,
            attempt=1,
            token=token,
            max_attempts=self.max_attempts,
            backoff=self.backoff,
            max_backoff=self.max_backoff,
            timeout=self.timeout,
            schedule=self.schedule,
        )


@dataclass(frozen=True, slots=True)
class Pruned:
    """A batch of old runs: whether it was this worker's turn, how many were looked at and deleted, the last of them."""

    mine: bool
    seen: int
    gone: int
    after: datetime | None
    after_id: int | None
