"""A worker's connections for the transactions of its runs: the application's own sessions, in two pools."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg

from pgsched.db.forks import Birth, keep_from_children
from pgsched.db.pool import CoroutinePool, Pool, PoolTimeout, ThreadPool, finished
from pgsched.db.reaching import Bounded, BoundedBlocking
from pgsched.db.session_settings import WHO, lend
from pgsched.errors import PgschedError
from pgsched.log import get

Blocking = psycopg.Connection[Any]

SAY_AFTER = 10.0  # seconds that a run waits for a connection until the log says why
SAY_AGAIN = 60.0

# The application's own sessions keep its search path, time zone and limits. A pooler may be in between.
OPTIONS: dict[str, Any] = {"prepare_threshold": None}
_NAME = "pgsched-run"


class Pools:
    """At most `most` connections for coroutines, and as many for threads."""

    def __init__(self, info: str, most: int) -> None:
        self.over = threading.Event()
        self._birth = Birth()
        self._info = info
        self._most = most
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._coroutines: CoroutinePool | None = None
        self._threads: ThreadPool | None = None
        self._waits = Waits()

    async def for_coroutines(self) -> CoroutinePool | None:
        """The pool for coroutines; None in an event loop other than the worker's."""
        self._check()
        if self._coroutines is None:
            self._loop = asyncio.get_running_loop()
            self._coroutines = CoroutinePool(self._info, self._most, _NAME, configure, clean=True, **OPTIONS)
        if asyncio.get_running_loop() is not self._loop:
            return None
        await self._coroutines.open()
        return self._coroutines

    async def for_threads(self) -> ThreadPool:
        """The pool for threads."""
        with self._lock:
            self._check()
            if self._threads is None:
                self._threads = ThreadPool(self._info, self._most, _NAME, configure_blocking, clean=True, **OPTIONS)
                await self._threads.open()
            return self._threads

    async def take(self, pool: Pool) -> Any:
        """A connection of one of them, no matter how long others take: the run has its own timeout.

        The log says why none comes. Raises PoolClosed once the worker has ended.
        """
        with self._waits.one() as began:
            while True:
                try:
                    return await pool.take(SAY_AFTER)
                except PoolTimeout:
                    self._waits.say(pool, time.monotonic() - began)

    async def close(self) -> None:
        """Closes idle connections now and the others when they are given back. Waiting for one raises an error."""
        self.over.set()
        if self._coroutines is not None:
            await self._coroutines.close(1.0)
        with self._lock:
            threads = self._threads
        if threads is not None:
            await asyncio.to_thread(finished, threads.close(1.0))

    def _check(self) -> None:
        self._birth.check("This run", "call run.transaction() in the worker's own process")
        if self.over.is_set():
            raise PgschedError("run.transaction() is not available: the worker has ended.")


class Waits:
    """Logs why runs wait for a connection, once a minute at most, no matter how many wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting = 0
        self._said_at = float("-inf")

    @contextlib.contextmanager
    def one(self) -> Iterator[float]:
        """One run waits in the block. Yields the time at which it began."""
        with self._lock:
            self._waiting += 1
        try:
            yield time.monotonic()
        finally:
            with self._lock:
                self._waiting -= 1
                if not self._waiting:
                    self._said_at = float("-inf")

    def say(self, pool: Pool, waited: float) -> None:
        """Logs it, unless that was done a short while ago."""
        with self._lock:
            now = time.monotonic()
            if now < self._said_at + SAY_AGAIN:
                return
            self._said_at = now
            waiting = self._waiting
        get().warning(
            "transactions_wait", runs=waiting, waited_s=round(waited, 1), in_use=pool.used,
            max_transactions=pool.most, reason=pool.reason,
        )  # fmt: skip


# A beat changes the run's row while the block runs. A stricter isolation level would treat that as a conflict. Whether
# a transaction may write is the server's choice: an operator may have made an old primary read-only.


async def configure(connection: Bounded) -> None:
    """Sets a new connection to read committed. Behind a pooler its transactions have the settings of the role."""
    keep_from_children(connection)
    await connection.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
    row = await (await connection.execute(WHO)).fetchone()
    if row is not None and row[0] != connection.info.backend_pid:
        lend(connection)
        await connection.set_read_only(None if row[1] else False)


def configure_blocking(connection: BoundedBlocking) -> None:
    """Does the same for a thread's connection."""
    keep_from_children(connection)
    connection.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
    row = connection.execute(WHO).fetchone()
    if row is not None and row[0] != connection.info.backend_pid:
        lend(connection)
        connection.set_read_only(None if row[1] else False)
