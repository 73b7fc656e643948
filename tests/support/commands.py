"""Runs of commands without a worker, and what the system knows of their processes."""

import os
import subprocess

from pgsched import CommandExecutor, Run
from pgsched.journal import Journal
from pgsched.model import Cancellation


def children_states(column: str = "stat") -> str:
    """The states of this process's children, or another column, as ps has them."""
    command = ["ps", "-o", f"{column}=", "--ppid", str(os.getpid())]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


class Attempt:
    """A run as an executor sees it, without a worker."""

    def __init__(self, command, grace=30.0, **args):
        self.executor = CommandExecutor()

        async def function() -> object:
            return command

        self.executor.function = function
        self.journal = Journal()
        self.run = Run(
            id=7, entrypoint="job", schedule=None, fire_time=None, previous_fire_time=None, attempt=2, args=args,
            worker=None, resources=None, cancellation=Cancellation(grace), journal=self.journal,
        )  # fmt: skip

    async def execute(self):
        return await self.executor.execute(self.run)

    def lines(self) -> list[tuple[str, str]]:
        said = self.journal.read()
        self.journal.wrote(said)
        return [(line.level, line.text) for line in said.lines]
