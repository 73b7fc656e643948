"""Sends a client's statements to the database, over its own connections or over the caller's, each within a timeout.

queries has the statements; sync has the connections that block a thread instead of an event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol, TypeAlias

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from pgsched.client.timeouts import TIMEOUT, closing, limits_of, method_of, reads
from pgsched.config import Settings
from pgsched.db import session
from pgsched.db.failures import ADVICE, in_sentences
from pgsched.db.forks import Birth, keep_from_children
from pgsched.db.mishaps import Failures, answered, one_line, read_only
from pgsched.db.pool import RETRY, CoroutinePool, Pool, PoolTimeout
from pgsched.db.reaching import Bounded, NoAnswer, within
from pgsched.db.session import Connection
from pgsched.db.session_settings import AS_THE_ROLE_HAS_IT, SET
from pgsched.db.statements.parameters import in_any_format
from pgsched.db.statements.queries import Queries
from pgsched.errors import DatabaseUnavailable, InvalidArguments, NotFound
from pgsched.rules import options

Row: TypeAlias = dict[str, Any]

NAME = "pgsched client"
MOST = 4  # connections
_FORKED = "This client", "make one there, after the fork"
_LEAST = 0.1  # seconds for an answer, no matter how long the connection took
_UNKNOWN = "It is unknown whether the call has taken effect."
_WAIT = "SyncRepWaitForLSN"  # the server's function that warns if a COMMIT no longer waits for a synchronous standby
_JSON = frozenset({"args", "result", "errors", "interruptions", "progress", "stops"})


# On a caller's connection: all texts can be sent, names mean what they mean to us, and our views can be read.
_ENCODING = {"client_encoding": "UTF8"}
_READING = {"search_path": "pg_catalog, pg_temp", "restrict_nonsystem_relation_kind": ""}


class Connections(Protocol):
    """The source of a client's connections, and its way to wait. One implementation is for event loops, one for
    threads.

    timeout: the longest time of a call, in seconds; None for any.
    """

    timeout: float | None
    pool: Pool
    birth: Birth

    def adapted(self, connection: Any) -> Connection:
        """A connection as statements use it."""

    def given(self, connection: Any) -> Connection:
        """The caller's connection. Raises InvalidArguments for a connection of another kind."""

    def answering(self, connection: Any, seconds: float | None) -> AbstractAsyncContextManager[None]:
        """Limits the wait for an answer on the caller's connection, if it allows that. Raises TimeoutError or
        NoAnswer."""

    async def sleep(self, seconds: float) -> None:
        """Lets time pass."""


class Pooled:
    """The connections of an asynchronous client."""

    def __init__(self, info: str, timeout: float | None = TIMEOUT) -> None:
        self.birth = Birth()
        self.timeout = timeout
        limits = limits_of(timeout)

        async def setup(connection: Bounded) -> None:
            keep_from_children(connection)
            await session.prepare(connection, limits)

        self.pool: Pool = CoroutinePool(info, MOST, NAME, setup, clean=False)

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Pooled]:
        """Itself, in a block at whose end its connections are closed."""
        await self.pool.open()
        try:
            yield self
        finally:
            await self.pool.close(closing(self.timeout))

    def adapted(self, connection: Any) -> Connection:
        """The connection itself."""
        found: Connection = connection
        return found

    def given(self, connection: Any) -> Connection:
        """The caller's connection. Raises InvalidArguments unless it is an AsyncConnection."""
        if isinstance(connection, psycopg.AsyncConnection):
            return connection
        raise wrong_connection(connection, "AsyncConnection", "connect()", "Connection", "connect_sync()")

    @contextlib.asynccontextmanager
    async def answering(self, connection: Any, seconds: float | None) -> AsyncIterator[None]:
        """When the time is over, psycopg asks the server to cancel the statement. It closes the connection if that gets
        no answer either, within ten seconds. A connection of the client's own is closed at once."""
        with within(connection, seconds):
            async with asyncio.timeout(None if isinstance(connection, Bounded) else seconds):
                yield

    async def sleep(self, seconds: float) -> None:
        """Gives the event loop to others."""
        await asyncio.sleep(seconds)


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


def no_schedule(name: str) -> NotFound:
    """The error for a name that no schedule has."""
    return NotFound(f'There is no schedule "{name}".')


class End(NamedTuple):
    """The end of a call. at: by the monotonic clock. timeout: in seconds, as its errors name it; None for none."""

    at: float
    timeout: float | None

    @property
    def left(self) -> float | None:
        """The seconds for an answer; None for any."""
        return None if self.timeout is None else max(self.at - time.monotonic(), _LEAST)

    def __str__(self) -> str:
        return "" if self.timeout is None else f" within {self.timeout:g} s"


@contextlib.contextmanager
def _plain(own: Any) -> Iterator[None]:
    """The application's cursors read values as psycopg does by default, behind a pooler, too."""
    ours = own.cursor_factory
    own.cursor_factory = psycopg.AsyncCursor if isinstance(own, psycopg.AsyncConnection) else psycopg.Cursor
    try:
        yield
    finally:
        own.cursor_factory = ours


@contextlib.asynccontextmanager
async def _with_ours(given: Connection, settings: Mapping[str, str]) -> AsyncIterator[None]:
    """These settings on a caller's connection, for the block, as far as its server has them.

    A transaction that the block leaves open has its own settings again. If it fails, its rollback brings them back.
    """
    if not settings:
        yield
        return
    async with contextlib.AsyncExitStack() as stack:
        if given.autocommit and given.info.transaction_status == TransactionStatus.IDLE:
            await stack.enter_async_context(given.transaction())
        cursor = in_any_format(given, tuple_row)
        read = ", ".join(f"pg_catalog.current_setting('{name}', true)" for name in settings)
        await cursor.execute(f"select {read}".encode())
        # With SQL_ASCII psycopg reads texts as bytes.
        found = [text.decode() if isinstance(text, bytes) else text for text in await cursor.fetchone() or ()]
        before = {name: value for name, value in zip(settings, found, strict=True) if value is not None}
        await _set(cursor, {name: settings[name] for name in before})
        yield
        await _set(cursor, before)


async def _set(cursor: Any, settings: Mapping[str, str]) -> None:
    calls = ", ".join(["pg_catalog.set_config(%s::text, %s::text, true)"] * len(settings))
    await cursor.execute(f"select {calls}".encode(), [text for setting in settings.items() for text in setting])


@contextlib.contextmanager
def _known(connection: Any, method: str, unknown: str) -> Iterator[None]:
    """Says what is unknown if the connection breaks before the answer, or if the server gives up to wait for a standby.

    unknown: the sentence; empty for a call that changes nothing by itself.
    """
    if not unknown:
        yield
        return
    warners = set()

    def hear(warning: psycopg.errors.Diagnostic) -> None:
        warners.add(warning.source_function)  # now: the notice is gone afterwards

    connection.add_notice_handler(hear)
    try:
        yield
    except psycopg.Error as error:
        if isinstance(error, NoAnswer) or answered(error) or read_only(error):
            raise
        reason = one_line(error).rstrip(".")
        text = f"The connection was lost before the answer to {method}(): {reason}. {unknown}"
        raise DatabaseUnavailable(text) from None
    finally:
        connection.remove_notice_handler(hear)
    if _WAIT in warners:
        raise DatabaseUnavailable(
            f"The wait of {method}() for a synchronous standby was cancelled, so a failover may undo it. {unknown}"
        )


class Statements:
    """Sends the statements of a client, and raises the database's refusals as sentences."""

    def __init__(self, connections: Connections, queries: Queries) -> None:
        self.connections = connections
        self.queries = queries

    def until(self, most: float | None = None) -> End:
        """The end of a call that begins now. most: a limit in seconds, if it is shorter than the client's timeout."""
        timeout = min((each for each in (self.connections.timeout, most) if each is not None), default=None)
        return End(float("inf") if timeout is None else time.monotonic() + timeout, timeout)

    async def call(self, query: str, params: Row, connection: Any, until: End | None = None) -> Any:
        """The one value of a query. until: see rows()."""
        async with self._on(query, connection, self.until() if until is None else until) as on:
            return await self.queries.call(on, query, params)

    async def rows(self, query: str, params: Row, connection: Any, until: End | None = None) -> list[Row]:
        """The rows of a query, their JSON parsed. until: the end of the call, if it has begun before or has another."""
        async with self._on(query, connection, self.until() if until is None else until) as on:
            rows = await self.queries.rows(on, query, params)
        return [{key: options.parsed(value) if key in _JSON else value for key, value in r.items()} for r in rows]

    async def schedule(self, name: str, connection: Any, until: End) -> Row:
        """A schedule, which other calls need to know of. Raises NotFound."""
        params = {"name": name, "entrypoint": None, "status": None}
        rows = await self.rows("list_schedules", params, connection, until)
        if not rows:
            raise no_schedule(name)
        return rows[0]

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A transaction on a connection of the client's. An exception in its block passes unchanged."""
        until = self.until()
        async with self._own("transaction", until) as own:
            on = self.connections.adapted(own)
            block = on.transaction()
            with self._answered(own, "transaction", until, "Nothing has happened."):
                await block.__aenter__()
            try:
                with self._answered(own, "transaction", until, "Nothing has happened."):
                    await on.execute(AS_THE_ROLE_HAS_IT, (list(SET),))
                with _plain(own):
                    yield on
            except BaseException as error:
                if not await self._roll_back(own, block, error):
                    raise
            else:
                if own.closed:  # the block has hidden it, and psycopg would not say that nothing is committed
                    raise DatabaseUnavailable("The connection of transaction() was lost, so nothing has happened.")
                unknown = "It is unknown whether the transaction has committed."
                with self._answered(own, "the COMMIT of transaction", self.until(), unknown):
                    await block.__aexit__(None, None, None)  # may be refused, like any statement

    async def _roll_back(self, own: Any, block: AbstractAsyncContextManager[Any], error: BaseException) -> bool:
        """Returns whether the error ends here: with psycopg.Rollback the block itself asked for the rollback."""
        if read_only(error):
            own.pgconn.finish()
        with contextlib.suppress(*Failures), within(own, self.connections.timeout):
            return bool(await block.__aexit__(type(error), error, error.__traceback__))
        return False  # the connection is lost, and the server rolls back

    @contextlib.asynccontextmanager
    async def _on(self, query: str, connection: Any, until: End) -> AsyncIterator[Connection]:
        method = method_of(query)
        if connection is None:
            unknown = "" if reads(method) else _UNKNOWN
            async with self._own(method, until) as own:
                with self._answered(own, method, until, unknown):
                    yield self.connections.adapted(own)
            return
        with in_sentences(self.queries.schema):
            given = self.connections.given(connection)
            commits = given.autocommit and given.info.transaction_status == TransactionStatus.IDLE
            unknown = _UNKNOWN if commits and not reads(method) else ""
            try:
                async with self.connections.answering(connection, until.left):
                    ours = {} if given.info.encoding == "utf-8" else dict(_ENCODING)
                    if reads(method) or method == "backfill":
                        ours |= _READING  # the others call one function of the schema, which has its own
                    with _known(connection, method, unknown):
                        async with _with_ours(given, ours):
                            yield given
            except (NoAnswer, TimeoutError):
                after = f"{unknown} Make" if unknown else "Roll back its transaction, or make"
                raise DatabaseUnavailable(
                    f"No answer to {method}(){until} over the connection that it was given. {after} a new connection "
                    "if it is closed."
                ) from None

    @contextlib.asynccontextmanager
    async def _own(self, method: str, until: End) -> AsyncIterator[Any]:
        """A connection of the client's. Raises DatabaseUnavailable if there is none in time."""
        with in_sentences(self.queries.schema):
            connection = await self._take(method, until)
        try:
            yield connection
        finally:
            await self.connections.pool.give_back(connection)

    async def _take(self, method: str, until: End) -> Any:
        self.connections.birth.check(*_FORKED)
        pool = self.connections.pool
        while True:
            try:
                return await pool.take(min(until.at - time.monotonic(), RETRY))
            except PoolTimeout:
                if time.monotonic() < until.at:
                    continue
            waited = f"for {method}(){until}"
            if pool.used >= pool.most:
                raise DatabaseUnavailable(
                    f"No free connection {waited}: {pool.reason}. Make fewer calls of one client at the same time, and "
                    "keep its transactions short."
                )
            raise DatabaseUnavailable(f"No connection to the database {waited}: {pool.reason}. {ADVICE}")

    @contextlib.contextmanager
    def _answered(self, own: Any, method: str, until: End, unknown: str) -> Iterator[None]:
        """Limits the wait for the answer, and raises the server's refusals as sentences."""
        with in_sentences(self.queries.schema):
            try:
                with within(own, until.left), _known(own, method, unknown):
                    yield
            except NoAnswer:
                text = f"No answer to {method}(){until}. {unknown}"
                raise DatabaseUnavailable(text.strip()) from None
            except (psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable) as error:
                raise DatabaseUnavailable(
                    f"The database has given up {method}(), so nothing has happened: {error.diag.message_primary}."
                ) from None
            except psycopg.Error as error:
                if read_only(error):
                    own.pgconn.finish()
                raise
