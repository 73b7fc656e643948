"""Turns settings into a running worker: finds the database, migrates the schema if it may, and serves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import structlog

from pgsched import config, log
from pgsched.config import Settings
from pgsched.db import migrate
from pgsched.db.failures import unreachable
from pgsched.db.mishaps import Failures
from pgsched.db.session import Session, conninfo_for
from pgsched.errors import PgschedError
from pgsched.scheduler import Scheduler
from pgsched.worker.worker import Worker


async def serve(
    scheduler: Scheduler,
    flags: Mapping[str, Any],
    *,
    file: str | None = None,
    migrate_first: bool = False,
    hard_exit: Callable[[int], object] | None = None,
) -> int:
    """Runs a scheduler with settings from all sources; starts the embedded server if no database is named.

    migrate_first: whether to migrate the schema before the start; the embedded server's is always migrated.
    hard_exit: ends the process, with an exit code, if a run cannot be ended; without it, such a run is waited for.

    Returns how many runs were given back unfinished. Raises ConfigurationError, SchemaError or DatabaseUnavailable if
    the worker cannot start.
    """
    settings = config.load(flags, scheduler.settings, file=file)
    if not structlog.is_configured():
        log.configure(settings.log_level, settings.log_format)
    async with database(settings) as (dsn, embedded):
        if dsn is not None:
            settings = settings.merged({"dsn": dsn}, "embedded server")
        if embedded or migrate_first:
            await _migrate(settings)
        return await Worker(scheduler, settings, hard_exit).run()


@contextlib.asynccontextmanager
async def database(settings: Settings) -> AsyncIterator[tuple[str | None, bool]]:
    """The DSN, and whether it is that of the embedded server, which then runs for as long as the block."""
    if settings.names_a_database:
        yield settings.dsn, False
        return
    from pgsched.db import embedded  # noqa: PLC0415 - the extra may not be installed

    context = embedded.start(settings.data_dir)
    dsn = await asyncio.to_thread(context.__enter__)
    try:
        log.get().info("embedded_started", data_dir=str(settings.data_dir or embedded.default_data_dir()))
        yield dsn, True
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)


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
