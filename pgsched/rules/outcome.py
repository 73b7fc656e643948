"""Decides what becomes of an attempt that ended, and how its result and its error are told.

Asks nothing of the database; runner calls a function, and finisher writes what is decided here.
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
from pgsched.rules.retry import Retry, retry_delay, spread

ERROR_LIMIT = 8192  # characters of an error's text or traceback that are kept
RESULT_LIMIT = 262_144  # characters of a result's JSON
T = TypeVar("T", bound=BaseException)


class RemoteError(Exception):
    """What a run's function raised in another process, as it was told from there.

    told: its type, message and traceback. kinds: of each error that was raised (a group has several) the most special
    class that this process knows.
    """

    def __init__(self, told: RunError, kinds: Sequence[type[BaseException]]) -> None:
        super().__init__(f"{told.type}: {told.message}")
        self.told = told
        self.kinds = tuple(kinds)


@dataclass(frozen=True, slots=True)
class Unstored:
    """Stands for a result of which it is known already that it cannot be stored, and why."""

    reason: str


class Stop(enum.Enum):
    """Why a run is stopped from outside."""

    LOST = "lost"
    REQUESTED = "requested"
    TIMEOUT = "timeout"
    DRAIN = "drain"
    WITHDRAWN = "withdrawn"  # only of a run that has not begun


@dataclass(slots=True)
class End:
    """How an attempt came to its end.

    noticed: its function saw `run.cancelled`. threaded: it has a thread that is still at it. ignored: how often it was
    cancelled again because it went on all the same.
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
        """Whether its thread is still at it."""
        return self.threaded and self.stop is not None and isinstance(self.error, asyncio.CancelledError)


def decide(run: ClaimedRun, claim: Claim, end: End, retry: Retry | None = None) -> Outcome:
    """The outcome of an attempt whose claim is not known to be lost.

    retry: what the code says of the run. Its numbers do not count: the run has its own.
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
    told, final = _failure(run, end)
    later = only(end.error, RetryLater) if end.stop is None else []
    if final or run.attempt >= run.max_attempts or not (later or _allowed(retry, end)):
        return Outcome(claim, RunStatus.FAILED, end.started_at, end.finished_at, error=told)
    if later:
        delay = max(each.delay for each in later)
    else:
        delay = retry_delay(run.backoff, run.max_backoff, run.attempt)
        delay = spread(delay, retry.jitter, run.id, run.attempt)
    return Outcome(claim, RunStatus.QUEUED, end.started_at, end.finished_at, error=told, delay=delay)


def _given_back(claim: Claim, end: End) -> Outcome | None:
    """The outcome of an attempt that does not count: a drain stopped it, or its function looked in vain."""
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
    """The errors in a group, however deep, or the one: tasks of a function may have raised several at once."""
    found = [error]
    while any(isinstance(leaf, BaseExceptionGroup) for leaf in found):
        found = [
            each for leaf in found for each in (leaf.exceptions if isinstance(leaf, BaseExceptionGroup) else (leaf,))
        ]
    return found


def only(error: BaseException | None, kind: type[T]) -> list[T]:
    """The errors of a kind, where there are no others."""
    all_ = leaves(error) if error is not None else []
    found = [leaf for leaf in all_ if isinstance(leaf, kind)]
    return found if len(found) == len(all_) else []


def _allowed(retry: Retry, end: End) -> bool:
    """Whether the code wants another attempt after this end. What was asked for in passing has no say beside it."""
    if end.stop is Stop.TIMEOUT or end.error is None:
        return retry.allows(TimeoutError)
    real = [leaf for leaf in leaves(end.error) if not isinstance(leaf, RetryLater | Discard)]
    kinds = [kind for leaf in real for kind in (leaf.kinds if isinstance(leaf, RemoteError) else (type(leaf),))]
    return all(retry.allows(kind) for kind in kinds)


def _swallowed(end: End) -> str:
    """What is to be said of a function that did not stop when it was told to; nothing of one that did."""
    if end.left_behind:
        return ", but its thread goes on"
    return f", having swallowed its cancellation {end.ignored} times" if end.ignored else ""


def _failure(run: ClaimedRun, end: End) -> tuple[RunError, bool]:
    """The error of a failed attempt, and whether no other attempt shall follow."""
    if end.stop is Stop.TIMEOUT:
        assert run.timeout is not None
        told = f"ran longer than its timeout of {run.timeout.total_seconds():g} s"
        if end.left_behind:
            # The thread is still at it, and a second attempt would run beside it.
            return RunError("Timeout", f"{told}, and its thread did not stop"), True
        return RunError("Timeout", f"{told}{_swallowed(end)}"), False
    assert end.error is not None
    # The same arguments will not fit next time either.
    return describe(end.error), isinstance(end.error, InvalidArguments)


def encode(result: Any) -> tuple[str | None, str | None]:
    """A function's result as JSON, or why it is not stored. The work is done either way."""
    if result is None:
        return None, None
    if isinstance(result, Unstored):
        return None, result.reason
    try:
        text = json.dumps(result, allow_nan=False)
    except Exception as error:  # a dict of one's own may raise anything
        return None, f"the result is not JSON: {clean(str(error))[:200]}"
    if len(text) > RESULT_LIMIT:
        return None, f"the result is longer than {RESULT_LIMIT} characters of JSON"
    # Every escape is looked at only where there may be one: a NUL or a lone surrogate is legal JSON to Python,
    # and nothing that PostgreSQL can store.
    if "\\u0000" in text or "\\ud" in text:
        raw = json.dumps(result, allow_nan=False, ensure_ascii=False)
        if clean(raw) != raw or "\\u0000" in raw.replace("\\\\", ""):
            return None, "the result holds a NUL or a lone surrogate, which PostgreSQL cannot store"
    return text, None


def describe(error: BaseException) -> RunError:
    """An error, fit to be stored: without local variables, without what PostgreSQL cannot hold, cut to size."""
    if isinstance(error, asyncio.CancelledError):
        return RunError("CancelledError", "the function cancelled itself")
    if isinstance(error, RemoteError):
        return error.told
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
            return RunError(clean(name)[:200], clean(message)[:ERROR_LIMIT], "")  # a traceback would say it once more
        told = traceback.TracebackException(kind, error, frames, limit=-30, capture_locals=False)
        text = "".join(told.format())
    except Exception:
        text = ""
    return RunError(clean(name)[:200], clean(message)[:ERROR_LIMIT], clean(text)[-ERROR_LIMIT:])


def where(error: RunError) -> str | None:
    """The innermost place in an error's traceback, as file:line, in which the job's code was."""
    for line in map(str.strip, reversed(error.traceback.splitlines())):
        if line.startswith('File "') and '", line ' in line:
            path, rest = line[6:].split('", line ', 1)
            number, _, function = rest.partition(", in ")
            return f"{path.rsplit('/', 1)[-1]}:{number} {function}".strip()
    return None
