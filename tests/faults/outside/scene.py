"""The soak's two database hosts, the pooler, the daemons, and the proxies between them.

A host is a folder with a server, on a small disk of its own if this machine allows it. After a failover the old primary
is made again as a standby of the new one, so that failovers can go on and on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from daemons import Daemon
from psycopg.conninfo import make_conninfo
from support.pgbouncer_packages import UnavailableError
from support.poolers import PgBouncer
from support.proxies import Door, Proxy
from support.servers import Server, new_folder, several

from outside import schema
from pgsched.db import migrate

# Of each daemon's pools: so they are soon full, and its sessions stay as many. If everybody's connections freeze for
# good, the server has all of them twice.
TRANSACTIONS = 4
DISK = 768  # MB of a host's disk
DAEMONS = ("two hosts", "pooled", "moving", "spare")
# These live as long as the soak, so that a leak shows.
LASTING = ("two hosts", "pooled")
CLIENTS = ("client of two hosts", "client of the pooler", "client of the moving address")
CONFIG = """
max_connections = 200
max_wal_size = 128MB
wal_keep_size = 96MB
"""
STALL = 30.0  # the default of stall_timeout, in seconds


@dataclass
class Host:
    """A machine for a database server."""

    name: str
    folder: Path = field(default_factory=new_folder)
    disk: str = ""  # why it has no disk of its own; empty if it has
    server: Server | None = None

    @property
    def dsn(self) -> str:
        return make_conninfo("", host=str(self.folder), user="postgres", dbname="postgres")

    def mount(self) -> None:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK}m,mode=0700", "pgsched-soak", str(self.folder)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        self.disk = (done.stderr.strip() or f"exit code {done.returncode}") if done.returncode else ""

    def empty(self) -> None:
        """Ends its server and removes all of its data."""
        if self.server is not None:
            self.server.close()
            self.server = None
        self.folder.mkdir(mode=0o700, exist_ok=True)  # close() removes it, unless it is a mount

    def close(self) -> None:
        if self.server is not None:
            self.server.close()
        if not self.disk:
            subprocess.run(["umount", str(self.folder)], check=False, capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass
class Route:
    """A proxy that one of the participants has for itself. leads: "left", "right", "primary" or "pooler"."""

    owner: str
    leads: str
    proxy: Proxy


@dataclass(frozen=True)
class Excuse:
    """A time in which a worker was hindered. kind: killed, drained, stopped or cut."""

    pid: int  # of the worker's process
    kind: str
    since: float
    until: float


class Scene:
    """Everything that the faults act on."""

    def __init__(self, folder: Path, pooler_version: str) -> None:
        self.folder = folder
        self.pooler_version = pooler_version
        self.hosts = [Host("left"), Host("right")]
        self.synchronous = False
        self.routes: list[Route] = []
        self.daemons: dict[str, Daemon] = {}
        self.excuses: list[Excuse] = []
        # Rows of the trail that the new primary did not have after a failover. If it was an asynchronous standby,
        # PostgreSQL has lost them; if a synchronous one, nobody was told that they were committed.
        self.lost: list[dict[str, Any]] = []
        self.unacknowledged = 0
        self.missing: list[str] = []  # faults that this machine does not allow, with the reason
        self.pooler: PgBouncer | None = None
        self.lives = 0
        self._stack = contextlib.AsyncExitStack()

    @property
    def primary(self) -> Host:
        return self.hosts[0]

    @property
    def standby(self) -> Host:
        return self.hosts[1]

    @property
    def server(self) -> Server:
        assert self.primary.server is not None
        return self.primary.server

    # --- making and ending it ---------------------------------------------------------------------------

    async def __aenter__(self) -> Scene:
        try:
            await self._make()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for daemon in self.daemons.values():
            daemon.end()
        await self._stack.aclose()
        for host in reversed(self.hosts):
            await asyncio.to_thread(host.close)

    async def _make(self) -> None:
        cluster = await asyncio.to_thread(Server.create, new_folder())
        try:
            for host in self.hosts:
                await asyncio.to_thread(host.mount)
            with (cluster.folder / "postgresql.conf").open("a") as file:
                file.write(CONFIG)
            self.primary.server = await asyncio.to_thread(cluster.copy, self.primary.folder)
        finally:
            await asyncio.to_thread(cluster.close)
        if self.primary.disk:
            self.missing.append(f"disk full: no small disk can be mounted here ({self.primary.disk})")
        async with await psycopg.AsyncConnection.connect(self.primary.dsn, autocommit=True) as connection:
            await migrate.migrate(connection, "pgsched")
            await connection.execute(schema.TABLES)
            for statement, params in schema.schedules(DAEMONS):
                await connection.execute(statement, params)
        await self.make_standby(synchronous=False)
        await self._make_routes()

    async def _make_routes(self) -> None:
        for owner in ("two hosts", "spare", "pooled", "client of two hosts"):
            await self._route(owner, "left")
            await self._route(owner, "right")
        for owner in ("moving", "client of the moving address", "pooler"):
            await self._route(owner, "primary")
        try:
            self.pooler = await asyncio.to_thread(
                PgBouncer, self._dsn("pooler", "primary"), self.pooler_version, pool_mode="transaction",
                default_pool_size=10, max_client_conn=200,
            )  # fmt: skip
        except UnavailableError as error:
            self.missing.append(f"PgBouncer {self.pooler_version}: {error}")
        else:
            self._stack.callback(self.pooler.close)
        for owner in ("pooled", "client of the pooler"):
            await self._route(owner, "pooler")

    async def _route(self, owner: str, leads: str) -> None:
        proxy = await self._stack.enter_async_context(Proxy(self._target(leads)))
        self.routes.append(Route(owner, leads, proxy))

    def _target(self, leads: str) -> str:
        if leads == "pooler":
            return self.pooler.dsn if self.pooler is not None else self.primary.dsn
        if leads == "primary":
            return self.primary.dsn
        return next(host.dsn for host in self.hosts if host.name == leads)

    def _dsn(self, owner: str, leads: str) -> str:
        return next(route.proxy.dsn for route in self.routes if (route.owner, route.leads) == (owner, leads))

    def dsn(self, owner: str) -> str:
        """The DSN of a daemon or a client."""
        if owner in ("pooled", "client of the pooler"):
            return self._dsn(owner, "pooler")
        if owner in ("moving", "client of the moving address"):
            return self._dsn(owner, "primary")
        return self._both(owner)

    def _both(self, owner: str) -> str:
        return several([self._dsn(owner, "left"), self._dsn(owner, "right")])

    # --- daemons ----------------------------------------------------------------------------------------

    async def start(self, name: str) -> None:
        """Starts a daemon, without waiting for it."""
        self.lives += 1
        flags = ["--dsn", self.dsn(name), "--log-format", "json"]
        if name == "pooled":
            flags += ["--listen-dsn", self._both(name)]
        log = self.folder / f"daemon-{self.lives}.log"
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PGSCHED_", "PG"))}
        environment |= {
            "PGSCHED_MAX_TRANSACTIONS": str(TRANSACTIONS),
            "SOAK_DAEMON": name,
            "SOAK_NOTES": str(self.folder / f"notes {name}"),
        }
        ways = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, ways))
        with log.open("wb") as stderr:
            process = subprocess.Popen(  # noqa: ASYNC220  (it returns at once)
                [sys.executable, "-m", "pgsched", "run", "outside.application.create", *flags],
                cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr,
            )  # fmt: skip
        self.daemons[name] = Daemon(process, log)

    def excuse(self, name: str, kind: str, since: float) -> None:
        """Notes that a daemon was hindered from then until now."""
        self.excuses.append(Excuse(self.daemons[name].pid, kind, since, time.monotonic()))

    # --- servers ----------------------------------------------------------------------------------------

    def to(self, *leads: str) -> list[Proxy]:
        return [route.proxy for route in self.routes if route.leads in leads]

    def of(self, owner: str | None) -> list[Proxy]:
        """The proxies of one participant, or of the whole network of the database hosts."""
        if owner is None:
            return self.to("left", "right", "primary")
        return [route.proxy for route in self.routes if route.owner == owner]

    async def promote(self) -> None:
        """Makes the standby the primary, and leads the moving address there."""
        self.hosts.reverse()
        await asyncio.to_thread(self.server.promote)
        for proxy in self.to("primary"):
            proxy.cut(Door.DROP)
            proxy.lead_to(self.primary.dsn)
            proxy.mend()

    async def make_standby(self, *, synchronous: bool) -> None:
        """Makes the other host a standby of the primary."""
        await asyncio.to_thread(self.standby.empty)
        self.standby.server = await asyncio.to_thread(self.server.standby, self.standby.folder, synchronous=synchronous)
        self.synchronous = synchronous

    async def ask(self, statement: str, *params: object, host: Host | None = None) -> list[dict[str, Any]]:
        """The rows of a statement, from the primary itself, without a proxy. Raises TimeoutError or psycopg.Error."""
        async with asyncio.timeout(60):
            info = make_conninfo((host or self.primary).dsn, application_name="soak", connect_timeout=10)
            async with await psycopg.AsyncConnection.connect(info, autocommit=True) as connection:
                cursor = connection.cursor(row_factory=psycopg.rows.dict_row)
                await cursor.execute(statement.encode(), params or None)
                return await cursor.fetchall() if cursor.description else []
