"""PgBouncer in front of a server: started, paused, restarted and stopped by a test."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from support import pgbouncer_packages

# Versions and settings that differ in how they treat prepared statements: 1.18 knows none of those of its clients.
KINDS: dict[str, tuple[str, dict[str, object]]] = {
    "1.18": ("1.18", {}),
    "newest, 0": ("newest", {"max_prepared_statements": 0}),
    "newest, 200": ("newest", {"max_prepared_statements": 200}),
}
LIMIT = 20.0  # seconds until PgBouncer must answer
_PORT = 6432  # the name of its socket; it listens on no network
_CONFIG = """\
[databases]
* = {server}
[pgbouncer]
listen_port = {port}
unix_socket_dir = {folder}
logfile = {folder}/log
auth_type = trust
auth_file = {folder}/users
# Roles that tests create are found in the server itself.
auth_user = {user}
admin_users = {user}
"""


class PgBouncer:
    """A running PgBouncer. `dsn` leads through it to the same database.

    version: "newest" or "1.18", as far as `make pgbouncer` could get them.
    settings: of its configuration file, such as pool_mode, max_prepared_statements or server_reset_query_always.
    """

    def __init__(self, dsn: str, version: str = "newest", **settings: object) -> None:
        self.version = version
        self._command = pgbouncer_packages.command(version)
        self._folder = Path(tempfile.mkdtemp(prefix="pgsched-pgbouncer-"))
        given = conninfo_to_dict(dsn)
        way = {"host": str(self._folder), "port": _PORT, "sslmode": "disable"}
        self.dsn = make_conninfo("", **{**given, **way})
        self._admin = make_conninfo(self.dsn, dbname="pgbouncer", options="", connect_timeout=5)
        self._configure(given, settings)
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> PgBouncer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        self._process = subprocess.Popen(
            [*self._command, "-q", str(self._folder / "config")], cwd=self._folder,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + LIMIT
        while True:
            try:
                self.show("version")
                return
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"PgBouncer {self.version} does not answer: {self.log()}") from error
                time.sleep(0.02)

    def stop(self) -> None:
        """Ends it, with all connections of its clients."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """Lets transactions end, and then makes clients wait for a server."""
        self.command("pause")

    def resume(self) -> None:
        self.command("resume")

    def reconnect(self) -> None:
        """Replaces each connection to the server once a client releases it."""
        self.command("reconnect")

    def command(self, text: str) -> None:
        """A command of the admin console."""
        self._ask(text)

    def show(self, what: str) -> list[dict[str, object]]:
        """The rows of SHOW."""
        return self._ask(f"show {what}")

    def log(self) -> str:
        path = self._folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _configure(self, given: dict[str, object], settings: dict[str, object]) -> None:
        user = str(given.get("user") or "postgres")
        server = " ".join(f"{key}={given[key]}" for key in ("host", "port") if given.get(key))
        config = _CONFIG.format(server=server, port=_PORT, folder=self._folder, user=user)
        for name, value in settings.items():
            config += f"{name} = {value}\n"
        if os.geteuid() == 0:  # it refuses to run as root, and changes to this user by itself
            other = _user(str(given.get("host")))
            config += f"user = {other.pw_name}\n"
            os.chown(self._folder, other.pw_uid, other.pw_gid)
        (self._folder / "config").write_text(config)
        (self._folder / "users").write_text(f'"{user}" "{given.get("password") or ""}"\n')

    def _ask(self, text: str) -> list[dict[str, object]]:
        # The console knows only the simple protocol, which this cursor uses.
        with contextlib.closing(psycopg.connect(self._admin, autocommit=True)) as connection:
            cursor = psycopg.ClientCursor(connection, row_factory=psycopg.rows.dict_row)
            cursor.execute(text.encode())
            return cursor.fetchall() if cursor.description else []


def _user(host: str) -> pwd.struct_passwd:
    """The user that may enter the folder of the server's socket."""
    owner = Path(host).stat().st_uid if host.startswith("/") else 0
    return pwd.getpwuid(owner) if owner else pwd.getpwnam("nobody")
