"""Commits an application's writes together with its run's success, or neither: what run.transaction() is.

The block's last statement writes the success, under the claim, and goes out together with the COMMIT. A claim that is
gone by then takes the whole transaction with it. Nothing of the run is locked before that, so that beats go on, and a
worker that stands still, wherever it does, can be replaced.

A commit whose answer is lost may have happened, or may happen yet: the old session is ended and waited for, and then
the run's row tells.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Coroutine
from datetime import datetime
from types import TracebackType
from typing import Any, Protocol, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolTimeout

from pgsched import db
from pgsched.db import STATEMENT_LIMIT, Backoff, Connection, Failures
from pgsched.errors import ClaimLost, PgschedError
from pgsched.model import Claim
from pgsched.store import Store

T = TypeVar("T")
Blocking = psycopg.Connection[Any]

_LIMIT = STATEMENT_LIMIT.total_seconds()  # for a COMMIT once the run is to stop, and for asking after one
_CLAIM_LOST = "PS410"
_ASKS = "pgsched commit"  # the application_name of sessions that look after a commit
_POOL_WAIT = 30.0  # seconds after which a pool is asked again, and tries to connect again


def session_name(claim: Claim) -> str:
    """The application_name of an attempt's transaction. A reaper that looks for a worker's sign of life takes no
    session of this kind for one."""
    return f"pgsched-run {claim.worker} {claim.run_id}.{claim.attempt}"[:63]


class Fence:
    """What one attempt needs to commit under its claim; a process of its own can be given the first three values.

    dsn: as for connect(); None for libpq's environment. started_at: when the attempt began, where that is known.
    transactions: the connections to use; without them each transaction makes one of its own.
    committed: called once the commit is certain, in whatever thread has done it.
    """

    def __init__(
        self,
        dsn: str | None,
        schema: str,
        claim: Claim,
        started_at: datetime | None = None,
        *,
        transactions: Transactions | None = None,
        committed: Callable[[], None] = lambda: None,
    ) -> None:
        self.dsn = dsn
        self.schema = schema
        self.claim = claim
        self.started_at = started_at
        self.transactions = transactions
        self.committed = committed
        self.over = transactions.over if transactions is not None else threading.Event()
        self._entered = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Fence, (self.dsn, self.schema, self.claim, self.started_at)

    def transaction(self) -> Transaction:
        """One transaction, for `async with` in coroutines and `with` in threads."""
        return Transaction(self)

    def enter(self) -> None:
        """Raises PgschedError where the attempt has had its transaction."""
        if not self._entered.acquire(blocking=False):
            raise PgschedError(
                "run.transaction() can be used once in an attempt: what it commits is the run's success. "
                "Put all writes into one block."
            )

    @property
    def info(self) -> str:
        """The connection string of a connection of its own."""
        return db.conninfo_for(self.dsn, session_name(self.claim))

    def statement(self, name: str) -> tuple[bytes, dict[str, Any]]:
        """A statement about this claim, and its parameters."""
        store = self.transactions.store if self.transactions is not None else Store(self.schema)
        claim = self.claim
        params = {"id": claim.run_id, "attempt": claim.attempt, "worker": claim.worker, "started_at": self.started_at}
        return store.query(name), {**params, "name": (own := session_name(claim)), "names": [own]}

    def lost(self) -> ClaimLost:
        """The error of a block whose claim is gone."""
        return ClaimLost(
            f"run {self.claim.run_id} is no longer this worker's: its transaction was rolled back, nothing of it is "
            "written."
        )


class Transaction:
    """The block: entering it begins the application's transaction, leaving it commits it with the run's success.

    The work is told once, over what can wait in two ways: a coroutine's, and a thread's.
    """

    def __init__(self, fence: Fence) -> None:
        self._fence = fence
        self._way: _Way
        self._connection: Any
        self._block: Any
        self._transaction: Any

    async def __aenter__(self) -> Connection:
        self._way = _Coroutines(self._fence)
        await self._enter()
        connection: Connection = self._connection
        return connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return await self._exit(error)

    def __enter__(self) -> Blocking:
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop()
            raise PgschedError("This would block the event loop: write `async with run.transaction() as connection:`.")
        self._way = _Threads(self._fence)
        _driven(self._enter())
        connection: Blocking = self._connection
        return connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return _driven(self._exit(error))

    async def _enter(self) -> None:
        self._fence.enter()
        self._connection = await self._way.take()
        try:
            self._block = self._connection.transaction()
            self._transaction = await self._way.begin(self._block)
            await self._way.execute(self._connection, *self._fence.statement("begin_transaction"))
        except BaseException:
            await self._way.give_back(self._connection)
            raise

    async def _exit(self, error: BaseException | None) -> bool:
        try:
            if error is not None:
                return await self._roll_back(error)
            if self._connection.info.transaction_status == TransactionStatus.IDLE:
                error = PgschedError(
                    "The block has ended its transaction itself, so what it wrote is not fenced, and the run's success "
                    "is not written: leave BEGIN, COMMIT and ROLLBACK to run.transaction()."
                )
                await self._roll_back(error)
                raise error
            # Up to here a cancellation rolls everything back. From here on it must wait for the answer.
            await self._way.apart(self._commit())
        finally:
            await self._way.give_back(self._connection)
        return False

    async def _roll_back(self, error: BaseException) -> bool:
        """Returns whether the error was the block's own wish, a psycopg.Rollback, and ends here."""
        with contextlib.suppress(*Failures):  # it is rolled back where the connection is gone, too
            return await self._way.end(self._block, error)
        return False

    async def _commit(self) -> None:
        try:
            await self._way.commit(self._connection, *self._fence.statement("commit_run"))
        except (*Failures, asyncio.CancelledError) as error:
            answered = isinstance(error, psycopg.Error) and error.sqlstate and not self._connection.closed
            if not answered:
                await self._way.close(self._connection)
            await self._roll_back(error)
            if isinstance(error, psycopg.Error) and error.sqlstate == _CLAIM_LOST:
                raise self._fence.lost() from None
            if answered or not await self._find_out(error):
                raise
        else:
            with contextlib.suppress(*Failures):  # the empty transaction after it
                await self._way.end(self._block, None)
        self._fence.committed()

    async def _find_out(self, error: BaseException) -> bool:
        """Whether a commit that was not answered has been done. Raises ClaimLost where nothing was written and the
        claim is gone, the error where nobody can be asked any more."""
        backoff = Backoff(0.05, 2.0)
        while True:
            try:
                rows = await self._way.ask([self._fence.statement(name) for name in _ASKING])
            except Failures:
                if self._way.given_up:
                    error.add_note("Whether its transaction has committed is not known: the database did not tell.")
                    raise error from None
                await self._way.sleep(backoff.delay())
            else:
                if not rows:
                    raise self._fence.lost() from error
                return bool(rows[0][0])


# Its message may still be on its way to the server: reading alone would not tell what becomes of it.
_ASKING = ("end_transactions", "wait_for_transaction", "look_after_commit")


class _Way(Protocol):
    """What a transaction waits for, in a coroutine or in a thread."""

    @property
    def given_up(self) -> bool: ...
    async def take(self) -> Any: ...
    async def give_back(self, connection: Any) -> None: ...
    async def begin(self, block: Any) -> Any: ...
    async def execute(self, connection: Any, query: bytes, params: dict[str, Any]) -> list[Any]: ...
    async def end(self, block: Any, error: BaseException | None) -> bool: ...
    async def close(self, connection: Any) -> None: ...
    async def commit(self, connection: Any, query: bytes, params: dict[str, Any]) -> None: ...
    async def ask(self, statements: list[tuple[bytes, dict[str, Any]]]) -> list[Any]: ...
    async def sleep(self, seconds: float) -> None: ...
    async def apart(self, work: Coroutine[Any, Any, None]) -> None: ...


class _Coroutines:
    """In an event loop."""

    def __init__(self, fence: Fence) -> None:
        self._fence = fence
        self._pool: AsyncConnectionPool[Connection] | None = None
        self._give_up_at = float("inf")

    @property
    def given_up(self) -> bool:
        return self._fence.over.is_set() or time.monotonic() > self._give_up_at

    async def take(self) -> Connection:
        transactions = self._fence.transactions
        if transactions is None or (pool := await transactions.for_coroutines()) is None:
            return await psycopg.AsyncConnection.connect(self._fence.info, **_OPTIONS)
        self._pool = pool
        while True:
            with contextlib.suppress(PoolTimeout):  # however long others take: the run's timeout is its own affair
                return await pool.getconn(_POOL_WAIT)

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

    async def ask(self, statements: list[tuple[bytes, dict[str, Any]]]) -> list[Any]:
        async with asyncio.timeout(_LIMIT):
            # Not under the name of the session that is to be ended.
            connection = await psycopg.AsyncConnection.connect(db.conninfo_for(self._fence.dsn, _ASKS), **_OPTIONS)
            async with connection:
                rows = []
                for query, params in statements:
                    rows = await self.execute(connection, query, params)
                return rows

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def apart(self, work: Coroutine[Any, Any, None]) -> None:
        """Does what must not be interrupted. A cancellation is passed on once it is done, or has taken too long."""
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
                task.exception()  # looked at: the cancellation says more
            raise cancelled
        await task


class _Threads:
    """In a thread: nothing here ever waits in an event loop's sense, so that _driven() can call it."""

    def __init__(self, fence: Fence) -> None:
        self._fence = fence
        self._pool: ConnectionPool[Blocking] | None = None

    @property
    def given_up(self) -> bool:
        return self._fence.over.is_set()

    async def take(self) -> Blocking:
        transactions = self._fence.transactions
        if transactions is None:
            return psycopg.Connection.connect(self._fence.info, **_OPTIONS)
        self._pool = transactions.for_threads()
        while True:
            with contextlib.suppress(PoolTimeout):
                return self._pool.getconn(_POOL_WAIT)

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

    async def ask(self, statements: list[tuple[bytes, dict[str, Any]]]) -> list[Any]:
        with psycopg.Connection.connect(db.conninfo_for(self._fence.dsn, _ASKS), **_OPTIONS) as connection:
            rows = []
            for query, params in statements:
                rows = await self.execute(connection, query, params)
            return rows

    async def sleep(self, seconds: float) -> None:
        self._fence.over.wait(seconds)

    async def apart(self, work: Coroutine[Any, Any, None]) -> None:
        await work


def _of(error: BaseException | None) -> tuple[Any, Any, Any]:
    return (None, None, None) if error is None else (type(error), error, error.__traceback__)


def _driven(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("a thread's transaction waited for an event loop")


# The application's own sessions: its search path, its time zone and its limits are its own. A pooler may be in between.
_OPTIONS: dict[str, Any] = {"autocommit": True, "prepare_threshold": None}


class Transactions:
    """A worker's connections for the transactions of its runs: at most `most` for coroutines, and as many for threads.

    None is made before it is needed, and those that are not used for a while are closed.
    """

    def __init__(self, dsn: str | None, store: Store, worker: uuid.UUID, most: int) -> None:
        self.store = store
        self.over = threading.Event()
        self._dsn = dsn
        self._info = db.conninfo_for(dsn, f"pgsched-run {worker}")
        self._most = most
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._coroutines: AsyncConnectionPool[Connection] | None = None
        self._threads: ConnectionPool[Blocking] | None = None

    def fence(self, claim: Claim, started_at: datetime | None, committed: Callable[[], None]) -> Fence:
        """An attempt's."""
        return Fence(self._dsn, self.store.schema, claim, started_at, transactions=self, committed=committed)

    async def for_coroutines(self) -> AsyncConnectionPool[Connection] | None:
        """The pool for coroutines; None for those of another event loop than the worker's."""
        self._check()
        if self._coroutines is None:
            self._loop = asyncio.get_running_loop()
            self._coroutines = AsyncConnectionPool(
                self._info,
                configure=_configure,
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
                    self._info, configure=_configure_blocking, reset=_reset_blocking,
                    check=ConnectionPool.check_connection, **self._sizes,
                )  # fmt: skip
                self._threads.open()
            return self._threads

    @property
    def _sizes(self) -> dict[str, Any]:
        return {"kwargs": _OPTIONS, "min_size": 0, "max_size": self._most, "open": False, "name": "pgsched-run"}

    async def close(self) -> None:
        """Closes what is idle now, and the rest when it is given back. Whoever waits for a connection gets an error."""
        self.over.set()
        if self._coroutines is not None:
            await self._coroutines.close(1.0)
        with self._lock:
            threads = self._threads
        if threads is not None:
            await asyncio.to_thread(threads.close, 1.0)

    def _check(self) -> None:
        if self.over.is_set():
            raise PgschedError("The worker has ended: there are no more transactions.")


# A beat changes the run's row while the block runs, which any stricter isolation would take for a conflict.


async def _configure(connection: Connection) -> None:
    await connection.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)


def _configure_blocking(connection: Blocking) -> None:
    connection.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)


# What one run has set must not be another's.


async def _reset(connection: Connection) -> None:
    connection.row_factory = tuple_row
    await connection.execute("discard all")


def _reset_blocking(connection: Blocking) -> None:
    connection.row_factory = tuple_row
    connection.execute("discard all")
