"""What the database holds and what the machine passes around: values, no behaviour beyond reading them.

What people get to see is frozen. What is made for each run and stays in the machine is not: to make a frozen one takes
seven times as long.
"""

from __future__ import annotations

import math
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import IntEnum, StrEnum
from typing import Any, NamedTuple, Protocol

from pgsched.errors import PgschedError


class ScheduleStatus(StrEnum):
    """Whether a schedule fires."""

    ACTIVE = "active"
    PAUSED = "paused"
    FINISHED = "finished"
    INVALID = "invalid"


class RunStatus(StrEnum):
    """Where a run is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"


class SkipReason(StrEnum):
    """Why a fire time did not become a run."""

    OVERLAP = "overlap"  # an earlier run was live
    MISSED = "missed"  # no worker claimed it in time, and catch_up did not want it any more
    PAUSED = "paused"
    BOUNDS = "bounds"  # before starts_at
    RETIRED = "retired"  # its application did not declare the schedule then


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a run is tried, and how long it waits in between.

    attempts: tries in all, the first included (1 to 1000). Default 3.
    backoff: the wait before the second attempt; it doubles with each further one. Default 1 second.
    max_backoff: the longest wait. Default 1 hour.
    jitter: by which share waits are cut, each run's by another part of it, so that what failed together does not come
    back together. 0 to 1, default 0.25: a wait of 8 s becomes one of 6 to 8 s.
    on: the errors after which there is another attempt, a class or a tuple of them; default any. never: the errors
    after which there is none; it wins over `on`. A run that hits its timeout counts as TimeoutError; of a group of
    errors each one has to allow it. Neither has a say in RetryLater, Discard and lost workers.

    Every attempt counts, whether it raised, ran into its timeout or lost its worker. The first three numbers are
    stored with each schedule and run; the rest stays in the code, and holds for what the code declares. Raises
    ValueError for values out of range.
    """

    attempts: int = 3
    backoff: timedelta = timedelta(seconds=1)
    max_backoff: timedelta = timedelta(hours=1)
    jitter: float = 0.25
    on: type[BaseException] | tuple[type[BaseException], ...] | None = None
    never: type[BaseException] | tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int):
            raise ValueError(f"Retry(attempts=…) is a whole number, not {self.attempts!r}.")
        if not 1 <= self.attempts <= 1000:
            raise ValueError(f"Retry(attempts={self.attempts}) is out of range: use 1 to 1000.")
        for name in ("backoff", "max_backoff"):
            value = getattr(self, name)
            if not isinstance(value, timedelta):
                raise ValueError(f"Retry({name}=…) is a timedelta, not {value!r}.")
            if not timedelta(0) <= value <= timedelta(days=36500):
                raise ValueError(f"Retry({name}=…) is negative or longer than a hundred years: {value!s}.")
        if isinstance(self.jitter, bool) or not isinstance(self.jitter, int | float) or not 0 <= self.jitter <= 1:
            raise ValueError(f"Retry(jitter=…) is a number from 0 to 1, not {self.jitter!r}.")
        for name in ("on", "never"):
            value = getattr(self, name)
            kinds = value if isinstance(value, tuple) else () if value is None else (value,)
            if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
                raise ValueError(f"Retry({name}=…) is an exception class or a tuple of them, not {value!r}.")
        if self.on == ():
            raise ValueError("Retry(on=()) would never try again: say attempts=1.")

    @property
    def only_in_code(self) -> list[str]:
        """The names of what it says beyond the numbers that the database keeps."""
        usual = Retry()
        return [name for name in ("jitter", "on", "never") if getattr(self, name) != getattr(usual, name)]

    def allows(self, kind: type[BaseException]) -> bool:
        """Whether there may be another attempt after an error of a class."""
        return (self.on is None or issubclass(kind, self.on)) and not issubclass(kind, self.never)


@dataclass(frozen=True, slots=True)
class Limits:
    """How many runs of an entrypoint may be running at once, and how many may start in a period; None: any number.

    concurrency: at most so many on all workers together. per_worker: at most so many on each.
    concurrency_key: the name of an argument, or several names; runs that agree in these share a key, of which at
    most per_key (default 1) are running. starts, period: at most so many starts in any period, on all workers together.

    shared: a name. All entrypoints of all applications with the same name count together; by default each entrypoint of
    each application counts alone. If two declare different limits under one name, the last start wins.

    They are enforced when runs are claimed. What may not run yet stays queued, and is taken by priority and due time.
    Raises ValueError for values out of range.
    """

    concurrency: int | None = None
    concurrency_key: str | tuple[str, ...] | None = None
    per_key: int | None = None
    per_worker: int | None = None
    starts: int | None = None
    period: timedelta | None = None
    shared: str | None = None

    def __post_init__(self) -> None:
        for name in ("concurrency", "per_key", "per_worker", "starts"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31):
                raise ValueError(f"Limits({name}=…) is a whole number from 1 on, not {value!r}.")
        key = self.concurrency_key
        names = (key,) if isinstance(key, str) else key
        if names is not None and not (
            isinstance(names, tuple) and 1 <= len(names) <= 8 and all(isinstance(name, str) for name in names)
        ):
            raise ValueError(f"Limits(concurrency_key=…) is an argument's name, or a tuple of up to 8, not {key!r}.")
        if self.per_key is not None and key is None:
            raise ValueError("Limits(per_key=…) needs concurrency_key=…: the argument by which runs are told apart.")
        if (self.starts is None) != (self.period is None):
            raise ValueError("Limits(starts=…, period=…) go together: so many starts in any such period.")
        if self.shared is not None:
            if not isinstance(self.shared, str) or not 1 <= len(self.shared) <= 200 or not self.shared.isprintable():
                raise ValueError(
                    f"Limits(shared=…) is a name of 1 to 200 printable characters, not {str(self.shared)[:60]!r}."
                )
            if not self.together:
                raise ValueError("Limits(shared=…) needs limits to share: concurrency, concurrency_key or starts.")
        if self.period is not None:
            if not isinstance(self.period, timedelta):
                raise ValueError(f"Limits(period=…) is a timedelta, not {self.period!r}.")
            if not timedelta(0) < self.period <= timedelta(days=366):
                raise ValueError(f"Limits(period=…) is more than 0 s and at most 366 days, not {self.period!s}.")

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of the arguments that make the concurrency key."""
        return (self.concurrency_key,) if isinstance(self.concurrency_key, str) else self.concurrency_key or ()

    @property
    def together(self) -> bool:
        """Whether there is something that all workers together have to keep."""
        return not (self.concurrency is None and self.concurrency_key is None and self.starts is None)

    def row(self) -> dict[str, Any]:
        """What all workers together have to keep, as columns; empty where there is nothing of that kind."""
        row: dict[str, Any] = {
            "concurrency": self.concurrency,
            "concurrency_key": list(self.keys) or None,
            "per_key": (self.per_key or 1) if self.keys else None,
            "starts": self.starts,
            "period": None if self.period is None else f"{self.period.total_seconds():.6f} seconds",
        }
        if self.shared is not None:
            row["shared"] = self.shared
        return row if self.together else {}


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
    inherited_through: datetime | None = field(default=None, repr=False)  # what a removed one of its name had claimed


LEVELS = ("debug", "info", "warning", "error")  # of the lines that a run logs


def clean(text: str) -> str:
    """The text without NUL and lone surrogates, which PostgreSQL cannot store."""
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()


class Cancellation:
    """Whether somebody wants a run to stop, for code in a thread, which cannot be interrupted.

    grace: how many seconds whoever is asked to stop is given (cancel_timeout), before a process is killed.
    """

    def __init__(self, grace: float = 5.0) -> None:
        self.grace = grace
        self.requested = False  # one thread sets it, others look: there is nothing to wait for
        self.noticed = False


@dataclass(frozen=True, slots=True)
class Line:
    """One line that a run logged. at: by the worker's clock, for people."""

    at: datetime
    level: str
    text: str


@dataclass(frozen=True, slots=True)
class Said:
    """What of a journal is not written yet: lines, the first of which has this number, and progress where it is new."""

    number: int
    lines: list[Line]
    progress: tuple[float, float | None] | None

    @property
    def last(self) -> int:
        """The number of its last line, or of the one before it where it has none."""
        return self.number + len(self.lines) - 1


class Journal:
    """What one attempt says while it runs: lines and progress. Any thread may write; the worker reads, and forgets what
    is written.

    At most LIMIT characters in LINES lines are kept; what is said beyond them is counted, and told when it is closed.
    """

    LIMIT = 65_536
    LINES = 20_000
    LONGEST = 8_192  # characters of one line; a longer one is cut

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a garbage collection in here may call what logs
        self._lines: list[Line] = []
        self._written = 0  # lines, from the first on
        self._size = 0
        self._closed = False
        self._progress_written: tuple[float, float | None] | None = None
        self._last_progress: tuple[float, float | None] | None = None  # once it is closed
        self.dropped = 0
        self.progress: tuple[float, float | None] | None = None

    def add(self, text: str, level: str) -> None:
        """Takes a text of one or more lines."""
        at = datetime.now(UTC)
        with self._lock:
            if self._closed:
                return
            for line in text.splitlines():
                kept = line if len(line) <= self.LONGEST else f"{line[: self.LONGEST - 1]}…"
                if self._size + len(kept) > self.LIMIT or self._written + len(self._lines) >= self.LINES:
                    self.dropped += 1
                else:
                    self._size += len(kept) + 1
                    self._lines.append(Line(at, level, kept))

    def drop(self, lines: int) -> None:
        """Counts lines that are not even handed over, because there are too many."""
        with self._lock:
            self.dropped += lines

    def close(self) -> None:
        """The attempt is over: says how many lines there would have been, and takes no more."""
        with self._lock:
            if self.dropped and not self._closed:
                told = f"{self.dropped:,} more lines were dropped: of an attempt 64 KiB are kept."
                self._lines.append(Line(datetime.now(UTC), "warning", told))
            if not self._closed:
                self._last_progress = self.progress
            self._closed = True

    @property
    def unwritten(self) -> bool:
        """Whether there is anything to be written."""
        return bool(self._lines) or self._latest != self._progress_written

    @property
    def _latest(self) -> tuple[float, float | None] | None:
        # A thread that is left behind may go on saying it, and would never be done with.
        return self._last_progress if self._closed else self.progress

    def read(self, size: int = LIMIT) -> Said:
        """What is not written yet, oldest first; lines of about `size` characters at most, one in any case."""
        with self._lock:
            lines: list[Line] = []
            taken = 0
            for line in self._lines:
                taken += len(line.text) + 1
                if taken > size and lines:
                    break
                lines.append(line)
            progress = self._latest
            return Said(self._written + 1, lines, progress if progress != self._progress_written else None)

    def wrote(self, said: Said) -> None:
        """It is written, and forgotten here."""
        with self._lock:
            del self._lines[: max(0, said.last - self._written)]
            self._written = max(self._written, said.last)
            if said.progress is not None:
                self._progress_written = said.progress


class Transaction(Protocol):
    """A block for `async with` in coroutines and `with` in threads; it gives a psycopg connection of that kind."""

    async def __aenter__(self) -> Any: ...
    async def __aexit__(self, *error: Any) -> bool: ...
    def __enter__(self) -> Any: ...
    def __exit__(self, *error: Any) -> bool: ...


class Fence(Protocol):
    """What stands behind run.transaction()."""

    def transaction(self) -> Transaction:
        """The attempt's one transaction."""


@dataclass(frozen=True, slots=True)
class Run:
    """One attempt at a run, as its function sees it.

    Use id as an idempotency key: it stays the same in every attempt. Use token as a fencing token: it grows with each
    claim and never repeats, so a system that refuses smaller tokens refuses every earlier claim. attempt is for people:
    it repeats when a run is given back.

    fire_time: the nominal instant, aware, in UTC; None for an enqueued job. previous_fire_time: that of the
    schedule's run before this one, None for the first. Together they are the window that this run stands for: after
    a downtime with catch_up "latest" it spans what was missed. A backfilled run has the expression's fire time before
    its own. args: the run's arguments. worker: this process. resources: what the factory gave the Scheduler.
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
    fence: Fence | None = field(default=None, repr=False, compare=False)

    def transaction(self) -> Transaction:
        """A transaction that commits the application's writes and this run's success together, or neither.

        `async with run.transaction() as connection:` in coroutines, `with run.transaction() as connection:` in sync
        functions, in processes of their own (ProcessExecutor) too. connection is a psycopg AsyncConnection or
        Connection to the worker's database, read committed, with the role's own settings. At the end of the block the
        success is written into the same transaction, under the claim. What the block raises rolls all of it back; so
        does a claim that is no longer this worker's.

        After the block the run has succeeded, whatever its function does then: what it returns is stored as the
        result, what it raises is logged and the run is not tried again. So let the block be the last that it does.

        Raises ClaimLost (at the end of the block: nothing was written), PgschedError at a second use in one attempt.
        """
        if self.fence is None:
            raise PgschedError(
                "There is no run.transaction() here: this run was not made by a worker, or its function is called on "
                "another machine, to which the worker's database does not go. Use it in coroutines, threads and "
                "processes of the worker."
            )
        return self.fence.transaction()

    def log(self, text: str, level: str = "info") -> None:
        """Keeps a text with the run, for `pgsched runs show` and `runs logs`. level: debug, info, warning or error.

        It can be read within a heartbeat. At most 64 KiB an attempt are kept. What is logged with the standard library
        or structlog while the run runs, in its tasks and in its function's thread, is kept without being asked.
        Raises ValueError for another level, and for a text that is no str.
        """
        if not isinstance(text, str):
            raise ValueError(f"run.log() takes a text, not {type(text).__name__}: write run.log(str(…)).")
        if level not in LEVELS:
            raise ValueError(f"The level of run.log() is debug, info, warning or error, not {level!r}.")
        self.journal.add(text, level)

    def progress(self, done: float, total: float | None = None) -> None:
        """Says how far the run is, for `pgsched runs show` and `list`: done of total, in any unit.

        total: None where unknown. Call it as often as you like: it is stored with the next heartbeat, the last one
        alone. Raises ValueError for what is no finite number.
        """
        self.journal.progress = (_finite(done), None if total is None else _finite(total))

    @property
    def cancelled(self) -> bool:
        """Whether the run shall stop: look here now and then in a sync function, and return or raise."""
        if self.cancellation.requested:
            self.cancellation.noticed = True
            return True
        return False


def _finite(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"run.progress() takes finite numbers, not {value!r}.")
    return number


class Hold(IntEnum):
    """What a beat hears of a claim that still holds."""

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
    """A run as it came out of the claim, before its function has been looked up."""

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

    status is QUEUED where the run shall be tried again (after `delay`) or is given back (`refund` takes the attempt
    off again). unbegun: its function was never called, and it is a run of a schedule, which may have changed meanwhile:
    the fire time may be given back, too. stays: its row stays then, as cancelled, since the database refuses to delete
    it. committed: the run's own transaction had committed its success, as the database says. left_behind: its function
    goes on in its thread, and counts as running. journal: what the attempt said last, where there is something to be
    written before its end.
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
    left_behind: bool = False
    journal: Journal | None = field(default=None, repr=False)


class Process(StrEnum):
    """What a worker can see of another worker's process."""

    UNKNOWN = "unknown"  # it runs on another machine, or nobody can look
    ALIVE = "alive"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Silent:
    """A running run whose last sign of life is a while ago, as the reaper saw it.

    heartbeat_at: the run's own, None if somebody wrote the row by hand. alive_at: the last sign of life, be it a beat
    of the worker that found the row locked. connected: the server sees a session of the worker. vouched: another
    worker that connects over the same route has been well, with the same sessions, since before this one fell silent.
    """

    id: int
    attempt: int
    token: int
    worker: uuid.UUID | None
    entrypoint: str
    heartbeat_at: datetime | None
    alive_at: datetime
    max_attempts: int
    backoff: timedelta
    max_backoff: timedelta
    direct: bool
    connected: bool
    heartbeat_interval: timedelta | None
    stall_timeout: timedelta | None
    machine: str = ""
    pid: int = 0
    process_started: str = ""
    vouched: bool = False
