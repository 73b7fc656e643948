"""A worker's connections for the transactions of its runs: the application's own sessions, in two pools."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import psycopg
from psycopg.rows import tuple_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from pgsched.db.forks import Birth, keep_from_children
from pgsched.db.session import Connection
from pgsched.errors import PgschedError

Blocking = psycopg.Connection[Any]

# A pool that cannot connect retries by itself for this many seconds, with growing pauses. Then it is asked again. With
# the pool's default, minutes could pass after an outage of minutes.
WAIT = 10.0

# The application's own sessions keep its search path, time zone and limits. A pooler may be in between.
OPTIONS: dict[str, Any] = {"autocommit": True, "prepare_threshold": None}


class Pools:
    """At most `most` connections for coroutines, and as many for threads.

    A connection is made when it is needed, and closed when it has not been used for a while.
    """

    def __init__(self, info: str, most: int) -> None:
        self.over = threading.Event()
        self._birth = Birth()
        self._info = info
        self._most = most
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._coroutines: AsyncConnectionPool[Connection] | None = None
        self._threads: ConnectionPool[Blocking] | None = None

    async def for_coroutines(self) -> AsyncConnectionPool[Connection] | None:
        """The pool for coroutines; None in an event loop other than the worker's."""
        self._check()
        if self._coroutines is None:
            self._loop = asyncio.get_running_loop()
            self._coroutines = AsyncConnectionPool(
                self._info,
                configure=configure,
                reset=_reset,
                check=AsyncConnectionPool.check_connection,
                **self._sizes,
            )
        if asyncio.get_running_loop() is not self._loop:
            return None
        await self._coroutines.open()
        return self._coroutines

    def for_threads(self) -> ConnectionPool[Blocking]:
        """The pool for threads."""
        with self._lock:
            self._check()
            if self._threads is None:
                self._threads = ConnectionPool(
                    self._info, configure=configure_blocking, reset=_reset_blocking,
                    check=ConnectionPool.check_connection, **self._sizes,
                )  # fmt: skip
                self._threads.open()
            return self._threads

    @property
    def _sizes(self) -> dict[str, Any]:
        return {
            "kwargs": OPTIONS,
            "min_size": 0,
            "max_size": self._most,
            "open": False,
            "name": "pgsched-run",
            "reconnect_timeout": WAIT,
        }

    async def close(self) -> None:
        """Closes idle connections now and the others when they are given back. Waiting for one raises an error."""
        self.over.set()
        if self._coroutines is not None:
            await self._coroutines.close(1.0)
        with self._lock:
            threads = self._threads
        if threads is not None:
            await asyncio.to_thread(threads.close, 1.0)

    def _check(self) -> None:
        self._birth.check("This run", "call run.transaction() in the worker's own process")
        if self.over.is_set():
            raise PgschedError("run.transaction() is not available: the worker has ended.")


# A beat changes the run's row while the block runs. A stricter isolation level would treat that as a conflict.


async def configure(connection: Connection) -> None:
    """Sets a new connection to read committed."""
    keep_from_children(connection)
    await connection.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)


def configure_blocking(connection: Blocking) -> None:
    """Does the same for a thread's connection."""
    keep_from_children(connection)
    connection.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)


# One run's settings must not reach another run.


async def _reset(connection: Connection) -> None:
    connection.row_factory, connection.cursor_factory = tuple_row, psycopg.AsyncCursor
    await connection.execute("discard all")


def _reset_blocking(connection: Blocking) -> None:
    connection.row_factory, connection.cursor_factory = tuple_row, psycopg.Cursor
    connection.execute("discard all")
