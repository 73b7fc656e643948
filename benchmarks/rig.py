"""The base of every part: servers, databases, and the contestants' processes, which always end. Measures nothing."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from contestants import Contestant
from environments import HERE, missing, program
from figures import Fault
from psycopg import conninfo, sql

from pgsched.db import embedded

T = TypeVar("T")
PEERS = HERE / "peers"
LIMIT = 60.0  # seconds that anything may take by default
STOP = 10.0  # seconds that a worker has to end when asked
OURS = "benchmark"  # the name of our own sessions, whose statements do not count
FINEST = 0.002  # seconds between two looks for the end of a drain, at least


def wait_for(look: Callable[[], T | None], what: str, limit: float = LIMIT, pause: float = 0.01) -> T:
    """Calls a function until it returns something true, and returns that."""
    deadline = time.monotonic() + limit
    while not (found := look()):
        if time.monotonic() > deadline:
            raise Fault(f"within {limit:g} s there was no {what}")
        time.sleep(pause)
    return found


class Process:
    """A process of ours; its output goes to files."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], stem: Path) -> None:
        self._out, self._err = stem.with_suffix(".out"), stem.with_suffix(".err")
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.popen = subprocess.Popen(
                command, cwd=PEERS, env=dict(environment), stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )
        self.pid = self.popen.pid

    def alive(self) -> None:
        """Raises Fault if it has failed."""
        if self.popen.poll():
            tail = " | ".join(self._err.read_text(errors="replace").splitlines()[-3:])
            raise Fault(f"a process ended with {self.popen.returncode}: {tail[-400:]}")

    def lines(self) -> list[str]:
        """Its output until now, in whole lines."""
        return self._out.read_text().split("\n")[:-1]

    def said(self, text: str, limit: float = LIMIT) -> None:
        """Waits for a line on its standard output."""

        def look() -> bool:
            if self.popen.poll() is not None and text not in self.lines():
                self.answer()  # raises its Lack
                raise Fault("a worker ended too early")
            return text in self.lines()

        wait_for(look, f"{text!r} from a worker", limit)

    def answer(self, limit: float = LIMIT) -> Any:
        """Its last line as JSON, once it has ended."""
        try:
            self.popen.wait(limit)
        except subprocess.TimeoutExpired:
            raise Fault(f"a process did not end within {limit:g} s") from None
        self.alive()
        told = json.loads(self.lines()[-1])
        if isinstance(told, dict) and "lack" in told:
            raise Fault(told["lack"])
        return told

    def stop(self) -> Any:
        """Asks it to end, and returns its answer."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        return self.answer(STOP)

    def kill(self) -> None:
        """Kills it with SIGKILL and waits for its end."""
        self.popen.kill()
        self.popen.wait()


class Server:
    """A PostgreSQL server, and one plain connection to it, in a database that no contestant uses."""

    def __init__(self, dsn: str, folder: Path, log: Path | None) -> None:
        self.dsn, self.log, self.folder = dsn, log, folder
        self.connection = psycopg.connect(dsn, autocommit=True, application_name=OURS)
        self._templates: set[str] = set()
        self._others: list[Server] = []
        self._stack = contextlib.ExitStack()
        self._numbers = itertools.count(1)  # threads take from it too

    @contextlib.contextmanager
    def database(self, who: Contestant) -> Iterator[Database]:
        """A fresh database with the contestant's tables, which is gone when the block ends."""
        template = self.template(who)
        name = f"{template}_{next(self._numbers)}"
        self._make(name, template)
        try:
            with contextlib.closing(Database(self, who, name)) as made:
                yield made
        finally:
            self._drop(name)

    def template(self, who: Contestant) -> str:
        """The name of the database that is copied for each measurement. It is made at the first call."""
        if reason := missing(who.environment):
            raise Fault(reason)
        template = f"bench_{os.getpid()}_{who.key}"
        if template not in self._templates:
            self._make(template)
            Database(self, who, template).call("install")
            self._templates.add(template)
        return template

    def _make(self, name: str, template: str = "template1") -> None:
        def made() -> bool:
            # A process that has just ended may still have a session in the template.
            with contextlib.suppress(psycopg.errors.ObjectInUse):
                self.connection.execute(
                    sql.SQL("create database {} template {}").format(sql.Identifier(name), sql.Identifier(template))
                )
                return True
            return False

        wait_for(made, "database", 20, 0.2)

    def _drop(self, name: str) -> None:
        self.connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))

    def others(self, count: int) -> list[Server]:
        """Starts more embedded servers, which live as long as this one is used."""
        while len(self._others) < count:
            self._others.append(self._stack.enter_context(server()))
        return self._others[:count]

    def close(self) -> None:
        """Drops its databases and releases the server."""
        self._stack.close()
        for name in self._templates:
            self._drop(name)
        self.connection.close()

    def uri(self, database: str) -> str:
        """The DSN of a database, as a URI that every driver reads."""
        info = conninfo.conninfo_to_dict(self.dsn)
        owner = ":".join(filter(None, [str(info.get("user", "")), str(info.get("password") or "")]))
        place = f"?host={info['host']}" if "host" in info else ""
        port = f"&port={info['port']}" if "port" in info else ""
        return f"postgresql://{owner}@/{database}{place}{port}"

    def show(self, setting: str) -> str:
        """A setting of the server."""
        row = self.connection.execute(f"show {setting}").fetchone()
        return str(row[0]) if row else ""

    @contextlib.contextmanager
    def logged(self) -> Iterator[Callable[[], tuple[int, int]]]:
        """Logs every statement in the block. Yields a function: how many statements and transactions others sent."""
        if self.log is None:
            raise Fault("statements are counted in the log of a server of our own only")
        settings = {"log_statement": "'all'", "log_line_prefix": "'%a|%v|'"}
        for name, value in settings.items():
            self.connection.execute(f"alter system set {name} = {value}")
        self.connection.execute("select pg_reload_conf()")
        time.sleep(1)
        start = self.log.stat().st_size

        def count() -> tuple[int, int]:
            with self.log.open(errors="replace") as log:  # type: ignore[union-attr]
                log.seek(start)
                found = re.findall(r"^(.*?)\|(\S*)\|LOG:  (?:statement|execute [^:]*): ", log.read(), re.MULTILINE)
            theirs = [transaction for name, transaction in found if name != OURS]
            return len(theirs), len(set(theirs))

        try:
            yield count
        finally:
            for name in settings:
                self.connection.execute(f"alter system reset {name}")
            self.connection.execute("select pg_reload_conf()")


class Database:
    """A contestant's database, one plain connection to it, and the contestant's processes."""

    def __init__(self, server: Server, who: Contestant, name: str) -> None:
        self.server, self.who, self.name = server, who, name
        self.dsn = server.uri(name)
        self._connection: psycopg.Connection[Any] | None = None
        self._started = 0

    def close(self) -> None:
        """Ends the plain connection."""
        if self._connection:
            self._connection.close()

    @property
    def connection(self) -> psycopg.Connection[Any]:
        """A plain connection, opened at its first use."""
        if self._connection is None:
            self._connection = psycopg.connect(self.dsn, autocommit=True, application_name=OURS)
        return self._connection

    def value(self, statement: str) -> Any:
        """The one value of a statement."""
        row = self.connection.execute(statement).fetchone()
        return row[0] if row else None

    def call(self, verb: str, limit: float = LIMIT, **params: Any) -> Any:
        """Has the contestant's adapter do something, and returns its answer."""
        with self._process(verb, params) as process:
            return process.answer(limit)

    @contextlib.contextmanager
    def worker(
        self, *, tuned: bool = False, ready: float | None = LIMIT, expected: int = 0, **params: Any
    ) -> Iterator[Process]:
        """A worker, killed at the end if it is still running.

        ready: the seconds within which it must be ready; None does not wait for that.
        expected: after this many starts it prints a line "all N".
        """
        with self._process("work", {"tuned": tuned, **self.who.work, **params}, expected) as process:
            if ready:
                process.said("ready", ready)
            yield process

    @contextlib.contextmanager
    def process(self, verb: str, by: Contestant | None = None, **params: Any) -> Iterator[Process]:
        """A process that runs one of the adapter's verbs, or a verb of another adapter, in this database."""
        with self._process(verb, params, by=by) as process:
            yield process

    @contextlib.contextmanager
    def _process(
        self, verb: str, params: Mapping[str, Any], expected: int = 0, by: Contestant | None = None
    ) -> Iterator[Process]:
        self._started += 1
        who = by or self.who
        outside = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "BENCH_"))}
        process = Process(
            [str(program(who.environment)), who.script, verb, json.dumps(params)],
            {**outside, "BENCH_DSN": self.dsn, "BENCH_EXPECTED": str(expected)},
            self.server.folder / f"{self.name}-{self._started}",
        )
        try:
            yield process
        finally:
            if process.popen.poll() is None:
                process.kill()

    @contextlib.contextmanager
    def gate(self) -> Iterator[Gate]:
        """Keeps all workers from claiming until the gate is opened, or the block ends."""
        with psycopg.connect(self.dsn, application_name=OURS) as holder:
            holder.execute(f"lock table {self.who.jobs} in {self.who.gate} mode")
            yield Gate(self, holder)

    def until_done(self, total: int, began: float, limit: float) -> Seen | None:
        """When the last of `total` ends had been written; None if they are not within the limit.

        It looks into the contestant's own tables. The time between two looks is a hundredth of the time since `began`,
        and at least FINEST, so that the looks do not slow the workers.
        """
        self.connection.execute("set enable_seqscan = off")
        statement = self.who.done.format(total=total)
        before = began
        while (asked := time.time()) < began + limit:
            if self.value(statement):
                seen = time.time()
                return Seen(seen, seen - before)
            before = asked  # at this instant the last end had not been written
            time.sleep(max(FINEST, (asked - began) / 100))
        return None


@dataclass(frozen=True, slots=True)
class Seen:
    """The instant of a look that found every end written, and how many seconds before that the last may have been."""

    at: float
    within: float


class Gate:
    """A lock that keeps workers from claiming. They have all started when it is opened."""

    def __init__(self, database: Database, holder: psycopg.Connection[Any]) -> None:
        self._database, self._holder = database, holder
        self._waiting = 0

    def wait_for(self, process: Process) -> None:
        """Waits until one more process wants to claim. Start the next one after that."""

        def look() -> bool:
            process.alive()
            return self._sessions() > self._waiting

        wait_for(look, "worker that claims", 30, 0.02)
        time.sleep(0.2)  # some wait with more than one session
        self._waiting = self._sessions()

    def _sessions(self) -> int:
        return int(self._database.value(
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        ))  # fmt: skip

    def open(self) -> float:
        """Lets all workers claim. Returns when."""
        at = time.time()
        self._holder.commit()
        return at


@contextlib.contextmanager
def server(dsn: str | None = None) -> Iterator[Server]:
    """The server that is named, else an embedded one with default settings that lives as long as the block."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgsched-", ignore_cleanup_errors=True)))
        data = folder / "postgres"
        reached = dsn or stack.enter_context(embedded.start(str(data)))
        made = Server(reached, folder, None if dsn else data / "log")
        stack.callback(made.close)
        yield made
