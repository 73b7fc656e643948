"""Every error that pgsched raises on purpose: one sentence for people, one exit code for the shell.

Imports nothing of pgsched, so that every other module may use it.
"""

from datetime import timedelta
from typing import ClassVar


class PgschedError(Exception):
    """Base of all errors that pgsched raises on purpose. `exit_code` is the command line's exit code."""

    exit_code: ClassVar[int] = 1


class InvalidExpression(PgschedError, ValueError):
    """An expression or a time zone that cannot be read, or that never fires."""

    exit_code = 2


class ConfigurationError(PgschedError):
    """A setting, a factory or an import path that is wrong. Several problems are reported together, one a line."""

    exit_code = 78


class RegistrationError(ConfigurationError, ValueError):
    """A schedule or an entrypoint that cannot be registered as it is written."""


class SchemaError(ConfigurationError):
    """The database's schema is missing, of another version, or edited."""


class InvalidArguments(PgschedError, ValueError):
    """Arguments that are not JSON, or that do not fit the function."""

    exit_code = 2


class NotFound(PgschedError, LookupError):
    """No schedule, run or worker has that name or id."""

    exit_code = 3


class Unhealthy(PgschedError):
    """A health check that found something wrong."""

    exit_code = 4


class DatabaseUnavailable(PgschedError):
    """The database cannot be reached, or refused the connection."""

    exit_code = 69


class ClaimLost(PgschedError):
    """The run no longer belongs to this worker: it was reaped, cancelled or given away."""


class RetryLater(Exception):  # not a PgschedError: a run's function raises it, and it is not a fault
    """Raised by a run's function: fails this attempt, and schedules the next one after `delay`.

    delay: a timedelta or a number of seconds, from 0 s to 366 days.
    reason: why, for people.
    counts: whether this attempt counts; after the last counted attempt the run has failed. Default True. False gives
        the run back, for a function that only checks whether something is there yet.

    Raises ValueError for a delay out of range.
    """

    def __init__(self, delay: timedelta | float, reason: str | None = None, *, counts: bool = True) -> None:
        wait = delay if isinstance(delay, timedelta) else timedelta(seconds=delay)
        if not timedelta(0) <= wait <= timedelta(days=366):
            raise ValueError(f"RetryLater(delay) must be from 0 s to 366 days, not {wait!s}.")
        super().__init__(reason or f"asked to be tried again in {wait.total_seconds():g} s")
        self.delay = wait
        self.counts = counts


class Discard(Exception):  # not a PgschedError either
    """Raised by a run's function: gives up. The run ends as cancelled, with the reason, and is not tried again."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)


def quote(text: str) -> str:
    """Foreign text, safe and short enough for one line of a log."""
    return ascii(text) if len(text) <= 60 else f"{text[:40]!a}..."


def exact(value: str, what: str) -> str:
    """A plain str, even if a subclass overrides comparison and hash. `what` begins the error for other types."""
    if not isinstance(value, str):
        raise InvalidExpression(f"{what}, not {type(value).__name__}")
    return str.__str__(value)
