"""The LISTEN connection: turns notifications into wake-ups, and proves now and then that it is still alive.

A notification is a hint and carries no data. After every (re)connect the other parts look at the database again,
because notifications may have been missed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import psycopg
from psycopg import sql

from pgsched import log
from pgsched.db.mishaps import Mishaps
from pgsched.db.session import Backoff, Connection, Session
from pgsched.rules.agenda import Outlook
from pgsched.worker.claim.dispatcher import Dispatcher
from pgsched.worker.kit import Kit
from pgsched.worker.run.roster import Roster

# Behind a pooler, notifications may never arrive, and without a connection none does: then the database is asked this
# often.
DEAF_RESYNC = timedelta(seconds=5)
# After a switch-over between several hosts the old primary may live on, read-only and silent. Only a write tells.
SEVERAL_RESYNC = timedelta(seconds=10)
ANSWER = timedelta(seconds=5)  # for the resync: a connection that takes longer is replaced


class Listener:
    """Listens on a session of its own, for ever."""

    def __init__(
        self,
        kit: Kit,
        roster: Roster,
        dispatcher: Dispatcher,
        *,
        seen: Callable[[Outlook], None] = lambda outlook: None,
        awaited: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """seen: gets the outlook of each resync, until the drain.
        awaited: returns the names of applications; a resync reports if none of their workers is alive.
        """
        self.listening = asyncio.Event()
        self._deaf = asyncio.Event()
        self._deaf.set()
        self._kit = kit
        self._session = kit.session("listen", kit.settings.listen_dsn)
        self._session.subscribe(silent=kit.doubt)
        self._entrypoints = list(kit.scheduler.entrypoints)
        self._roster = roster
        self._dispatcher = dispatcher
        self._seen = seen
        self._awaited = awaited
        self.resyncs = 0
        self.draining = False
        self._hint = kit.wakeups.resync  # also stirred when the connection is gone
        self._backoff = Backoff(0.05, 10.0)
        self._log = log.get()
        self._warned = False  # about a pooler
        self._heard = False
        self._gone: psycopg.Error | None = None

    async def run(self) -> None:
        """Listens until it is cancelled, and looks over another connection while it cannot."""
        async with asyncio.TaskGroup() as both:
            both.create_task(self._look_while_deaf())
            await self._listen_again_and_again()

    async def _listen_again_and_again(self) -> None:
        """Connects, listens and looks, and starts again whenever the connection is lost."""
        while True:
            try:
                async with self._session.use() as connection:
                    # Gets the notifications that arrive with the answer to a statement.
                    connection.add_notify_handler(self._note)
                    await connection.execute(sql.SQL("listen {}").format(self._kit.store.claims.channel))
                if not self._session.direct and not self._warned:
                    self._warned = True
                    self._log.warning(
                        "listener_behind_pooler", advice="set listen_dsn to the server itself",
                        asks_every_s=DEAF_RESYNC.total_seconds(),
                    )  # fmt: skip
                # LISTEN first and then a look: a commit in between is seen by the look, or notified.
                self._set_listening(True)
                self._call()
                await self._listen(connection)
            except Mishaps as error:
                self._set_listening(False)
                await self._session.discard()
                self._kit.outage.lost(error, "listen")
                await asyncio.sleep(self._backoff.delay())
            finally:
                self._set_listening(False)

    def drain(self) -> None:
        """The worker is draining: its resyncs say so, and it takes over no more schedules."""
        self.draining = True

    async def close(self) -> None:
        """Closes the connection."""
        await self._session.discard()

    def _set_listening(self, on: bool) -> None:
        self._dispatcher.claim_ahead(on and self._session.direct)
        for event, is_so in ((self.listening, on), (self._deaf, not on)):
            if is_so:
                event.set()
            else:
                event.clear()

    def _call(self) -> None:
        self._kit.wakeups.due.ask()
        self._kit.wakeups.beat.ask()

    async def _listen(self, connection: Connection) -> None:
        """Waits for notifications on the socket, and sends the resync over it whenever it is due."""
        interval = self._kit.settings.resync_interval
        most = SEVERAL_RESYNC if self._session.several else None if self._session.direct else DEAF_RESYNC
        if most is not None:
            interval = min(interval or most, most)
        seconds = interval.total_seconds() or float("inf")
        self._gone = None
        self._hear(connection)  # notifications that came with the answers so far
        while True:
            await self._until(connection, time.monotonic() + seconds)
            await self.resync()
            self._hear(connection)  # notifications that have come with the answer

    async def _until(self, connection: Connection, due: float) -> None:
        """Waits until a resync is due or somebody asks for one.

        Meanwhile the socket's callback passes notifications on itself: each turn of the loop would delay a job's start.
        """
        loop = asyncio.get_running_loop()
        descriptor = connection.fileno()
        # Added again each time: psycopg uses a reader of its own in between.
        loop.add_reader(descriptor, self._read, descriptor, connection)
        try:
            while self._gone is None and not self._hint.take() and time.monotonic() < due:
                await self._kit.watch.wait(self._hint.event, due)
        finally:
            if self._gone is None:
                loop.remove_reader(descriptor)
        if self._gone is not None:
            gone, self._gone = self._gone, None
            raise gone

    def _read(self, descriptor: int, connection: Connection) -> None:
        try:
            connection.pgconn.consume_input()
        except psycopg.Error as error:  # the server is gone
            # At once: libpq has closed the descriptor, and the next socket that is opened may get its number.
            asyncio.get_running_loop().remove_reader(descriptor)
            self._gone = error
            self._hint.stir()
        else:
            self._hear(connection)

    def _hear(self, connection: Connection) -> None:
        """Passes any number of notifications on as one."""
        while connection.pgconn.notifies() is not None:
            self._heard = True
        if self._heard:
            self._heard = False
            self._call()

    def _note(self, _: object) -> None:
        self._heard = True

    async def _look_while_deaf(self) -> None:
        """Work needs no notification: while none can come, from the start on, the claims' connection asks."""
        while True:
            await self._deaf.wait()
            if await self._kit.watch.wait(self.listening, time.monotonic() + DEAF_RESYNC.total_seconds()):
                continue
            try:
                await self._resync(self._kit.control)
            except Mishaps as error:
                self._kit.outage.lost(error, "claim")
            else:
                self._kit.outage.answered("claim")

    async def resync(self) -> None:
        """The one statement of an idle minute: it proves the connection, reads the clock and shows that we are here."""
        await self._resync(self._session)
        self._kit.outage.answered("listen")
        self.resyncs += 1

    async def _resync(self, session: Session) -> None:
        async with session.use(ANSWER) as connection:
            before = time.monotonic()
            outlook = await self._kit.store.claims.read_outlook(
                connection,
                self._kit.worker,
                self._entrypoints,
                self._kit.settings.lookahead,
                seen=("draining" if self.draining else "running", self._roster.slots_used, self._kit.outage.trouble()),
                awaited=self._awaited(),
            )
            self._kit.clock.observe(outlook.now, before, time.monotonic())
        self._dispatcher.review(outlook)
        if not self.draining:
            self._seen(outlook)
