"""Has the database count the threads that outlive their runs, as long as they go on. The roster knows them."""

from __future__ import annotations

import asyncio

from pgsched.db.mishaps import Mishaps
from pgsched.db.session import Backoff
from pgsched.worker.kit import Kit
from pgsched.worker.run.roster import Roster


class Leftovers:
    """Sends the full list of left-behind threads whenever it changes, and again before its lease ends."""

    def __init__(self, kit: Kit, roster: Roster) -> None:
        self._kit = kit
        self._roster = roster
        self._again = kit.settings.stall_timeout.total_seconds() / 4
        self._changed = roster.leftovers_changed
        self._backoff = Backoff(0.1, 5.0)

    async def run(self) -> None:
        """Sends the list until it is cancelled. While no thread is left behind, there is nothing to send."""
        while True:
            wait = self._again if self._roster.outliving() else None
            try:
                async with asyncio.timeout(wait):
                    await self._changed.wait()
            except TimeoutError:
                pass
            # Clear before looking: a change that comes meanwhile is sent with the next list.
            self._changed.clear()
            try:
                await self.send()
                self._kit.outage.answered("left behind")
            except Mishaps as error:
                self._kit.outage.lost(error, "left behind")
                await asyncio.sleep(self._backoff.delay())
                self._changed.set()

    async def send(self) -> None:
        """Sends the list in one statement."""
        lease = self._kit.settings.stall_timeout
        async with self._kit.writes.use() as connection:
            # Read only now: a beat that had the connection before us may have found claims lost.
            claims, busy = self._roster.outliving(), [token for _, token in self._roster.in_threads()]
            await self._kit.store.runs.keep_left_behind(connection, self._kit.worker, claims, busy, lease)
