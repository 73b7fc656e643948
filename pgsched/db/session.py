"""Connections: how they are made, kept, bounded in time and given up. Statements belong to store."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString, TypeAlias

import psycopg
from psycopg import conninfo
from psycopg.pq import Format, TransactionStatus
from psycopg.types.datetime import TimestamptzBinaryLoader, TimestamptzLoader

from pgsched.errors import ConfigurationError, DatabaseUnavailable
from pgsched.log import Logger, get

Connection: TypeAlias = psycopg.AsyncConnection[Any]

# What may go wrong with a database that will be back: everything psycopg raises, and the sockets below it.
Failures = (psycopg.Error, DatabaseUnavailable, OSError, TimeoutError)
# And everything a statement may raise before it is sent, or when its answer is read: a value of one row that psycopg
# cannot adapt. No service may end because of it.
Mishaps = (*Failures, ValueError, TypeError, OverflowError, NotImplementedError)

STATEMENT_LIMIT = timedelta(seconds=15)
_READ_ONLY = "25006"
_STOOD_STILL = "25P03"
# For how long a claim may lock schedules, at most, while the event loop is blocked or the process stands still.
LOCKED_FOR = timedelta(seconds=2)
_DEFAULTS = {
    "connect_timeout": "10",
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
    "target_session_attrs": "read-write",
}
# Errors that are known to pass: connections, conflicts, resources, locks, operators, the machine, time limits of a
# transaction. With every other SQLSTATE the server refuses a statement because of its content.
_PASSING = ("08", "40", "53", "55006", "55P", "57", "58", "25P0", _READ_ONLY)
# An error of a prepared statement: another statement of that name, or a table that has been made again.
_PREPARED = ("0A000", "26000", "42P05")
# Something that a statement names is not there. Perhaps the whole schema is another one now.
_UNDEFINED = ("42P01", "42703", "42883", "42704", "3F000")
_SESSION = """
select set_config('statement_timeout', %s, false), set_config('lock_timeout', %s, false),
    set_config('idle_in_transaction_session_timeout', %s, false), set_config('TimeZone', 'UTC', false),
    set_config('search_path', 'pg_catalog, pg_temp', false), set_config('DateStyle', 'ISO', false),
    set_config('IntervalStyle', 'postgres', false),  -- psycopg reads no other
    set_config('array_nulls', 'on', false),  -- else NULL in an array is a text of four letters
    -- What a pass reads after it has locked must be newer than the lock.
    set_config('default_transaction_isolation', 'read committed', false),
    set_config('idle_session_timeout', '0', false),  -- a listener is idle by trade
    -- Rows are found by an index, however small or quiet a table was when it was last analysed.
    set_config('enable_seqscan', 'off', false),
    -- Their plans are the same whatever the parameters, and to plan one again takes longer than to carry it out.
    set_config('plan_cache_mode', 'force_generic_plan', false),
    -- And in its order: a bitmap of all that may come is made before the first row, of which we want no more.
    set_config('enable_bitmapscan', 'off', false),
    set_config('jit', 'off', false)  -- short statements whose cost is guessed high before the first analyze
"""
# The first three parameters of _SESSION: for how long a statement may take, wait for a lock, a transaction stand still.
_LIMITS = ("15s", "10s", "30s")
# The server gives a statement up before we give up the connection: then it says so, and the rows are sent apart.
_SOONER = 0.8
SET = frozenset(re.findall(r"set_config\('(\w+)'", _SESSION))  # the names of what our sessions have set for themselves


def application_name(worker: object) -> str:
    """The name of a worker's sessions in pg_stat_activity, by which a reaper sees that it lives."""
    return f"pgsched {worker}"


def conninfo_for(dsn: str | None, name: str) -> str:
    """The connection string with our defaults under it. Raises ConfigurationError for one that libpq cannot read.

    The password, where there is one, is in the result: never log it.
    """
    try:
        given = conninfo.conninfo_to_dict(dsn or "")
    except (psycopg.ProgrammingError, UnicodeDecodeError):  # the latter for a % that begins no escape
        # libpq would quote what it could not read, and that may be a part of a password.
        raise ConfigurationError(
            "The DSN cannot be read: it is neither a URI nor key=value pairs that libpq knows. "
            "Write postgresql://user@host/database or host=… dbname=…."
        ) from None
    if _misreads_password(dsn or "", given):
        raise ConfigurationError(
            "The DSN can be read in two ways: its password, or another part, holds '@' or '/' as it is. Write %40 for "
            "'@' and %2F for '/' there."
        )
    # Whatever the environment and the role say: psycopg would fail to encode a text that a smaller encoding lacks.
    ours = {"client_encoding": "utf8", "application_name": name}
    return conninfo.make_conninfo("", **{**_DEFAULTS, **given, **ours})


def _misreads_password(dsn: str, given: Mapping[str, Any]) -> bool:
    """Whether libpq takes a part of the password for the host, the port or the database, and would quote it so in its
    messages. It ends the password at the first '@', and sees none at all behind a '/'."""
    scheme, found, rest = dsn.strip().partition("://")
    if not found or scheme not in ("postgresql", "postgres"):
        return False
    authority, _, path = rest.partition("?")[0].partition("/")
    hosts = str(given.get("host") or "").split(",")
    ports = str(given.get("port") or "0").split(",")
    return (
        authority.count("@") > 1
        or "@" in path
        or any("@" in host[1:] for host in hosts)
        or not all(port.isdecimal() for port in ports if port)
    )


def describe(error: BaseException) -> str:
    """One line about a database error, without row data (DETAIL) and without the statement."""
    if isinstance(error, psycopg.Error) and error.sqlstate:
        return f"{error.diag.message_primary or type(error).__name__} (SQLSTATE {error.sqlstate})"
    first = str(error).strip().splitlines()
    return first[0] if first else type(error).__name__


def passing(error: BaseException) -> bool:
    """Whether an error is known to pass by itself: the database is away, busy, or in somebody else's hands."""
    if not isinstance(error, psycopg.Error):
        return isinstance(error, Failures)
    if error.sqlstate is not None:
        return error.sqlstate.startswith(_PASSING)
    # Without an SQLSTATE the server has not answered: the connection has gone, or psycopg cannot adapt a value.
    return not isinstance(error, (psycopg.DataError, psycopg.ProgrammingError, psycopg.NotSupportedError))


def refused(error: BaseException) -> bool:
    """Whether a statement failed for what is in it, and would fail again. Its rows must be sent apart then."""
    return isinstance(error, Mishaps) and not passing(error)


def answered(error: BaseException) -> bool:
    """Whether the server answered a statement with an error and went on, so that other rows may do better."""
    if not isinstance(error, psycopg.Error) or error.sqlstate is None:
        return refused(error)
    # An error that ends the session is FATAL, whatever its code. A trigger may raise any code, of a connection, say.
    return error.diag.severity_nonlocalized not in ("FATAL", "PANIC") and error.sqlstate != _READ_ONLY


def of_prepared(error: BaseException) -> bool:
    """Whether an error may be that of a prepared statement, which a new connection does not have."""
    return isinstance(error, psycopg.Error) and error.sqlstate in _PREPARED


def stood_still(error: BaseException) -> bool:
    """Whether the server ended a session because its transaction stood still for too long."""
    return isinstance(error, psycopg.Error) and error.sqlstate == _STOOD_STILL


def unreachable(error: BaseException) -> DatabaseUnavailable:
    """The error to raise where the database cannot be reached and nobody waits for it."""
    return DatabaseUnavailable(
        f"The database cannot be reached: {describe(error)}. Check that the server runs and that --dsn, PGSCHED_DSN "
        "or libpq's environment leads to it."
    )


class Backoff:
    """Waits that grow from `first` to `most` seconds, with jitter; from the start again after a healthy while."""

    def __init__(self, first: float = 0.05, most: float = 10.0, healthy: float = 20.0) -> None:
        self._first, self._most, self._healthy = first, most, healthy
        self._next = first
        self._last = float("-inf")

    def delay(self) -> float:
        """The next wait, in seconds."""
        now = time.monotonic()
        if now - self._last > self._healthy + self._next:
            self._next = self._first
        self._last = now
        wait = self._next * random.uniform(0.5, 1.0)  # noqa: S311 - spreads reconnects, hides nothing
        self._next = min(self._next * 2, self._most)
        return wait


class Session:
    """One connection, reserved for one purpose, made again when it is gone. One user at a time.

    direct: whether the server itself answers (as opposed to a pooler), known after the first connect. limit: how long a
    statement may take. idle: for how long a transaction of it may stand still, with whatever it has locked, before the
    server ends the session. lock: for how long a statement waits for a lock, such as that of a unique index in which a
    client has a row that is not committed.
    """

    def __init__(
        self,
        info: str,
        purpose: str,
        limit: timedelta = STATEMENT_LIMIT,
        *,
        idle: timedelta = timedelta(seconds=30),
        lock: timedelta = timedelta(seconds=10),
    ) -> None:
        self.purpose = purpose
        self._idle = idle
        self._wait = lock
        self._locking = False
        self._severed = False  # by sever()
        self.direct = True
        self.generation = 0
        self._misfit: list[Callable[[], None]] = []
        self._info = info
        self._limit = limit.total_seconds()
        self._lock = asyncio.Lock()
        self._connection: Connection | None = None

    def subscribe(self, *, misfit: Callable[[], None]) -> None:
        """Calls `misfit` whenever a statement did not fit the schema: it may be another one now."""
        self._misfit.append(misfit)

    def was_severed(self) -> bool:
        """Whether sever() has cut it off since the last time that somebody asked."""
        severed, self._severed = self._severed, False
        return severed

    @contextlib.asynccontextmanager
    async def use(self, limit: timedelta | None = None) -> AsyncIterator[Connection]:
        """The connection, for as long as the block runs, and never longer than the limit, else the statement limit.

        After an error, a timeout or a cancellation the connection is thrown away unless it is certainly idle:
        what it was in the middle of must not leak into the next block.
        """
        async with self._lock:
            try:
                async with asyncio.timeout(self._limit if limit is None else limit.total_seconds()):
                    connection = await self.connect()
                    yield connection
            except BaseException as error:
                unusable = self._connection is not None and (
                    self._connection.closed
                    or self._connection.info.transaction_status != TransactionStatus.IDLE
                    or (isinstance(error, psycopg.Error) and error.sqlstate == _READ_ONLY)
                    or of_prepared(error)
                    or not isinstance(error, Exception)
                )
                if unusable or isinstance(error, TimeoutError):
                    await self.discard()
                if of_prepared(error) or (isinstance(error, psycopg.Error) and error.sqlstate in _UNDEFINED):
                    for callback in self._misfit:
                        callback()
                raise

    async def connect(self) -> Connection:
        """The connection, made if there is none."""
        if self._connection is not None and not self._connection.closed:
            return self._connection
        connection = await psycopg.AsyncConnection.connect(self._info, autocommit=True)
        try:
            limits = (self._limit * _SOONER, self._wait.total_seconds(), self._idle.total_seconds())
            self.direct = await prepare(connection, [f"{int(1000 * seconds)}ms" for seconds in limits])
            if not self.direct:
                connection.cursor_factory = Plain
        except BaseException:
            await connection.close()
            raise
        self._connection = connection
        self.generation += 1
        return connection

    @contextlib.asynccontextmanager
    async def transaction(self, connection: Connection) -> AsyncIterator[None]:
        """A transaction on the session's connection that holds locks, and that sever() ends."""
        self._locking = True
        try:
            async with connection.transaction():
                yield
        finally:
            self._locking = False

    def sever(self) -> bool:
        """Cuts the connection off if a transaction() is open, so that the server lets go of its locks.

        For another thread, while the event loop is blocked. If the loop goes on at this very moment, its next statement
        fails, or the answer to its commit is lost: both happen to any connection.
        """
        connection = self._connection
        if connection is None or not self._locking:
            return False
        # The descriptor may be closed meanwhile; psycopg's own close() must not come twice for one number.
        with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as own:
            own.shutdown(socket.SHUT_RDWR)
            self._severed = True
        return self._severed

    @property
    def target(self) -> tuple[int, str]:
        """The socket's descriptor, and the server's address as libpq has resolved it. Connected ones only."""
        assert self._connection is not None
        info = self._connection.info
        return self._connection.fileno(), f"{info.hostaddr or info.host}:{info.port}"

    async def discard(self) -> None:
        """Closes the connection at once, without a word to the server."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error, OSError):
                await connection.close()


async def _patiently(
    connection: Connection, statement: LiteralString, params: Sequence[str] | None = None
) -> psycopg.AsyncCursor[Any]:
    """Sends one of a session's first statements. The role's own statement_timeout may be too short even for these:
    it holds until we have set ours."""
    for _ in range(9):
        try:
            return await connection.execute(statement, params)
        except psycopg.errors.QueryCanceled:
            pass
    return await connection.execute(statement, params)


async def prepare(connection: Connection, limits: Sequence[str] = _LIMITS) -> bool:
    """Sets up a new session; returns whether it is the server's own.

    A pooler hands out a process id of its own invention. Behind one, session settings would stick to somebody
    else's session and prepared statements to nobody's, so neither is used.
    """
    row = await (await _patiently(connection, "select pg_backend_pid()")).fetchone()
    direct = row is not None and row[0] == connection.info.backend_pid
    await connection.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
    if direct:
        await _patiently(connection, _SESSION, limits)
        connection.prepare_threshold = 2
    else:
        connection.prepare_threshold = None
        # The session's zone is anybody's there, and a difference of two local times may be an hour off.
        connection.adapters.register_loader("timestamptz", InUtc)
        connection.adapters.register_loader("timestamptz", InUtcBinary)
    return direct


@contextlib.asynccontextmanager
async def snapshot(connection: Connection) -> AsyncIterator[None]:
    """A transaction whose statements all see the same moment, and that cannot write. It ends with the block."""
    await connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
    await connection.set_read_only(True)
    async with connection.transaction():
        yield


class InUtc(TimestamptzLoader):
    """Reads instants as UTC, whatever the session's time zone is."""

    def load(self, data: Any) -> datetime:
        return super().load(data).astimezone(UTC)


class InUtcBinary(TimestamptzBinaryLoader):
    """The same, of what comes as a number."""

    def load(self, data: Any) -> datetime:
        return super().load(data).astimezone(UTC)


class Plain(psycopg.AsyncCursor[Any]):
    """Reads values as they are and not as a session writes them. Its IntervalStyle and DateStyle may be anybody's: of
    'PT5M' psycopg makes five seconds."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.format = Format.BINARY


class Outage:
    """Tells once when the database is lost and once when it is back, however many services notice."""

    def __init__(self, log: Logger | None = None) -> None:
        self.since: float | None = None
        self._refusals: set[tuple[str, str]] = set()  # those logged since a statement was last answered
        self._log = log or get()

    @property
    def up(self) -> bool:
        """Whether the last statement that anybody sent was answered."""
        return self.since is None

    def lost(self, error: BaseException, purpose: str) -> None:
        """A statement failed. If the server answered, the database is there: it refuses the statement, or somebody's
        lock was in the way."""
        if answered(error):
            refusal = (purpose, describe(error))
            if refusal not in self._refusals:
                self._refusals.add(refusal)
                event = "statement_refused" if refused(error) else "statement_failed"
                self._log.error(event, purpose=purpose, error=refusal[1])
        elif self.since is None:
            self.since = time.monotonic()
            self._log.error("database_lost", purpose=purpose, error=describe(error))
        else:
            self._log.debug("database_still_lost", purpose=purpose, error=describe(error))

    def answered(self) -> None:
        """A statement was answered."""
        if self.since is not None:
            gone = time.monotonic() - self.since
            self.since = None
            self._log.info("database_back", lost_for_s=round(gone, 3))
        self._refusals.clear()
