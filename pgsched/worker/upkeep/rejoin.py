"""Checks the schema again after a statement did not fit it: a dump may have been restored, or the schema recreated.

session and apart handle the error itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pgsched import log
from pgsched.db import migrate
from pgsched.db.mishaps import Mishaps
from pgsched.db.session import Backoff
from pgsched.errors import SchemaError
from pgsched.worker.kit import Kit


class Rejoin:
    """A worker's check of the schema.

    back: called once the schema fits, so that the worker looks again and sees whether its own row is missing.
    """

    def __init__(self, kit: Kit, back: Callable[[], None]) -> None:
        self._session = kit.control
        self._schema = kit.settings.schema
        self._outage = kit.outage
        self._back = back
        self._doubted = asyncio.Event()
        self._backoff = Backoff(1.0, 30.0, healthy=60.0)
        self._unfit = ""  # the problem that was logged
        self._log = log.get()
        for session in (kit.control, kit.writes):
            session.subscribe(misfit=self._doubted.set)

    async def run(self) -> None:
        """Checks whenever a statement did not fit, and again until the schema fits."""
        while True:
            await self._doubted.wait()
            # Clear before looking: a statement that fails meanwhile costs one more look.
            self._doubted.clear()
            if await self._fits():
                self._back()
            else:
                self._doubted.set()
            await asyncio.sleep(self._backoff.delay())

    async def _fits(self) -> bool:
        try:
            async with self._session.use() as connection:
                await migrate.check(connection, self._schema)
        except SchemaError as error:
            if str(error) != self._unfit:
                self._log.error("schema_unfit", error=str(error))
            self._unfit = str(error)
            return False
        except Mishaps as error:
            self._outage.lost(error, "schema")
            return False
        self._outage.answered("schema")
        self._unfit = ""
        return True
