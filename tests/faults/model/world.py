"""One schema with the model's tables, the workers on it, and connections for its clients.

All that workers log as errors is collected. Nothing here decides what is right.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import structlog

from model import jobs, trail
from model.workers import AnyWorker, Hosted, Process
from pgsched.db.statements.queries import in_schema


class World:
    """A schema and everybody who touches it."""

    def __init__(self, dsn: str, schema: str, folder: Path) -> None:
        self.dsn, self.schema, self.folder = dsn, schema, folder
        self.workers: list[AnyWorker] = []
        self.events: list[dict[str, Any]] = []  # of the workers in this process
        self.done: list[str] = []  # what was done, when, and what came of it
        self.start = 0.0  # the loop's time when operations begin: a whole second of the database's clock
        self.began: datetime | None = None  # the same, by the database's clock
        self.version = 1  # of the applications, if nothing else is asked for
        self.still = 0.0  # the longest that this process was not given a turn

    async def open(self) -> None:
        async with self.connect() as connection:
            for text in trail.statements(self.schema):
                await connection.execute(text)
        # What runs in a process of its own, a child of this one, finds its way by these.
        os.environ.update(MODEL_DSN=self.dsn, MODEL_SCHEMA=self.schema)
        self.recorder = jobs.Recorder(self.dsn, self.schema)

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncIterator[psycopg.AsyncConnection]:
        """A client's connection."""
        async with await psycopg.AsyncConnection.connect(
            self.dsn, autocommit=True, application_name="model client"
        ) as connection:
            yield connection

    async def rows(self, connection: psycopg.AsyncConnection, text: str, *params: object) -> list[tuple]:
        cursor = await connection.execute(in_schema(text.encode(), self.schema), params)
        return await cursor.fetchall() if cursor.description else []

    async def look(self, text: str) -> list[dict[str, Any]]:
        """The rows of a query without parameters, as dicts."""
        async with self.connect() as connection:
            cursor = connection.cursor(row_factory=psycopg.rows.dict_row)
            await cursor.execute(in_schema(text.encode(), self.schema, parametrised=False))
            return await cursor.fetchall()

    async def begin(self) -> None:
        """Sets the start to the next whole second but one."""
        async with self.connect() as connection:
            sent = asyncio.get_running_loop().time()
            ((now,),) = await self.rows(connection, "select clock_timestamp()")
        self.began = now.replace(microsecond=0) + timedelta(seconds=2 if now.microsecond > 600_000 else 1)
        self.start = sent + (self.began - now).total_seconds()

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return asyncio.get_running_loop().time() - self.start

    def instant(self, seconds: float) -> datetime:
        """So many seconds after the start, by the database's clock."""
        assert self.began is not None
        return self.began + timedelta(seconds=seconds)

    def add(
        self,
        *,
        daemon: bool = False,
        code: str,
        version: int = 1,
        lookahead: float = 1,
        max_running: int = 1000,
        resync: int = 60,
        **_: Any,
    ) -> AnyWorker:
        """Starts a worker."""
        settings = {"lookahead": timedelta(seconds=lookahead), "max_running": max_running}
        settings["resync_interval"] = timedelta(seconds=resync)
        worker = (Process if daemon else Hosted)(self, code, version, settings)
        self.workers.append(worker)
        return worker

    async def until(self, true: Any, limit: float) -> bool:
        """Whether something became true within so many seconds."""
        end = time.monotonic() + limit
        while not true():
            if time.monotonic() > end:
                return False
            await asyncio.sleep(0.02)
        return True

    async def excuse(self, worker: AnyWorker, why: str, entrypoint: str | None = None) -> None:
        """From now on, this worker's calls (of an entrypoint) may go on beside others of their runs."""
        if (name := await worker.id()) is not None:
            async with self.connect() as connection:
                await self.rows(
                    connection, "insert into pgsched.model_excuses (worker, why, entrypoint) values (%s, %s, %s)",
                    name, why, entrypoint,
                )  # fmt: skip

    async def watch(self) -> None:
        """Notes how long this process was not given a turn: on a starved machine, silence means nothing."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.05)
            self.still = max(self.still, time.monotonic() - before - 0.05)

    def problems(self) -> list[dict[str, Any]]:
        """What workers logged as errors, and how those ended that nobody asked to."""
        found = [event for event in self.events if event.get("level") == "error"]
        for worker in self.workers:
            if worker.daemon:
                found += [event for event in worker.events() if event.get("level") == "error"]
            if worker.error is not None or (not worker.alive and not worker.ending):
                found.append({"event": "worker ended by itself", "code": worker.code, "error": repr(worker.error)})
        return found

    async def close(self) -> None:
        """Ends whoever is still there, without ceremony."""
        for worker in self.workers:
            if worker.alive:
                worker.kill()
        await self.until(lambda: not any(worker.alive for worker in self.workers), 15)
        for worker in self.workers:
            if worker.daemon:
                worker.process.wait()
        self.recorder.close()


@contextlib.contextmanager
def collecting(events: list[dict[str, Any]]) -> Iterator[None]:
    """Collects what is logged in this process instead of writing it."""
    before = structlog.get_config() if structlog.is_configured() else None

    def collect(_logger: Any, level: str, event: dict[str, Any]) -> dict[str, Any]:
        if level in ("error", "warning"):
            events.append({**event, "level": level})
        raise structlog.DropEvent

    structlog.configure(processors=[collect])
    try:
        yield
    finally:
        structlog.reset_defaults()
        if before is not None:
            structlog.configure(**before)
