"""One protocol for the waits of a run's transaction, with an implementation for coroutines and one for threads.

So fence writes the steps of a transaction only once. finished() runs a coroutine that never has to wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar, cast

import psycopg
from psycopg.rows import tuple_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolTimeout

from pgsched.db import session
from pgsched.db.fence.pools import OPTIONS, WAIT, Blocking, Pools, configure, configure_blocking
from pgsched.db.forks import keep_from_children
from pgsched.db.session import STATEMENT_LIMIT, Connection

T = TypeVar("T")
Statement = tuple[bytes, dict[str, Any]]

_LIMIT = STATEMENT_LIMIT.total_seconds()  # seconds for a COMMIT once its run must stop, and to ask about its result
_ASKS = "pgsched commit"  # the application_name of sessions that ask about a commit


def finished(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never has to wait. Raises RuntimeError if it does."""
    try:
        work.send(None)
    except StopIteration as end:
        return cast("T", end.value)
    work.close()
    name = getattr(work, "__qualname__", work)
    raise RuntimeError(f"{name} waits for an event loop: it cannot be called from synchronous code")


class Source:
    """The source of a transaction's connections: the worker's pools, or new connections.

    dsn: as for connect().
    info: the connection string of a new connection.
    pools: the worker's pools; None if there are none.
    over: an event that is set once the worker has ended.
    """

    def __init__(self, dsn: str | None, info: str, pools: Pools | None) -> None:
        self.dsn = dsn
        self.info = info
        self.pools = pools
        self.over = pools.over if pools is not None else threading.Event()


class Way(Protocol):
    """The steps of a transaction that may wait, in a coroutine or in a thread."""

    @property
    def given_up(self) -> bool: ...
    async def take(self) -> Any: ...
    async def give_back(self, connection: Any) -> None: ...
    async def begin(self, block: Any) -> Any: ...
    async def execute(self, connection: Any, query: bytes, params: dict[str, Any]) -> list[Any]: ...
    async def end(self, block: Any, error: BaseException | None) -> bool: ...
    async def close(self, connection: Any) -> None: ...
    async def commit(self, connection: Any, query: bytes, params: dict[str, Any]) -> None: ...
    async def ask(self, statements: list[Statement]) -> list[Any]: ...
    async def sleep(self, seconds: float) -> None: ...
    async def apart(self, work: Coroutine[Any, Any, None]) -> None: ...


class Coroutines:
    """Waits in an event loop."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._pool: AsyncConnectionPool[Connection] | None = None
        self._give_up_at = float("inf")

    @property
    def given_up(self) -> bool:
        return self._source.over.is_set() or time.monotonic() > self._give_up_at

    async def take(self) -> Connection:
        pools = self._source.pools
        if pools is None or (pool := await pools.for_coroutines()) is None:
            connection = await psycopg.AsyncConnection.connect(self._source.info, **OPTIONS)
            await configure(connection)
            return connection
        self._pool = pool
        while True:
            with contextlib.suppress(PoolTimeout):  # no matter how long others take: the run has its own timeout
                return await pool.getconn(WAIT)

    async def give_back(self, connection: Connection) -> None:
        await (self._pool.putconn(connection) if self._pool is not None else connection.close())

    async def begin(self, block: contextlib.AbstractAsyncContextManager[Any]) -> Any:
        return await block.__aenter__()

    async def execute(self, connection: Connection, query: bytes, params: dict[str, Any]) -> list[Any]:
        async with connection.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(query, params)
            return await cursor.fetchall()

    async def end(self, block: contextlib.AbstractAsyncContextManager[Any], error: BaseException | None) -> bool:
        async with asyncio.timeout(_LIMIT):
            return bool(await block.__aexit__(*_of(error)))

    async def close(self, connection: Connection) -> None:
        await connection.close()

    async def commit(self, connection: Connection, query: bytes, params: dict[str, Any]) -> None:
        await psycopg.AsyncClientCursor(connection).execute(query, params)

    async def ask(self, statements: list[Statement]) -> list[Any]:
        async with asyncio.timeout(_LIMIT):
            # Under a different name from the session that must be ended.
            connection = await psycopg.AsyncConnection.connect(session.conninfo_for(self._source.dsn, _ASKS), **OPTIONS)
            keep_from_children(connection)
            async with connection:
                rows = []
                for query, params in statements:
                    rows = await self.execute(connection, query, params)
                return rows

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def apart(self, work: Coroutine[Any, Any, None]) -> None:
        """Does work that must not be interrupted. Passes a cancellation on once it is done, or has taken too long."""
        task = asyncio.ensure_future(work)
        cancelled: asyncio.CancelledError | None = None
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                if cancelled is None:
                    self._give_up_at = time.monotonic() + _LIMIT
                    asyncio.get_running_loop().call_later(_LIMIT, task.cancel)
                cancelled = error
        if cancelled is not None:
            if not task.cancelled():
                task.exception()  # marks it as retrieved: the cancellation says more
            raise cancelled
        await task


class Threads:
    """Waits in a thread. Nothing here waits for an event loop, so finished() can run it."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._pool: ConnectionPool[Blocking] | None = None

    @property
    def given_up(self) -> bool:
        return self._source.over.is_set()

    async def take(self) -> Blocking:
        pools = self._source.pools
        if pools is None:
            connection = psycopg.Connection.connect(self._source.info, **OPTIONS)
            configure_blocking(connection)
            return connection
        self._pool = pools.for_threads()
        while True:
            with contextlib.suppress(PoolTimeout):
                return self._pool.getconn(WAIT)

    async def give_back(self, connection: Blocking) -> None:
        if self._pool is not None:
            self._pool.putconn(connection)
        else:
            connection.close()

    async def begin(self, block: contextlib.AbstractContextManager[Any]) -> Any:
        return block.__enter__()

    async def execute(self, connection: Blocking, query: bytes, params: dict[str, Any]) -> list[Any]:
        with connection.cursor(row_factory=tuple_row) as cursor:
            return cursor.execute(query, params).fetchall()

    async def end(self, block: contextlib.AbstractContextManager[Any], error: BaseException | None) -> bool:
        return bool(block.__exit__(*_of(error)))

    async def close(self, connection: Blocking) -> None:
        connection.close()

    async def commit(self, connection: Blocking, query: bytes, params: dict[str, Any]) -> None:
        psycopg.ClientCursor(connection).execute(query, params)

    async def ask(self, statements: list[Statement]) -> list[Any]:
        with psycopg.Connection.connect(session.conninfo_for(self._source.dsn, _ASKS), **OPTIONS) as connection:
            keep_from_children(connection)
            rows = []
            for query, params in statements:
                rows = await self.execute(connection, query, params)
            return rows

    async def sleep(self, seconds: float) -> None:
        self._source.over.wait(seconds)

    async def apart(self, work: Coroutine[Any, Any, None]) -> None:
        await work


def _of(error: BaseException | None) -> tuple[Any, Any, Any]:
    return (None, None, None) if error is None else (type(error), error, error.__traceback__)
