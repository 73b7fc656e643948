"""Turns settings into a running worker: finds the database, migrates the schema if it may, and serves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from pgsched import config, log
from pgsched.config import Settings
from pgsched.db import migrate
from pgsched.db.failures import unreachable
from pgsched.db.mishaps import Failures
from pgsched.db.session import Session, conninfo_for
from pgsched.db.target import database_async
from pgsched.errors import PgschedError
from pgsched.scheduler import Scheduler
from pgsched.worker.signals import SIGNALS
from pgsched.worker.worker import Worker


async def serve(
    scheduler: Scheduler,
    flags: Mapping[str, Any],
    *,
    file: str | None = None,
    migrate_first: bool = False,
    hard_exit: Callable[[int], object] | None = None,
    owns_process: bool = False,
) -> int:
    """Runs a scheduler with settings from all sources; starts the embedded server if no database is named.

    migrate_first: whether to migrate the schema before the start; the embedded server's is always migrated.
    hard_exit: ends the process, with an exit code, if a run cannot be ended; without it, such a run goes on.
    owns_process: whether the process is there for this scheduler alone. A guest leaves its host's signals and logging
        alone: see worker/signals.py and log.py.

    Returns how many runs were given back unfinished. Raises ConfigurationError, SchemaError or DatabaseUnavailable if
    the worker cannot start.
    """
    settings = config.load(flags, scheduler.settings, file=file)
    if not owns_process:
        log.be_guest(settings.log_level, settings.log_format)
    async with database_async(settings) as (dsn, embedded):
        if dsn is not None:
            settings = settings.merged({"dsn": dsn}, "embedded server")
        if embedded or migrate_first:
            await _migrate(settings)
        given_back = await Worker(scheduler, settings, hard_exit, owns_process=owns_process).run()
    SIGNALS.pass_on(asyncio.current_task())
    return given_back


async def _migrate(settings: Settings) -> None:
    session = Session(conninfo_for(settings.dsn, "pgsched migrate"), "migrate")
    try:
        connection = await session.connect()
        for applied in await migrate.migrate(connection, settings.schema):
            log.get().info("migration_applied", version=applied.version, name=applied.name)
    except PgschedError:
        raise
    except Failures as error:
        raise unreachable(error) from None
    finally:
        await session.discard()
