"""Connects to the first host that answers, each within a limit, and limits every wait on a connection.

psycopg tries the hosts of a connection string in turn, each for connect_timeout. A silent first host (a dead primary,
an address without a way to it) would cost that time on each connect, and a limit around it all would never get past it.
So the address that answered last is tried first, those that have failed since are tried last, and hosts that have
others after them get less time.

A wait for an answer that is over its limit ends with its connection: a cancellation would wait for the same server. If
an answer may take long, `at_work` asks the server over another connection, and only a lost answer ends the wait.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self, TypeAlias, TypeVar

import psycopg
from psycopg import conninfo
from psycopg.abc import PQGen
from psycopg.errors import _WaitTimeout  # documented at Connection.wait()
from psycopg.pq import TransactionStatus
from psycopg.pq.abc import PGconn

Params: TypeAlias = dict[str, Any]
T = TypeVar("T")

ALONE = 10.0  # seconds for the only address
FIRST = 4.0  # seconds for each of several; doubled, up to ALONE, while none of them answers
RESOLVE = 5.0  # seconds for the addresses of a name
ON_ITS_WAY = 5.0  # seconds for an answer that the server has sent already
# The options of psycopg's connect() that are none of libpq's parameters.
_OPTIONS = frozenset({"autocommit", "prepare_threshold", "context", "row_factory", "cursor_factory"})
_LOOPBACK = ("127.0.0.1", "::1")
_ENVIRONMENT = {"host": "PGHOST", "hostaddr": "PGHOSTADDR", "port": "PGPORT", "connect_timeout": "PGCONNECT_TIMEOUT"}


class NoAnswer(psycopg.OperationalError):
    """The server has not answered within the connection's limit. The connection is closed."""


class _Known:
    """What this process has learnt of a connection string's hosts."""

    def __init__(self) -> None:
        self.best: Params | None = None  # the host, port and address that answered last
        self.failed: list[Params] = []  # those that have not answered since
        self.patience = FIRST
        self.addresses: set[str] = set()  # that the names had last


_known: dict[tuple[str, ...], _Known] = {}


def _given(params: Mapping[str, Any], name: str) -> str:
    return str(params.get(name) or os.environ.get(_ENVIRONMENT[name]) or "")


def hosts(params: Mapping[str, Any]) -> list[Params]:
    """A host, port and address for each host of a connection string; one of none if libpq's own default applies."""
    names, addresses, ports = (
        found.split(",") if (found := _given(params, name)) else [] for name in ("host", "hostaddr", "port")
    )
    count = max(len(names), len(addresses), 1)
    if any(len(each) not in (0, 1, count) for each in (names, addresses, ports)):
        return [{name: params[name] for name in ("host", "hostaddr", "port") if name in params}]  # psycopg refuses it
    whole = [each * count if len(each) == 1 else each for each in (names, addresses, ports)]
    keys = ("host", "hostaddr", "port")
    return [
        {key: each[number] for key, each in zip(keys, whole, strict=True) if each and each[number]}
        for number in range(count)
    ]


def _needs_address(host: Params) -> bool:
    name = host.get("host", "")
    if "hostaddr" in host or not name or name.startswith(("/", "@")) or "," in name:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return True
    return False


def _with_addresses(host: Params, found: Sequence[Any]) -> list[Params]:
    addresses = list(dict.fromkeys(item[4][0] for item in found))
    return [{**host, "hostaddr": address} for address in addresses] or [host]


def forget() -> None:
    """Forgets which hosts have answered."""
    _known.clear()


def several(info: str) -> bool:
    """Whether a connection string leads to several hosts, or its name to several addresses, as far as is known."""
    params = conninfo.conninfo_to_dict(info)
    known = _known.get(_key(params))
    return len(hosts(params)) > 1 or (known is not None and len(known.addresses) > 1)


def _key(params: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(_given(params, name) for name in ("host", "hostaddr", "port"))


class Attempts:
    """The attempts at one connection: the addresses in the order of the attempts, each with its time.

    info: the connection string. options: as for psycopg's connect(), which may hold parameters of the connection, too.
    """

    def __init__(self, info: str, options: Mapping[str, Any]) -> None:
        self.options = {name: value for name, value in options.items() if name in _OPTIONS}
        self.params = conninfo.conninfo_to_dict(info, **{k: v for k, v in options.items() if k not in _OPTIONS})
        self.hosts = hosts(self.params)
        self._errors: list[tuple[Params, Exception]] = []
        self._known = _known.setdefault(_key(self.params), _Known())
        self._given = _given(self.params, "connect_timeout")

    def each(self, addresses: Sequence[Params]) -> Iterator[tuple[Params, str]]:
        """Each address, and the connection string that leads to it alone."""
        best = self._known.best
        # The two loopback addresses of one name are one server.
        self._known.addresses = {a for one in addresses if (a := one.get("hostaddr")) and a not in _LOOPBACK}
        ordered = sorted(addresses, key=lambda one: (one != best, one in self._known.failed))
        limit = self._given or str(round(self._known.patience if len(ordered) > 1 else ALONE))
        for one in ordered:
            alone = {k: v for k, v in self.params.items() if k not in ("host", "hostaddr", "port")}
            yield one, conninfo.make_conninfo("", **{**alone, **one, "connect_timeout": limit})

    def answered(self, one: Params) -> None:
        """This address answered."""
        self._known.best, self._known.patience = one, FIRST
        self._known.failed = [other for other in self._known.failed if other != one]

    def failed(self, one: Params, error: Exception) -> None:
        """This address did not, or a name has no address."""
        self._errors.append((one, error))
        if one not in self._known.failed:
            self._known.failed.append(one)
        if one == self._known.best:
            self._known.best = None

    def error(self, total: float | None = None) -> Exception:
        """The error to raise if none of them answered. total: the limit for all of them, in seconds, if it is over."""
        self._known.patience = min(2 * self._known.patience, ALONE)
        lines = [f"{_named(one)}: {(str(error).strip().splitlines() or [''])[0]}" for one, error in self._errors]
        if total is not None:
            return psycopg.errors.ConnectionTimeout("; ".join([f"no answer within {total:g} s", *lines]))
        if len(self._errors) == 1:
            return self._errors[0][1]
        text = f"none of {len(lines)} addresses can be used: {'; '.join(lines)}"
        last = self._errors[-1][1]
        return (type(last) if isinstance(last, psycopg.OperationalError) else psycopg.OperationalError)(text)


def _named(one: Params) -> str:
    name, address = one.get("host", ""), one.get("hostaddr", "")
    return f"{name} ({address})" if name and address and name != address else name or address or "the default host"


class _Limits:
    """The limits of a connection.

    limit: the longest wait for an answer, in seconds; None for any.
    at_work: asks, over another connection, whether the server is still at work on a statement that is over the limit.
        If it is, the wait goes on. In a coroutine it is awaited.
    made_at: when it was connected, by the monotonic clock.
    """

    pgconn: PGconn
    limit: float | None = None
    at_work: Callable[[], Any] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.made_at = time.monotonic()
        self.nested: dict[object, float] = {}  # by the block of within(): tasks may share a connection

    def _allowed(self) -> float | None:
        return min((each for each in (self.limit, *self.nested.values()) if each is not None), default=None)

    def _silent(self, limit: float) -> NoAnswer:
        # Without a word to the server: it would not read it.
        self.pgconn.finish()
        return NoAnswer(f"the server has not answered for {limit:g} s")


class Bounded(_Limits, psycopg.AsyncConnection[Any]):
    """A connection for coroutines.

    opening: called at the start of each outermost transaction.
    refused_writes: whether the server has refused a write because the session was read-only.
    """

    at_work: Callable[[], Awaitable[bool]] | None = None
    opening: Callable[[], Awaitable[None]] | None = None
    refused_writes = False

    @asynccontextmanager
    async def transaction(self, *args: Any, **kwargs: Any) -> AsyncIterator[psycopg.AsyncTransaction]:
        """A transaction or, inside of one, a savepoint."""
        outermost = self.info.transaction_status == TransactionStatus.IDLE
        async with super().transaction(*args, **kwargs) as block:
            if outermost and self.opening is not None:
                await self.opening()
            yield block

    @classmethod
    async def connect(cls, conninfo: str = "", **options: Any) -> Self:
        """Connects to the first address that answers. Takes what psycopg takes, and total: the limit in seconds."""
        total = options.pop("total", None)
        attempts = Attempts(conninfo, options)
        try:
            async with asyncio.timeout(total):
                return await cls._first(attempts)
        except TimeoutError:
            raise attempts.error(total) from None

    @classmethod
    async def _first(cls, attempts: Attempts) -> Self:
        addresses: list[Params] = []
        for host in attempts.hosts:
            try:
                addresses += await _addresses(host)
            except OSError as error:
                attempts.failed(host, _unresolved(host, error))
        for one, info in attempts.each(addresses):
            try:
                made = await super().connect(info, **attempts.options)
            except psycopg.OperationalError as error:
                attempts.failed(one, error)
            else:
                attempts.answered(one)
                return made
        raise attempts.error() from None

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

    @classmethod
    def connect(cls, conninfo: str = "", **options: Any) -> Self:
        """Connects to the first address that answers. Takes what psycopg takes, and total: the limit in seconds."""
        total = options.pop("total", None)
        attempts = Attempts(conninfo, options)
        if total is None:
            return cls._first(attempts)
        try:
            return _in_thread(lambda: cls._first(attempts), total, late=lambda made: made.close())
        except TimeoutError:
            raise attempts.error(total) from None

    @classmethod
    def _first(cls, attempts: Attempts) -> Self:
        addresses: list[Params] = []
        for host in attempts.hosts:
            try:
                addresses += _addresses_blocking(host)
            except OSError as error:
                attempts.failed(host, _unresolved(host, error))
        for one, info in attempts.each(addresses):
            try:
                made = super().connect(info, **attempts.options)
            except psycopg.OperationalError as error:
                attempts.failed(one, error)
            else:
                attempts.answered(one)
                return made
        raise attempts.error() from None

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


def _in_thread(work: Callable[[], T], seconds: float, late: Callable[[T], object] = lambda _: None) -> T:
    """The result of blocking work. Raises TimeoutError if it takes longer; `late` gets a result that comes then."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # the caller gets it
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="pgsched-reach").start()
    try:
        return future.result(seconds)
    except TimeoutError:
        if not future.done():
            future.add_done_callback(lambda ended: late(ended.result()) if ended.exception() is None else None)
        raise


def _unresolved(host: Params, error: OSError) -> psycopg.OperationalError:
    reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
    return psycopg.OperationalError(f"the host name {host['host']!r} cannot be resolved: {reason}")


async def _addresses(host: Params) -> list[Params]:
    if not _needs_address(host):
        return [host]
    async with asyncio.timeout(RESOLVE):
        asked = asyncio.get_running_loop().getaddrinfo(host["host"], host.get("port"), type=socket.SOCK_STREAM)
        return _with_addresses(host, await asked)


def _addresses_blocking(host: Params) -> list[Params]:
    if not _needs_address(host):
        return [host]

    def ask() -> list[Any]:
        return list(socket.getaddrinfo(host["host"], host.get("port"), type=socket.SOCK_STREAM))

    return _with_addresses(host, _in_thread(ask, RESOLVE))  # nothing limits how long a resolver takes
