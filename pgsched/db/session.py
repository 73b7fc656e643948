"""Makes connections, keeps them, limits their time and gives them up. The statements are in `statements/`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, LiteralString, TypeAlias

import psycopg
from psycopg import conninfo
from psycopg.pq import TransactionStatus

from pgsched.db import addresses
from pgsched.db.forks import keep_from_children
from pgsched.db.mishaps import Failures, misfits, of_prepared, read_only
from pgsched.db.reaching import Bounded, BoundedBlocking, NoAnswer, tries, within
from pgsched.db.session_settings import LIMITS, SESSION, refuse_encoding, share
from pgsched.errors import ConfigurationError

Connection: TypeAlias = psycopg.AsyncConnection[Any]

STATEMENT_LIMIT = timedelta(seconds=15)
# The longest time that a claim may lock schedules while the event loop is blocked or the process stands still.
LOCKED_FOR = timedelta(seconds=2)
_DEFAULTS = {
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
    "target_session_attrs": "read-write",
}
# The server cancels a statement after this part of our limit, before we give up the connection. So we get its answer
# and can send the rows separately.
_SOONER = 0.8
_LATER = 1.0  # seconds after a session's limit until its block is cancelled
_DOUBTED = 2.0  # seconds for an answer if another connection of the worker has just fallen silent


def application_name(worker: object) -> str:
    """The application_name of a worker's sessions in pg_stat_activity. It shows a reaper that the worker is alive."""
    return f"pgsched {worker}"


def conninfo_for(dsn: str | None, name: str) -> str:
    """The connection string, completed with our defaults. Raises ConfigurationError if libpq cannot read it.

    The result may contain a password: never log it.
    """
    try:
        given = conninfo.conninfo_to_dict(dsn or "")
    except (psycopg.ProgrammingError, UnicodeDecodeError):  # the latter if a % begins no escape
        # libpq would quote the part that it could not read, perhaps a part of a password.
        raise ConfigurationError(
            "The DSN cannot be read: it is neither a URI nor key=value pairs that libpq knows. "
            "Write postgresql://user@host/database or host=… dbname=…."
        ) from None
    if _misreads_password(dsn or "", given):
        raise ConfigurationError(
            "The DSN can be read in two ways: its password or another part contains an unescaped '@' or '/'. Write %40 "
            "for '@' and %2F for '/' there."
        )
    # These override the environment and the role: psycopg cannot encode every text in a smaller encoding.
    ours = {"client_encoding": "utf8", "application_name": name}
    return conninfo.make_conninfo("", **{**_DEFAULTS, **given, **ours})


def _misreads_password(dsn: str, given: Mapping[str, Any]) -> bool:
    """Whether libpq takes a part of the password for the host, the port or the database. Its messages would quote it.

    libpq ends the password at the first '@', and sees no password after a '/'.
    """
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


class Backoff:
    """Waits that grow from `first` to `most` seconds, with jitter. They start over after `healthy` quiet seconds."""

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
    """One connection for one purpose, replaced when it is gone. One user at a time.

    direct: whether the server itself answers, not a pooler; known after the first connect.
    limit: the longest time of a statement; default 15 s.
    idle: how long a transaction may be idle, with its locks, before the server ends the session; default 30 s.
    lock: how long a statement waits for a lock, such as for a unique index with an uncommitted row; default 10 s.
    spare: another session, whose connection is used while this one gets none: the server may have no place left.
    """

    def __init__(
        self,
        info: str,
        purpose: str,
        limit: timedelta = STATEMENT_LIMIT,
        *,
        idle: timedelta = timedelta(seconds=30),
        lock: timedelta = timedelta(seconds=10),
        spare: Session | None = None,
    ) -> None:
        self.purpose = purpose
        self._spare = spare
        self._unable = Backoff(0.05, 2.0)
        self._connect_at = float("-inf")  # until then, the spare session is used
        self._idle = idle
        self._wait = lock
        self._locking = False
        self._severed = False  # by sever()
        self.direct = True
        self.generation = 0
        self._misfit: list[Callable[[], None]] = []
        self._remade: list[Callable[[], None]] = []
        self._silent: list[Callable[[], None]] = []
        self._doubted = False
        self._info = info
        self._limit = limit.total_seconds()
        self._lock = asyncio.Lock()
        self._connection: Bounded | None = None

    def subscribe(
        self,
        *,
        misfit: Callable[[], None] | None = None,
        remade: Callable[[], None] | None = None,
        silent: Callable[[], None] | None = None,
    ) -> None:
        """Subscribes to events.

        misfit: called whenever a statement did not fit the schema, which may have been replaced.
        remade: called whenever a connection has replaced another.
        silent: called whenever the server has not answered within the limit.
        """
        self._misfit += [misfit] if misfit is not None else []
        self._remade += [remade] if remade is not None else []
        self._silent += [silent] if silent is not None else []

    def doubt(self) -> None:
        """Has the connection prove before its next use that it answers: another one of this worker has fallen silent,
        and this one would take its whole limit to be found silent, too."""
        self._doubted = True

    def was_severed(self) -> bool:
        """Whether sever() has cut the connection off since the last call."""
        severed, self._severed = self._severed, False
        return severed

    @contextlib.asynccontextmanager
    async def use(self, limit: timedelta | None = None) -> AsyncIterator[Connection]:
        """The connection, while the block runs, for at most `limit` (default: the session's) and a moment.

        The limit counts from the connection being there: to connect has limits of its own, for each host.

        After an error, a timeout or a cancellation the connection is thrown away unless it is certainly idle:
        unfinished work must not leak into the next block.
        """
        seconds = self._limit if limit is None else limit.total_seconds()
        async with self._lock:
            try:
                if not (lacking := await self._lacking()):
                    connection = await self.connect()
                    # A statement without an answer ends with its connection, which takes no further time. The limit
                    # around all of them comes later: to cancel one, psycopg would wait for the server again.
                    connection.limit = seconds
                    async with asyncio.timeout(seconds + _LATER):
                        yield connection
            except BaseException as error:
                unusable = self._connection is not None and (
                    self._connection.closed
                    or self._connection.info.transaction_status != TransactionStatus.IDLE
                    or read_only(error)
                    or of_prepared(error)
                    or not isinstance(error, Exception)
                )
                if unusable or isinstance(error, TimeoutError):
                    await self.discard()
                if of_prepared(error) or misfits(error):
                    for callback in self._misfit:
                        callback()
                if isinstance(error, (NoAnswer, TimeoutError)):
                    for callback in self._silent:
                        callback()
                raise
            if lacking and self._spare is not None:
                async with self._spare.use(timedelta(seconds=seconds)) as others:
                    yield others

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as we know."""
        return self._connection is not None and not self._connection.closed

    async def _lacking(self) -> bool:
        """Whether this session gets no connection now while the spare one has its own."""
        if self._spare is None or self.connected or not self._spare.connected:
            return False
        if time.monotonic() >= self._connect_at:
            try:
                await self.connect()
            except Failures as error:
                if isinstance(error, NoAnswer):
                    raise
                self._connect_at = time.monotonic() + self._unable.delay()
        return not self.connected

    async def connect(self) -> Bounded:
        """The connection, made if there is none."""
        if self._connection is not None and not self._connection.closed and await self._answers(self._connection):
            return self._connection
        connection = await Bounded.connect(self._info, autocommit=True)
        connection.limit = self._limit
        keep_from_children(connection)
        try:
            limits = (self._limit * _SOONER, self._wait.total_seconds(), self._idle.total_seconds())
            self.direct = await prepare(connection, [f"{int(1000 * seconds)}ms" for seconds in limits])
        except BaseException:
            await connection.close()
            raise
        self._connection = connection
        self.generation += 1
        for callback in self._remade if self.generation > 1 else ():
            callback()
        return connection

    async def _answers(self, connection: Bounded) -> bool:
        if self._doubted:
            self._doubted = False
            try:
                with within(connection, _DOUBTED):
                    await connection.execute("select 1")
            except (*Failures, asyncio.CancelledError) as error:
                await self.discard()
                if not isinstance(error, Failures):
                    raise
                return False
        return True

    @contextlib.asynccontextmanager
    async def transaction(self, connection: Connection) -> AsyncIterator[None]:
        """A transaction on the session's connection that holds locks. sever() can end it."""
        self._locking = True
        try:
            async with connection.transaction():
                yield
        finally:
            self._locking = False

    def sever(self) -> bool:
        """Cuts the connection off if a transaction() is open, so that the server releases its locks.

        Another thread calls this while the event loop is blocked. If the loop goes on at this very moment, its next
        statement fails, or the answer to its commit is lost: both can happen to any connection.
        """
        connection = self._connection
        if connection is None or not self._locking:
            return False
        # A duplicate: psycopg may close its descriptor meanwhile, and no descriptor may be closed twice.
        with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as own:
            own.shutdown(socket.SHUT_RDWR)
            self._severed = True
        return self._severed

    @property
    def several(self) -> bool:
        """Whether its connection string leads to several hosts or addresses."""
        return addresses.several(self._info)

    @property
    def target(self) -> tuple[int, str]:
        """The socket's descriptor, and the server's address as libpq has resolved it. Only for a connected session."""
        assert self._connection is not None
        info = self._connection.info
        return self._connection.fileno(), f"{info.hostaddr or info.host}:{info.port}"

    async def discard(self) -> None:
        """Closes the connection at once, without waiting for the server."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error, OSError):
                await connection.close()


async def _patiently(
    connection: Connection, statement: LiteralString, params: Sequence[str] | None = None
) -> psycopg.AsyncCursor[Any]:
    """Sends one of a session's first statements, up to ten times."""
    for one in tries():
        with one:
            return await connection.execute(statement, params)
    raise AssertionError("the last try raises its error")


async def prepare(
    connection: Connection, limits: Sequence[str] = LIMITS, own: Bounded | BoundedBlocking | None = None
) -> bool:
    """Sets up a new session. Returns whether it connects to the server directly, not to a pooler.

    own: the connection itself, if `connection` only adapts it.

    Raises ConfigurationError if the database cannot store every text.
    """
    refuse_encoding(connection)
    direct = await is_direct(connection)
    await connection.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
    if direct:
        await _patiently(connection, SESSION, limits)
        connection.prepare_threshold = 2
    else:
        row = await (await _patiently(connection, "select pg_catalog.pg_is_in_recovery()")).fetchone()
        if row is not None and not row[0]:
            await connection.set_read_only(False)
        shared = connection if own is None else own
        assert isinstance(shared, Bounded | BoundedBlocking)
        share(shared, limits)
    return direct


async def is_direct(connection: Connection) -> bool:
    """Whether the server itself answers. A pooler invents the process id that it gives to its clients."""
    row = await (await _patiently(connection, "select pg_catalog.pg_backend_pid()")).fetchone()
    return row is not None and row[0] == connection.info.backend_pid


@contextlib.asynccontextmanager
async def snapshot(connection: Connection) -> AsyncIterator[None]:
    """A read-only transaction whose statements all see the same moment. It ends with the block."""
    await connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
    await connection.set_read_only(True)
    async with connection.transaction():
        yield
