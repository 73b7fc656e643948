"""How a client's statements reach the database: over connections of its own, or over the caller's.

Which statements there are is store's business; what waits in a thread instead of an event loop, sync's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeAlias

import psycopg
from psycopg_pool import AsyncConnectionPool

from pgsched.config import Settings
from pgsched.db import session
from pgsched.db.failures import in_sentences
from pgsched.db.session import Connection
from pgsched.db.statements.store import Store
from pgsched.errors import InvalidArguments
from pgsched.rules import options

Row: TypeAlias = dict[str, Any]

NAME = "pgsched client"
# A pool keeps no connection that nobody uses, and tells after so many seconds that it has none.
POOL: dict[str, Any] = {
    "min_size": 0,
    "max_size": 4,
    "open": False,
    "timeout": 15,
    "name": NAME,
    "kwargs": {"autocommit": True},
}
_JSON = frozenset({"args", "result", "errors", "interruptions", "progress", "stops"})


class Connections(Protocol):
    """Where a client's connections come from, and how it waits. There is one for event loops, and one for threads."""

    def own(self) -> AbstractAsyncContextManager[Connection]:
        """A connection of the client's, in autocommit."""

    def given(self, connection: Any) -> Connection:
        """A connection that the caller gave. Raises InvalidArguments for one of another kind."""

    async def sleep(self, seconds: float) -> None:
        """Lets time pass."""


class Pooled:
    """The connections of an asynchronous client."""

    def __init__(self, info: str) -> None:
        self.pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            info, configure=_configure, check=AsyncConnectionPool.check_connection, **POOL
        )

    def own(self) -> AbstractAsyncContextManager[Connection]:
        """One of the pool's."""
        return self.pool.connection()

    def given(self, connection: Any) -> Connection:
        """The same. Raises InvalidArguments where it is none of asyncio's."""
        if isinstance(connection, psycopg.AsyncConnection):
            return connection
        raise refused(connection, "AsyncConnection", "connect()", "Connection", "connect_sync()")

    async def sleep(self, seconds: float) -> None:
        """Gives the event loop to others."""
        await asyncio.sleep(seconds)


async def _configure(connection: Connection) -> None:
    await session.prepare(connection)


def refused(connection: Any, kind: str, client: str, other: str, there: str) -> InvalidArguments:
    """The error for a caller's connection of another kind than the client's."""
    found = f"{type(connection).__module__.partition('.')[0]}'s {type(connection).__name__}"
    return InvalidArguments(
        f"connection= of a client that {client} made is a psycopg.{kind} (psycopg 3), not {found}; "
        f"{there} makes the client for a psycopg.{other}."
    )


def conninfo_of(dsn: str | None, schema: str, caller: str) -> str:
    """The connection string for a client. Raises ConfigurationError, which names the function that was called."""
    dsn = None if dsn == "" else dsn  # as libpq takes it: all by the environment
    Settings().merged({"dsn": dsn, "schema": schema}, caller)
    return session.conninfo_for(dsn or os.environ.get("PGSCHED_DSN") or None, NAME)


# In a transaction of the application's, its search path, its time zone and its limits are its own.
_AS_THE_ROLE_HAS_IT = "select set_config(name, reset_val, true) from pg_catalog.pg_settings where name = any(%s)"


class Statements:
    """Sends the statements of a client, and tells in sentences what the database refuses."""

    def __init__(self, connections: Connections, store: Store) -> None:
        self.connections = connections
        self.store = store

    async def call(self, query: str, params: Row, connection: Any) -> Any:
        """The one value of a query."""
        async with self._on(connection) as on:
            return await self.store.call(on, query, params)

    async def rows(self, query: str, params: Row, connection: Any) -> list[Row]:
        """The rows of a query, their JSON parsed."""
        async with self._on(connection) as on:
            rows = await self.store.rows(on, query, params)
        return [{key: options.parsed(value) if key in _JSON else value for key, value in r.items()} for r in rows]

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A transaction on a connection of the client's. What its block raises passes as it is."""
        async with contextlib.AsyncExitStack() as stack:
            with in_sentences(self.store.schema):
                connection = await stack.enter_async_context(self.connections.own())
                await stack.enter_async_context(connection.transaction())
                await connection.execute(_AS_THE_ROLE_HAS_IT, (list(session.SET),))
            yield connection
            with in_sentences(self.store.schema):  # the commit, which the database may refuse as any statement
                await stack.aclose()

    @contextlib.asynccontextmanager
    async def _on(self, connection: Any) -> AsyncIterator[Connection]:
        with in_sentences(self.store.schema):
            if connection is not None:
                yield self.connections.given(connection)
            else:
                async with self.connections.own() as own:
                    yield own
