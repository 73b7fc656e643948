"""Runs that are commands: programs with their arguments, each in a process group of its own.

A row of the database names a program only where the application says that it may: see Scheduler.allow_commands().
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pgsched.errors import InvalidArguments, PgschedError
from pgsched.executors.child import UNKNOWN, Child, Output, check_platform, environment, last_words, told
from pgsched.executors.executor import Executor, Function, Place
from pgsched.journal import Journal
from pgsched.model import Run

ENTRYPOINT = "command"  # what a crontab's schedules name


class CommandFailed(PgschedError):
    """A command that could not be started, or whose exit code is not 0.

    exit_code_of_command: that, minus the signal's number where one ended it; None where there is none.
    """

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.exit_code_of_command = exit_code


@dataclass(frozen=True, slots=True)
class Command:
    """A program to run. What a function returns that CommandExecutor executes.

    argv: the program and its arguments, as they are: no shell reads them. With `shell`, one text for a shell.
    env: what is added to the worker's environment; None takes a name out of it. cwd: the directory, default the
    worker's. shell: True for /bin/sh, or the path of another shell. stdin: what it reads, default nothing.

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
                raise InvalidArguments(f"With shell, argv is one text for the shell, not {self.argv!r}.")
        elif isinstance(self.argv, str):
            raise InvalidArguments(
                f"argv is a list such as {self.argv.split()!r}, not a text; for a shell to read one, say shell=True."
            )
        elif not isinstance(self.argv, Sequence) or not self.argv or not all(isinstance(a, str) for a in self.argv):
            raise InvalidArguments(f"argv is a list of texts, the program first, not {self.argv!r}.")
        if not isinstance(self.env, Mapping) or not all(
            isinstance(k, str) and isinstance(v, str | None) and k and "=" not in k for k, v in self.env.items()
        ):
            raise InvalidArguments("env is a dict of names (without =) and texts.")
        for name, kinds in (("cwd", (str, type(None))), ("shell", (str, bool)), ("stdin", (str, type(None)))):
            if not isinstance(getattr(self, name), kinds):
                raise InvalidArguments(f"{name} is a text, not {getattr(self, name)!r}.")
        texts = [self.argv] if isinstance(self.argv, str) else [*self.argv]
        texts += [*self.env, *filter(None, self.env.values()), self.cwd or "", str(self.shell)]
        if any("\0" in text for text in texts):
            raise InvalidArguments("A command's texts hold no NUL character.")

    @property
    def words(self) -> list[str]:
        """What is executed: the program and its arguments."""
        if isinstance(self.argv, str):
            return ["/bin/sh" if self.shell is True else str(self.shell), "-c", self.argv]
        return [*self.argv]


class CommandExecutor(Executor):
    """Runs the command that the function returns: a list of texts, or a Command.

    The command gets, besides the worker's environment, PGSCHED_RUN_ID, PGSCHED_TOKEN, PGSCHED_ATTEMPT and
    PGSCHED_ENTRYPOINT, and for fire times PGSCHED_SCHEDULE and PGSCHED_FIRE_TIME (ISO 8601, in UTC). Each line that it
    writes is kept with the run, as far as the journal goes. Exit code 0 is success, with the result {"exit_code": 0,
    "output": the last 8 KiB}; any other fails the attempt with a CommandFailed.

    Where the run is cancelled, runs into its timeout, loses its claim or outlasts a drain, the command's process group
    gets SIGTERM, and who is left of it SIGKILL after cancel_timeout. What a command leaves behind in its group is
    killed when it has ended, and the run's lines say so; what shall live on has to leave the group (setsid). When the
    worker dies, the group is ended, too.

    A worker has at most max_commands of them at once.
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
            # Cancelled, or a fault of ours: in any case nothing of it goes on.
            await child.end(run.cancellation.grace)
            await output.closed()
        if child.left:
            run.log("what it had left in the background was killed when it ended", "warning")
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
        # Where the directory is at fault, it is the one that the error names.
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
    return f"{name} {told(code)}{last_words(output)}"


async def stored_command(
    argv: Sequence[str] | str,
    env: Mapping[str, str | None] | None = None,
    cwd: str | None = None,
    shell: bool | str = False,
    stdin: str | None = None,
) -> Command:
    """The function of the entrypoint that runs what its arguments say. Raises InvalidArguments."""
    return Command(argv, env or {}, cwd, shell, stdin)
