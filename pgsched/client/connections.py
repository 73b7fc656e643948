"""Sends a client's statements to the database, over its own connections or over the caller's.

queries has the statements; sync has the connections that block a thread instead of an event loop.
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
from pgsched.db.forks import Birth, keep_from_children
from pgsched.db.session import Connection
from pgsched.db.statements.queries import Queries
from pgsched.errors import InvalidArguments
from pgsched.rules import options

Row: TypeAlias = dict[str, Any]

NAME = "pgsched client"
# A pool keeps no unused connection. If none is free within the timeout, in seconds, it raises an error.
POOL: dict[str, Any] = {
    "min_size": 0,
    "max_size": 4,
    "open": False,
    "timeout": 15,
    "name": NAME,
    "kwargs": {"autocommit": True},
}
FORKED = "This client", "make one there, after the fork"
_JSON = frozenset({"args", "result", "errors", "interruptions", "progress", "stops"})


class Connections(Protocol):
    """The source of a client's connections, and its way to wait. One implementation is for event loops, one for
    threads."""

    def own(self) -> AbstractAsyncContextManager[Connection]:
        """A connection of the client's, in autocommit."""

    def given(self, connection: Any) -> Connection:
        """The caller's connection. Raises InvalidArguments for a connection of another kind."""

    async def sleep(self, seconds: float) -> None:
        """Lets time pass."""


class Pooled:
    """The connections of an asynchronous client."""

    def __init__(self, info: str) -> None:
        self._birth = Birth()
        self.pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            info, configure=_configure, check=AsyncConnectionPool.check_connection, **POOL
        )

    def own(self) -> AbstractAsyncContextManager[Connection]:
        """One of the pool's."""
        self._birth.check(*FORKED)
        return self.pool.connection()

    def given(self, connection: Any) -> Connection:
        """The caller's connection. Raises InvalidArguments unless it is an AsyncConnection."""
        if isinstance(connection, psycopg.AsyncConnection):
            return connection
        raise wrong_connection(connection, "AsyncConnection", "connect()", "Connection", "connect_sync()")

    async def sleep(self, seconds: float) -> None:
        """Gives the event loop to others."""
        await asyncio.sleep(seconds)


async def _configure(connection: Connection) -> None:
    keep_from_children(connection)
    await session.prepare(connection)


def wrong_connection(connection: Any, kind: str, client: str, other: str, there: str) -> InvalidArguments:
    """The error for a caller's connection of another kind than the client's."""
    found = f"{type(connection).__module__.partition('.')[0]}'s {type(connection).__name__}"
    return InvalidArguments(
        f"connection= of a client from {client} must be a psycopg.{kind} (psycopg 3), not {found}; "
        f"for a psycopg.{other}, use a client from {there}."
    )


def conninfo_of(dsn: str | None, schema: str, caller: str) -> str:
    """The connection string for a client. Raises ConfigurationError, which names the called function."""
    dsn = None if dsn == "" else dsn  # as in libpq: the environment decides
    Settings().merged({"dsn": dsn, "schema": schema}, caller)
    return session.conninfo_for(dsn or os.environ.get("PGSCHED_DSN") or None, NAME)


# In an application's transaction, its own search path, time zone and limits apply.
_AS_THE_ROLE_HAS_IT = "select set_config(name, reset_val, true) from pg_catalog.pg_settings where name = any(%s)"


class Statements:
    """Sends the statements of a client, and raises the database's refusals as sentences."""

    def __init__(self, connections: Connections, queries: Queries) -> None:
        self.connections = connections
        self.queries = queries

    async def call(self, query: str, params: Row, connection: Any) -> Any:
        """The one value of a query."""
        async with self._on(connection) as on:
            return await self.queries.call(on, query, params)

    async def rows(self, query: str, params: Row, connection: Any) -> list[Row]:
        """The rows of a query, their JSON parsed."""
        async with self._on(connection) as on:
            rows = await self.queries.rows(on, query, params)
        return [{key: options.parsed(value) if key in _JSON else value for key, value in r.items()} for r in rows]

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A transaction on a connection of the client's. An exception in its block passes unchanged."""
        async with contextlib.AsyncExitStack() as stack:
            with in_sentences(self.queries.schema):
                connection = await stack.enter_async_context(self.connections.own())
                await stack.enter_async_context(connection.transaction())
                await connection.execute(_AS_THE_ROLE_HAS_IT, (list(session.SET),))
            yield connection
            with in_sentences(self.queries.schema):  # the database may refuse the commit, like any statement
                await stack.aclose()

    @contextlib.asynccontextmanager
    async def _on(self, connection: Any) -> AsyncIterator[Connection]:
        with in_sentences(self.queries.schema):
            if connection is not None:
                yield self.connections.given(connection)
            else:
                async with self.connections.own() as own:
                    yield own
