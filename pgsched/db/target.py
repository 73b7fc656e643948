"""Which database the settings lead to: the one that they name, or else the embedded one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager

from pgsched import log
from pgsched.config import Settings
from pgsched.db import embedded
from pgsched.db.session import Backoff
from pgsched.errors import ConfigurationError

_LOOK = 1.0  # seconds between looks at the embedded server's process


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
        watch = asyncio.create_task(_keep_alive(settings.data_dir))
        try:
            yield dsn, True
        finally:
            watch.cancel()
            await asyncio.wait([watch])  # a start that is under way ends before the server is stopped
    finally:
        await asyncio.to_thread(server.__exit__, None, None, None)


async def _keep_alive(data_dir: str | None) -> None:
    """Starts the embedded server again whenever it dies: nobody else would."""
    backoff = Backoff(_LOOK, 30.0, healthy=60.0)
    while True:
        await asyncio.sleep(_LOOK)
        start = asyncio.ensure_future(asyncio.to_thread(embedded.revive, data_dir))
        try:
            if await asyncio.shield(start):
                log.get().warning("embedded_restarted")
        except ConfigurationError as error:
            log.get().error("embedded_not_restarted", error=str(error))
            await asyncio.sleep(backoff.delay())
        except asyncio.CancelledError:
            await asyncio.wait([start])
            raise


def _server(settings: Settings) -> AbstractContextManager[str] | None:
    """The embedded server, not started yet, or None if a database is named."""
    return None if settings.names_a_database else embedded.start(settings.data_dir)
