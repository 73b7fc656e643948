"""Decides, and only decides: which fire times become runs, which wait and which are skipped.

Everything here is pure: it takes the database's `now` and returns a value. The dispatcher locks the rows and writes
the plan; ledger settles the fire times before the last pause or change.
"""

import enum
import hashlib
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from pgsched.expression.duration import format_duration
from pgsched.expression.expression import parse
from pgsched.expression.instants import TICK
from pgsched.model import Schedule, ScheduleStatus, SkipReason
from pgsched.rules.ledger import FireTimes, Interruption, Ledger, Skip, open_ledger

# How late a fire time may be with catch_up "none" and no grace: a busy machine's lateness, not a downtime. An older
# backlog ("all") waits for its turn; lock_due_schedules.sql has the same number.
LATENESS = timedelta(seconds=10)
# How many fire times of one schedule a pass takes at most with catch_up "all"; the next pass goes on.
ALL_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Occupancy:
    """The live runs of one schedule, as they are counted under its lock.

    running: runs of fire times that are running.
    waiting: runs of fire times that are queued for their turn, or between two attempts.
    requested: running runs that somebody asked for (a trigger, a backfill).
    ids: the ids of some of these runs.
    astray: whether a queued run has another entrypoint than the schedule has now.
    fire_times: fire times that have a run and are not accounted for yet.
    withdrawn: a claim of the schedule waits for its holder's answer; until then nobody plans the schedule.
    """

    running: int = 0
    waiting: int = 0
    requested: int = 0
    ids: tuple[int, ...] = ()
    astray: bool = False
    fire_times: tuple[datetime, ...] = ()
    withdrawn: bool = False

    @property
    def live(self) -> int:
        """How many of its fire times are live, which the overlap policy counts."""
        return self.running + self.waiting


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """A fire time that becomes a run. `due_at` is the fire time plus its jitter; `waits` if others go first."""

    fire_time: datetime
    due_at: datetime
    previous: datetime | None
    waits: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """The changes that a claim pass should write for one schedule. Without runs and skips it only has to wait.

    replaces: the schedule's live runs have to make way for the run.
    accounted_through: None leaves it as it is.
    """

    next_run: datetime | None
    runs: tuple[PlannedRun, ...] = ()
    skips: tuple[Skip, ...] = ()
    status: ScheduleStatus = ScheduleStatus.ACTIVE
    note: str | None = None
    accounted_through: datetime | None = None
    replaces: bool = False


class Meeting(enum.Enum):
    """The choices for a fire time that meets live runs of its schedule."""

    RUN = "run"
    WAIT = "wait"
    REPLACE = "replace"
    SKIP = "skip"


def fire_times(schedule: Schedule) -> FireTimes:
    """The fire times that the schedule's expression names. Raises InvalidExpression."""
    anchor = schedule.starts_at or schedule.created_at
    return parse(schedule.expression, schedule.timezone, name=schedule.name, anchor=anchor)


def plan(
    schedule: Schedule, times: FireTimes, live: Occupancy, now: datetime, horizon: datetime, *, shifted: bool = False
) -> Plan:
    """The plan for a schedule whose row is locked.

    live: its live runs.
    horizon: the end of the lookahead; a fire time until then may be claimed ahead of `now`.
    shifted: whether it was planned before with other time zone rules.

    next_run advances from fire time to fire time; `now` only decides which of them have come.
    """
    ledger = open_ledger(schedule, times, horizon, live.fire_times, shifted=shifted)
    first = ledger.next()
    if first is not None and shifted and _put_back(schedule, first, now):
        schedule = replace(schedule, next_run=schedule.moved_from)
        ledger = open_ledger(schedule, times, horizon, live.fire_times, shifted=True)
        first = ledger.next()
    if first is None:
        return _settle(schedule, ledger, [])
    if first > now:
        # A live run may end before the fire time, so the overlap is checked then, not now.
        ahead = first <= horizon and meet(schedule, live) is Meeting.RUN
        return _settle(schedule, ledger, [first] if ahead else [])
    return _due(schedule, ledger, live, now)


def _put_back(schedule: Schedule, first: datetime, now: datetime) -> bool:
    """Whether new time zone rules put a fire time into the past that had not come by the old rules.

    It keeps its old instant, so that neither catch_up nor grace takes it for missed.
    """
    before = schedule.moved_from if schedule.next_run is None else None
    return before is not None and first <= now and first < before


def retire(schedule: Schedule, times: FireTimes, now: datetime) -> Plan:
    """The last plan of a schedule that its application no longer declares: nothing runs, due fire times are recorded.

    schedule: as it was before it was retired.
    """
    ledger = open_ledger(schedule, times, now)
    if schedule.status == ScheduleStatus.PAUSED and schedule.paused_at is not None:
        ledger.pass_over([Interruption("paused", schedule.paused_at, now, schedule.note)])
    ledger.skip(SkipReason.MISSED, now, "no worker claimed it before the schedule was retired")
    # It may have claimed ahead of now: fire times that are accounted for stay so.
    through = now if schedule.accounted_through is None else max(now, schedule.accounted_through)
    return Plan(None, skips=tuple(ledger.skips), status=ScheduleStatus.FINISHED, accounted_through=through)


def meet(schedule: Schedule, live: Occupancy) -> Meeting:
    """The decision of the schedule's overlap policy for a fire time.

    A run that somebody asked for never costs a fire time: the fire time waits for it, and the run is never cancelled.
    """
    limit = overlap_limit(schedule)
    if live.live + live.requested < limit:
        return Meeting.RUN
    if live.live < limit or (schedule.overlap == "queue" and live.live <= limit):
        return Meeting.WAIT
    return Meeting.REPLACE if schedule.overlap == "cancel" else Meeting.SKIP


def _due(schedule: Schedule, ledger: Ledger, live: Occupancy, now: datetime) -> Plan:
    """At least one fire time has come."""
    if schedule.grace is not None:
        ledger.skip(
            SkipReason.MISSED, now - schedule.grace - TICK, f"older than its grace of {format_duration(schedule.grace)}"
        )
    if schedule.catch_up == "all":
        return _all(schedule, ledger, live, now)
    if schedule.catch_up == "none" and schedule.grace is None:
        ledger.skip(SkipReason.MISSED, now - LATENESS - TICK, "no worker claimed it in time; catch_up is none")
    last = ledger.times.latest(ledger.reached, now if schedule.ends_at is None else min(now, schedule.ends_at))
    if last is None:
        return _settle(schedule, ledger, [])
    ledger.skip(SkipReason.MISSED, last - TICK, f"no worker claimed it in time; catch_up is {schedule.catch_up}")
    return _meet(schedule, ledger, live, last)


def _all(schedule: Schedule, ledger: Ledger, live: Occupancy, now: datetime) -> Plan:
    """Each missed fire time runs, oldest first, as far as the overlap allows."""
    until = now if schedule.ends_at is None else min(now, schedule.ends_at)
    pending = ledger.times.count(ledger.reached, until)
    if pending > schedule.catch_up_limit:
        limit = schedule.catch_up_limit
        through = _before_last(ledger.times, ledger.reached, until, limit)
        ledger.skip(SkipReason.MISSED, through, f"more than its catch_up_limit of {limit} were missed")
    room = min(overlap_limit(schedule) - live.live - live.requested, ALL_AT_ONCE)
    runs: list[datetime] = []
    reached = ledger.reached
    while len(runs) < room and (coming := ledger.times.next(reached)) and coming <= until:
        if not runs:
            ledger.pass_taken(coming)
        if coming not in live.fire_times:
            runs.append(coming)
        reached = coming
    if runs or (coming := ledger.next()) is None or coming > until:
        return _settle(schedule, ledger, runs)
    if pending > 1 or coming < now - LATENESS:
        # Missed fire times run one after the other: none is skipped because the run before it is live.
        return _settle(schedule, ledger, [])
    return _meet(schedule, ledger, live, coming)


def _before_last(times: FireTimes, after: datetime, until: datetime, keep: int) -> datetime:
    """The first instant after `after` with at most `keep` fire times between it and `until`."""
    low, high = 0, (until - after) // TICK
    while low < high:
        middle = (low + high) // 2
        if times.count(after + middle * TICK, until) > keep:
            low = middle + 1
        else:
            high = middle
    return after + low * TICK


def _meet(schedule: Schedule, ledger: Ledger, live: Occupancy, fire_time: datetime) -> Plan:
    """One fire time, under the overlap policy."""
    if ledger.pass_taken(fire_time):
        return _settle(schedule, ledger, [])
    meeting = meet(schedule, live)
    if meeting is Meeting.SKIP:
        ledger.skip(SkipReason.OVERLAP, fire_time, _blamed(live))
        return _settle(schedule, ledger, [])
    made = _settle(schedule, ledger, [fire_time], waits=meeting is not Meeting.RUN)
    return replace(made, replaces=meeting is Meeting.REPLACE and bool(made.runs))


def _blamed(live: Occupancy) -> str:
    if not live.ids:
        return "an earlier run was live"
    if len(live.ids) == 1:
        return f"run {live.ids[0]} was live"
    return f"runs {', '.join(map(str, live.ids))}{', …' if live.live > len(live.ids) else ''} were live"


def _settle(schedule: Schedule, ledger: Ledger, runs: list[datetime], *, waits: bool = False) -> Plan:
    planned: list[PlannedRun] = []
    previous = schedule.last_run
    for fire_time in runs:
        before = previous if previous is not None and previous < fire_time else None  # next_run may be set back
        due_at = fire_time + jitter(schedule, ledger.times, fire_time)
        planned.append(PlannedRun(fire_time, due_at, before, waits))
        previous = ledger.reached = fire_time
    accounted = ledger.reached if runs or ledger.skips or ledger.passed else None
    left = len(planned) if schedule.max_runs is None else max(0, schedule.max_runs - schedule.run_count)
    if left < len(planned):
        # The rest stays open: if max_runs is raised, these fire times run or are recorded.
        accounted = planned[left].fire_time - TICK
        planned = planned[:left]
    upcoming = ledger.next()
    used_up = schedule.max_runs is not None and schedule.run_count + len(planned) >= schedule.max_runs
    if used_up or upcoming is None:
        status, upcoming, note = ScheduleStatus.FINISHED, None, _why_finished(schedule, ledger, used_up)
    else:
        status, note = ScheduleStatus.ACTIVE, None
        if upcoming <= ledger.reached:
            raise AssertionError(f"fire times must grow: {upcoming} after {ledger.reached}")
    return Plan(upcoming, tuple(planned), tuple(ledger.skips), status, note, accounted)


def _why_finished(schedule: Schedule, ledger: Ledger, used_up: bool) -> str:
    if used_up:
        return f"all of its {schedule.max_runs} runs are made"
    if ledger.times.next(ledger.reached) is not None:
        return "its ends_at has passed"
    return "its expression names no further fire time"


def overlap_limit(schedule: Schedule) -> int:
    """How many runs of the schedule may be live at once."""
    if schedule.overlap == "allow":
        return 1_000_000
    return int(schedule.overlap) if schedule.overlap.isdecimal() else 1


def jitter(schedule: Schedule, times: FireTimes, fire_time: datetime) -> timedelta:
    """The delay of a start: the same for a schedule and fire time on every worker, and never as far as the next fire
    time."""
    if not schedule.jitter:
        return timedelta(0)
    following = times.next(fire_time)
    most = schedule.jitter if following is None else min(schedule.jitter, following - fire_time - TICK)
    digest = hashlib.blake2b(f"{schedule.name}\0{fire_time.isoformat()}".encode(), digest_size=8).digest()
    return most * (int.from_bytes(digest) / 2**64)
