"""This worker's row in `workers`: written at the start, written again if somebody deletes it, deleted at the end.

Other workers presume that a worker without a row is dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from datetime import timedelta
from importlib.metadata import version

from pgsched import log
from pgsched.db.migrate import migrations
from pgsched.db.mishaps import Mishaps
from pgsched.db.session import Connection
from pgsched.expression.zone_files import package_release, source_of
from pgsched.rules.agenda import Outlook
from pgsched.worker.kit import Kit
from pgsched.worker.run.roster import Roster
from pgsched.worker.whereabouts import route

_ENDING = timedelta(seconds=5)  # how long a hung thread counts after the goodbye, if the process ends at once


class Presence:
    """Keeps the row.

    fingerprint: that of the schedules that the code declares.
    ends: whether the process ends right after the goodbye.
    """

    def __init__(self, kit: Kit, roster: Roster, fingerprint: str, *, ends: bool) -> None:
        self.leaving = False
        self._kit = kit
        self._roster = roster
        self._fingerprint = fingerprint
        self._ends = ends
        self._forgotten = asyncio.Event()
        self._log = log.get()

    def saw(self, outlook: Outlook) -> None:
        """Accepts an outlook, which says whether the row is gone."""
        if outlook.forgotten and not self.leaving:
            self._forgotten.set()

    async def run(self) -> None:
        """Writes our row again whenever somebody has deleted it."""
        while True:
            await self._forgotten.wait()
            self._forgotten.clear()
            try:
                async with self._kit.control.use() as connection:
                    # The goodbye waits for its turn on the same connection. After it the row must stay deleted.
                    if not self.leaving:
                        await self.register(connection)
                        self._log.warning("worker_row_rewritten", worker=str(self._kit.worker))
                self._kit.outage.answered("register")
            except Mishaps as error:  # the next look sees it again
                self._kit.outage.lost(error, "register")

    async def register(self, connection: Connection) -> None:
        """Writes the row."""
        await self._kit.store.upkeep.insert_worker(
            connection,
            worker=self._kit.worker,
            app=self._kit.scheduler.app_name,
            project=self._kit.scheduler.home.project or None,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=version("pgsched"),
            entrypoints=list(self._kit.scheduler.entrypoints),
            direct=self._kit.control.direct,
            heartbeat_interval=self._kit.settings.heartbeat_interval,
            stall_timeout=self._kit.settings.stall_timeout,
            fingerprint=self._fingerprint,
            machine=self._kit.whereabouts.machine,
            process_started=self._kit.whereabouts.started,
            route=route(*self._kit.control.target),
            tzdata=source_of().release,
            tzdata_from=source_of().place,
            tzdata_package=package_release(),
            schema_version=len(migrations()),
        )

    async def say_goodbye(self) -> None:
        """Deletes the row. Functions that go on in threads still count for a while."""
        self.leaving = True
        hanging = [token for _, token in self._roster.in_threads()]
        lease = self._kit.settings.stall_timeout if not self._ends else _ENDING
        with contextlib.suppress(*Mishaps):  # else others forget us within a day
            async with self._kit.control.use() as connection:
                await self._kit.store.upkeep.delete_worker(connection, self._kit.worker, hanging, lease)
