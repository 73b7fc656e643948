"""Calls a run's function: awaits it, or runs it in a thread. runner handles the result.

Other ways to execute a run are in process, command and dask.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import enum
import functools
import inspect
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent import futures
from datetime import datetime
from typing import Any

from pgsched.errors import InvalidArguments, RegistrationError
from pgsched.hooks import Hook
from pgsched.model import Run, Schedule
from pgsched.rules.plan import fire_times

Function = Callable[..., Any]


class ThreadCall:
    """The worker's threads, as one run sees them: the pool, and the run's call in it.

    around: the application's around_sync functions.
    """

    __slots__ = ("around", "future", "pool")

    def __init__(self, pool: futures.Executor, around: Sequence[Hook] = ()) -> None:
        self.pool = pool
        self.around = around
        self.future: asyncio.Future[tuple[bool, Any]] | None = None

    @property
    def busy(self) -> bool:
        """Whether a function of this run is in a thread, even if the run has ended."""
        return self.future is not None and not self.future.done()


THREAD_CALL: contextvars.ContextVar[ThreadCall] = contextvars.ContextVar("pgsched_threads")


class Place(enum.StrEnum):
    """The place that a run takes on a worker besides a slot. The setting max_<value> is the number of such places."""

    THREAD = "threads"
    PROCESS = "processes"
    COMMAND = "commands"


class Executor(ABC):
    """Executes runs. Subclasses define `execute`; most do something around `await self.call(run)`.

    Give a subclass, or an instance of one, as `executor=` of a schedule or an entrypoint.

    function: the registered function; set at registration if it was not given to the constructor.
    asks_first: whether `execute` may take cancel_timeout (`run.cancellation.grace`) to end after a cancellation: it
        asks its process to stop before it kills it. Default False.
    """

    asks_first = False

    def __init__(self, function: Function | None = None) -> None:
        self.function = function

    @abstractmethod
    async def execute(self, run: Run) -> Any:
        """Does the run's work. The return value is stored as the result (as JSON); an exception fails the attempt."""

    async def call(self, run: Run) -> Any:
        """Calls the registered function with the arguments of its signature: awaits it, or runs it in a thread."""
        function = self.function
        assert function is not None
        signature = Signature.of(function)
        arguments = signature.bind(run)
        if signature.is_async:
            return await function(**arguments)
        return await _in_thread(functools.partial(function, **arguments), run)

    def next_fire_time(self, schedule: Schedule, after: datetime) -> datetime | None:
        """The schedule's first fire time strictly after an instant, or None if none is left.

        Override it if no expression describes the fire times; it must be quick, and return the same on every worker.
        """
        return fire_times(schedule).next(after)

    @property
    def place(self) -> Place | None:
        """The place that a run takes besides a slot: a thread, if the function is not async."""
        return Place.THREAD if self.function is not None and not Signature.of(self.function).is_async else None

    def check(self, function: Function) -> None:  # noqa: B027 - most executors take any function
        """Called at registration. Raises RegistrationError for a function that it cannot execute."""


class FunctionExecutor(Executor):
    """The default: calls the function."""

    async def execute(self, run: Run) -> Any:
        """Calls the function with its arguments."""
        return await self.call(run)


class OverriddenTimes:
    """The fire times that an executor computes itself, with the methods that the policies need."""

    # After this many steps a backlog is cut short: an executor has no arithmetic to count a year of seconds.
    MOST = 10_000

    def __init__(self, executor: Executor, schedule: Schedule) -> None:
        self._executor, self._schedule = executor, schedule

    def next(self, after: datetime) -> datetime | None:
        """The executor's answer. Raises ValueError unless it is after `after`."""
        coming = self._executor.next_fire_time(self._schedule, after)
        if coming is not None and (coming.tzinfo is None or coming <= after or coming.year >= 2200):
            raise ValueError(
                f"next_fire_time() of {type(self._executor).__name__} must return an aware datetime after `after` "
                "and before the year 2200, or None."
            )
        return coming

    def _walk(self, after: datetime, until: datetime) -> Iterable[datetime]:
        for _ in range(self.MOST):
            coming = self.next(after)
            if coming is None or coming > until:
                return
            yield coming
            after = coming

    def latest(self, after: datetime, until: datetime) -> datetime | None:
        """The last fire time in (after, until]."""
        last = None
        for last in self._walk(after, until):  # noqa: B007 - only the last one counts
            pass
        return last

    def count(self, after: datetime, until: datetime) -> int:
        """The number of fire times in (after, until]."""
        return sum(1 for _ in self._walk(after, until))


class Signature:
    """The parameters of a function: the Run and the Schedule by annotation, arguments by name."""

    def __init__(self, function: Function) -> None:
        self.name = getattr(function, "__name__", type(function).__name__)
        self.injected: dict[str, tuple[type, bool]] = {}
        self.required: set[str] = set()
        self.optional: set[str] = set()
        self.any_name = False
        self.is_async = is_async(function)
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            raise RegistrationError(f"{self.name} has no readable signature: wrap it in a Python function.") from None
        hints = _hints(function)
        for parameter in parameters:
            self._add(parameter, hints.get(parameter.name, parameter.annotation))
        self._named = self.required | self.optional

    @staticmethod
    def of(function: Function) -> Signature:
        """The function's signature, read once."""
        try:
            return _signature(function)
        except TypeError:  # not hashable
            return Signature(function)

    def _add(self, parameter: inspect.Parameter, annotation: Any) -> None:
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise RegistrationError(
                f"{self.name}() takes {parameter.name!r} by position only; arguments are given by name: remove the `/`."
            )
        if parameter.kind is parameter.VAR_POSITIONAL:
            raise RegistrationError(f"{self.name}() takes *{parameter.name}; arguments are given by name: remove it.")
        if parameter.kind is parameter.VAR_KEYWORD:
            self.any_name = True
            return
        for wanted in (Run, Schedule):
            if (optional := _asks_for(annotation, wanted)) is not None:
                self.injected[parameter.name] = (wanted, optional)
                return
        (self.required if parameter.default is parameter.empty else self.optional).add(parameter.name)

    def problem(self, names: Iterable[str]) -> str | None:
        """Why arguments of these names do not fit, as a sentence, or None."""
        given = set(names)
        if self.required <= given <= self._named:
            return None
        if taken := sorted(given & self.injected.keys()):
            return f"{self.name}() gets {taken[0]!r} from pgsched, so args must not name it."
        if missing := sorted(self.required - given):
            return f"{self.name}() needs the argument {missing[0]!r}, which args does not give."
        if not self.any_name and (extra := sorted(given - self._named)):
            return f"{self.name}() has no parameter {extra[0]!r}, which args gives."
        return None

    def unknown(self, names: Iterable[str]) -> str | None:
        """The first of these names that is not an argument of the function, or None."""
        if self.any_name:
            return None
        return next((name for name in names if name not in self._named), None)

    def bind(self, run: Run) -> dict[str, Any]:
        """The keyword arguments for a run. Raises InvalidArguments if they do not fit."""
        if (problem := self.problem(run.args)) is not None:
            raise InvalidArguments(problem)
        arguments = dict(run.args)
        for name, (wanted, optional) in self.injected.items():
            if wanted is Schedule and run.schedule is None and not optional:
                raise InvalidArguments(
                    f"{self.name}() asks for its Schedule, but this run was enqueued and has none: "
                    "annotate it `Schedule | None`."
                )
            arguments[name] = run if wanted is Run else run.schedule
        return arguments


_signature = functools.lru_cache(maxsize=4096)(Signature)


def _hints(function: Function) -> Mapping[str, Any]:
    target = function.func if isinstance(function, functools.partial) else function
    if not inspect.isroutine(target):
        target = type(target).__call__
    try:
        return typing.get_type_hints(target)
    except Exception:  # annotations that do not resolve stay texts, and are compared as texts
        return {}


def _asks_for(annotation: Any, wanted: type) -> bool | None:
    """Whether an annotation names the class: None if it does not, False if it does, True for `class | None`."""
    if annotation is wanted:
        return False
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        parts = typing.get_args(annotation)
        return True if wanted in parts and type(None) in parts and len(parts) == 2 else None
    if isinstance(annotation, str):
        parts_ = {part.strip().rsplit(".", 1)[-1] for part in annotation.split("|")}
        if wanted.__name__ in parts_ and parts_ <= {wanted.__name__, "None"}:
            return "None" in parts_
    return None


def is_async(function: Function) -> bool:
    """Whether calling the function returns a coroutine."""
    target = function.func if isinstance(function, functools.partial) else function
    return inspect.iscoroutinefunction(target) or (
        not inspect.isroutine(target) and inspect.iscoroutinefunction(getattr(target, "__call__", None))  # noqa: B004
    )


def check_function(function: Any) -> None:
    """Raises RegistrationError unless the object can be an entrypoint's function."""
    if not callable(function) or inspect.isclass(function):
        raise RegistrationError(f"{function!r} cannot be registered: an entrypoint is a function.")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise RegistrationError(f"{function.__name__}() is a generator: an entrypoint returns, it does not yield.")
    Signature.of(function)


def make(executor: Any, function: Function) -> Executor:
    """The executor of a registered function, from a subclass, an instance, or None for the default."""
    if executor is None:
        return FunctionExecutor(function)
    if inspect.isclass(executor) and issubclass(executor, Executor):
        executor = executor(function)
    if not isinstance(executor, Executor):
        raise RegistrationError(f"executor={executor!r} is neither a subclass of Executor nor an instance of one.")
    known = getattr(executor, "function", None)  # a subclass may not have called our constructor
    if known is not None and known is not function:
        raise RegistrationError(f"one {type(executor).__name__} object cannot serve two functions: make one for each.")
    executor.function = function
    executor.check(function)
    return executor


async def _in_thread(function: Callable[[], Any], run: Run) -> Any:
    """Calls the function in one of the worker's threads, with this task's context variables."""
    context = contextvars.copy_context()
    thread_call = THREAD_CALL.get()
    if thread_call.around:
        function = functools.partial(_within, thread_call.around, run, function)
    loop = asyncio.get_running_loop()
    thread_call.future = loop.run_in_executor(thread_call.pool, context.run, _captured, function)
    ok, value = await asyncio.shield(thread_call.future)
    if not ok:
        raise value
    if inspect.isawaitable(value):
        if inspect.iscoroutine(value):
            value.close()
        raise InvalidArguments("the function returned a coroutine without being `async def`: make it one.")
    return value


def _within(around: Sequence[Hook], run: Run, function: Callable[[], Any]) -> Any:
    """Calls the function within the application's context managers, as in nested `with` statements."""
    with contextlib.ExitStack() as stack:
        for hook in around:
            manager = hook.function(run)
            if not hasattr(manager, "__enter__"):
                raise TypeError(
                    f"{hook.name}(), which is registered as around_sync, returned a value of type "
                    f"{type(manager).__name__}: return a context manager, as under @contextlib.contextmanager."
                )
            stack.enter_context(manager)
        return function()
    return None  # a context manager has swallowed the function's error


def _captured(function: Callable[[], Any]) -> tuple[bool, Any]:
    # A StopIteration cannot be put into a future, and a SystemExit would end the thread: both become values.
    try:
        return True, function()
    except BaseException as error:
        return False, error
