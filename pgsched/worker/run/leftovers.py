"""Has the database count threads that outlive their runs, for as long as they go on. Whose they are, runner knows."""

from __future__ import annotations

import asyncio

from pgsched.db.session import Backoff, Mishaps
from pgsched.worker.kit import Machine
from pgsched.worker.run.runner import Runner


class Leftovers:
    """Sends what is left behind, whole, whenever it changes, and again before it would count no more."""

    def __init__(self, machine: Machine, runner: Runner) -> None:
        self._machine = machine
        self._runner = runner
        self._again = machine.settings.stall_timeout.total_seconds() / 4
        self._changed = asyncio.Event()
        self._backoff = Backoff(0.1, 5.0)
        runner.left = self._changed.set

    async def run(self) -> None:
        """Sends for ever. While nothing is left behind there is nothing to send."""
        while True:
            wait = self._again if self._runner.outliving() else None
            try:
                async with asyncio.timeout(wait):
                    await self._changed.wait()
            except TimeoutError:
                pass
            # Clear before looking: what changes meanwhile is sent with the next one.
            self._changed.clear()
            try:
                await self.send()
            except Mishaps as error:
                self._machine.outage.lost(error, "left behind")
                await asyncio.sleep(self._backoff.delay())
                self._changed.set()

    async def send(self) -> None:
        """One statement."""
        lease = self._machine.settings.stall_timeout
        async with self._machine.writes.use() as connection:
            # Asked for here: a beat that was on its way before us may have found claims lost.
            claims, busy = self._runner.outliving(), [token for _, token in self._runner.in_threads()]
            await self._machine.store.keep_left_behind(connection, self._machine.worker, claims, busy, lease)
