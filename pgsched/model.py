"""The values that the database holds and that the daemon passes around, without behaviour beyond reading them.

Values that applications see are frozen. Values that are made for each run and stay inside are not: making a frozen one
takes seven times as long.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import IntEnum, StrEnum
from typing import Any, NamedTuple, Protocol

from pgsched.errors import PgschedError
from pgsched.journal import Journal, finite


class ScheduleStatus(StrEnum):
    """Whether a schedule fires."""

    ACTIVE = "active"
    PAUSED = "paused"
    FINISHED = "finished"
    INVALID = "invalid"


class RunStatus(StrEnum):
    """The stage of a run's life."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"


class SkipReason(StrEnum):
    """Why a fire time did not become a run."""

    OVERLAP = "overlap"  # an earlier run was live
    MISSED = "missed"  # no worker claimed it in time, and catch_up did not include it
    PAUSED = "paused"
    BOUNDS = "bounds"  # before starts_at
    RETIRED = "retired"  # its application did not declare the schedule then


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule as the database had it when this run was claimed."""

    id: int
    name: str
    entrypoint: str
    expression: str
    timezone: str
    args_json: str = field(repr=False)
    overlap: str
    catch_up: str
    catch_up_limit: int
    grace: timedelta | None
    jitter: timedelta
    timeout: timedelta | None
    max_attempts: int | None
    backoff: timedelta | None
    max_backoff: timedelta | None
    starts_at: datetime | None
    ends_at: datetime | None
    max_runs: int | None
    run_count: int
    priority: int
    status: str
    note: str | None
    paused_at: datetime | None
    resumed_at: datetime | None
    paused_until: datetime | None
    owner: str
    next_run: datetime | None
    last_run: datetime | None
    last_status: str | None
    accounted_through: datetime | None
    timed_at: datetime
    interruptions_json: str | None = field(repr=False)
    created_at: datetime
    updated_at: datetime
    # Only a claim pass reads them; the comments on these columns in migrations/0001_tables.sql say more.
    zone_rules: str | None = field(default=None, repr=False)
    next_wall: datetime | None = field(default=None, repr=False)
    accounted_wall: datetime | None = field(default=None, repr=False)
    moved_from: datetime | None = field(default=None, repr=False)
    inherited_through: datetime | None = field(default=None, repr=False)  # claimed by a removed schedule of its name


LEVELS = ("debug", "info", "warning", "error")  # of the lines that a run logs


class Cancellation:
    """Whether somebody wants a run to stop, for code in a thread, which cannot be interrupted.

    grace: the seconds between the request to stop and the kill of a process (cancel_timeout).
    """

    def __init__(self, grace: float = 5.0) -> None:
        self.grace = grace
        self.requested = False  # one thread sets it, others look: there is nothing to wait for
        self.noticed = False


class RunTransaction(Protocol):
    """A block for `async with` in coroutines and `with` in threads; its value is a psycopg connection of that kind."""

    async def __aenter__(self) -> Any: ...
    async def __aexit__(self, *error: Any) -> bool: ...
    def __enter__(self) -> Any: ...
    def __exit__(self, *error: Any) -> bool: ...


class SupportsTransaction(Protocol):
    """The implementation of run.transaction()."""

    def transaction(self) -> RunTransaction:
        """The attempt's one transaction."""


@dataclass(frozen=True, slots=True)
class Run:
    """One attempt at a run, as its function sees it.

    Use id as an idempotency key: it stays the same in every attempt. Use token as a fencing token: it grows with each
    claim and never repeats, so a system that refuses smaller tokens refuses every earlier claim. attempt is for people:
    it repeats when a run is given back.

    fire_time: the nominal instant, aware, in UTC; None for an enqueued job.
    previous_fire_time: the fire time of the schedule's run before this one, None for the first. A backfilled run has
        the expression's fire time before its own.
    args: the run's arguments.
    worker: this process.
    resources: the Scheduler's `resources`.

    The run stands for the window between previous_fire_time and fire_time. After a downtime with catch_up "latest" it
    spans the missed fire times.
    """

    id: int
    entrypoint: str
    schedule: Schedule | None
    fire_time: datetime | None
    previous_fire_time: datetime | None
    attempt: int
    args: Mapping[str, Any] = field(repr=False)
    worker: uuid.UUID
    resources: Any = field(repr=False)
    token: int = 0
    cancellation: Cancellation = field(default_factory=Cancellation, repr=False, compare=False)
    journal: Journal = field(default_factory=Journal, repr=False, compare=False)
    fence: SupportsTransaction | None = field(default=None, repr=False, compare=False)

    def transaction(self) -> RunTransaction:
        """A transaction that commits the application's writes and this run's success together, or neither.

        `async with run.transaction() as connection:` in coroutines, `with run.transaction() as connection:` in sync
        functions, also with a ProcessExecutor. connection is a psycopg AsyncConnection or Connection to the worker's
        database, read committed, with the role's own settings. At the end of the block the success is written into the
        same transaction, under the claim. An exception in the block rolls everything back; so does a lost claim.

        After the block the run has succeeded, no matter how its function ends: a return value is stored as the
        result, an exception is logged and the run is not tried again. So let the block be its last step.

        Raises ClaimLost (at the end of the block: nothing was written), PgschedError at a second use in one attempt.
        """
        if self.fence is None:
            raise PgschedError(
                "There is no run.transaction() here: this run was not made by a worker, or its function runs on "
                "another machine, without access to the worker's database. Use it in the worker's coroutines, threads "
                "and processes."
            )
        return self.fence.transaction()

    def log(self, text: str, level: str = "info") -> None:
        """Keeps a text with the run, for `pgsched runs show` and `runs logs`. level: debug, info, warning or error.

        It can be read within a heartbeat. At most 64 KiB are kept per attempt. Lines that the run's tasks and its
        function's thread log with the standard library or structlog are kept automatically.
        Raises ValueError for another level, and for a text that is not a str.
        """
        if not isinstance(text, str):
            raise ValueError(f"run.log() takes a text, not {type(text).__name__}: write run.log(str(…)).")
        if level not in LEVELS:
            raise ValueError(f"The level of run.log() must be debug, info, warning or error, not {level!r}.")
        self.journal.add(text, level)

    def progress(self, done: float, total: float | None = None) -> None:
        """Reports the run's progress, for `pgsched runs show` and `list`: done of total, in any unit.

        total: None if unknown. Call it as often as you like: each heartbeat stores only the last report. Raises
        ValueError for values that are not finite numbers.
        """
        self.journal.progress = (finite(done), None if total is None else finite(total))

    @property
    def cancelled(self) -> bool:
        """Whether the run should stop: check it now and then in a sync function, and return or raise."""
        if self.cancellation.requested:
            self.cancellation.noticed = True
            return True
        return False


class Hold(IntEnum):
    """The answer to a beat about a claim that still holds."""

    HELD = 0
    CANCEL = 1  # somebody asked to cancel its run
    WITHDRAWN = 2  # its schedule has changed since; as far as the database knew, its run had not begun


class Claim(NamedTuple):
    """A worker's hold on a run. Every write of the worker names all three, and lands only if the row has all three.

    The token alone decides: each claim draws a new one, so two claims of one worker and attempt differ too.
    """

    run_id: int
    token: int
    worker: uuid.UUID


@dataclass(slots=True)
class ClaimedRun:
    """A run as it was claimed, before its function has been looked up."""

    id: int
    schedule_id: int | None
    entrypoint: str
    args_json: str = field(repr=False)
    fire_time: datetime | None
    previous_fire_time: datetime | None
    due_at: datetime
    attempt: int
    token: int
    max_attempts: int
    backoff: timedelta
    max_backoff: timedelta
    timeout: timedelta | None
    schedule: Schedule | None = None

    def of(self, schedule: Schedule) -> ClaimedRun:
        """The same run, with its schedule."""
        return replace(self, schedule=schedule)


@dataclass(frozen=True, slots=True)
class RunError:
    """Why an attempt failed, fit to be stored. The traceback has no local variables."""

    type: str
    message: str
    traceback: str = ""


@dataclass(slots=True)
class Outcome:
    """How an attempt ended, to be written under its claim.

    status: QUEUED if the run will be tried again (after `delay`) or is given back.
    refund: the attempt does not count.
    unbegun: its function was never called, and it is a run of a schedule, which may have changed meanwhile: the fire
        time may be given back too.
    stays: in that case, its row stays as cancelled, because the database refuses to delete it.
    committed: the database says that the run's own transaction had committed its success.
    transacted: the worker saw the run's own transaction commit its success. If the database does not know of that, a
        failover has undone it.
    left_behind: its function is still going in its thread, and counts as running.
    journal: the attempt's journal, if it has something to write before the end.
    """

    claim: Claim
    status: RunStatus
    started_at: datetime | None = None
    finished_at: datetime | None = None
    result_json: str | None = None
    error: RunError | None = None
    reason: str | None = None
    delay: timedelta = timedelta(0)
    refund: bool = False
    unbegun: bool = False
    stays: bool = False
    committed: bool = False
    transacted: bool = False
    left_behind: bool = False
    journal: Journal | None = field(default=None, repr=False)


class Process(StrEnum):
    """The state of another worker's process, as far as a worker can see it."""

    UNKNOWN = "unknown"  # it runs on another machine, or nobody can look
    ALIVE = "alive"
    ENDED = "ended"
