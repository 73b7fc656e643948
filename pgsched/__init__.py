"""pgsched: a scheduler daemon on PostgreSQL.

Cron, intervals and one-off jobs that fire once, on time, on any number of machines, with nothing but the
database. A factory builds a `Scheduler`, registers functions and schedules with it and returns it;
`pgsched run app.factory` runs it.
"""

from importlib.metadata import version as _version

from pgsched.client.client import Client, Enqueued, connect
from pgsched.client.sync import connect_sync
from pgsched.errors import (
    ClaimLost,
    ConfigurationError,
    DatabaseUnavailable,
    Discard,
    InvalidArguments,
    InvalidExpression,
    NotFound,
    PgschedError,
    RegistrationError,
    RetryLater,
    SchemaError,
)
from pgsched.executors.command import Command, CommandExecutor, CommandFailed
from pgsched.executors.executor import Executor
from pgsched.executors.process import ProcessDied, ProcessExecutor
from pgsched.expression.expression import at, every, upcoming
from pgsched.hooks import RunEnd, RunFailure
from pgsched.model import Run, Schedule
from pgsched.rules.ledger import Skip
from pgsched.rules.limits import Limits
from pgsched.rules.outcome import RemoteError
from pgsched.rules.retry import Retry
from pgsched.scheduler import Scheduler

__version__ = _version("pgsched")

__all__ = [
    "ClaimLost",
    "Client",
    "Command",
    "CommandExecutor",
    "CommandFailed",
    "ConfigurationError",
    "DatabaseUnavailable",
    "Discard",
    "Enqueued",
    "Executor",
    "InvalidArguments",
    "InvalidExpression",
    "Limits",
    "NotFound",
    "PgschedError",
    "ProcessDied",
    "ProcessExecutor",
    "RegistrationError",
    "RemoteError",
    "Retry",
    "RetryLater",
    "Run",
    "RunEnd",
    "RunFailure",
    "Schedule",
    "Scheduler",
    "SchemaError",
    "Skip",
    "at",
    "connect",
    "connect_sync",
    "every",
    "upcoming",
]

# Errors are stored by module and class: public ones by this module, wherever they are defined.
for _name in __all__:
    globals()[_name].__module__ = __name__
