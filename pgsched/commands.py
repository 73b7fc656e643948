"""The ready-made factory for workers that only run commands: `pgsched run pgsched.commands:create_scheduler`.

Systemd units name it by this path. The classes of commands can be imported from here, too.
"""

from __future__ import annotations

from pgsched.executors.command import ENTRYPOINT, Command, CommandExecutor, CommandFailed
from pgsched.scheduler import Scheduler

__all__ = ["ENTRYPOINT", "Command", "CommandExecutor", "CommandFailed", "create_scheduler"]


def create_scheduler() -> Scheduler:
    """A factory for workers that do nothing but run commands: `pgsched run pgsched.commands:create_scheduler`.

    It serves the schedules that `pgsched import-crontab` makes. Everybody with the right to write to the database's
    tables can run any program there, as the worker's user.
    """
    scheduler = Scheduler()
    scheduler.allow_commands()
    return scheduler
