"""What every part stands on: a server, a fresh schema, processes that surely end, figures. Measures nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from psycopg import sql

from pgsched import embedded, migrate
from pgsched.store import in_schema

T = TypeVar("T")
HERE = Path(__file__).parent
LIMIT = 60.0  # seconds that anything may take which is not told otherwise


class Fault(Exception):
    """A measurement that cannot be had, in one sentence."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value, and what the bare limit gave in the same run."""

    part: str
    name: str
    value: float
    unit: str
    bare: float | None = None

    @property
    def ratio(self) -> float | None:
        """How many times the bare limit's the value is."""
        return self.value / self.bare if self.bare else None


def percentile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that at least this share of them does not exceed."""
    return sorted(samples)[max(0, math.ceil(share * len(samples)) - 1)]


def spread(part: str, case: str, ms: Sequence[float], bare: Sequence[float] = ()) -> list[Figure]:
    """Median, 99th percentile and maximum of samples in milliseconds, beside those of the bare limit."""
    if not ms:
        raise Fault(f"{case or part}: nothing was measured")
    return [
        Figure(part, f"{case} {name}".strip(), percentile(ms, share), "ms", percentile(bare, share) if bare else None)
        for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
    ]


def wait_for(look: Callable[[], T | None], what: str, limit: float = LIMIT, pause: float = 0.01) -> T:
    """Looks until there is something, and returns it."""
    deadline = time.monotonic() + limit
    while not (found := look()):
        if time.monotonic() > deadline:
            raise Fault(f"within {limit:g} s there was no {what}")
        time.sleep(pause)
    return found


class Process:
    """A process of ours; what it says goes to files."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], stem: Path) -> None:
        self._out, self._err = stem.with_suffix(".out"), stem.with_suffix(".err")
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.popen = subprocess.Popen(
                command, cwd=HERE, env=dict(environment), stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )
        self.pid = self.popen.pid
        self._killed = False

    def _alive(self) -> None:
        if self.popen.poll() is not None:
            tail = " | ".join(self._err.read_text(errors="replace").splitlines()[-3:])
            raise Fault(f"a process ended with {self.popen.returncode}: {tail}")

    def until(self, look: Callable[[], T | None], what: str) -> T:
        """Waits for something that needs this process to be alive."""

        def alive() -> T | None:
            self._alive()
            return look()

        return wait_for(alive, what)

    def said(self, text: str) -> None:
        """Waits for a text on its standard output."""
        self.until(lambda: text in self._out.read_text(), text)

    def answer(self, limit: float = LIMIT) -> Any:
        """What it printed last, as JSON, once it has ended."""
        if self.popen.wait(limit):
            self._alive()
        return json.loads(self._out.read_text().splitlines()[-1])

    def kill(self) -> None:
        """SIGKILL, and the end of it."""
        self._killed = True
        self.popen.kill()
        self.popen.wait()

    def stop(self, *, ask: bool) -> None:
        """Its end, which has to be a good one: by SIGTERM, or by itself."""
        if self.popen.poll() is None:
            if ask:
                self.popen.send_signal(signal.SIGTERM)
            self.popen.wait(LIMIT)
        if self.popen.returncode and not self._killed:
            self._alive()


class Rig:
    """A PostgreSQL, a schema of ours in it, one plain connection, and the processes that use them."""

    def __init__(self, dsn: str, log: Path | None, folder: Path, settings: Mapping[str, str]) -> None:
        self.dsn = dsn
        self.log = log  # the server's own, where the server is ours
        self.schema = f"pgsched_bench_{os.getpid()}"
        self.notes = folder / "notes"
        self.settings = dict(settings)
        self.connection = psycopg.connect(dsn, autocommit=True)
        self._folder = folder
        self._started = 0
        outside = {k: v for k, v in os.environ.items() if not k.startswith("PGSCHED_")}
        ours = {"BENCH_DSN": dsn, "BENCH_SCHEMA": self.schema, "BENCH_NOTES": str(self.notes)}
        chosen = {**settings, "dsn": dsn, "schema": self.schema}
        self._environment = {**outside, **ours, **{f"PGSCHED_{k.upper()}": v for k, v in chosen.items()}}

    # --- the database -----------------------------------------------------------------------------------

    def fresh(self) -> None:
        """An empty schema of this version."""

        async def make() -> None:
            async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as connection:
                await migrate.migrate(connection, self.schema)

        self.drop()
        asyncio.run(make())

    def drop(self) -> None:
        """No schema."""
        self.connection.execute(sql.SQL("drop schema if exists {} cascade").format(sql.Identifier(self.schema)))

    def rows(self, statement: str, *params: object) -> list[tuple[Any, ...]]:
        """The rows of a statement that is written for the schema pgsched."""
        cursor = self.connection.execute(in_schema(statement.encode(), self.schema), params or None)
        return cursor.fetchall() if cursor.description else []

    def value(self, statement: str, *params: object) -> Any:
        """The one value of a statement."""
        return self.rows(statement, *params)[0][0]

    def until(self, statement: str, *params: object, limit: float = LIMIT, pause: float = 0.1) -> Any:
        """Waits until a statement's one value is true."""
        return wait_for(lambda: self.value(statement, *params), f"true answer to: {statement}", limit, pause)

    @contextlib.contextmanager
    def gate(self, count: int) -> Iterator[Callable[[], None]]:
        """Keeps everybody from claiming. What it gives waits until `count` processes want to, and lets them."""
        with psycopg.connect(self.dsn) as holder:
            holder.execute(in_schema(b"lock table pgsched.runs in exclusive mode", self.schema))

            def release() -> None:
                self.until(
                    "select count(*) = %s from pg_stat_activity"
                    " where application_name like 'pgsched %%' and wait_event_type = 'Lock'", count, pause=0.02,
                )  # fmt: skip
                holder.commit()

            yield release

    # --- processes --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _process(self, *command: str, ends: bool = False) -> Iterator[Process]:
        self._started += 1
        process = Process([sys.executable, *command], self._environment, self._folder / f"process-{self._started}")
        try:
            yield process
            process.stop(ask=not ends)
        finally:
            if process.popen.poll() is None:
                process.kill()

    @contextlib.contextmanager
    def worker(self, *, ready: bool = True) -> Iterator[Process]:
        """A worker process, drained when the block ends."""
        with self._process("-m", "pgsched", "run", "processes:create_scheduler") as process:
            if ready:
                process.until(lambda: self.session_of(process), "worker that listens")
                time.sleep(0.5)  # for the look that follows
            yield process

    def session_of(self, process: Process) -> str | None:
        """The name of a worker's sessions, once one of them listens. Its log may be set to tell nothing."""
        found = self.rows(
            "select a.application_name from pgsched.workers w"
            " join pg_stat_activity a on a.application_name = 'pgsched ' || w.id"
            " where w.pid = %s and a.query ilike 'listen%%'", process.pid,
        )  # fmt: skip
        return str(found[0][0]) if found else None

    def bare(self, what: str, count: int) -> contextlib.AbstractContextManager[Process]:
        """One of the bare limits, in a process that ends by itself."""
        return self._process(str(HERE / "processes.py"), what, str(count), ends=True)


@contextlib.contextmanager
def rig(dsn: str | None, settings: Mapping[str, str]) -> Iterator[Rig]:
    """A rig on the server that is named, else on an embedded one that lives as long as the rig."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgsched-", ignore_cleanup_errors=True)))
        data = folder / "postgres"
        made = Rig(
            dsn or stack.enter_context(embedded.start(str(data))), None if dsn else data / "log", folder, settings
        )
        stack.enter_context(made.connection)
        stack.callback(made.drop)
        yield made
