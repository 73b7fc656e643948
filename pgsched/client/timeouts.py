"""The timeout of a client's calls: how it is given, the server's part of it, and the names of the calls."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

from pgsched.errors import InvalidArguments

TIMEOUT = 30.0  # seconds for a call
_DAY = 86_400.0
# The server gives up a statement after this part of the timeout, so that we get its answer and know that nothing has
# happened.
_SOONER = 0.8
_LONGEST_LOCK = 10.0  # seconds that a statement waits for another session's lock
_CLOSING = 5.0
_READING = (
    "get_",
    "list_",
    "now",
    "runs.beyond_reach",
    "runs.count",
    "runs.list_",
    "runs.log",
    "runs.wait",
    "situation",
)
# The methods that are not called like their statements.
_METHODS = {
    "alter_schedule": "alter",
    "backfill_runs": "backfill",
    "cancel_run": "cancel",
    "count_runs_by_status": "runs.count",
    "enqueue_run": "enqueue",
    "enqueue_runs": "enqueue_many",
    "list_dead_runs": "runs.list_dead",
    "list_fire_times": "backfill",
    "pause_schedule": "pause",
    "read_clock": "now",
    "read_log": "runs.log",
    "read_reach": "runs.beyond_reach",
    "read_situation": "situation",
    "read_status": "runs.wait",
    "remove_schedule": "remove",
    "resume_schedule": "resume",
    "retry_run": "retry",
    "retry_runs": "runs.retry_many",
    "trigger_schedule": "trigger",
}


def method_of(query: str) -> str:
    """The client's method that sends a statement."""
    return _METHODS.get(query, query)


def reads(method: str) -> bool:
    """Whether a method changes nothing."""
    return method.startswith(_READING)


def limits_of(timeout: float | None) -> tuple[str, str, str]:
    """The server's limits for a client's sessions: of a statement, of a wait for a lock, of an idle transaction."""
    statement = 0.0 if timeout is None else timeout * _SOONER
    lock = _LONGEST_LOCK if statement > _LONGEST_LOCK else 0.0
    return f"{math.ceil(1000 * statement)}ms", f"{math.ceil(1000 * lock)}ms", "30s"


def closing(timeout: float | None) -> float:
    """How many seconds the end of a client waits for connections that are just being made."""
    return _CLOSING if timeout is None else min(timeout, _CLOSING)


def seconds_of(timeout: Any) -> float | None:
    """A client's timeout in seconds, None for no limit. Raises InvalidArguments."""
    if isinstance(timeout, timedelta):
        found: Any = timeout.total_seconds()
    else:
        found = timeout
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found <= _DAY:
        raise InvalidArguments(
            "timeout must be a timedelta or a number of seconds, more than 0 and at most one day, or None for no "
            f"limit, not {timeout!r}."
        )
    return float(found)
