"""The Scheduler that a factory returns: functions under the names that the database uses, and their schedules.

Nothing here talks to a database. A worker does, and runs the functions that are registered here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar

from pgsched.config import Settings
from pgsched.errors import InvalidArguments, RegistrationError
from pgsched.executors import executor as executors
from pgsched.executors.command import ENTRYPOINT, Command, CommandExecutor, stored_command
from pgsched.executors.executor import Executor, Function, Place, Signature
from pgsched.executors.home import Home, home_of_program
from pgsched.expression.expression import parse
from pgsched.hooks import HookDecorators, Hooks
from pgsched.rules import deploy, options
from pgsched.rules.limits import Limits
from pgsched.rules.retry import Retry

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


@dataclass(slots=True)
class Entrypoint:
    """A registered function, and the rules for those of its runs that have none of their own."""

    name: str
    function: Function
    executor: Executor
    retry: Retry = field(default_factory=Retry)
    timeout: timedelta | None = None
    limits: Limits = field(default_factory=Limits)
    own: list[Executor] = field(default_factory=list)  # the executors of its schedules

    @property
    def places(self) -> frozenset[Place]:
        """The places of a worker that its run may take. A run is claimed before its executor is known."""
        return frozenset(each.place for each in (self.executor, *self.own) if each.place is not None)


@dataclass(frozen=True, slots=True)
class Declared:
    """A schedule that the code declares."""

    name: str
    row: dict[str, Any]
    executor: Executor | None
    retry: Retry | None = None


class Scheduler(HookDecorators):
    """Collects entrypoints and schedules, and runs them.

    dsn: the database. Default: as `pgsched run` finds it.
    app: the application's name. It keeps declared schedules apart from those of other applications, and only workers
        of the application run them. Default: the project's name and the factory's import path, such as
        "shop/app.create_scheduler". All workers of one version must declare the same schedules.
    resources: anything that runs need, available as `run.resources`.
    settings: any setting, as a keyword; flags, environment and pgsched.toml win.

    Raises ConfigurationError for settings that are unknown or out of range.
    """

    def __init__(
        self, dsn: str | None = None, *, app: str | None = None, resources: Any = None, **settings: Any
    ) -> None:
        self.settings: dict[str, Any] = {**settings, "dsn": dsn}
        Settings().merged(self.settings, "Scheduler")
        if app is not None and (not isinstance(app, str) or not app.strip() or not app.isprintable() or len(app) > 200):
            raise RegistrationError(f"app={app!r} must be a printable text of 1 to 200 characters.")
        self.app = app
        self._home: Home | None = None
        self.resources = resources
        self.entrypoints: dict[str, Entrypoint] = {}
        self.declared: dict[str, Declared] = {}
        self._pairs: set[tuple[str, str]] = set()  # entrypoint and expression of each declared schedule
        self.hooks = Hooks()
        self.ready = asyncio.Event()
        self._stop: Callable[[], None] | None = None
        self._stopped = False

    def schedule(
        self,
        entrypoint: str,
        expression: str,
        *,
        name: str | None = None,
        timezone: str = "UTC",
        args: Mapping[str, Any] | None = None,
        overlap: str | int = "skip",
        catch_up: str = "latest",
        catch_up_limit: int = 1000,
        grace: timedelta | None = None,
        timeout: timedelta | None = None,
        retry: Retry | None = None,
        jitter: timedelta | None = None,
        starts_at: datetime | None = None,
        ends_at: datetime | None = None,
        max_runs: int | None = None,
        priority: int = 0,
        executor: type[Executor] | Executor | None = None,
    ) -> Callable[[F], F]:
        """Declares a schedule of the decorated function, and registers the function under the entrypoint's name.

        expression: a cron expression, every(...), at(...) or a macro, read on the wall clock of `timezone`.
        name: default: the entrypoint and the expression.
        args: JSON, given to the function by name.
        overlap: for a fire time that comes while an earlier run is live: "skip" (it does not run), "queue" (it waits;
            at most one does), "cancel" (the earlier run is cancelled first), "allow", or N (at most N run at once).
        catch_up: which of several missed fire times run: "latest", "all" (the newest catch_up_limit, oldest first), or
            "none".
        grace: a fire time older than this is missed.
        timeout, retry: default: the entrypoint's.
        jitter: delay each start by up to this much.
        starts_at, ends_at: aware instants; the schedule fires from the one through the other, and at no other time.
        max_runs: the schedule is finished after this many runs.
        priority: -100 to 100; due runs of a higher priority start first.
        executor: how its runs are executed. Default: the entrypoint's.

        Raises RegistrationError or InvalidExpression, both ValueErrors.
        """
        where = f"schedule({entrypoint!r}, {expression!r})"
        parse(expression, timezone, name=name or str(entrypoint))  # before anything else: it has the best sentence
        if name is None and (entrypoint, expression) in self._pairs:
            raise RegistrationError(f"{where} is declared twice: give the second schedule another name, name='…'.")
        title = name if name is not None else f"{entrypoint} {expression}"
        given = {
            "entrypoint": entrypoint, "expression": expression, "timezone": timezone, "args": args,
            "overlap": overlap, "catch_up": catch_up, "catch_up_limit": catch_up_limit, "grace": grace,
            "timeout": timeout, "retry": retry, "jitter": jitter, "starts_at": starts_at, "ends_at": ends_at,
            "max_runs": max_runs, "priority": priority,
        }  # fmt: skip
        row = _checked(where, lambda: {"name": options.name_of("name", title), **options.columns(given)})
        if title in self.declared:
            raise RegistrationError(f"{where}: the name {title!r} is already taken: choose another name.")

        def register(function: F) -> F:
            known = self._register(entrypoint, function, where)
            if (problem := Signature.of(function).problem(row["args"])) is not None:
                raise RegistrationError(f"{where}: {problem}")
            own = _made(where, executor, function) if executor is not None else None
            known.own += [own] if own is not None else []
            self.declared[title] = Declared(title, row, own, retry)
            self._pairs.add((row["entrypoint"], row["expression"]))
            self.entrypoints.setdefault(entrypoint, known)
            return function

        return register

    def entrypoint(
        self,
        name: str,
        *,
        retry: Retry | None = None,
        timeout: timedelta | None = None,
        limits: Limits | None = None,
        executor: type[Executor] | Executor | None = None,
    ) -> Callable[[F], F]:
        """Registers the decorated function for enqueued jobs and for schedules that are made at run time.

        retry, timeout: for runs that have none of their own. Default: Retry(), and no timeout.
        executor: how its runs are executed. Default: an executor that calls the function.
        limits: how many of its runs may be running, and how many may start in a period, counting all schedules and
            clients. Default: any number.

        Raises RegistrationError.
        """
        where = f"entrypoint({name!r})"
        _checked(where, lambda: options.name_of("name", name))
        _checked(where, lambda: options.columns({"retry": retry, "timeout": timeout}))
        if limits is not None and not isinstance(limits, Limits):
            raise RegistrationError(f"{where}: limits must be a Limits(...), not {limits!r}.")

        def register(function: F) -> F:
            known = self._register(name, function, where)
            if executor is not None:
                known.executor = _made(where, executor, function)
            known.retry = retry or known.retry
            known.timeout = timeout or known.timeout
            known.limits = limits or known.limits
            if (strange := Signature.of(function).unknown(known.limits.keys)) is not None:
                raise RegistrationError(
                    f"{where}: concurrency_key names {strange!r}, but the function has no such argument."
                )
            if (other := self._other_shared(known)) is not None:
                raise RegistrationError(
                    f"{where}: its limits and those of {other!r} share the name {known.limits.shared!r}, but differ: "
                    "declare the same limits, or use two names."
                )
            self.entrypoints[name] = known
            return function

        return register

    def _other_shared(self, known: Entrypoint) -> str | None:
        """An entrypoint with other limits under the same shared name."""
        for other in self.entrypoints.values():
            same = known.limits.shared is not None and other.limits.shared == known.limits.shared
            if same and other is not known and other.limits.row() != known.limits.row():
                return other.name
        return None

    def command(
        self,
        name: str,
        argv: Sequence[str] | str,
        *,
        env: Mapping[str, str | None] | None = None,
        cwd: str | None = None,
        shell: bool | str = False,
        stdin: str | None = None,
        retry: Retry | None = None,
        timeout: timedelta | None = None,
        limits: Limits | None = None,
    ) -> FixedCommand:
        """Registers a command as an entrypoint: `sc.command("backup", ["pg_dump", "app"]).schedule("0 3 * * *")`.

        argv, env, cwd, shell, stdin: as in Command.
        retry, timeout, limits: as in entrypoint().

        Returns an object whose schedule() declares schedules of the command; it can also be enqueued. Raises
        RegistrationError.
        """
        where = f"command({name!r})"
        command = _checked(where, lambda: Command(argv, env or {}, cwd, shell, stdin))
        fixed = FixedCommand(self, name, command)
        self.entrypoint(name, retry=retry, timeout=timeout, limits=limits, executor=CommandExecutor)(fixed)
        return fixed

    def allow_commands(
        self,
        name: str = ENTRYPOINT,
        *,
        retry: Retry | None = None,
        timeout: timedelta | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Registers an entrypoint that runs the command in a run's arguments.

        The arguments are {"argv": […], "env": {…}, "cwd": …, "shell": false, "stdin": …}; only argv is required.
        Only this call lets a row name the program: everybody with the right to write schedules or runs can then run
        any program as the worker's user. Raises RegistrationError.
        """
        self.entrypoint(name, retry=retry, timeout=timeout, limits=limits, executor=CommandExecutor)(stored_command)

    def _register(self, name: str, function: Any, where: str) -> Entrypoint:
        try:
            executors.check_function(function)
        except RegistrationError as error:
            raise RegistrationError(f"{where}: {error}") from None
        known = self.entrypoints.get(name)
        if known is not None and known.function is not function:
            raise RegistrationError(
                f"{where}: the entrypoint {name!r} is already another function: choose another name for this one."
            )
        return known or Entrypoint(name, function, executors.make(None, function))

    def executor_for(self, entrypoint: str, schedule_name: str | None) -> Executor | None:
        """The executor of a run: its schedule's own, or the entrypoint's; None for an unknown entrypoint."""
        declared = self.declared.get(schedule_name) if schedule_name is not None else None
        if declared is not None and declared.executor is not None and declared.row["entrypoint"] == entrypoint:
            return declared.executor
        known = self.entrypoints.get(entrypoint)
        return known.executor if known is not None else None

    def retry_for(self, entrypoint: str, schedule_name: str | None) -> Retry:
        """The code's Retry for a run: its schedule's own, or the entrypoint's."""
        declared = self.declared.get(schedule_name) if schedule_name is not None else None
        if declared is not None and declared.retry is not None and declared.row["entrypoint"] == entrypoint:
            return declared.retry
        known = self.entrypoints.get(entrypoint)
        return known.retry if known is not None else Retry()

    @property
    def home(self) -> Home:
        """The project and the factory that it comes from; without a factory, the program that runs."""
        if self._home is None:
            self._home = home_of_program()
        return self._home

    def come_from(self, home: Home) -> None:
        """Records which factory has built it."""
        self._home = home

    @property
    def app_name(self) -> str:
        """The application's name: as given, or derived from its home."""
        return self.app or self.home.name

    @property
    def former_names(self) -> frozenset[str]:
        """The default names of this factory's application, in this and in earlier versions."""
        return frozenset({self.home.name, self.home.path}) - {self.app_name}

    @property
    def owner(self) -> str:
        """The owner of its declared schedules, as stored in their rows."""
        return f"code:{self.app_name}"

    def rows(self) -> list[dict[str, Any]]:
        """Its declared schedules, as rows."""
        return [{**declared.row, "owner": self.owner, "app": self.app_name} for declared in self.declared.values()]

    def limit_rows(self) -> list[dict[str, Any]]:
        """The limits that all workers keep together, as rows."""
        return [{"entrypoint": e.name, **row} for e in self.entrypoints.values() if (row := e.limits.row())]

    @property
    def fingerprint(self) -> str:
        """A hash over its declared schedules and limits, the same on every machine."""
        return deploy.fingerprint((d.row for d in self.declared.values()), self.limit_rows())

    async def run(self, **settings: Any) -> int:
        """Runs until shutdown(), a signal or a cancellation, then drains.

        It takes only signals that would end the process because nobody handles them, and configures no logging. If it
        is awaited by the program's main coroutine, it returns after a signal. In any other task, the signal then ends
        the process. A cancellation is raised once the drain is over; a second one is raised at once.

        settings: like command line flags, they win over all other sources.

        Returns the number of runs that had to be given back because they did not end within drain_timeout. Raises
        ConfigurationError, SchemaError or DatabaseUnavailable if it cannot start.
        """
        from pgsched.worker.serve import serve  # noqa: PLC0415 - worker is built on top of this module

        return await serve(self, settings)

    def shutdown(self) -> None:
        """Asks run() to drain and return, at once or as soon as it has started. Call it in the loop's thread."""
        self._stopped = True
        if self._stop is not None:
            self._stop()

    def attach(self, stop: Callable[[], None] | None) -> None:
        """Sets the function that stops the worker that runs this, or None when the worker is gone."""
        self._stop = stop
        if stop is not None and self._stopped:
            stop()
        if stop is None:
            self._stopped = False
            self.ready.clear()


class FixedCommand:
    """The entrypoint that Scheduler.command() makes: a function that always returns the same command.

    Give it schedules with `.schedule(expression, …)`.
    """

    def __init__(self, scheduler: Scheduler, name: str, command: Command) -> None:
        self.__name__ = name
        self.command = command
        self._scheduler = scheduler

    async def __call__(self) -> Command:
        """The command."""
        return self.command

    def schedule(self, expression: str, **options: Any) -> FixedCommand:
        """Declares a schedule of it, with the options of Scheduler.schedule(). Returns itself."""
        self._scheduler.schedule(self.__name__, expression, **options)(self)
        return self


def _made(where: str, executor: Any, function: Function) -> Executor:
    try:
        return executors.make(executor, function)
    except RegistrationError as error:
        raise RegistrationError(f"{where}: {error}") from None


def _checked(where: str, check: Callable[[], T]) -> T:
    """The check's result. Raises its error with the place of the declaration."""
    try:
        return check()
    except InvalidArguments as error:
        raise RegistrationError(f"{where}: {error}") from None
