"""Decides, and only decides: whether and when a failed attempt is tried again, and what becomes of a stalled claim."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta

from pgsched.model import Process, RunStatus


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


def retry_delay(backoff: timedelta, max_backoff: timedelta, attempt: int) -> timedelta:
    """How long to wait after the given failed attempt (1 is the first) before the next. Takes any stored value."""
    if attempt < 1:
        return timedelta(0)
    doubled = min(attempt - 1, 40)  # beyond it every backoff has met its limit, or is nought
    try:
        return min(backoff * int(2**doubled), max_backoff)
    except OverflowError:
        return max_backoff


def spread(delay: timedelta, share: float, run_id: int, attempt: int) -> timedelta:
    """A wait, cut by up to this share of it: by another part for each run and attempt, and always by the same."""
    digest = hashlib.blake2b(f"{run_id} {attempt}".encode(), digest_size=8).digest()
    return delay * (1 - share * (int.from_bytes(digest) / 2**64))


def is_stalled(
    run: Silent,
    now: datetime,
    heartbeat_interval: timedelta,
    stall_timeout: timedelta,
    *,
    watched: timedelta,
    process: Process = Process.UNKNOWN,
    trusted: bool = True,
) -> bool:
    """Whether a silent run's worker is to be taken for dead. The worker's own settings count if they are known.

    watched: for how long the reaper itself has seen this very silence, on its own clock. The database's clock alone
    proves nothing: it may have been set forward, and after a failover the owner may not be back yet.
    process: what the reaper can see of the worker's process. trusted: whether silence means anything; for a while after
    an outage, and after the reaper's own start, it does not.

    A process that died has lost its sessions within milliseconds, but so has one whose balancer restarts. So three
    missed beats are enough only with a second sign: the process is known to have ended, or nothing is known of it and
    the same route serves others well. Everything else gets the full stall timeout.
    """
    interval = run.heartbeat_interval or heartbeat_interval
    if watched < 2 * interval:
        return False
    silence = now - run.alive_at
    if not (run.direct and run.connected) and silence >= 3 * interval:
        if process is Process.ENDED:
            return True
        if trusted and run.direct and run.vouched and process is Process.UNKNOWN:
            return True
    return trusted and silence >= (run.stall_timeout or stall_timeout)


def after_loss(run: Silent) -> tuple[RunStatus, timedelta]:
    """What becomes of a run that lost its worker, and after which wait.

    The first loss costs no wait, since it is mostly the machine's fault; a run that kills its worker again
    and again waits longer each time and ends as failed after its attempts.
    """
    if run.attempt >= run.max_attempts:
        return RunStatus.FAILED, timedelta(0)
    return RunStatus.QUEUED, retry_delay(run.backoff, run.max_backoff, run.attempt - 1)
