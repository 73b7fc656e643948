"""One protocol for the waits of a run's transaction, with an implementation for coroutines and one for threads.

So fence writes the steps of a transaction only once. pool.finished() runs those of a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Coroutine
from typing import Any, Protocol

import psycopg
from psycopg.rows import tuple_row

from pgsched.db import session
from pgsched.db.fence.pools import OPTIONS, Blocking, Pools, configure, configure_blocking
from pgsched.db.mishaps import Failures
from pgsched.db.pool import Pool, finished
from pgsched.db.reaching import Bounded, BoundedBlocking, within
from pgsched.db.session import STATEMENT_LIMIT
from pgsched.db.session_settings import OWN_PATH

Statement = tuple[bytes, dict[str, Any]]

# Seconds to wait for the answers to BEGIN, COMMIT, ROLLBACK and to questions about them, and for a COMMIT once its run
# must stop.
LIMIT = STATEMENT_LIMIT.total_seconds()
BLOCK = 60.0  # seconds until the server is asked whether it is still at work on a statement of the block
_ASKS = "pgsched commit"  # the application_name of sessions that ask about a commit


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
    """The steps of a transaction that may wait, in a coroutine or in a thread.

    After LIMIT without an answer a step closes the connection and raises an error.

    given_up: whether the database is no longer asked about a commit.
    watch: from now on, waits that are over their limit go on if the statement says that the server is at work.
    ask: sends statements in a transaction of their own, and returns the last one's rows.
    """

    @property
    def given_up(self) -> bool: ...
    async def take(self) -> Any: ...
    async def give_back(self, connection: Any) -> None: ...
    async def begin(self, connection: Any, block: Any, query: bytes, params: dict[str, Any]) -> None: ...
    def watch(self, connection: Any, statement: Statement) -> None: ...
    async def end(self, connection: Any, block: Any, error: BaseException | None) -> bool: ...
    async def close(self, connection: Any) -> None: ...
    async def commit(self, connection: Any, query: bytes, params: dict[str, Any]) -> None: ...
    async def ask(self, statements: list[Statement]) -> list[Any]: ...
    async def sleep(self, seconds: float) -> None: ...
    async def apart(self, work: Coroutine[Any, Any, None]) -> None: ...


class Coroutines:
    """Waits in an event loop."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._pool: Pool | None = None
        self._give_up_at = float("inf")

    @property
    def given_up(self) -> bool:
        return self._source.over.is_set() or time.monotonic() > self._give_up_at

    async def take(self) -> Bounded:
        pools = self._source.pools
        if pools is not None and (pool := await pools.for_coroutines()) is not None:
            self._pool = pool
            pooled: Bounded = await pools.take(pool)
            return pooled
        connection = await Bounded.connect(self._source.info, autocommit=True, **OPTIONS)
        try:
            with within(connection, LIMIT):
                await configure(connection)
        except BaseException:
            await connection.close()
            raise
        return connection

    async def give_back(self, connection: Bounded) -> None:
        connection.limit = connection.at_work = None
        await (self._pool.give_back(connection) if self._pool is not None else connection.close())

    async def begin(
        self,
        connection: Bounded,
        block: contextlib.AbstractAsyncContextManager[Any],
        query: bytes,
        params: dict[str, Any],
    ) -> None:
        with within(connection, LIMIT):
            await block.__aenter__()
            await connection.execute(query, params)

    def watch(self, connection: Bounded, statement: Statement) -> None:
        async def at_work() -> bool:
            try:
                rows = await self.ask([statement])
            except Failures:
                return not self.given_up  # nobody can be asked, and the old connection may still get its answer
            return bool(rows[0][0])

        connection.limit, connection.at_work = BLOCK, at_work

    async def end(
        self, connection: Bounded, block: contextlib.AbstractAsyncContextManager[Any], error: BaseException | None
    ) -> bool:
        with within(connection, LIMIT):
            return bool(await block.__aexit__(*_of(error)))

    async def close(self, connection: Bounded) -> None:
        await connection.close()

    async def commit(self, connection: Bounded, query: bytes, params: dict[str, Any]) -> None:
        with within(connection, LIMIT):
            await psycopg.AsyncClientCursor(connection).execute(query, params)

    async def ask(self, statements: list[Statement]) -> list[Any]:
        # Under a different name from the session that must be ended.
        info = session.conninfo_for(self._source.dsn, _ASKS)
        async with await Bounded.connect(info, autocommit=True, total=LIMIT, **OPTIONS) as connection:
            rows = []
            with within(connection, LIMIT):
                await configure(connection)  # each statement sees what others have committed before it
                async with connection.transaction():
                    await connection.execute(OWN_PATH)
                    for query, params in statements:
                        async with connection.cursor(row_factory=tuple_row) as cursor:
                            rows = await (await cursor.execute(query, params)).fetchall()
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
                    self._give_up_at = time.monotonic() + LIMIT
                    asyncio.get_running_loop().call_later(LIMIT, task.cancel)
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
        self._pool: Pool | None = None

    @property
    def given_up(self) -> bool:
        return self._source.over.is_set()

    async def take(self) -> BoundedBlocking:
        pools = self._source.pools
        if pools is not None:
            self._pool = await pools.for_threads()
            pooled: BoundedBlocking = await pools.take(self._pool)
            return pooled
        connection = BoundedBlocking.connect(self._source.info, autocommit=True, **OPTIONS)
        try:
            with within(connection, LIMIT):
                configure_blocking(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    async def give_back(self, connection: BoundedBlocking) -> None:
        connection.limit = connection.at_work = None
        if self._pool is not None:
            await self._pool.give_back(connection)
        else:
            connection.close()

    async def begin(
        self,
        connection: BoundedBlocking,
        block: contextlib.AbstractContextManager[Any],
        query: bytes,
        params: dict[str, Any],
    ) -> None:
        with within(connection, LIMIT):
            block.__enter__()
            connection.execute(query, params)

    def watch(self, connection: BoundedBlocking, statement: Statement) -> None:
        def at_work() -> bool:
            try:
                rows = finished(self.ask([statement]))
            except Failures:
                return not self.given_up
            return bool(rows[0][0])

        connection.limit, connection.at_work = BLOCK, at_work

    async def end(
        self, connection: BoundedBlocking, block: contextlib.AbstractContextManager[Any], error: BaseException | None
    ) -> bool:
        with within(connection, LIMIT):
            return bool(block.__exit__(*_of(error)))

    async def close(self, connection: Blocking) -> None:
        connection.close()

    async def commit(self, connection: BoundedBlocking, query: bytes, params: dict[str, Any]) -> None:
        with within(connection, LIMIT):
            psycopg.ClientCursor(connection).execute(query, params)

    async def ask(self, statements: list[Statement]) -> list[Any]:
        info = session.conninfo_for(self._source.dsn, _ASKS)
        with BoundedBlocking.connect(info, autocommit=True, total=LIMIT, **OPTIONS) as connection:
            rows = []
            with within(connection, LIMIT):
                configure_blocking(connection)
                with connection.transaction():
                    connection.execute(OWN_PATH)
                    for query, params in statements:
                        with connection.cursor(row_factory=tuple_row) as cursor:
                            rows = cursor.execute(query, params).fetchall()
            return rows

    async def sleep(self, seconds: float) -> None:
        self._source.over.wait(seconds)

    async def apart(self, work: Coroutine[Any, Any, None]) -> None:
        await work


def _of(error: BaseException | None) -> tuple[Any, Any, Any]:
    return (None, None, None) if error is None else (type(error), error, error.__traceback__)
