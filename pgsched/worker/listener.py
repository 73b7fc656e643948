"""The LISTEN connection: turns notifications into wake-ups, and proves once in a while that it still could.

A notification is a hint and carries no data. After every (re)connect everything is looked at anew, since
nobody knows what was missed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import psycopg
from psycopg import sql

from pgsched import log
from pgsched.db.session import Backoff, Connection, Mishaps
from pgsched.worker.claim.dispatcher import Dispatcher
from pgsched.worker.kit import Machine
from pgsched.worker.run.runner import Runner

# Behind a pooler notifications may never come: then the database is asked this often.
POOLED_RESYNC = timedelta(seconds=5)


class Listener:
    """Listens on a session of its own, for ever."""

    def __init__(self, machine: Machine, dispatcher: Dispatcher, runner: Runner) -> None:
        self.listening = asyncio.Event()
        self.woken: list[Callable[[], None]] = [dispatcher.wake]
        self.saw_orphaned: Callable[[bool], None] = lambda orphaned: None  # the reconciler hears of it
        self.awaited: Callable[[], Sequence[str]] = tuple  # the reconciler says which applications it waits for
        self.state = "running"
        self._store = machine.store
        self._session = machine.session("listen", machine.settings.listen_dsn)
        self._worker = machine.worker
        self._entrypoints = list(machine.scheduler.entrypoints)
        self._settings = machine.settings
        self._clock = machine.clock
        self._watch = machine.watch
        self._outage = machine.outage
        self._dispatcher = dispatcher
        self._runner = runner
        self._backoff = Backoff(0.05, 10.0)
        self._log = log.get()
        self._told_pooled = False
        self._heard = False
        self._ready = asyncio.Event()  # something to ask, or nobody to be heard any more
        self._gone: psycopg.Error | None = None
        self._due = float("inf")

    async def run(self) -> None:
        """Connects, listens, looks; again and again, whatever happens to the connection."""
        while True:
            try:
                async with self._session.use() as connection:
                    # Hears those notifications that arrive within the answer to a statement.
                    connection.add_notify_handler(self._note)
                    await connection.execute(sql.SQL("listen {}").format(self._store.channel))
                if not self._session.direct and not self._told_pooled:
                    self._told_pooled = True
                    self._log.warning(
                        "listener_behind_pooler", advice="set listen_dsn to the server itself",
                        asks_every_s=POOLED_RESYNC.total_seconds(),
                    )  # fmt: skip
                # LISTEN first and then a look: what commits in between is seen by the look, or notified.
                self._set_listening(True)
                self._call()
                await self._listen(connection)
            except Mishaps as error:
                self._set_listening(False)
                await self._session.discard()
                self._outage.lost(error, "listen")
                await asyncio.sleep(self._backoff.delay())
            finally:
                self._set_listening(False)

    def ask_now(self) -> None:
        """The connection may have died without our hearing of it: the resync comes at once."""
        self._due = float("-inf")
        self._ready.set()

    async def close(self) -> None:
        """Lets go of the connection."""
        await self._session.discard()

    def _set_listening(self, on: bool) -> None:
        self._dispatcher.listening = on and self._session.direct
        if on:
            self.listening.set()
        else:
            self.listening.clear()

    def _call(self) -> None:
        for callback in self.woken:
            callback()

    async def _listen(self, connection: Connection) -> None:
        """Waits for notifications on the socket, and asks the database over it whenever the resync is due."""
        interval = self._settings.resync_interval
        if not self._session.direct:
            interval = min(interval or POOLED_RESYNC, POOLED_RESYNC)
        seconds = interval.total_seconds() or float("inf")
        self._due = time.monotonic() + seconds
        self._gone = None
        self._hear(connection)  # what came with the answers so far
        while True:
            await self._until_due(connection)
            await self.resync()
            self._due = time.monotonic() + seconds
            self._hear(connection)  # what has come with the answer

    async def _until_due(self, connection: Connection) -> None:
        """Waits until a resync is due. Notifications are passed on by the socket's own callback meanwhile: who waits
        for a job to start waits for each turn of the loop."""
        loop = asyncio.get_running_loop()
        descriptor = connection.fileno()
        # Anew each time: psycopg has its own meanwhile.
        loop.add_reader(descriptor, self._read, descriptor, connection)
        try:
            while time.monotonic() < self._due and self._gone is None:
                self._ready.clear()
                await self._watch.wait(self._ready, self._due)
        finally:
            if self._gone is None:
                loop.remove_reader(descriptor)
        if self._gone is not None:
            gone, self._gone = self._gone, None
            raise gone

    def _read(self, descriptor: int, connection: Connection) -> None:
        try:
            connection.pgconn.consume_input()
        except psycopg.Error as error:  # the server has gone
            # At once: libpq has closed the descriptor, and the next socket that anybody opens may have its number.
            asyncio.get_running_loop().remove_reader(descriptor)
            self._gone = error
            self._ready.set()
        else:
            self._hear(connection)

    def _hear(self, connection: Connection) -> None:
        """Passes notifications on, however many, as one."""
        while connection.pgconn.notifies() is not None:
            self._heard = True
        if self._heard:
            self._heard = False
            self._call()

    def _note(self, _: object) -> None:
        self._heard = True

    async def resync(self) -> None:
        """The one statement of an idle minute: it proves the connection, brings the clock and says we are here."""
        async with self._session.use() as connection:
            before = time.monotonic()
            outlook = await self._store.read_outlook(
                connection,
                self._worker,
                self._entrypoints,
                self._settings.lookahead,
                seen=(self.state, self._runner.slots_used),
                awaited=self.awaited(),
            )
            self._clock.observe(outlook.now, before, time.monotonic())
        self._outage.answered()
        self._dispatcher.review(outlook)
        if self.state == "running":  # who drains takes nothing over
            self.saw_orphaned(outlook.orphaned)
