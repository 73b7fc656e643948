"""The ready-made factory for workers that only run commands: `pgsched run pgsched.commands:create_scheduler`.

Systemd units name it by this path. The classes of commands can be imported from here, too.
"""

from __future__ import annotations

from pgsched.executors.command import ENTRYPOINT, Command, CommandExecutor, CommandFailed
from pgsched.scheduler import Scheduler

__all__ = ["ENTRYPOINT", "Command", "CommandExecutor", "CommandFailed", "create_scheduler"]


def create_scheduler() -> Scheduler:
    """A factory for workers that do nothing but run commands: `pgsched run pgsched.commands:create_scheduler`.

    It serves the schedules that `pgsched import-crontab` makes. Whoever may write to the database's tables may have
    any program run there, as the user that the worker runs as.
    """
    scheduler = Scheduler()
    scheduler.allow_commands()
    return scheduler
