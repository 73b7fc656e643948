"""Connects to the first host that answers, each within a limit, and limits every wait on a connection.

psycopg tries the hosts of a connection string in turn, each for connect_timeout. A silent first host (a dead primary,
an address without a way to it) would cost that time on each connect, and a limit around it all would never get past it.
So the address that answered last is tried first, and hosts that have others after them get less time.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import queue
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeAlias, TypeVar

import psycopg
from psycopg import conninfo
from psycopg.abc import PQGen
from psycopg.errors import _WaitTimeout  # documented at Connection.wait()
from psycopg.pq import TransactionStatus

Params: TypeAlias = dict[str, Any]
T = TypeVar("T")

ALONE = 10.0  # seconds for the only address
FIRST = 4.0  # seconds for each of several; doubled, up to ALONE, while none of them answers
RESOLVE = 5.0  # seconds for the addresses of a name
# The options of psycopg's connect() that are none of libpq's parameters.
_OPTIONS = frozenset({"autocommit", "prepare_threshold", "context", "row_factory", "cursor_factory"})
_LOOPBACK = ("127.0.0.1", "::1")
_ENVIRONMENT = {"host": "PGHOST", "hostaddr": "PGHOSTADDR", "port": "PGPORT", "connect_timeout": "PGCONNECT_TIMEOUT"}


class _Known:
    """What this process has learnt of a connection string's hosts."""

    def __init__(self) -> None:
        self.best: Params | None = None  # the host, port and address that answered last
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
    if "hostaddr" in host or not name or name.startswith(("/", "@")):
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return True
    return False


def _with_addresses(host: Params, found: Sequence[Any]) -> list[Params]:
    addresses = list(dict.fromkeys(item[4][0] for item in found))
    return [{**host, "hostaddr": address} for address in addresses] or [host]


def several(info: str) -> bool:
    """Whether a connection string leads to several hosts, or its name to several addresses, as far as is known."""
    params = conninfo.conninfo_to_dict(info)
    known = _known.get(_key(params))
    return len(hosts(params)) > 1 or (known is not None and len(known.addresses) > 1)


def _key(params: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(_given(params, name) for name in ("host", "hostaddr", "port"))


class Attempts:
    """The attempts at one connection: the addresses in the order in which they are tried, each with its time.

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
        ordered = sorted(addresses, key=lambda one: one != best)
        limit = self._given or str(round(self._known.patience if len(ordered) > 1 else ALONE))
        for one in ordered:
            alone = {k: v for k, v in self.params.items() if k not in ("host", "hostaddr", "port")}
            yield one, conninfo.make_conninfo("", **{**alone, **one, "connect_timeout": limit})

    def answered(self, one: Params) -> None:
        """This address answered."""
        self._known.best, self._known.patience = one, FIRST

    def failed(self, one: Params, error: Exception) -> None:
        """This address did not, or a name has no address."""
        self._errors.append((one, error))

    def error(self) -> Exception:
        """The error to raise if none of them answered."""
        self._known.patience = min(2 * self._known.patience, ALONE)
        if len(self._errors) == 1:
            return self._errors[0][1]
        lines = [f"{_named(one)}: {(str(error).strip().splitlines() or [''])[0]}" for one, error in self._errors]
        text = f"none of {len(lines)} addresses can be used: {'; '.join(lines)}"
        last = self._errors[-1][1]
        return (type(last) if isinstance(last, psycopg.OperationalError) else psycopg.OperationalError)(text)


def _named(one: Params) -> str:
    name, address = one.get("host", ""), one.get("hostaddr", "")
    return f"{name} ({address})" if name and address and name != address else name or address or "the default host"


class Bounded(psycopg.AsyncConnection[Any]):
    """A connection for coroutines.

    limit: the longest wait for an answer, in seconds; None for any.
    opening: called at the start of each outermost transaction.
    refused_writes: whether the server has refused a write because the session was read-only.
    """

    limit: float | None = None
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
    async def connect(cls, conninfo: str = "", **options: Any) -> Bounded:
        """Connects to the first address that answers. Takes what psycopg takes."""
        attempts = Attempts(conninfo, options)
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
        if self.limit is None:
            return await super().wait(gen, *args, **kwargs)
        try:
            return await super().wait(gen, *args, **{**kwargs, "timeout": self.limit})
        except _WaitTimeout:
            raise _silent(self, self.limit) from None


class BoundedBlocking(psycopg.Connection[Any]):
    """The same for threads."""

    limit: float | None = None

    @classmethod
    def connect(cls, conninfo: str = "", **options: Any) -> BoundedBlocking:
        """Connects to the first address that answers. Takes what psycopg takes."""
        attempts = Attempts(conninfo, options)
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
        if self.limit is None:
            return super().wait(gen, *args, **kwargs)
        try:
            return super().wait(gen, *args, **{**kwargs, "timeout": self.limit})
        except _WaitTimeout:
            raise _silent(self, self.limit) from None


@contextmanager
def within(connection: Any, seconds: float) -> Iterator[None]:
    """Limits each wait for an answer in the block. Of nested limits the shortest applies.

    connection: one of those above. Another kind of connection, such as a caller's own, keeps its limits.
    """
    before = getattr(connection, "limit", None)
    connection.limit = seconds if before is None else min(before, seconds)
    try:
        yield
    finally:
        connection.limit = before


def _silent(connection: Bounded | BoundedBlocking, limit: float) -> psycopg.OperationalError:
    # Without a word to the server: it would not read it.
    connection.pgconn.finish()
    return psycopg.OperationalError(f"the server has not answered for {limit:g} s")


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
    answers: queue.Queue[list[Any] | OSError] = queue.Queue()

    def ask() -> None:
        try:
            answers.put(socket.getaddrinfo(host["host"], host.get("port"), type=socket.SOCK_STREAM))
        except OSError as error:
            answers.put(error)

    # In a thread of its own, since nothing limits how long a resolver takes.
    threading.Thread(target=ask, daemon=True, name="pgsched-resolve").start()
    try:
        found = answers.get(timeout=RESOLVE)
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(found, OSError):
        raise found
    return _with_addresses(host, found)
