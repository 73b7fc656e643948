"""Pools of connections that are known to answer and to be able to write, for coroutines and for threads.

psycopg_pool makes the connections, and replaces those that are gone. Here they are checked before use, and whoever
gets none learns the reason. The steps are written once: a ThreadPool's methods are coroutines that never have to wait,
and finished() runs them.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeAlias, TypeVar, cast

from psycopg import AsyncCursor, Cursor, conninfo
from psycopg.pq import TransactionStatus
from psycopg.rows import scalar_row, tuple_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolTimeout

from pgsched.db.mishaps import Failures, one_line
from pgsched.db.reaching import Bounded, BoundedBlocking, NoAnswer, within

__all__ = ["CoroutinePool", "Pool", "PoolTimeout", "ThreadPool", "finished"]

# A pool that cannot connect retries by itself for this many seconds, with growing pauses. Then it is asked again. With
# the pool's default, minutes could pass after an outage of minutes.
RETRY = 10.0
CHECK = 5.0  # seconds for a connection to answer before it is used, and again before it goes back
_SETUP = 10.0  # seconds for each statement that sets up a new connection
_PAUSE = 0.2
_WORKERS = 3  # that make a pool's connections
_ASK = b"show transaction_read_only"
# Behind a pooler, a neighbour may have left a session read-only. This goes back to the operator's setting.
_RESET = (
    b"reset default_transaction_read_only; select case when pg_catalog.pg_is_in_recovery() then 'on'"
    b" else pg_catalog.current_setting('default_transaction_read_only') end"
)
_NEW = b"discard all"

T = TypeVar("T")
Setup: TypeAlias = Callable[[Bounded], Awaitable[object]]
BlockingSetup: TypeAlias = Callable[[BoundedBlocking], object]


def finished(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never has to wait. Raises RuntimeError if it does."""
    try:
        work.send(None)
    except StopIteration as end:
        return cast("T", end.value)
    work.close()
    name = getattr(work, "__qualname__", work)
    raise RuntimeError(f"{name} waits for an event loop: it cannot be called from synchronous code")


class Pool(ABC):
    """At most `most` connections. One is made when it is needed, and closed when it has not been used for a while.

    If the connection string asks for a server that can write, a connection to one that cannot is closed, so the next
    one leads to the new primary.
    """

    def __init__(self, info: str, most: int) -> None:
        self.most = most
        self._writes = conninfo.conninfo_to_dict(info).get("target_session_attrs") == "read-write"
        self._used: set[Any] = set()
        self._trouble: str | None = None  # why the last connection was of no use
        self._silent_at = float("-inf")

    @property
    def used(self) -> int:
        """How many connections are in use."""
        return len(self._used)

    @property
    def reason(self) -> str:
        """Why there is no connection to take."""
        if self.used >= self.most:
            return f"all {self.most} connections are in use"
        return self._trouble or "the server has not answered yet"

    async def take(self, seconds: float) -> Any:
        """A connection that answers. Raises PoolTimeout if there is none within this time; `reason` then says why."""
        began = time.monotonic()
        end = began + seconds
        while True:
            connection = await self._get(end - time.monotonic())
            self._used.add(connection)
            fit = False
            try:
                fit = await self._fits(connection, end)
            finally:
                if not fit:
                    connection.pgconn.finish()
                    await self.give_back(connection)
            if fit:
                return connection
            if connection.made_at > began:  # a new one is of no use either: perhaps a pooler mixes its sessions
                await self._sleep(_PAUSE)

    async def give_back(self, connection: Any) -> None:
        """Takes a connection back. One that is closed, or in a transaction, is replaced."""
        self._used.discard(connection)
        stale = connection.made_at <= self._silent_at
        if stale or connection.info.transaction_status != TransactionStatus.IDLE:
            connection.pgconn.finish()
        await self._put(connection)

    async def _fits(self, connection: Any, end: float) -> bool:
        try:
            with within(connection, min(CHECK, max(end - time.monotonic(), 0.1))):
                read_only = await self._ask(connection, _ASK) == "on"
                if read_only and self._writes:
                    read_only = await self._ask(connection, _RESET) == "on"
        except Failures as error:
            await self._failed(error)
            return False
        if read_only and self._writes:
            self._trouble = "the server is read-only"
            return False
        return True

    async def _failed(self, error: BaseException) -> None:
        self.troubled(error)
        if isinstance(error, NoAnswer):
            # The others are probably silent, too. Each of them would cost the same wait.
            self._silent_at = time.monotonic()
            await self._drain()

    def troubled(self, error: BaseException) -> None:
        """Keeps the reason why a connection is of no use."""
        self._trouble = one_line(error).rstrip(".")

    def connected(self) -> None:
        """Forgets the reason: there is a new connection."""
        self._trouble = None

    @abstractmethod
    async def open(self) -> None:
        """Lets connections be taken; a second call does nothing."""

    @abstractmethod
    async def close(self, seconds: float = 5.0) -> None:
        """Closes idle connections now and the others when they are given back. Waiting for one raises PoolClosed.

        seconds: how long connections may take that are just being made.
        """

    @abstractmethod
    async def _get(self, seconds: float) -> Any: ...
    @abstractmethod
    async def _put(self, connection: Any) -> None: ...
    @abstractmethod
    async def _drain(self) -> None: ...
    @abstractmethod
    async def _ask(self, connection: Any, question: bytes) -> Any: ...
    @abstractmethod
    async def _sleep(self, seconds: float) -> None: ...


class CoroutinePool(Pool):
    """A pool for coroutines of one event loop.

    setup: sets up a new connection.
    clean: whether a connection that comes back loses its session's settings.
    options: as for psycopg's connect().
    """

    def __init__(self, info: str, most: int, name: str, setup: Setup, *, clean: bool, **options: Any) -> None:
        super().__init__(info, most)
        self.pool: AsyncConnectionPool[Bounded] = AsyncConnectionPool(
            info, connection_class=self._noted(setup), reset=self._clean if clean else None,
            **_sizes(most, name, options),
        )  # fmt: skip

    def _noted(self, setup: Setup) -> type[Bounded]:
        """The class of the pool's connections: to connect includes the setup, and keeps the reason if it fails."""
        pool = self

        class Noted(Bounded):
            @classmethod
            async def connect(cls, conninfo: str = "", **options: Any) -> Noted:
                try:
                    made = await super().connect(conninfo, **options)
                    try:
                        with within(made, _SETUP):
                            await setup(made)
                    except BaseException:
                        await made.close()
                        raise
                except Exception as error:
                    pool.troubled(error)
                    raise
                pool.connected()
                return made

        _name(Noted)
        return Noted

    async def open(self) -> None:
        await self.pool.open()

    async def close(self, seconds: float = 5.0) -> None:
        await self.pool.close(seconds)

    async def _get(self, seconds: float) -> Bounded:
        return await self.pool.getconn(seconds)

    async def _put(self, connection: Bounded) -> None:
        await self.pool.putconn(connection)

    async def _drain(self) -> None:
        await self.pool.drain()

    async def _ask(self, connection: Bounded, question: bytes) -> Any:
        cursor = AsyncCursor(connection, row_factory=scalar_row)  # behind a pooler, others open a transaction first
        await cursor.execute(question)
        while cursor.nextset():  # the answer to the last of several
            pass
        return await cursor.fetchone()

    async def _sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _clean(self, connection: Bounded) -> None:
        """One user's settings must not reach the next."""
        connection.row_factory, connection.cursor_factory = tuple_row, AsyncCursor
        try:
            with within(connection, CHECK):
                await connection.execute(_NEW)
        except Failures as error:
            await self._failed(error)
            raise


class ThreadPool(Pool):
    """A pool for threads; the parameters are those of CoroutinePool."""

    def __init__(self, info: str, most: int, name: str, setup: BlockingSetup, *, clean: bool, **options: Any) -> None:
        super().__init__(info, most)
        self.pool: ConnectionPool[BoundedBlocking] = ConnectionPool(
            info, connection_class=self._noted(setup), reset=self._clean if clean else None,
            **_sizes(most, name, options),
        )  # fmt: skip

    def _noted(self, setup: BlockingSetup) -> type[BoundedBlocking]:
        pool = self

        class Noted(BoundedBlocking):
            @classmethod
            def connect(cls, conninfo: str = "", **options: Any) -> Noted:
                try:
                    made = super().connect(conninfo, **options)
                    try:
                        with within(made, _SETUP):
                            setup(made)
                    except BaseException:
                        made.close()
                        raise
                except Exception as error:
                    pool.troubled(error)
                    raise
                pool.connected()
                return made

        _name(Noted)
        return Noted

    async def open(self) -> None:
        self.pool.open()

    async def close(self, seconds: float = 5.0) -> None:
        self.pool.close(seconds / _WORKERS)  # it waits so long for one after the other

    async def _get(self, seconds: float) -> BoundedBlocking:
        return self.pool.getconn(seconds)

    async def _put(self, connection: BoundedBlocking) -> None:
        self.pool.putconn(connection)

    async def _drain(self) -> None:
        self.pool.drain()

    async def _ask(self, connection: BoundedBlocking, question: bytes) -> Any:
        cursor = Cursor(connection, row_factory=scalar_row).execute(question)
        while cursor.nextset():
            pass
        return cursor.fetchone()

    async def _sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - there is no event loop to hold up

    def _clean(self, connection: BoundedBlocking) -> None:
        connection.row_factory, connection.cursor_factory = tuple_row, Cursor
        try:
            with within(connection, CHECK):
                connection.execute(_NEW)
        except Failures as error:
            finished(self._failed(error))
            raise


def _name(kind: type) -> None:
    kind.__module__, kind.__qualname__ = "pgsched", "Connection"  # as psycopg_pool logs it


def _sizes(most: int, name: str, options: dict[str, Any]) -> dict[str, Any]:
    return {
        "kwargs": {"autocommit": True, **options},
        "min_size": 0,
        "max_size": most,
        "num_workers": _WORKERS,
        "open": False,
        "name": name,
        "reconnect_timeout": RETRY,
    }
