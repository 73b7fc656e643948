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
    """The work that is due, if claim_due_runs(alone=True) claimed nothing because more than queued runs are due.

    unplanned: whether there are schedules that were never planned.
    fire_times: how many other schedules must be planned.
    waiting: how many runs wait for their schedule's overlap.
    lines: whether runs stand in line at a limit.
    queued: how many other runs are queued.

    Counts stop at one more than there is room for.
    """

    unplanned: bool
    fire_times: int
    waiting: int
    lines: bool
    queued: int

    @property
    def mixed(self) -> bool:
        """Whether anything but queued runs is due."""
        return bool(self.unplanned or self.fire_times or self.waiting or self.lines)


@dataclass(frozen=True, slots=True)
class Share:
    """How many runs, or schedules, of some entrypoints a statement takes.

    pool: shares of the same pool together take no more than `pool_room`.
    fresh: of schedules, only those that were never planned; by default only the others.
    idle: of schedules, only those whose overlap lets no run start now; if False, only the others; if None, all.
    """

    entrypoints: Sequence[str]
    room: int
    pool: int = 0
    pool_room: int = 2**31 - 1
    fresh: bool = False
    idle: bool | None = None


@dataclass(frozen=True, slots=True)
class EntrypointDefaults:
    """An entrypoint's options, for runs that have none of their own."""

    entrypoint: str
    max_attempts: int
    backoff: timedelta
    max_backoff: timedelta
    timeout: timedelta | None


class Withheld(NamedTuple):
    """Schedules that a claim pass leaves to other workers: those in these zones whose entrypoint is covered."""

    zones: tuple[str, ...] = ()
    covered: tuple[str, ...] = ()


class Zoned(NamedTuple):
    """The time zone data of a plan; all None for UTC.

    rules: the zone's rules that the plan used.
    next_wall, accounted_wall: the local times at next_run and at accounted_through, by these rules.
    """

    rules: str | None = None
    next_wall: datetime | None = None
    accounted_wall: datetime | None = None


@dataclass(frozen=True, slots=True)
class Planned:
    """A locked schedule, its new plan, and the options of its runs."""

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
        """With the schedule's own options, or its entrypoint's if it has none."""
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
        """The run that was just created and claimed."""
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
    """The result of pruning a batch of old runs.

    mine: whether it was this worker's turn.
    seen, gone: how many runs were read, and how many deleted.
    after, after_id: the end and the id of the last run, for the next batch.
    """

    mine: bool
    seen: int
    gone: int
    after: datetime | None
    after_id: int | None
