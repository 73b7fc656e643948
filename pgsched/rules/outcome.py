"""Decides the outcome of an attempt that ended, and turns its result and error into storable values.

Needs no database: runner calls the function, and finisher writes the outcome.
"""

from __future__ import annotations

import asyncio
import enum
import json
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from pgsched.errors import Discard, InvalidArguments, PgschedError, RetryLater
from pgsched.journal import clean
from pgsched.model import Claim, ClaimedRun, Outcome, RunError, RunStatus
from pgsched.rules.nesting import TOO_DEEP, too_deep
from pgsched.rules.retry import Retry, retry_delay, spread

ERROR_LIMIT = 8192  # characters kept of an error's text or traceback
RESULT_LIMIT = 262_144  # characters of a result's JSON
T = TypeVar("T", bound=BaseException)


class RemoteError(Exception):
    """An error that a run's function raised in another process.

    error: its type, message and traceback.
    kinds: for each raised error (a group has several), the most specific class that this process knows.
    """

    def __init__(self, error: RunError, kinds: Sequence[type[BaseException]]) -> None:
        super().__init__(f"{error.type}: {error.message}")
        self.error = error
        self.kinds = tuple(kinds)


@dataclass(frozen=True, slots=True)
class Unstored:
    """Stands for a result that cannot be stored, with the reason."""

    reason: str


class Stop(enum.Enum):
    """Why a run is stopped from outside."""

    LOST = "lost"
    REQUESTED = "requested"
    TIMEOUT = "timeout"
    DRAIN = "drain"
    WITHDRAWN = "withdrawn"  # only for a run that has not begun


@dataclass(slots=True)
class End:
    """How an attempt ended.

    noticed: its function saw `run.cancelled`.
    threaded: its function is still going in a thread.
    ignored: how often it was cancelled again because it did not stop.
    """

    started_at: datetime | None
    finished_at: datetime | None
    result: Any
    error: BaseException | None
    stop: Stop | None
    noticed: bool
    threaded: bool
    ignored: int = 0

    @property
    def left_behind(self) -> bool:
        """Whether the attempt was stopped while its function is still going in a thread."""
        return self.threaded and self.stop is not None and isinstance(self.error, asyncio.CancelledError)


def decide(run: ClaimedRun, claim: Claim, end: End, retry: Retry | None = None) -> Outcome:
    """The outcome of an attempt whose claim is not known to be lost.

    retry: the code's Retry for the run. Its numbers do not count: the run has its own.
    """
    retry = retry or Retry()
    if end.error is None and not (end.stop is not None and end.noticed):
        text, reason = encode(end.result)
        if end.ignored and reason is None:
            reason = f"finished{_swallowed(end)}"
        return Outcome(claim, RunStatus.SUCCEEDED, end.started_at, end.finished_at, result_json=text, reason=reason)
    if given_back := _given_back(claim, end):
        return given_back
    if end.stop is Stop.REQUESTED:
        reason = f"cancelled on request{_swallowed(end)}"
        return Outcome(claim, RunStatus.CANCELLED, end.started_at, end.finished_at, reason=reason)
    if end.stop is None and (discarded := only(end.error, Discard)):
        reason = clean(str(discarded[0]))[:ERROR_LIMIT]
        return Outcome(claim, RunStatus.CANCELLED, end.started_at, end.finished_at, reason=reason)
    error, final = _failure(run, end)
    later = only(end.error, RetryLater) if end.stop is None else []
    if final or run.attempt >= run.max_attempts or not (later or _allowed(retry, end)):
        return Outcome(claim, RunStatus.FAILED, end.started_at, end.finished_at, error=error)
    if later:
        delay = max(each.delay for each in later)
    else:
        delay = retry_delay(run.backoff, run.max_backoff, run.attempt)
        delay = spread(delay, retry.jitter, run.id, run.attempt)
    return Outcome(claim, RunStatus.QUEUED, end.started_at, end.finished_at, error=error, delay=delay)


def _given_back(claim: Claim, end: End) -> Outcome | None:
    """The outcome of an attempt that does not count: a drain stopped it, or its function raised
    RetryLater(counts=False)."""
    if end.stop is Stop.DRAIN:
        return Outcome(claim, RunStatus.QUEUED, end.started_at, refund=True)
    later = only(end.error, RetryLater) if end.stop is None else []
    if not later or any(each.counts for each in later):
        return None
    longest = max(later, key=lambda each: each.delay)
    reason = clean(str(longest))[:ERROR_LIMIT]
    return Outcome(
        claim, RunStatus.QUEUED, end.started_at, end.finished_at, reason=reason, delay=longest.delay, refund=True
    )


def leaves(error: BaseException) -> list[BaseException]:
    """The errors in a group, at any depth, or the error itself: a function's tasks may raise several at once."""
    found = [error]
    while any(isinstance(leaf, BaseExceptionGroup) for leaf in found):
        found = [
            each for leaf in found for each in (leaf.exceptions if isinstance(leaf, BaseExceptionGroup) else (leaf,))
        ]
    return found


def only(error: BaseException | None, kind: type[T]) -> list[T]:
    """The errors of a kind, if there are no others."""
    all_ = leaves(error) if error is not None else []
    found = [leaf for leaf in all_ if isinstance(leaf, kind)]
    return found if len(found) == len(all_) else []


def _allowed(retry: Retry, end: End) -> bool:
    """Whether the code allows another attempt. RetryLater and Discard next to other errors are ignored."""
    if end.stop is Stop.TIMEOUT or end.error is None:
        return retry.allows(TimeoutError)
    real = [leaf for leaf in leaves(end.error) if not isinstance(leaf, RetryLater | Discard)]
    kinds = [kind for leaf in real for kind in (leaf.kinds if isinstance(leaf, RemoteError) else (type(leaf),))]
    return all(retry.allows(kind) for kind in kinds)


def _swallowed(end: End) -> str:
    """A remark on a function that did not stop when it was asked to; empty if it did."""
    if end.left_behind:
        return ", but its thread goes on"
    return f", having swallowed its cancellation {end.ignored} times" if end.ignored else ""


def _failure(run: ClaimedRun, end: End) -> tuple[RunError, bool]:
    """The error of a failed attempt, and whether no other attempt may follow."""
    if end.stop is Stop.TIMEOUT:
        assert run.timeout is not None
        message = f"ran longer than its timeout of {run.timeout.total_seconds():g} s"
        if end.left_behind:
            # The thread is still going, and a second attempt would run at the same time.
            return RunError("Timeout", f"{message}, and its thread did not stop"), True
        return RunError("Timeout", f"{message}{_swallowed(end)}"), False
    assert end.error is not None
    # The same arguments will not fit next time either.
    return storable(end.error), isinstance(end.error, InvalidArguments)


def encode(result: Any) -> tuple[str | None, str | None]:
    """A function's result as JSON, or why it is not stored. The work is done either way."""
    if result is None:
        return None, None
    if isinstance(result, Unstored):
        return None, result.reason
    try:
        text = json.dumps(result, allow_nan=False)
    except RecursionError:
        return None, f"the result has {TOO_DEEP}"
    except Exception as error:  # a subclass of dict may raise anything
        return None, f"the result is not JSON: {clean(str(error))[:200]}"
    reason = _refusal(result, text)
    return (text, None) if reason is None else (None, reason)


def _refusal(result: Any, text: str) -> str | None:
    """Why a result whose JSON is this text is not stored. None: it is."""
    if len(text) > RESULT_LIMIT:
        return f"the result is longer than {RESULT_LIMIT} characters of JSON"
    if too_deep(text):
        return f"the result has {TOO_DEEP}"
    # Escapes are checked only if there may be one: a NUL or a lone surrogate is legal JSON in Python, but PostgreSQL
    # cannot store it.
    if "\\u0000" in text or "\\ud" in text:
        raw = json.dumps(result, allow_nan=False, ensure_ascii=False)
        if clean(raw) != raw or "\\u0000" in raw.replace("\\\\", ""):
            return "the result holds a NUL or a lone surrogate, which PostgreSQL cannot store"
    return None


def storable(error: BaseException) -> RunError:
    """An error, fit to be stored: without local variables and characters that PostgreSQL cannot hold, cut to size."""
    if isinstance(error, asyncio.CancelledError):
        return RunError("CancelledError", "the function cancelled itself")
    if isinstance(error, RemoteError):
        return error.error
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    try:
        message = str(error)
    except Exception:  # a __str__ may fail too
        message = "(its message cannot be shown)"
    try:
        frames = error.__traceback__
        while frames is not None and "pgsched" in frames.tb_frame.f_globals.get("__name__", "").split("."):
            frames = frames.tb_next  # the daemon's own frames say nothing about the job
        chained = error.__cause__ or (error.__context__ and not error.__suppress_context__)
        if frames is None and isinstance(error, PgschedError) and not chained:
            return RunError(clean(name)[:200], clean(message)[:ERROR_LIMIT], "")  # a traceback would only repeat it
        formatted = traceback.TracebackException(kind, error, frames, limit=-30, capture_locals=False)
        text = "".join(formatted.format())
    except Exception:
        text = ""
    return RunError(clean(name)[:200], clean(message)[:ERROR_LIMIT], clean(text)[-ERROR_LIMIT:])


def where(error: RunError) -> str | None:
    """The innermost place of the job's code in an error's traceback, as file:line and function."""
    for line in map(str.strip, reversed(error.traceback.splitlines())):
        if line.startswith('File "') and '", line ' in line:
            path, rest = line[6:].split('", line ', 1)
            number, _, function = rest.partition(", in ")
            return f"{path.rsplit('/', 1)[-1]}:{number} {function}".strip()
    return None
