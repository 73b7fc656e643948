"""Real daemon processes in the hands of a test: started, signalled, watched, and ended by their own ids.

Nothing waits for a time to pass: the jobs write marks (rows) or notes (lines of a file), the daemons write
events, and the tests wait for these, with a limit.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

LIMIT = 30.0  # seconds; nothing takes so long unless it is broken

# Quick enough for tests, and in the proportions of the defaults.
QUICK = {
    "heartbeat_interval": "200ms",
    "stall_timeout": "2s",
    "drain_timeout": "10s",
    "cancel_timeout": "500ms",
    "log_format": "json",
}

PRELUDE = """\
import asyncio, contextlib, json, os, random, signal, sys, threading, time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
from psycopg import sql

from pgsched import Executor, ProcessExecutor, Retry, Run, Schedule, Scheduler, at, every

PAST = datetime(2020, 1, 1, tzinfo=UTC)
FOLDER = Path(os.environ["FAULTS_FOLDER"])
MARK = sql.SQL(
    "insert into {}.marks (run_id, attempt, what, fire_time, pid) values (%s, %s, %s, %s, %s)"
).format(sql.Identifier(os.environ["FAULTS_SCHEMA"].replace("%", "%%")))
own = threading.local()

def mark(run, what):
    if not hasattr(own, "connection"):
        own.connection = psycopg.connect(os.environ["FAULTS_DSN"], autocommit=True)
    own.connection.execute(MARK, (run.id, run.attempt, what, run.fire_time, os.getpid()))

def note(run, what):
    line = json.dumps({"run": run.id, "attempt": run.attempt, "what": what, "pid": os.getpid()}) + "\\n"
    with (FOLDER / "notes").open("a") as file:
        file.write(line)

async def opened(gate):
    while not (FOLDER / gate).exists():
        await asyncio.sleep(0.02)

"""


async def until(condition: Callable[[], Any], what: str, limit: float = LIMIT) -> Any:
    """Waits until the condition is true, and returns what it gave."""
    deadline = asyncio.get_running_loop().time() + limit
    while not (found := condition()):
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"within {limit} s there was no {what}")
        await asyncio.sleep(0.01)
    return found


class Daemon:
    """One daemon process and what it says."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    @property
    def pid(self) -> int:
        return self.process.pid

    def events(self, name: str | None = None, **fields: Any) -> list[dict[str, Any]]:
        """What it has logged so far; lines that are no events (a traceback) come as the event 'text'."""
        found = []
        for line in self.log.read_text().splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                event = {"event": "text", "text": line}
            if name in (None, event["event"]) and all(event.get(k) == v for k, v in fields.items()):
                found.append(event)
        return found

    async def event(self, name: str, limit: float = LIMIT, **fields: Any) -> dict[str, Any]:
        """Waits for an event with these fields."""

        def look() -> list[dict[str, Any]]:
            found = self.events(name, **fields)
            if not found and self.process.poll() is not None:
                raise AssertionError(f"the daemon ended ({self.process.poll()}) without {name}:\n{self.tail()}")
            return found

        return (await until(look, f"{name} {fields}", limit))[0]

    async def worker_id(self) -> str:
        return str((await self.event("worker_ready"))["worker"])

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    async def exit_code(self, limit: float = LIMIT) -> int:
        """Waits for its end. Minus the signal's number where one ended it."""
        await until(lambda: self.process.poll() is not None, f"end of the daemon; its log:\n{self.tail()}", limit)
        return int(self.process.returncode)

    async def stop(self, number: int = signal.SIGTERM) -> int:
        self.send(number)
        return await self.exit_code()

    async def kill(self) -> None:
        """As a machine that loses its power."""
        self.send(signal.SIGKILL)
        await self.exit_code()

    def tail(self) -> str:
        return "\n".join(self.log.read_text().splitlines()[-40:])

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()  # ends a stopped process too
        self.process.wait()


class Daemons:
    """The daemons of one test, all with one app and one schema."""

    def __init__(self, folder: Path, dsn: str, schema: str) -> None:
        self.folder = folder
        self.dsn = dsn
        self.schema = schema
        self.all: list[Daemon] = []
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(
                sql.SQL(
                    "create table if not exists {}.marks ("
                    "id bigint generated always as identity, run_id bigint, attempt int, "
                    "what text, fire_time timestamptz, pid int, at timestamptz not null default clock_timestamp())"
                ).format(sql.Identifier(schema))
            )

    def app(self, source: str, name: str = "faults", module: str = "app") -> None:
        """Writes the app: the source makes entrypoints and schedules of `sc`."""
        text = f"{PRELUDE}\nsc = Scheduler(app={name!r})\n\n{source}\n\ndef create():\n    return sc\n"
        (self.folder / f"{module}.py").write_text(text)

    def line(self, text: str) -> int:
        """The number of the app's line that holds the text."""
        lines = (self.folder / "app.py").read_text().splitlines()
        found = [number for number, line in enumerate(lines, 1) if text in line]
        assert len(found) == 1, found
        return found[0]

    def open(self, gate: str) -> None:
        (self.folder / gate).touch()

    def notes(self, what: str) -> list[dict[str, Any]]:
        path = self.folder / "notes"
        lines = path.read_text().splitlines() if path.exists() else []
        return [found for found in map(json.loads, lines) if found["what"] == what]

    def start(self, *, module: str = "app", wheel: Path | None = None, **settings: str) -> Daemon:
        """Starts one more daemon; settings are flags.

        module: the app.
        wheel: the folder of another release's pgsched, unpacked; default: this one.
        """
        given = {"dsn": self.dsn, "schema": self.schema, **QUICK, **settings}
        flags = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)]
        log = self.folder / f"daemon-{len(self.all)}.log"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PGSCHED_")}
        environment |= {"FAULTS_DSN": self.dsn, "FAULTS_SCHEMA": self.schema, "FAULTS_FOLDER": str(self.folder)}
        environment |= {} if wheel is None else {"PYTHONPATH": str(wheel)}
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "pgsched", "run", f"{module}.create", *flags],
                cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr,
            )  # fmt: skip
        self.all.append(Daemon(process, log))
        return self.all[-1]

    async def ready(self, *, module: str = "app", wheel: Path | None = None, **settings: str) -> Daemon:
        """Starts one more daemon and waits until it is ready."""
        daemon = self.start(module=module, wheel=wheel, **settings)
        await daemon.event("worker_ready")
        return daemon

    def close(self) -> None:
        for daemon in self.all:
            daemon.end()
        for daemon in self.all:  # shown where the test failed
            print(f"--- {daemon.log.name}, pid {daemon.pid}, ended with {daemon.process.returncode}")
            print(daemon.tail())
