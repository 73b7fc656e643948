"""Connects to the first address that answers, each within a limit, and limits every wait on a connection.

A wait for an answer that is over its limit ends with its connection: a cancellation would wait for the same server. If
an answer may take long, `at_work` asks the server over another connection, and only a lost answer ends the wait.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Any, LiteralString, Self, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.errors import _WaitTimeout  # documented at Connection.wait()
from psycopg.pq import TransactionStatus
from psycopg.pq.abc import PGconn

from pgsched.db.addresses import Attempts, Params, addresses, addresses_blocking, in_thread, unresolved

T = TypeVar("T")

ON_ITS_WAY = 5.0  # seconds for an answer that the server has sent already
_TRIES = 10  # at statements that the server cancels before our own limits apply
READS_ONLY: LiteralString = (
    "select pg_catalog.pg_is_in_recovery() or reset_val operator(pg_catalog.=) 'on' from pg_catalog.pg_settings"
    " where name operator(pg_catalog.=) 'default_transaction_read_only'"
)


class NoAnswer(psycopg.OperationalError):
    """The server has not answered within the connection's limit. The connection is closed."""


class _Try:
    """One of several tries: a cancellation by the server does not leave its block, unless it is the last one."""

    def __init__(self, last: bool) -> None:
        self._last = last
        self.cancelled = False

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        self.cancelled = isinstance(error, psycopg.errors.QueryCanceled) and not self._last
        return self.cancelled


def tries() -> Iterator[_Try]:
    """Up to ten tries at statements that the server may cancel. Until we have set our limits, the statement_timeout of
    the role applies, or behind a pooler a neighbour's, and it may be too short even for these."""
    for left in reversed(range(_TRIES)):
        one = _Try(last=left == 0)
        yield one
        if not one.cancelled:
            return


class _Limits:
    """The limits of a connection.

    limit: the longest wait for an answer, in seconds; None for any.
    at_work: asks, over another connection, whether the server is still at work on a statement that is over the limit.
        If it is, the wait goes on. In a coroutine it is awaited.
    opening: statements with their parameters that begin each outermost transaction. If the server cancels one, the
        transaction begins again: see tries().
    made_at: when it was connected, by the monotonic clock.
    """

    pgconn: PGconn
    limit: float | None = None
    at_work: Callable[[], Any] | None = None
    opening: Sequence[tuple[LiteralString, Sequence[Any]]] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.made_at = time.monotonic()
        self.nested: dict[object, float] = {}  # by the block of within(): tasks may share a connection

    def _allowed(self) -> float | None:
        return min((each for each in (self.limit, *self.nested.values()) if each is not None), default=None)

    def may_only_read(self) -> bool:
        """Whether the server, or a pooler, has reported at the connect that it may not write, or nothing."""
        reports = (b"default_transaction_read_only", b"in_hot_standby")
        return any(self.pgconn.parameter_status(name) != b"off" for name in reports)

    def _reading(self) -> psycopg.OperationalError:
        self.pgconn.finish()
        return psycopg.OperationalError("the server is read-only")

    def _silent(self, limit: float) -> NoAnswer:
        # Without a word to the server: it would not read it.
        self.pgconn.finish()
        return NoAnswer(f"the server has not answered for {limit:g} s")


def _release(error: BaseException | None) -> None:
    """Frees what a failed connect holds: its socket would stay open until a cycle of frames and errors is collected,
    which a worker seldom does."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


class Bounded(_Limits, psycopg.AsyncConnection[Any]):
    """A connection for coroutines."""

    at_work: Callable[[], Awaitable[bool]] | None = None

    @asynccontextmanager
    async def transaction(self, *args: Any, **kwargs: Any) -> AsyncIterator[psycopg.AsyncTransaction]:
        """A transaction or, inside of one, a savepoint."""
        opening = self.opening if self.info.transaction_status == TransactionStatus.IDLE else ()
        for one in tries():
            async with super().transaction(*args, **kwargs) as block:
                with one:
                    for statement, params in opening:
                        await psycopg.AsyncCursor(self).execute(statement, params)
                if not one.cancelled:
                    yield block

    @classmethod
    async def connect(cls, conninfo: str = "", **options: Any) -> Self:
        """Connects to the first address that answers. Takes what psycopg takes, and total: the limit in seconds."""
        total = options.pop("total", None)
        attempts = Attempts(conninfo, options, total)
        try:
            async with asyncio.timeout(total):
                return await cls._first(attempts)
        except TimeoutError:
            raise attempts.error(total) from None

    @classmethod
    async def _first(cls, attempts: Attempts) -> Self:
        found: list[Params] = []
        for host in attempts.hosts:
            try:
                found += await addresses(host)
            except OSError as error:
                attempts.failed(host, unresolved(host, error))
        for one, info in attempts.each(found):
            try:
                made = await super().connect(info, **attempts.options)
                if attempts.writes and made.may_only_read():
                    # A little sooner: to cancel a question, psycopg would wait for the server again.
                    await made._refuse_reading(0.9 * attempts.left)
            except BaseException as error:
                _release(error)
                if not isinstance(error, psycopg.OperationalError):
                    raise
                attempts.failed(one, error)
            else:
                attempts.answered(one)
                return made
        raise attempts.error() from None

    async def _refuse_reading(self, seconds: float) -> None:
        row = None
        try:
            with within(self, min(ON_ITS_WAY, seconds)):
                for one in tries():
                    with one:
                        row = await (await psycopg.AsyncCursor(self).execute(READS_ONLY)).fetchone()
                    await self.rollback()
        except BaseException:  # a cancellation, too: nobody else knows of this connection
            self.pgconn.finish()
            raise
        if row is None or row[0]:
            raise self._reading()

    async def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        """Waits for an answer, up to the limit. A connection that gives none is closed."""
        limit = self._allowed()
        if limit is None or kwargs.get("timeout") is not None:
            return await super().wait(gen, *args, **kwargs)
        patience, last = limit, self.at_work is None
        while True:
            try:  # psycopg leaves the generator as it is, so the wait can go on
                return await super().wait(gen, *args, **{**kwargs, "timeout": patience})
            except _WaitTimeout:
                if last:
                    raise self._silent(limit) from None
            if not await self._asked():
                patience, last = min(ON_ITS_WAY, limit), True

    async def _asked(self) -> bool:
        assert self.at_work is not None
        try:
            return await self.at_work()
        except BaseException:  # a cancellation, in the middle of a statement
            self.pgconn.finish()
            raise


class BoundedBlocking(_Limits, psycopg.Connection[Any]):
    """The same for threads."""

    at_work: Callable[[], bool] | None = None

    @contextmanager
    def transaction(self, *args: Any, **kwargs: Any) -> Iterator[psycopg.Transaction]:
        """A transaction or, inside of one, a savepoint."""
        opening = self.opening if self.info.transaction_status == TransactionStatus.IDLE else ()
        for one in tries():
            with super().transaction(*args, **kwargs) as block:
                with one:
                    for statement, params in opening:
                        psycopg.Cursor(self).execute(statement, params)
                if not one.cancelled:
                    yield block

    @classmethod
    def connect(cls, conninfo: str = "", **options: Any) -> Self:
        """Connects to the first address that answers. Takes what psycopg takes, and total: the limit in seconds."""
        total = options.pop("total", None)
        attempts = Attempts(conninfo, options, total)
        if total is None:
            return cls._first(attempts)
        try:
            return in_thread(lambda: cls._first(attempts), total, late=lambda made: made.close())
        except TimeoutError:
            raise attempts.error(total) from None

    @classmethod
    def _first(cls, attempts: Attempts) -> Self:
        found: list[Params] = []
        for host in attempts.hosts:
            try:
                found += addresses_blocking(host)
            except OSError as error:
                attempts.failed(host, unresolved(host, error))
        for one, info in attempts.each(found):
            try:
                made = super().connect(info, **attempts.options)
                if attempts.writes and made.may_only_read():
                    made._refuse_reading(attempts.left)
            except BaseException as error:
                _release(error)
                if not isinstance(error, psycopg.OperationalError):
                    raise
                attempts.failed(one, error)
            else:
                attempts.answered(one)
                return made
        raise attempts.error() from None

    def _refuse_reading(self, seconds: float) -> None:
        row = None
        try:
            with within(self, min(ON_ITS_WAY, max(seconds, 0.0))):
                for one in tries():
                    with one:
                        row = psycopg.Cursor(self).execute(READS_ONLY).fetchone()
                    self.rollback()
        except BaseException:
            self.pgconn.finish()
            raise
        if row is None or row[0]:
            raise self._reading()

    def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        """Waits for an answer, up to the limit. A connection that gives none is closed."""
        limit = self._allowed()
        if limit is None or kwargs.get("timeout") is not None:
            return super().wait(gen, *args, **kwargs)
        patience, last = limit, self.at_work is None
        while True:
            try:
                return super().wait(gen, *args, **{**kwargs, "timeout": patience})
            except _WaitTimeout:
                if last:
                    raise self._silent(limit) from None
            if not self._asked():
                patience, last = min(ON_ITS_WAY, limit), True

    def _asked(self) -> bool:
        assert self.at_work is not None
        try:
            return self.at_work()
        except BaseException:
            self.pgconn.finish()
            raise


@contextmanager
def within(connection: Any, seconds: float | None) -> Iterator[None]:
    """Limits each wait for an answer in the block. Of nested limits the shortest applies; None adds none.

    connection: one of those above. Another kind of connection, such as a caller's own, keeps its limits.
    """
    if seconds is None or not isinstance(connection, _Limits):
        yield
        return
    block = object()
    connection.nested[block] = seconds
    try:
        yield
    finally:
        del connection.nested[block]


@contextmanager
def watched(connection: Any, limit: float, at_work: Callable[[], Awaitable[bool]]) -> Iterator[None]:
    """Gives the connection another limit of its own in the block, and lets longer waits go on while the server is at
    work. Another kind of connection has no limit."""
    if not isinstance(connection, _Limits):
        yield
        return
    before, connection.limit, connection.at_work = connection.limit, limit, at_work
    try:
        yield
    finally:
        connection.limit, connection.at_work = before, None
