"""The client for synchronous code: the same methods, run to their end where they are called.

No event loop and no second copy: a method of the client is a coroutine that awaits nothing but its connection and its
waits. Over connections that block instead, it never suspends, and one send() runs it through. So it may be called in
any thread, one in which an event loop runs included (which then stands still), and from many at once.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import psycopg
from psycopg.pq import Format
from psycopg_pool import ConnectionPool

from pgsched.client.client import Client
from pgsched.client.connections import POOL, conninfo_of, refused
from pgsched.client.runs import Runs
from pgsched.db import session
from pgsched.db.failures import reaching
from pgsched.db.fence.waits import finished
from pgsched.db.session import Connection

_Class = TypeVar("_Class", bound=type)


@contextlib.contextmanager
def connect_sync(dsn: str | None = None, *, schema: str = "pgsched") -> Iterator[SyncClient]:
    """A client of the database for code that is not asynchronous, to be used inside `with`.

    Its methods are those of connect()'s client, without await; connection= is a psycopg.Connection, such as Django's
    `connection.connection`. Threads may share it; a process that forks makes it afterwards. Everything else, what it
    raises included, is as with connect().
    """
    info = conninfo_of(dsn, schema, "connect_sync()")
    with reaching():
        psycopg.Connection.connect(info, autocommit=True).close()
    check = ConnectionPool.check_connection
    with ConnectionPool(info, configure=_configure, check=check, **POOL) as pool:
        yield SyncClient(Client(_Blocking(pool), schema))


def _blocking(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that does at once what a coroutine method, or an asynchronous generator, does when it is awaited."""
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
    if inspect.isasyncgenfunction(behind):  # what contextlib.asynccontextmanager made of it

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
    """A context whose entry and exit await nothing which would have to wait; a connection of it is psycopg's own."""
    with contextlib.ExitStack() as stack:
        value = finished(context.__aenter__())
        stack.push(lambda *error: finished(context.__aexit__(*error)))
        yield value.raw if isinstance(value, _Connection) else value


def mirror(of: type) -> Callable[[_Class], _Class]:
    """Gives a class the public methods of another that is asynchronous; an instance keeps that one's as `behind`."""

    def decorate(made: _Class) -> _Class:
        for name, member in vars(of).items():
            generator = inspect.isasyncgenfunction(getattr(member, "__wrapped__", member))
            if not name.startswith("_") and (inspect.iscoroutinefunction(member) or generator):
                setattr(made, name, _blocking(member))
        return made

    return decorate


@mirror(Runs)
class SyncRuns:
    """What Runs does, without await."""

    def __init__(self, behind: Runs) -> None:
        self.behind = behind

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


@mirror(Client)
class SyncClient:
    """What Client does, without await. Made by connect_sync()."""

    def __init__(self, behind: Client) -> None:
        self.behind = behind
        self.runs = SyncRuns(behind.runs)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


class _Blocking:
    """The connections of a synchronous client."""

    def __init__(self, pool: ConnectionPool[Any]) -> None:
        self._pool = pool

    @contextlib.asynccontextmanager
    async def own(self) -> AsyncIterator[Connection]:
        """One of the pool's."""
        with self._pool.connection() as connection:
            yield _adapted(connection)

    def given(self, connection: Any) -> Connection:
        """The caller's, in our clothes. Raises InvalidArguments where it is an asynchronous one, or no psycopg 3's."""
        if isinstance(connection, psycopg.Connection):
            return _adapted(connection)
        raise refused(connection, "Connection", "connect_sync()", "AsyncConnection", "connect()")

    async def sleep(self, seconds: float) -> None:
        """Lets the thread stand still."""
        time.sleep(seconds)  # noqa: ASYNC251 - there is no event loop to hold up


def _configure(connection: psycopg.Connection[Any]) -> None:
    finished(session.prepare(_adapted(connection)))


def _adapted(connection: psycopg.Connection[Any]) -> Connection:
    return cast("Connection", _Connection(connection))


class _Connection:
    """A blocking connection under the names, and with the awaits, of an asynchronous one: those that are used."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.raw = connection
        self.info = connection.info
        self.adapters = connection.adapters

    @property
    def prepare_threshold(self) -> int | None:
        """After how many uses a statement is prepared."""
        return self.raw.prepare_threshold

    @prepare_threshold.setter
    def prepare_threshold(self, value: int | None) -> None:
        self.raw.prepare_threshold = value

    async def set_isolation_level(self, value: psycopg.IsolationLevel | None) -> None:
        self.raw.set_isolation_level(value)

    async def execute(self, query: Any, params: Any = None) -> _Cursor:
        return _Cursor(self.raw.execute(query, params))

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        with self.raw.transaction():
            yield

    def cursor(self, *, row_factory: Any, binary: bool = False) -> _Cursor:
        cursor = self.raw.cursor(row_factory=row_factory, binary=binary)
        if binary and isinstance(cursor, psycopg.ClientCursor):  # as store does with an asynchronous one
            cursor = psycopg.Cursor(self.raw, row_factory=row_factory)
            cursor.format = Format.BINARY
        return _Cursor(cursor)


class _Cursor:
    """The same for a cursor."""

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
