"""The client for synchronous code: the same methods, run to their end in the calling thread.

No event loop and no second copy: a method of the client is a coroutine that awaits only its connection and its waits.
With connections that block instead, it never suspends, and one send() runs it through. So it may be called in any
thread, even one with a running event loop (which then stands still), and in many threads at once.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import psycopg
from psycopg.pq import Format

from pgsched.client.client import Client
from pgsched.client.connections import MOST, NAME, conninfo_of, wrong_connection
from pgsched.client.runs import Runs
from pgsched.client.timeouts import TIMEOUT, closing, limits_of, seconds_of
from pgsched.db import session
from pgsched.db.failures import reaching
from pgsched.db.forks import Birth, keep_from_children
from pgsched.db.pool import Pool, ThreadPool, finished
from pgsched.db.reaching import BoundedBlocking, within
from pgsched.db.session import Connection
from pgsched.db.session_settings import refuse_encoding
from pgsched.db.statements.queries import Queries

_Class = TypeVar("_Class", bound=type)


@contextlib.contextmanager
def connect_sync(
    dsn: str | None = None, *, schema: str = "pgsched", timeout: timedelta | float | None = TIMEOUT
) -> Iterator[SyncClient]:
    """A client of the database for synchronous code, for use in `with`.

    Its methods are those of connect()'s client, without await; connection= is a psycopg.Connection, such as Django's
    `connection.connection`. Threads may share it. A fork of this process needs its own. Parameters and
    errors are those of connect().
    """
    info = conninfo_of(dsn, schema, "connect_sync()")
    limit = seconds_of(timeout)
    with reaching(), BoundedBlocking.connect(info, autocommit=True, total=limit) as connection:
        refuse_encoding(connection)
    connections = _SyncConnections(info, limit)
    finished(connections.pool.open())
    try:
        yield SyncClient(Client(connections, Queries(schema)))
    finally:
        finished(connections.pool.close(closing(limit)))


def _blocking(method: Callable[..., Any]) -> Callable[..., Any]:
    """The synchronous version of a coroutine method or an asynchronous generator."""
    if inspect.isasyncgenfunction(method):

        @functools.wraps(method)
        def iterated(self: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
            items = method(self.behind, *args, **kwargs)
            try:
                while True:
                    try:
                        item = finished(items.__anext__())
                    except StopAsyncIteration:
                        return
                    yield item
            finally:
                finished(items.aclose())

        return iterated

    behind = getattr(method, "__wrapped__", None)
    if inspect.isasyncgenfunction(behind):  # contextlib.asynccontextmanager has wrapped it

        @contextlib.contextmanager
        @functools.wraps(behind)
        def held(self: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
            with _held(method(self.behind, *args, **kwargs)) as value:
                yield value

        return held

    @functools.wraps(method)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        return finished(method(self.behind, *args, **kwargs))

    return called


@contextlib.contextmanager
def _held(context: AbstractAsyncContextManager[Any]) -> Iterator[Any]:
    """A context whose entry and exit never suspend. If its value is a connection, the block gets psycopg's own."""
    with contextlib.ExitStack() as stack:
        value = finished(context.__aenter__())
        stack.push(lambda *error: finished(context.__aexit__(*error)))
        yield value.raw if isinstance(value, _Connection) else value


def mirror(of: type) -> Callable[[_Class], _Class]:
    """Gives a class the public methods of an asynchronous class; an instance keeps its counterpart as `behind`."""

    def decorate(made: _Class) -> _Class:
        for name, member in inspect.getmembers_static(of):
            generator = inspect.isasyncgenfunction(getattr(member, "__wrapped__", member))
            if not name.startswith("_") and (inspect.iscoroutinefunction(member) or generator):
                setattr(made, name, _blocking(member))
        return made

    return decorate


@mirror(Runs)
class SyncRuns:
    """Runs, without await."""

    def __init__(self, behind: Runs) -> None:
        self.behind = behind

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


@mirror(Client)
class SyncClient:
    """Client, without await. Made by connect_sync()."""

    def __init__(self, behind: Client) -> None:
        self.behind = behind
        self.runs = SyncRuns(behind.runs)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


class _SyncConnections:
    """The connections of a synchronous client."""

    def __init__(self, info: str, timeout: float | None) -> None:
        self.birth = Birth()
        self.timeout = timeout
        limits = limits_of(timeout)

        def setup(connection: BoundedBlocking) -> None:
            keep_from_children(connection)
            finished(session.prepare(_adapted(connection), limits, connection))

        self.pool: Pool = ThreadPool(info, MOST, NAME, setup, clean=False)

    def adapted(self, connection: Any) -> Connection:
        """A connection with the methods of an asynchronous one."""
        return _adapted(connection)

    def given(self, connection: Any) -> Connection:
        """The caller's connection, adapted. Raises InvalidArguments unless it is a synchronous one of psycopg 3."""
        if isinstance(connection, psycopg.Connection):
            return _adapted(connection)
        raise wrong_connection(connection, "Connection", "connect_sync()", "AsyncConnection", "connect()")

    @contextlib.asynccontextmanager
    async def answering(self, connection: Any, seconds: float | None) -> AsyncIterator[None]:
        """A connection of the client's own is closed when the time is over. Nothing ends a wait on another one."""
        with within(connection, seconds):
            yield

    async def sleep(self, seconds: float) -> None:
        """Blocks the thread."""
        time.sleep(seconds)  # noqa: ASYNC251 - there is no event loop to hold up


def _adapted(connection: psycopg.Connection[Any]) -> Connection:
    return cast("Connection", _Connection(connection))


class _Connection:
    """A blocking connection with the methods of an asynchronous one, as far as they are used."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.raw = connection
        self.info = connection.info
        self.pgconn = connection.pgconn
        self.adapters = connection.adapters

    @property
    def autocommit(self) -> bool:
        """Whether each statement outside of a transaction has one of its own."""
        return self.raw.autocommit

    @property
    def prepare_threshold(self) -> int | None:
        """After how many uses a statement is prepared."""
        return self.raw.prepare_threshold

    @prepare_threshold.setter
    def prepare_threshold(self, value: int | None) -> None:
        self.raw.prepare_threshold = value

    async def set_isolation_level(self, value: psycopg.IsolationLevel | None) -> None:
        self.raw.set_isolation_level(value)

    async def set_read_only(self, value: bool | None) -> None:
        self.raw.set_read_only(value)

    async def execute(self, query: Any, params: Any = None) -> _Cursor:
        return _Cursor(self.raw.execute(query, params))

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        with self.raw.transaction():
            yield

    def cursor(self, *, row_factory: Any, binary: bool = False) -> _Cursor:
        cursor = self.raw.cursor(row_factory=row_factory, binary=binary)
        if binary and isinstance(cursor, psycopg.ClientCursor | psycopg.RawCursor):  # see in_any_format()
            cursor = psycopg.Cursor(self.raw, row_factory=row_factory)
            cursor.format = Format.BINARY
        return _Cursor(cursor)


class _Cursor:
    """A blocking cursor with the methods of an asynchronous one."""

    def __init__(self, cursor: psycopg.Cursor[Any]) -> None:
        self._cursor = cursor
        self.adapters = cursor.adapters

    async def execute(self, query: Any, params: Any = None) -> _Cursor:
        self._cursor.execute(query, params)
        return self

    async def fetchone(self) -> Any:
        return self._cursor.fetchone()

    async def fetchall(self) -> Any:
        return self._cursor.fetchall()
