"""Decides, and only decides: what becomes of fire times, of failed attempts and of silent runs.

Everything here is pure: it takes the database's `now` and returns a value. Who locks the rows and writes the
plan down is the dispatcher's and the reaper's business.
"""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from pgsched.expression import parse
from pgsched.model import RunStatus, Schedule, ScheduleStatus, Silent, SkipReason

# How late a fire time may be with catch_up "none" and no grace: lateness of the machine, not of a downtime.
NONE_GRACE = timedelta(seconds=10)
# How many fire times of one schedule a pass takes at most with catch_up "all"; the next pass goes on.
ALL_AT_ONCE = 100
_TICK = timedelta(microseconds=1)
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
class PlannedRun:
    """A fire time that becomes a run. `due_at` is the fire time plus its jitter."""

    fire_time: datetime
    due_at: datetime
    previous: datetime | None


@dataclass(frozen=True, slots=True)
class Skip:
    """Fire times that do not become runs: `count` of them, from `fire_time` through `through`."""

    reason: SkipReason
    fire_time: datetime
    through: datetime
    count: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a claim pass shall write for one schedule. With neither runs nor skips it only has to wait."""

    next_run: datetime | None
    runs: tuple[PlannedRun, ...] = ()
    skips: tuple[Skip, ...] = ()
    status: ScheduleStatus = ScheduleStatus.ACTIVE
    note: str | None = None


def fire_times(schedule: Schedule) -> FireTimes:
    """The fire times that the schedule's expression names. Raises InvalidExpression."""
    anchor = schedule.starts_at or schedule.created_at
    return parse(schedule.expression, schedule.timezone, name=schedule.name, anchor=anchor)


def unsupported(schedule: Schedule) -> str | None:
    """Why this version cannot keep the schedule's policies, or None."""
    if schedule.overlap in {"queue", "cancel"}:
        return f"overlap {schedule.overlap!r} is not available in this version: use skip, allow or a number."
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


def plan(schedule: Schedule, times: FireTimes, live: int, now: datetime, horizon: datetime) -> Plan:
    """What to do with a schedule whose row is locked.

    live: its runs that are queued or running. horizon: up to when a fire time may be claimed ahead of `now`.
    next_run advances from fire time to fire time; `now` only says which of them have come.
    """
    first = schedule.next_run or _first(schedule, times)
    if first is None or (schedule.ends_at is not None and first > schedule.ends_at):
        return _finished(schedule, first)
    times = _From(times, first)
    if first > now:
        # A run that is still live may end before the instant, so the overlap is looked at then, not now.
        if first <= horizon and live < overlap_limit(schedule):
            return _settle(schedule, times, [first], [], first)
        return Plan(first)
    return _due(schedule, times, first, live, now)


def _first(schedule: Schedule, times: FireTimes) -> datetime | None:
    """The fire time a new or changed schedule starts with; a single instant counts though it be past."""
    after = _BEGINNING if schedule.expression.lstrip()[:3].lower() == "@at" else schedule.updated_at
    if schedule.starts_at is not None:
        after = max(after, schedule.starts_at - _TICK)
    return times.next(after)


def _due(schedule: Schedule, times: FireTimes, first: datetime, live: int, now: datetime) -> Plan:
    until = now if schedule.ends_at is None else min(now, schedule.ends_at)
    skips: list[Skip] = []
    reached = first - _TICK
    for reason, through in _before_resume(schedule, first, until):
        reached = _skip(skips, times, reason, reached, through)
    oldest = now - _tolerance(schedule)
    room = overlap_limit(schedule) - live

    if schedule.catch_up == "all":
        reached = _skip(skips, times, SkipReason.MISSED, reached, oldest - _TICK)
        runs: list[datetime] = []
        while len(runs) < min(room, ALL_AT_ONCE) and (coming := times.next(reached)) and coming <= until:
            runs.append(coming)
            reached = coming
        if not runs and (coming := times.next(reached)) and coming <= until:
            if times.next(coming) is not None and (times.next(coming) or now) <= until:
                # More than one waits: they run one after the other, and none of them is skipped.
                return _settle(schedule, times, [], skips, reached)
            reached = _skip(skips, times, SkipReason.OVERLAP, reached, until)
        return _settle(schedule, times, runs, skips, reached)

    last = times.latest(reached, until)
    if last is None:
        return _settle(schedule, times, [], skips, reached)
    reached = _skip(skips, times, SkipReason.MISSED, reached, last - _TICK)
    if last < oldest:
        reached = _skip(skips, times, SkipReason.MISSED, reached, last)
        return _settle(schedule, times, [], skips, reached)
    if room < 1:
        reached = _skip(skips, times, SkipReason.OVERLAP, reached, last)
        return _settle(schedule, times, [], skips, reached)
    return _settle(schedule, times, [last], skips, last)


def _before_resume(schedule: Schedule, first: datetime, until: datetime) -> list[tuple[SkipReason, datetime]]:
    """The stretches up to the last resume: what lay before the pause was missed, the rest was paused."""
    if schedule.resumed_at is None or schedule.resumed_at < first:
        return []
    stretches = [(SkipReason.PAUSED, min(schedule.resumed_at, until))]
    if schedule.paused_at is not None and first < schedule.paused_at:
        stretches.insert(0, (SkipReason.MISSED, min(schedule.paused_at, until)))
    return stretches


def _tolerance(schedule: Schedule) -> timedelta:
    if schedule.grace is not None:
        return schedule.grace
    return NONE_GRACE if schedule.catch_up == "none" else timedelta(days=36500)


def _skip(skips: list[Skip], times: FireTimes, reason: SkipReason, reached: datetime, through: datetime) -> datetime:
    """Records the fire times in (reached, through] as skipped; returns how far the plan has come."""
    if through <= reached:
        return reached
    first, last = times.next(reached), times.latest(reached, through)
    if first is None or last is None:
        return reached
    count = times.count(reached, last)
    if skips and skips[-1].reason is reason:
        before = skips.pop()
        first, count = before.fire_time, before.count + count
    skips.append(Skip(reason, first, last, count))
    return last


def _settle(schedule: Schedule, times: FireTimes, runs: list[datetime], skips: list[Skip], reached: datetime) -> Plan:
    planned: list[PlannedRun] = []
    previous = schedule.last_run
    for fire_time in runs:
        planned.append(PlannedRun(fire_time, fire_time + jitter(schedule, times, fire_time), previous))
        previous = fire_time
    if schedule.max_runs is not None:
        planned = planned[: max(0, schedule.max_runs - schedule.run_count)]
        if schedule.run_count + len(planned) >= schedule.max_runs:
            return _finished(schedule, None, planned, skips)
    upcoming = times.next(reached)
    if upcoming is None or (schedule.ends_at is not None and upcoming > schedule.ends_at):
        return _finished(schedule, upcoming, planned, skips)
    if upcoming <= reached:
        raise AssertionError(f"fire times must grow: {upcoming} after {reached}")
    return Plan(upcoming, tuple(planned), tuple(skips))


def _finished(
    schedule: Schedule,
    upcoming: datetime | None,
    runs: list[PlannedRun] | None = None,
    skips: list[Skip] | None = None,
) -> Plan:
    if schedule.max_runs is not None and schedule.run_count + len(runs or ()) >= schedule.max_runs:
        note = f"all of its {schedule.max_runs} runs are made"
    elif upcoming is not None:
        note = "its ends_at has passed"
    else:
        note = "its expression names no further fire time"
    return Plan(None, tuple(runs or ()), tuple(skips or ()), ScheduleStatus.FINISHED, note)


def overlap_limit(schedule: Schedule) -> int:
    """How many runs of the schedule may be live at once."""
    if schedule.overlap == "allow":
        return 1_000_000
    return int(schedule.overlap) if schedule.overlap.isdecimal() else 1


def jitter(schedule: Schedule, times: FireTimes, fire_time: datetime) -> timedelta:
    """By how much a start is put off: the same for a schedule and fire time on every worker, and never as
    far as the next fire time."""
    if not schedule.jitter:
        return timedelta(0)
    following = times.next(fire_time)
    most = schedule.jitter if following is None else min(schedule.jitter, following - fire_time - _TICK)
    digest = hashlib.blake2b(f"{schedule.name}\0{fire_time.isoformat()}".encode(), digest_size=8).digest()
    return most * (int.from_bytes(digest) / 2**64)


def retry_delay(backoff: timedelta, max_backoff: timedelta, attempt: int) -> timedelta:
    """How long to wait after the given failed attempt (1 is the first) before the next. Takes any stored value."""
    if attempt < 1:
        return timedelta(0)
    doubled = min(attempt - 1, 40)  # beyond it every backoff has met its limit, or is nought
    try:
        return min(backoff * int(2**doubled), max_backoff)
    except OverflowError:
        return max_backoff


def is_stalled(run: Silent, now: datetime, heartbeat_interval: timedelta, stall_timeout: timedelta) -> bool:
    """Whether a silent run's worker is to be taken for dead.

    A process that died has lost its sessions within milliseconds, so without any of them three missed beats
    are enough. One that is still connected, or whose sessions cannot be seen, gets the full stall timeout.
    The worker's own settings count where they are known.
    """
    silence = now - run.heartbeat_at
    if run.direct and not run.connected and silence >= 3 * (run.heartbeat_interval or heartbeat_interval):
        return True
    return silence >= (run.stall_timeout or stall_timeout)


def after_loss(run: Silent) -> tuple[RunStatus, timedelta]:
    """What becomes of a run that lost its worker, and after which wait.

    The first loss costs no wait, since it is mostly the machine's fault; a run that kills its worker again
    and again waits longer each time and ends as failed after its attempts.
    """
    if run.attempt >= run.max_attempts:
        return RunStatus.FAILED, timedelta(0)
    return RunStatus.QUEUED, retry_delay(run.backoff, run.max_backoff, run.attempt - 1)
