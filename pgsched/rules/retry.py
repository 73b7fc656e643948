"""Decides, and only decides: whether and when a failed attempt is tried again, and how a stalled claim ends."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta

from pgsched.model import Process, RunStatus

_BREAKS = 2  # stall timeouts of a silence, all in all, that prove a death although there were breaks


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a run is tried, and how long it waits in between.

    attempts: all attempts, including the first, 1 to 1000. Default 3.
    backoff: the wait before the second attempt; it doubles with each further attempt. Default 1 second.
    max_backoff: the longest wait. Default 1 hour.
    jitter: each wait is shortened by a random part of this share, so that runs that failed together do not come back
        together. 0 to 1, default 0.25: a wait of 8 s becomes one of 6 to 8 s.
    on: another attempt follows only these errors, a class or a tuple of classes. Default: any error.
    never: no attempt follows these errors; it wins over `on`. Default: none.

    For `on` and `never`, a run that hits its timeout counts as TimeoutError, and every error of a group has to allow
    another attempt. They do not affect RetryLater, Discard and lost workers.

    Every attempt counts, whether it raised, ran into its timeout or lost its worker. attempts, backoff and max_backoff
    are stored with each schedule and run; the rest stays in the code and applies to declared schedules and
    entrypoints. Raises ValueError for values out of range.
    """

    attempts: int = 3
    backoff: timedelta = timedelta(seconds=1)
    max_backoff: timedelta = timedelta(hours=1)
    jitter: float = 0.25
    on: type[BaseException] | tuple[type[BaseException], ...] | None = None
    never: type[BaseException] | tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int):
            raise ValueError(f"Retry(attempts=…) must be a whole number, not {self.attempts!r}.")
        if not 1 <= self.attempts <= 1000:
            raise ValueError(f"Retry(attempts={self.attempts}) is out of range: use 1 to 1000.")
        for name in ("backoff", "max_backoff"):
            value = getattr(self, name)
            if not isinstance(value, timedelta):
                raise ValueError(f"Retry({name}=…) must be a timedelta, not {value!r}.")
            if not timedelta(0) <= value <= timedelta(days=36500):
                raise ValueError(f"Retry({name}=…) must be from 0 s to a hundred years, not {value!s}.")
        if isinstance(self.jitter, bool) or not isinstance(self.jitter, int | float) or not 0 <= self.jitter <= 1:
            raise ValueError(f"Retry(jitter=…) must be a number from 0 to 1, not {self.jitter!r}.")
        for name in ("on", "never"):
            value = getattr(self, name)
            kinds = value if isinstance(value, tuple) else () if value is None else (value,)
            if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
                raise ValueError(f"Retry({name}=…) must be an exception class or a tuple of them, not {value!r}.")
        if self.on == ():
            raise ValueError("Retry(on=()) would never try again: use attempts=1 instead.")

    @property
    def only_in_code(self) -> list[str]:
        """The names of its options that only the code can keep, not the database."""
        usual = Retry()
        return [name for name in ("jitter", "on", "never") if getattr(self, name) != getattr(usual, name)]

    def allows(self, kind: type[BaseException]) -> bool:
        """Whether there may be another attempt after an error of a class."""
        return (self.on is None or issubclass(kind, self.on)) and not issubclass(kind, self.never)


@dataclass(frozen=True, slots=True)
class Silent:
    """A running run whose last sign of life is a while ago, as the reaper saw it.

    heartbeat_at: the run's own heartbeat, None if somebody wrote the row by hand.
    alive_at: the last sign of life; a beat of the worker that found the row locked counts too.
    connected: the server sees a session of the worker.
    vouched: another worker that connects over the same route has been well, with the same sessions, since before this
        worker fell silent.
    begun: a beat has recorded that its function has begun.
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
    begun: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """What a reaper has seen of a silence, on its own clock. The database's clock alone proves nothing: it may have
    been set forward, and after a failover it is another machine's.

    watched: how long it has seen this silence.
    steady: how long claims could be renewed without a break.
    beatable: for how much of this silence they could be renewed, with breaks.
    """

    watched: timedelta
    steady: timedelta
    beatable: timedelta


def retry_delay(backoff: timedelta, max_backoff: timedelta, attempt: int) -> timedelta:
    """How long to wait after the given failed attempt (1 is the first) before the next. Takes any stored value."""
    if attempt < 1:
        return timedelta(0)
    doubled = min(attempt - 1, 40)  # after this many every backoff has reached its limit, or is 0
    try:
        return min(backoff * int(2**doubled), max_backoff)
    except OverflowError:
        return max_backoff


def spread(delay: timedelta, share: float, run_id: int, attempt: int) -> timedelta:
    """A wait, shortened by up to this share of it: differently for each run and attempt, but repeatably."""
    digest = hashlib.blake2b(f"{run_id} {attempt}".encode(), digest_size=8).digest()
    return delay * (1 - share * (int.from_bytes(digest) / 2**64))


def is_stalled(
    run: Silent,
    now: datetime,
    heartbeat_interval: timedelta,
    stall_timeout: timedelta,
    *,
    seen: Seen,
    process: Process = Process.UNKNOWN,
) -> bool:
    """Whether a silent run's worker should be considered dead. The worker's own settings count if they are known.

    process: the state of the worker's process, as far as the reaper can see it.

    A process that died has lost its sessions within milliseconds, but so has one whose balancer restarts. So three
    missed beats are enough only with a second sign: the process is known to have ended, or its state is unknown and
    the same route serves others well. Everything else gets the full stall timeout.

    After a break, such as a restart or a failover, every owner gets a fresh stall timeout to beat again. If breaks
    come more often than that, a worker that has missed two stall timeouts between them is dead all the same.
    """
    interval, patience = run.heartbeat_interval or heartbeat_interval, run.stall_timeout or stall_timeout
    if seen.watched < 2 * interval:
        return False
    silence = now - run.alive_at
    if not (run.direct and run.connected) and silence >= 3 * interval:
        if process is Process.ENDED:
            return True
        if seen.steady >= patience and run.direct and run.vouched and process is Process.UNKNOWN:
            return True
    return silence >= patience and (seen.steady >= patience or seen.beatable >= _BREAKS * patience)


def after_loss(run: Silent) -> tuple[RunStatus, timedelta]:
    """The next status of a run that lost its worker, and the wait before its next attempt.

    The first loss costs no wait, since it is mostly the machine's fault; a run that kills its worker again
    and again waits longer each time and ends as failed after its attempts.
    """
    if run.attempt >= run.max_attempts:
        return RunStatus.FAILED, timedelta(0)
    return RunStatus.QUEUED, retry_delay(run.backoff, run.max_backoff, run.attempt - 1)
