"""The addresses that a connection string leads to: the order of the attempts, and which of them answered last.

psycopg tries the hosts of a connection string in turn, each for connect_timeout. A silent first host (a dead primary,
an address without a way to it) would cost that time on each connect, and a limit around it all would never get past it.
So the address that answered last is tried first, those that have failed since are tried last, and hosts that have
others after them get less time.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeAlias, TypeVar

import psycopg
from psycopg import conninfo
from psycopg.pq import PGconn

Params: TypeAlias = dict[str, Any]
T = TypeVar("T")

ALONE = 10.0  # seconds for the only address
FIRST = 4.0  # seconds for each of several; doubled, up to ALONE, while none of them answers
RESOLVE = 5.0  # seconds for the addresses of a name
# The options of psycopg's connect() that are none of libpq's parameters.
_OPTIONS = frozenset({"autocommit", "prepare_threshold", "context", "row_factory", "cursor_factory"})
_LOOPBACK = ("127.0.0.1", "::1")
_WHERE = ("host", "hostaddr", "port")
_ENVIRONMENT = {"host": "PGHOST", "hostaddr": "PGHOSTADDR", "port": "PGPORT", "connect_timeout": "PGCONNECT_TIMEOUT"}


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


def _with_service(params: Params) -> Params:
    """These parameters and, of libpq's connection service file, those that say where the servers are."""
    if not (params.get("service") or os.environ.get("PGSERVICE")):
        return params
    # libpq reads the file only for a connect. It refuses this one before it looks for a server.
    refused = PGconn.connect_start(conninfo.make_conninfo("", **{**params, "sslmode": "refused"}).encode())
    found = {each.keyword.decode(): each.val.decode() for each in refused.info if each.val}
    refused.finish()
    return {**params, **{name: found[name] for name in _ENVIRONMENT if name in found}}


def hosts(params: Mapping[str, Any]) -> list[Params]:
    """A host, port and address for each host of a connection string; one of none if libpq's own default applies."""
    names, addresses, ports = (found.split(",") if (found := _given(params, name)) else [] for name in _WHERE)
    count = max(len(names), len(addresses), 1)
    if any(len(each) not in (0, 1, count) for each in (names, addresses, ports)):
        return [{name: params[name] for name in _WHERE if name in params}]  # psycopg refuses it
    whole = [each * count if len(each) == 1 else each for each in (names, addresses, ports)]
    return [
        {key: each[number] for key, each in zip(_WHERE, whole, strict=True) if each and each[number]}
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
    params = _with_service(conninfo.conninfo_to_dict(info))
    known = _known.get(_key(params))
    return len(hosts(params)) > 1 or (known is not None and len(known.addresses) > 1)


def _key(params: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(_given(params, name) for name in _WHERE)


class Attempts:
    """The attempts at one connection: the addresses in the order of the attempts, each with its time.

    info: the connection string. options: as for psycopg's connect(), which may hold parameters of the connection, too.
    total: the limit for all of them, in seconds. An attempt does not last much longer, even in a thread that its caller
        has left, and none begins later.
    writes: whether the server must be able to write; the caller asks it.
    """

    def __init__(self, info: str, options: Mapping[str, Any], total: float | None = None) -> None:
        self._end = float("inf") if total is None else time.monotonic() + total
        self.options = {name: value for name, value in options.items() if name in _OPTIONS}
        given = conninfo.conninfo_to_dict(info, **{k: v for k, v in options.items() if k not in _OPTIONS})
        self.params = _with_service(given)
        wanted = given.get("target_session_attrs")
        # libpq would believe what the server reports at the connect. A pooler passes on what it heard at some time.
        self.writes = wanted == "read-write"
        if self.writes:  # "any", since libpq's environment or service may ask for another kind
            self.params = {**self.params, "target_session_attrs": "any"}
        # libpq sees one address at a time, so it cannot prefer one.
        standby_first = [{"target_session_attrs": "standby"}, {"target_session_attrs": "any"}]
        self._rounds: list[Params] = standby_first if wanted == "prefer-standby" else [{}]
        self.hosts = hosts(self.params)
        self._errors: list[tuple[Params, Exception]] = []
        self._known = _known.setdefault(_key(self.params), _Known())
        self._given = _given(self.params, "connect_timeout")
        self._trying: Params | None = None
        self._limit = ALONE  # seconds for it

    def each(self, found: Sequence[Params]) -> Iterator[tuple[Params, str]]:
        """Each address, and the connection string that leads to it alone."""
        best = self._known.best
        # The two loopback addresses of one name are one server.
        self._known.addresses = {a for one in found if (a := one.get("hostaddr")) and a not in _LOOPBACK}
        ordered = sorted(found, key=lambda one: (one != best, one in self._known.failed))
        given = self._given or round(self._known.patience if len(ordered) > 1 else ALONE)
        limit = conninfo.timeout_from_conninfo({"connect_timeout": given})
        # Each address replaces all of them, those of a service, too.
        alone = {**self.params, **{name: "" for name in _WHERE if name in self.params}}
        for wanted in self._rounds if len(ordered) > 1 else [{}]:
            for one in ordered:
                if self.left <= 0:
                    return
                # libpq's limits are whole seconds, two at least. The total limit should be the one to end it.
                self._trying, self._limit = one, limit if self.left > limit else min(limit, math.ceil(self.left) + 1)
                yield one, conninfo.make_conninfo("", **{**alone, **wanted, **one, "connect_timeout": self._limit})

    @property
    def left(self) -> float:
        """The seconds until the limit for all of them."""
        return self._end - time.monotonic()

    def answered(self, one: Params) -> None:
        """This address answered."""
        self._known.best, self._known.patience = one, FIRST
        self._known.failed = [other for other in self._known.failed if other != one]

    def failed(self, one: Params, error: Exception) -> None:
        """This address did not, or a name has no address."""
        self._trying = None
        if isinstance(error, psycopg.errors.ConnectionTimeout):  # psycopg's does not say how long it waited
            error = psycopg.errors.ConnectionTimeout(f"no answer within {self._limit:g} s")
        self._errors = [each for each in self._errors if each[0] != one] + [(one, error)]
        if one not in self._known.failed:
            self._known.failed.append(one)
        if one == self._known.best:
            self._known.best = None

    def error(self, total: float | None = None) -> Exception:
        """The error to raise if none of them answered. total: the limit for all of them, in seconds, if it is over."""
        self._known.patience = min(2 * self._known.patience, ALONE)
        lines = [f"{_named(one)}: {(str(error).strip().splitlines() or [''])[0]}" for one, error in self._errors]
        if total is not None:
            return psycopg.errors.ConnectionTimeout("; ".join([_unanswered(self._trying, total), *lines]))
        if len(self._errors) == 1:
            one, error = self._errors[0]
            silent = isinstance(error, psycopg.errors.ConnectionTimeout)
            return psycopg.errors.ConnectionTimeout(_unanswered(one, self._limit)) if silent else error
        text = f"none of {len(lines)} addresses can be used: {'; '.join(lines)}"
        last = self._errors[-1][1]
        return (type(last) if isinstance(last, psycopg.OperationalError) else psycopg.OperationalError)(text)


def _named(one: Params) -> str:
    name, address = one.get("host", ""), one.get("hostaddr", "")
    return f"{name} ({address})" if name and address and name != address else name or address or "the default host"


def _unanswered(one: Params | None, seconds: float) -> str:
    return f"no answer{'' if one is None else f' from {_named(one)}'} within {seconds:g} s"


def in_thread(work: Callable[[], T], seconds: float, late: Callable[[T], object] = lambda _: None) -> T:
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


def unresolved(host: Params, error: OSError) -> psycopg.OperationalError:
    """The error of a host whose name has no address."""
    reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
    return psycopg.OperationalError(f"the host name {host['host']!r} cannot be resolved: {reason}")


async def addresses(host: Params) -> list[Params]:
    """The addresses of a host. Raises OSError if its name has none, or nothing answers within RESOLVE."""
    if not _needs_address(host):
        return [host]
    async with asyncio.timeout(RESOLVE):
        asked = asyncio.get_running_loop().getaddrinfo(host["host"], host.get("port"), type=socket.SOCK_STREAM)
        return _with_addresses(host, await asked)


def addresses_blocking(host: Params) -> list[Params]:
    """The same for threads."""
    if not _needs_address(host):
        return [host]

    def ask() -> list[Any]:
        return list(socket.getaddrinfo(host["host"], host.get("port"), type=socket.SOCK_STREAM))

    return _with_addresses(host, in_thread(ask, RESOLVE))  # nothing limits how long a resolver takes
