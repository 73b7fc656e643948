"""Runs schedulers inside a test's own event loop."""

import asyncio
import contextlib
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from pgsched import Scheduler, at
from pgsched.config import Settings
from pgsched.db.statements.parameters import claim_of
from pgsched.model import Hold
from pgsched.worker.claim.dispatcher import Dispatcher
from pgsched.worker.clocks import Watch
from pgsched.worker.kit import Kit
from pgsched.worker.run.attempt import Attempt
from pgsched.worker.run.finisher import Finisher
from pgsched.worker.run.roster import Roster
from pgsched.worker.run.runner import Runner
from pgsched.worker.worker import Worker

PAST = datetime(2020, 1, 1, tzinfo=UTC)
# Quick enough for tests, and in the proportions of the defaults.
QUICK: dict[str, Any] = {
    "heartbeat_interval": timedelta(milliseconds=100),
    "stall_timeout": timedelta(seconds=2),
    "drain_timeout": timedelta(seconds=5),
    "cancel_timeout": timedelta(milliseconds=500),
}


class Elapsed:
    """The clock by which a worker's parts judge how long ago something was: this machine's, moved ahead by a test."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ahead = 0.0

    def __call__(self) -> float:
        return self._clock() + self._ahead

    def advance(self, seconds: float) -> None:
        self._ahead += seconds


@contextlib.asynccontextmanager
async def working(
    scheduler: Scheduler,
    settings: Settings,
    *,
    hard_exit: Callable[[int], object] | None = None,
    watch: Watch | None = None,
    **changes: Any,
) -> AsyncIterator[Worker]:
    """A worker that is ready; drained when the block ends, killed when that takes too long.

    Its clock is its kit's `elapsed`, an Elapsed.
    """
    settings = settings.merged({**QUICK, **changes}, "test").check()
    worker = Worker(scheduler, settings, hard_exit=hard_exit, watch=watch, elapsed=Elapsed())
    task = asyncio.create_task(worker.run())
    ready = asyncio.create_task(scheduler.ready.wait())
    try:
        async with asyncio.timeout(20):
            await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                await task
        yield worker
    finally:
        ready.cancel()
        worker.stop()
        with contextlib.suppress(asyncio.CancelledError):
            async with asyncio.timeout(20):
                await task


def soon(sc: Scheduler, entrypoint: str, **options):
    """A schedule that fires once, at once."""
    return sc.schedule(entrypoint, at(PAST), **options)


async def until(true: Callable[[], object], limit: float = 10.0) -> None:
    """Waits until something in this process is so."""
    async with asyncio.timeout(limit):
        while not true():
            await asyncio.sleep(0.005)


async def passed(worker: Worker) -> None:
    """Waits for a pass of this worker that begins from now on. One that is under way may be over first."""
    async with asyncio.timeout(30):
        for _ in range(2):
            worker.dispatcher.passed.clear()
            worker.kit.wakeups.due.ask()
            await worker.dispatcher.passed.wait()


def alive(pid: int) -> bool:
    """Whether a process is there; a zombie is not, whoever has to reap it."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return bool(state.stdout.strip()) and not state.stdout.startswith("Z")


class Taker:
    """Takes claims in for `parts`, keeps them in `parts.taken`, and starts none.

    allowed: how many runs may be claimed, if a test says so.
    """

    def __init__(self, parts):
        self.parts = parts
        self.allowed = None

    @property
    def room(self):
        return self.parts.runner.room if self.allowed is None else self.allowed

    def take(self, runs, asked_at=None):
        self.parts.taken.extend(runs)
        if self.parts.holds:
            for run in runs:
                executor = self.parts.kit.scheduler.executor_for(run.entrypoint, None)
                self.parts.roster.add(Attempt(self.parts.runner.surroundings, run, executor, asked_at=0.0))

    def give_back(self, runs):
        self.parts.runner.give_back(runs)


class Parts:
    """A dispatcher whose passes a test calls, and whose claims nobody starts.

    elapsed: the kit's, if it shall be another than an Elapsed that goes on by itself.
    """

    def __init__(self, settings, scheduler=None, *, elapsed=None, **changes):
        if scheduler is None:
            scheduler = Scheduler()

            @scheduler.entrypoint("job")
            async def job(): ...

        self.kit = Kit.build(scheduler, settings.merged(changes, "test"), elapsed=elapsed or Elapsed())
        self.roster = Roster(self.kit.settings)
        self.taken = []
        self.holds = False  # whether it has slots and places for them
        self.finisher = Finisher(self.kit)
        self.runner = Runner(
            self.kit, self.roster, self.finisher, threads=ThreadPoolExecutor(1), group=asyncio.TaskGroup()
        )
        self.taker = self.made_taker()
        self.skips = []  # schedules and skips, as hooks get them
        self.dispatcher = Dispatcher(self.kit, self.roster, self.taker, on_skip=lambda *skip: self.skips.append(skip))
        self.dispatcher.claim_ahead(True)

    def made_taker(self):
        """Whoever takes in what it claims."""
        return Taker(self)

    def gated(self, on: bool) -> None:
        """As if the last look had seen that a run waits for an overlap or a limit, or that none does."""
        self.dispatcher.next = replace(self.dispatcher.next, gated=on)

    async def answer(self) -> int:
        """Gives back what was claimed, has not begun and was withdrawn, as a holder does; returns how many it was."""
        kit = self.kit
        claims = {(run.id, run.token): claim_of(run, kit.worker) for run in self.taken}
        async with kit.writes.use() as connection:
            held = await kit.store.runs.beat(connection, kit.worker, [(*key, None) for key in claims])
            withdrawn = [claims[key] for key, hold in held.items() if hold is Hold.WITHDRAWN]
            landed = await kit.store.runs.give_back_runs(connection, kit.worker, withdrawn)
        assert len(landed) == len(withdrawn)
        return len(landed)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.kit.control.discard()
        await self.kit.writes.discard()


async def reap(reaper, kit, *, rested=True):
    """Two looks of a reaper, the second one when it has watched for three beats: it judges only what it has watched.

    rested: an hour instead, so that it has got over whatever made it distrust all silence.
    """
    await reaper.reap_pass()
    kit.elapsed.advance(3600 if rested else 3 * kit.settings.heartbeat_interval.total_seconds())
    await reaper.reap_pass()
