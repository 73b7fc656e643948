"""The soak's clients: they enqueue, cancel and wait, and note every answer. Each call must end within its timeout."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import traceback
import uuid
from collections import Counter
from dataclasses import dataclass
from typing import Any

import psycopg
from support.clients import using

from outside.scene import CLIENTS, Scene
from pgsched.errors import PgschedError

TIMEOUT = 10.0  # of each call, in seconds
LATE = 5.0  # how long this process may be kept from noticing that a call has ended
PAUSE = 0.4


@dataclass
class Enqueued:
    """A job that a client was told is queued, and what it was told later."""

    key: str
    run: int
    at: float
    cancelled: float | None = None


class Traffic:
    """The clients, while the scene stands. longest: the longest job, in seconds."""

    def __init__(self, scene: Scene, longest: float = 90.0) -> None:
        self._scene = scene
        self._longest = longest
        self._tasks: list[asyncio.Task[None]] = []
        self.enqueued: dict[str, Enqueued] = {}
        self.orders: list[str] = []  # rows that were acknowledged together with a job
        self.succeeded: dict[str, float] = {}  # when each client's last call succeeded
        self.refused: Counter[str] = Counter()
        self.calls = 0
        self.slowest = 0.0
        self.findings: list[str] = []

    async def __aenter__(self) -> Traffic:
        self._tasks = [asyncio.create_task(self._go_on(owner)) for owner in CLIENTS]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _go_on(self, owner: str) -> None:
        kind = "sync" if owner == "client of the moving address" else "async"
        while True:
            with contextlib.suppress(PgschedError):  # as at the start, during a fault
                async with using(kind, self._scene.dsn(owner), timeout=TIMEOUT) as client:
                    while True:
                        await self._once(owner, client)
                        await asyncio.sleep(random.uniform(0, 2 * PAUSE))
            await asyncio.sleep(PAUSE)

    async def _once(self, owner: str, client: Any) -> None:
        act = random.choice((self._one, self._one, self._many, self._unique, self._order, self._cancel, self._wait))
        begun = time.monotonic()
        self.calls += 1
        try:
            limit = await act(client)
        except (PgschedError, TimeoutError, psycopg.Error) as error:
            limit = 3 * TIMEOUT  # a transaction's BEGIN, call and COMMIT
            self.refused[f"{type(error).__name__}: {str(error)[:60]}"] += 1
            if isinstance(error, psycopg.Error) and act != self._order:
                self.findings.append(f"{owner}, {act.__name__}: a bare {type(error).__name__}: {error}")
        except Exception:
            limit = 3 * TIMEOUT
            self.findings.append(f"{owner}, {act.__name__}: {traceback.format_exc()}")
        else:
            self.succeeded[owner] = time.monotonic()
        took = time.monotonic() - begun
        self.slowest = max(self.slowest, took)
        if took > limit + LATE:
            self.findings.append(f"{owner}, {act.__name__} took {took:.1f} s, with a timeout of {TIMEOUT:g} s a call")

    # --- each returns the longest time that it may take, and notes only what was acknowledged ------------------

    async def _one(self, client: Any) -> float:
        entrypoint, args = self._job()
        self._note(args["job"], await client.enqueue(entrypoint, args))
        return TIMEOUT

    async def _many(self, client: Any) -> float:
        jobs = [{"job": str(uuid.uuid4())} for _ in range(random.randint(1, 5))]
        queued = await client.enqueue_many(random.choice(("limited", "pay")), jobs)
        for job, run in zip(jobs, queued, strict=True):
            self._note(job["job"], run)
        return TIMEOUT

    async def _unique(self, client: Any) -> float:
        entrypoint, args = "work", {"job": str(uuid.uuid4()), "longest": 2}
        unique = random.choice(("live", "waiting"))
        run = await client.enqueue(entrypoint, args, unique_key=f"{unique} {random.randrange(3)}", unique=unique)
        if run.queued:
            self._note(args["job"], run)
        return TIMEOUT

    async def _order(self, client: Any) -> float:
        """A row of the application's own and a job, in one transaction."""
        entrypoint, args = self._job()
        async with client.transaction() as connection, asyncio.timeout(2 * TIMEOUT):
            await client.execute(connection, f"insert into soak.orders values ('{args['job']}')")
            run = await client.enqueue(entrypoint, args, connection=connection)
        self.orders.append(args["job"])
        self._note(args["job"], run)
        return 3 * TIMEOUT

    async def _cancel(self, client: Any) -> float:
        recent = list(self.enqueued.values())[-10:]
        if recent:
            job = random.choice(recent)
            with contextlib.suppress(LookupError):  # it has ended, or a failover has lost it
                try:
                    if await client.cancel(job.run) == "cancelled":
                        job.cancelled = time.monotonic()
                except PgschedError as error:
                    if "has already ended" not in str(error):
                        raise
        return TIMEOUT

    async def _wait(self, client: Any) -> float:
        entrypoint, args = "work", {"job": str(uuid.uuid4()), "longest": 0.1}
        run = await client.enqueue(entrypoint, args)
        self._note(args["job"], run)
        with contextlib.suppress(TimeoutError):
            await client.runs.wait(run, timeout=5)
        return 2 * TIMEOUT + 5

    def _note(self, key: str, run: int) -> None:
        self.enqueued[key] = Enqueued(key, int(run), time.monotonic())

    def _job(self) -> tuple[str, dict[str, Any]]:
        entrypoint = random.choice(("pay", "pay sync", "work", "work sync", "flaky", "limited", "keyed", "keyed"))
        args: dict[str, Any] = {"job": str(uuid.uuid4())}
        if entrypoint.startswith("work"):
            # Now and then one that goes on through several faults.
            args["longest"] = self._longest if random.random() < 0.05 else 3
        if entrypoint == "flaky":
            args["fails"] = random.randrange(3)
        if entrypoint == "keyed":
            args["tenant"] = random.choice("abc")
        return entrypoint, args
