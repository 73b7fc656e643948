"""Fixtures of the fault suite: daemons as processes, servers that a test may do violence to, poolers, odd roles.

The proxy needs no fixture: `async with Proxy(dsn)`.
"""

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from daemons import Daemons
from support.odd_roles import OddRoles
from support.pgbouncer_packages import UnavailableError
from support.poolers import PgBouncer
from support.servers import Server, Servers, new_folder


@pytest.fixture(scope="session")
def cluster() -> Iterator[Server]:
    """A stopped server for others to be copied from."""
    cluster = Server.create(new_folder())
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def server(cluster: Server) -> Iterator[Server]:
    """A server of the module's own. Let the module's fixture `dsn` lead there."""
    server = cluster.copy(new_folder())
    yield server
    server.close()


@pytest.fixture
def servers(cluster: Server) -> Iterator[Servers]:
    """A primary of the test's own, which may have standbys."""
    servers = Servers(cluster)
    yield servers
    servers.close()


@pytest.fixture
def host_name(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives a host name several addresses in this process: host_name("db", "127.0.0.2", "127.0.0.1")."""

    def add(name: str, *addresses: str) -> None:
        resolve = socket.getaddrinfo

        def getaddrinfo(host: Any, *rest: Any, **options: Any) -> list[Any]:
            hosts = addresses if host == name else [host]
            return [answer for each in hosts for answer in resolve(each, *rest, **options)]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    return add


@pytest.fixture
def pgbouncer() -> Iterator[Callable[..., PgBouncer]]:
    """Starts a PgBouncer, as PgBouncer(...) does. If its version is not here, the test is skipped with the reason."""
    with contextlib.ExitStack() as stack:

        def start(dsn: str, version: str = "newest", **settings: object) -> PgBouncer:
            try:
                return stack.enter_context(PgBouncer(dsn, version, **settings))
            except UnavailableError as error:
                pytest.skip(f"PgBouncer {version} is not here: {error}")

        yield start


@pytest.fixture
def odd_roles(dsn: str) -> Iterator[OddRoles]:
    """Makes roles and databases with odd settings in the test's server."""
    odd = OddRoles(dsn)
    yield odd
    odd.close()


@pytest.fixture
def daemons(tmp_path: Path, dsn: str, schema: str) -> Iterator[Daemons]:
    """Starts daemons on the test's schema, and ends them all."""
    daemons = Daemons(tmp_path, dsn, schema)
    yield daemons
    daemons.close()
