"""Hooks: functions that an application registers around runs, and their arguments.

worker/run/hook_calls.py calls them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from pgsched.errors import RegistrationError
from pgsched.model import Run, RunStatus, Schedule
from pgsched.rules.ledger import Skip

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How an attempt ended, once that is certain.

    status: the run's status in the database now: succeeded, failed, cancelled; queued if it will be tried again or was
        given back; None if nothing was recorded because the claim was lost.
    landed: whether it was recorded.
    result: the function's return value.
    error: the function's exception; a TimeoutError if it hit its timeout.
    reason: why it was cancelled.
    duration: of the function alone.
    retry_in: the wait before the next attempt, or None.
    """

    status: RunStatus | None
    result: Any
    error: BaseException | None
    reason: str | None
    duration: timedelta
    retry_in: timedelta | None

    @property
    def landed(self) -> bool:
        """Whether this end is recorded."""
        return self.status is not None


@dataclass(frozen=True, slots=True)
class RunFailure:
    """A failed attempt that was recorded.

    final: no other attempt follows.
    retry_in: the wait before the next attempt, or None.
    """

    error: BaseException
    final: bool
    retry_in: timedelta | None


@dataclass(slots=True, eq=False)
class Hook:
    """One registered function.

    hanging: the number of its calls that were left behind and have not ended yet.
    skip_logged: whether the log says that it is not called because of those.
    """

    kind: str
    function: Callable[..., Any]
    hanging: int = 0
    skip_logged: bool = False

    @property
    def name(self) -> str:
        return getattr(self.function, "__qualname__", None) or type(self.function).__qualname__


_TAKES: dict[str, tuple[type, ...]] = {
    "before_run": (Run,),
    "after_run": (Run, RunEnd),
    "on_failure": (Run, RunFailure),
    "on_skip": (Schedule, Skip),
    "around_sync": (Run,),
}


class Hooks:
    """The hooks that a scheduler has registered."""

    def __init__(self) -> None:
        self.before_run: list[Hook] = []
        self.after_run: list[Hook] = []
        self.on_failure: list[Hook] = []
        self.on_skip: list[Hook] = []
        self.around_sync: list[Hook] = []

    def add(self, kind: str, function: Any) -> None:
        """Registers a hook. Raises RegistrationError if it cannot be called with the arguments of its kind."""
        takes = [each.__name__ for each in _TAKES[kind]]
        if not callable(function) or inspect.isclass(function):
            raise RegistrationError(f"{kind}: {function!r} cannot be registered: a hook must be a function.")
        if kind == "around_sync":
            _check_manager(function)
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise RegistrationError(f"{kind}: {function.__name__}() is a generator: a hook must return, not yield.")
        try:
            inspect.signature(function).bind(*takes)
        except TypeError:
            raise RegistrationError(
                f"{kind}: {getattr(function, '__name__', function)}() is called with ({', '.join(takes)}), by position."
            ) from None
        except ValueError:  # it has no signature to read: call it and see
            pass
        getattr(self, kind).append(Hook(kind, function))

    @property
    def around_runs(self) -> bool:
        """Whether there are hooks that need a run's context."""
        return bool(self.before_run or self.after_run or self.on_failure)


def _check_manager(function: Any) -> None:
    """Raises RegistrationError unless the function may return a context manager."""
    name = getattr(function, "__name__", repr(function))
    behind = inspect.unwrap(function)
    if inspect.isgeneratorfunction(function):
        raise RegistrationError(
            f"around_sync: {name}() is a generator, not yet a context manager: put @contextlib.contextmanager between "
            "@around_sync and the function."
        )
    if inspect.iscoroutinefunction(behind) or inspect.isasyncgenfunction(behind):
        raise RegistrationError(
            f"around_sync: {name}() is asynchronous, but is called in the thread of a plain function: make it a plain "
            "function under @contextlib.contextmanager."
        )


class HookDecorators:
    """The decorators of a scheduler that register hooks.

    Hooks are async def or plain functions, any number of each kind, called in the order in which they are registered.
    See hook_calls.py for their effect on a run: none. Only around_sync is a part of the run.
    """

    hooks: Hooks

    def before_run(self, function: F) -> F:
        """Calls `function(run)` before each attempt, for at most the setting hook_timeout.

        An `async def` hook runs in the run's own context, so the run's function sees the context variables that it
        sets. Those that a plain hook sets are copied over. Raises RegistrationError.
        """
        self.hooks.add("before_run", function)
        return function

    def after_run(self, function: F) -> F:
        """Calls `function(run, end)` after each attempt, once it is certain whether its end is recorded.

        `end` is a RunEnd. Raises RegistrationError.
        """
        self.hooks.add("after_run", function)
        return function

    def on_failure(self, function: F) -> F:
        """Calls `function(run, failure)` after each failed attempt that was recorded, before the after_run hooks.

        `failure` is a RunFailure. Raises RegistrationError.
        """
        self.hooks.add("on_failure", function)
        return function

    def on_skip(self, function: F) -> F:
        """Calls `function(schedule, skip)` after this worker has recorded that fire times do not run.

        `skip` is a Skip. Raises RegistrationError.
        """
        self.hooks.add("on_skip", function)
        return function

    def around_sync(self, function: F) -> F:
        """Calls each plain function within the context manager that `function(run)` returns, in the same thread.

        For everything that belongs to a thread, such as the database connections of Django. Threads are used for many
        runs. The context manager is a part of the run: its time counts, its error fails the attempt, and it sees the
        function's error. Several are entered in the order of their registration, and left in reverse order.

        Functions that are async def, or that run in another process, are called without it. Raises RegistrationError.
        """
        self.hooks.add("around_sync", function)
        return function
