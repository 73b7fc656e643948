"""Which database the settings lead to: the one that they name, or else the embedded one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager

from pgsched import log
from pgsched.config import Settings
from pgsched.db import embedded


def database(settings: Settings) -> AbstractContextManager[str | None]:
    """The DSN to use, None for libpq's environment. If no database is named, the embedded one runs during the block.

    Blocks while that starts and stops. Raises ConfigurationError if it is not installed or does not start.
    """
    return _server(settings) or contextlib.nullcontext(settings.dsn)


@contextlib.asynccontextmanager
async def database_async(settings: Settings) -> AsyncIterator[tuple[str | None, bool]]:
    """Like database(), without blocking the event loop. Also yields whether it is the embedded one."""
    server = _server(settings)
    if server is None:
        yield settings.dsn, False
        return
    dsn = await asyncio.to_thread(server.__enter__)
    try:
        log.get().info("embedded_started", data_dir=str(settings.data_dir or embedded.default_data_dir()))
        yield dsn, True
    finally:
        await asyncio.to_thread(server.__exit__, None, None, None)


def _server(settings: Settings) -> AbstractContextManager[str] | None:
    """The embedded server, not started yet, or None if a database is named."""
    return None if settings.names_a_database else embedded.start(settings.data_dir)
