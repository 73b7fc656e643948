"""Runs that are commands: programs with their arguments, each in its own process group.

A row of the database may name a program only if the application allows it: see Scheduler.allow_commands().
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pgsched.errors import InvalidArguments, PgschedError
from pgsched.executors.child import UNKNOWN, Child, Output, check_platform, environment, exit_text, last_words
from pgsched.executors.executor import Executor, Function, Place
from pgsched.journal import Journal
from pgsched.model import Run

ENTRYPOINT = "command"  # the entrypoint of imported crontabs


class CommandFailed(PgschedError):
    """A command that could not be started, or whose exit code is not 0.

    exit_code_of_command: its exit code, minus the signal's number if a signal ended it; None if there is none.
    """

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.exit_code_of_command = exit_code


@dataclass(frozen=True, slots=True)
class Command:
    """A program to run, returned by a function for CommandExecutor.

    argv: the program and its arguments; no shell reads them. With `shell`, one text for the shell.
    env: variables to add to the worker's environment; None removes a variable.
    cwd: the directory. Default: the worker's.
    shell: True for /bin/sh, or the path of another shell. Default: no shell.
    stdin: the text of its standard input. Default: empty.

    Raises InvalidArguments for values of other types.
    """

    argv: Sequence[str] | str
    env: Mapping[str, str | None] = field(default_factory=dict)
    cwd: str | None = None
    shell: bool | str = False
    stdin: str | None = None

    def __post_init__(self) -> None:
        if self.shell is not False:
            if not isinstance(self.argv, str) or not self.argv.strip():
                raise InvalidArguments(f"With shell, argv must be one text for the shell, not {self.argv!r}.")
        elif isinstance(self.argv, str):
            raise InvalidArguments(
                f"argv must be a list such as {self.argv.split()!r}, not a text; for a shell, add shell=True."
            )
        elif not isinstance(self.argv, Sequence) or not self.argv or not all(isinstance(a, str) for a in self.argv):
            raise InvalidArguments(f"argv must be a list of texts, the program first, not {self.argv!r}.")
        if not isinstance(self.env, Mapping) or not all(
            isinstance(k, str) and isinstance(v, str | None) and k and "=" not in k for k, v in self.env.items()
        ):
            raise InvalidArguments("env must be a dict of names (without =) and texts.")
        for name, kinds in (("cwd", (str, type(None))), ("shell", (str, bool)), ("stdin", (str, type(None)))):
            if not isinstance(getattr(self, name), kinds):
                raise InvalidArguments(f"{name} must be a text, not {getattr(self, name)!r}.")
        texts = [self.argv] if isinstance(self.argv, str) else [*self.argv]
        texts += [*self.env, *filter(None, self.env.values()), self.cwd or "", str(self.shell)]
        if any("\0" in text for text in texts):
            raise InvalidArguments("A command's texts must not hold a NUL character.")

    @property
    def words(self) -> list[str]:
        """The program and its arguments, as they are executed."""
        if isinstance(self.argv, str):
            return ["/bin/sh" if self.shell is True else str(self.shell), "-c", self.argv]
        return [*self.argv]


class CommandExecutor(Executor):
    """Runs the command that the function returns: a list of texts, or a Command.

    The command gets the worker's environment, PGSCHED_RUN_ID, PGSCHED_TOKEN, PGSCHED_ATTEMPT and PGSCHED_ENTRYPOINT,
    and for fire times PGSCHED_SCHEDULE and PGSCHED_FIRE_TIME (ISO 8601, in UTC). Its lines of output are kept with the
    run, up to the limit of a run's log. Exit code 0 is success, with the result {"exit_code": 0, "output": the last
    8 KiB}; any other exit code fails the attempt with a CommandFailed.

    If the run is cancelled, runs into its timeout, loses its claim or outlasts a drain, the command's process group
    gets SIGTERM, and after cancel_timeout SIGKILL. Processes that a command leaves behind in its group are killed when
    the command has ended, and the run's log says so; a process that should live on must leave the group (setsid). When
    the worker dies, the group is ended too.

    A worker runs at most max_commands commands at once.
    """

    asks_first = True

    @property
    def place(self) -> Place | None:
        """One of max_commands."""
        return Place.COMMAND

    def check(self, function: Function) -> None:
        """Raises RegistrationError on a platform without process groups."""
        check_platform()

    async def execute(self, run: Run) -> Any:
        """Runs the command to its end. Raises CommandFailed, InvalidArguments."""
        given = await self.call(run)
        command = given if isinstance(given, Command) else Command(given)
        output = Output(run.log, run.journal.drop, Journal.LIMIT)
        child = _start(command, _environment(run, command))
        try:
            await child.listen(output)
            code = await child.ended()
        finally:
            # Also after a cancellation or a fault of ours: nothing of the command goes on.
            await child.end(run.cancellation.grace)
            await output.closed()
        if child.left:
            run.log("the command left processes in the background, which were killed when it ended", "warning")
        if code != 0:
            raise CommandFailed(_failure(command, code, output.tail), None if code == UNKNOWN else code)
        return {"exit_code": 0, "output": output.tail}


def _start(command: Command, env: dict[str, str]) -> Child:
    words = command.words
    try:
        if command.stdin is None:
            return Child(words, env=env, cwd=command.cwd)
        with tempfile.TemporaryFile() as file:  # a pipe would have to be fed, at the command's pace
            file.write(command.stdin.encode())
            file.seek(0)
            return Child(words, env=env, cwd=command.cwd, stdin=file.fileno())
    except (OSError, ValueError) as error:
        # If the directory is at fault, the error names the directory.
        name = getattr(error, "filename", None) or words[0]
        reason = getattr(error, "strerror", None) or str(error)
        raise CommandFailed(f"{words[0]!r} cannot be started: {reason}: {name!r}.") from None


def _environment(run: Run, command: Command) -> dict[str, str]:
    more = {
        "PGSCHED_RUN_ID": str(run.id),
        "PGSCHED_TOKEN": str(run.token),
        "PGSCHED_ATTEMPT": str(run.attempt),
        "PGSCHED_ENTRYPOINT": run.entrypoint,
    }
    if run.schedule is not None:
        more["PGSCHED_SCHEDULE"] = run.schedule.name
    if run.fire_time is not None:
        more["PGSCHED_FIRE_TIME"] = run.fire_time.isoformat()
    env: Mapping[str, str | None] = {**environment({}), **command.env, **more}
    return {name: value for name, value in env.items() if value is not None}


def _failure(command: Command, code: int, output: str) -> str:
    name = os.path.basename(command.words[0]) if not command.shell else "the command"  # noqa: PTH119 - no path
    return f"{name} {exit_text(code)}{last_words(output)}"


async def stored_command(
    argv: Sequence[str] | str,
    env: Mapping[str, str | None] | None = None,
    cwd: str | None = None,
    shell: bool | str = False,
    stdin: str | None = None,
) -> Command:
    """The function of the entrypoint that runs the command in its arguments. Raises InvalidArguments."""
    return Command(argv, env or {}, cwd, shell, stdin)
