"""A worker whose passes the test calls, in its own schema, on a clock that the test moves.

The parts are the daemon's own. It has no listener, no reaper and no claims ahead of an instant, which only a daemon
needs: a test calls a pass when it wants one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any

from psycopg import sql

from pgsched.client.client import Client, Row, opened
from pgsched.client.connections import conninfo_of
from pgsched.config import Settings
from pgsched.db.statements.queries import Queries
from pgsched.db.statements.values import EntrypointDefaults
from pgsched.errors import InvalidArguments, PgschedError, RetryLater
from pgsched.executors.capture import capturing
from pgsched.expression.instants import BEGINNING, TICK
from pgsched.model import Outcome, Schedule
from pgsched.rules import options
from pgsched.rules.agenda import Outlook
from pgsched.rules.outcome import Stop
from pgsched.scheduler import Scheduler
from pgsched.testing.clock import Clock, StandingClock, make_schema, rewritten
from pgsched.testing.server import embedded_dsn
from pgsched.worker.claim.claim_pass import with_schedules
from pgsched.worker.claim.dispatcher import Dispatcher
from pgsched.worker.claim.planner import times_of
from pgsched.worker.kit import Kit
from pgsched.worker.run.attempt import Attempt
from pgsched.worker.run.finisher import Finisher
from pgsched.worker.run.heartbeat import Heartbeat
from pgsched.worker.run.hook_calls import SkipHooks
from pgsched.worker.run.roster import Roster
from pgsched.worker.run.runner import Runner
from pgsched.worker.upkeep.reconciler import Reconciler

_MOST = 10_000  # after this many runs, one call is taken for an endless loop


class Harness:
    """Runs a scheduler's schedules and jobs, in its own schema that is dropped at the end. Use it in `async with`.

    scheduler: as the application's factory returns it; its settings apply, except for the database and the schema.
    dsn: a database that allows a new schema; default an embedded server that the tests of a process share.
    now: the clock's first time, aware; default the database's own time. The clock stands still until it is moved.
    raise_errors: raise the errors of the functions from the calls that run them (several as a group), except RetryLater
        and Discard. Default False: the calls return the runs with their errors.
    limit: how much real time a call may take; default one minute. Raises TimeoutError beyond it.

    Runs are dicts as the client returns them (`status`, `attempt`, `result`, `errors`, `reason`, `fire_time`, …).
    """

    clock: Clock
    client: Client

    def __init__(
        self,
        scheduler: Scheduler,
        dsn: str | None = None,
        *,
        now: datetime | None = None,
        raise_errors: bool = False,
        limit: timedelta = timedelta(minutes=1),
    ) -> None:
        if not isinstance(scheduler, Scheduler):
            raise InvalidArguments(f"Harness takes the Scheduler that the factory returns, not {scheduler!r}.")
        self.schema = f"pgsched_test_{os.getpid()}_{uuid.uuid4().hex[:12]}"
        self.dsn = dsn or ""
        self._scheduler = scheduler
        self._now = options.instant("now", now)
        self._raise_errors = raise_errors
        self._limit = limit.total_seconds()
        self._over = asyncio.Event()
        self._main: asyncio.Task[None] | None = None
        self._taken: list[Attempt] = []  # in the order of their starts
        self._raised: dict[tuple[int, int], Exception] = {}  # by (run id, token)
        self._outlook: Outlook | None = None

    # --- life -------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Harness:
        self.dsn = self.dsn or await asyncio.to_thread(embedded_dsn)
        ready = asyncio.get_running_loop().create_future()
        # Its own task: a fixture may be left in another task than it was entered in.
        self._main = asyncio.create_task(self._live(ready))
        await asyncio.wait([self._main, ready], return_when=asyncio.FIRST_COMPLETED)
        if self._main.done():
            await self._main
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._main is not None
        self._over.set()
        await self._main

    async def _live(self, ready: asyncio.Future[None]) -> None:
        given = {**self._scheduler.settings, "dsn": self.dsn, "schema": self.schema}
        settings = Settings().merged(given, "Harness").check()
        standing = StandingClock()
        kit = self._kit = Kit.build(self._scheduler, settings, clock=standing, rewrite=rewritten)
        threads = ThreadPoolExecutor(settings.max_threads, thread_name_prefix="pgsched-run")
        try:
            connection = await kit.control.connect()
            try:
                standing.move(await make_schema(connection, self.schema, self._now))
                self.clock = Clock(kit.control, self.schema, standing)
                with capturing():
                    await self._serve(kit, threads, ready)
            finally:
                await _drop(kit)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            if hasattr(self, "_runner"):
                await self._runner.transactions.close()
            for session in (kit.control, kit.writes):
                await session.discard()

    async def _serve(self, kit: Kit, threads: ThreadPoolExecutor, ready: asyncio.Future[None]) -> None:
        async with kit.control.use() as connection:
            await Reconciler(kit).start(connection)
        info, queries = conninfo_of(self.dsn, self.schema, "Harness"), Queries(self.schema, rewrite=rewritten)
        async with opened(info, queries) as client, asyncio.TaskGroup() as runs:
            self.client = client
            self._roster = Roster(kit.settings)
            self._roster.watch(added=self._taken.append)
            self._finisher = Finisher(kit)
            self._runner = Runner(
                kit, self._roster, self._finisher, threads=threads, group=runs, raised=self._note_raised
            )
            self._skips = SkipHooks(self._scheduler.hooks, self._runner.caller)
            self._dispatcher = Dispatcher(
                kit, self._roster, self._runner, seen=self._note_outlook, on_skip=self._skips.put
            )
            self._heartbeat = Heartbeat(kit, self._roster, self._runner, runs)
            async with asyncio.TaskGroup() as services:
                tasks = [services.create_task(part.run()) for part in (self._finisher, self._heartbeat)]
                ready.set_result(None)
                await self._over.wait()
                await self._end_runs(settings=kit.settings)
                for task in tasks:
                    task.cancel()

    async def _end_runs(self, settings: Settings) -> None:
        """Gives back the runs that still go on, as a daemon does when it is stopped."""
        for attempt in self._roster.running():
            attempt.end(Stop.DRAIN)
        await self._roster.until_empty(self._roster.running, settings.cancel_timeout.total_seconds() + 0.5)
        await self._finisher.flush(10.0)
        await self._runner.caller.settle(settings.hook_timeout.total_seconds())

    # --- for tests --------------------------------------------------------------------------------------

    async def run_due(self, *, raise_errors: bool | None = None) -> list[Row]:
        """Runs everything that is due, to its end: fire times, enqueued jobs, retries, and jobs that these make due.

        The clock stands still meanwhile. Returns the runs, each once, in the order of their starts.
        """
        first = len(self._taken)
        async with self._limited():
            while mine := await self._start():
                await self._until_over(mine)
                if len(self._taken) - first > _MOST:
                    raise RuntimeError(
                        f"More than {_MOST} runs fell due at {self.clock.now}: does a job enqueue itself?"
                    )
        return await self._rows(self._taken[first:], raise_errors)

    async def run_until(self, instant: datetime, *, raise_errors: bool | None = None) -> list[Row]:
        """Runs everything that is due now, then moves the clock from one due time to the next up to and including an
        instant. Like a live daemon, it misses nothing. Returns the runs, as run_due(); the clock then stands at that
        instant."""
        until = options.instant("run_until()'s instant", instant)
        if until is None or until < self.clock.now:
            raise InvalidArguments(f"run_until() takes an instant from {self.clock.now} on, not {instant!r}.")
        runs = {run["id"]: run for run in await self.run_due(raise_errors=raise_errors)}
        while (coming := self._coming()) is not None and coming <= until:
            await self.clock.move_to(coming)
            for run in await self.run_due(raise_errors=raise_errors):
                runs[run["id"]] = run
        await self.clock.move_to(until)
        return list(runs.values())

    async def start_due(self) -> list[Row]:
        """Starts everything that is due without waiting for it, so that a test can look around while it runs. Returns
        the runs as they are now; settle() waits for their ends."""
        async with self._limited():
            started = await self._start()
        return await self._rows(started, False)

    async def settle(self, *, raise_errors: bool | None = None) -> list[Row]:
        """Waits for all runs that have started and not ended. Returns them."""
        running = self._roster.running()
        async with self._limited():
            await self._until_over(running)
        return await self._rows(running, raise_errors)

    async def fire(self, name: str, at: datetime | None = None, *, raise_errors: bool | None = None) -> Row:
        """Runs a schedule once, to the end of this attempt, regardless of its status and of other due or live runs.

        at: the fire time to run, past or future; default none, as a trigger. The clock does not move, and a future fire
            time that has run does not run again.
        Returns the run. Raises NotFound, InvalidArguments if the instant is no fire time, and PgschedError if its run
        is live already.
        """
        row = await self.client.get_schedule(name)
        at = options.instant("at", at)
        if at is None:
            run_id = await self.client.trigger(name)
        else:
            async with self._kit.control.use() as connection:
                [schedule] = await self._kit.store.claims.get_schedules(connection, [row["id"]])
            run_id = await self._make_run(schedule, at)
        first = len(self._taken)
        async with self._limited():
            await self._claim(run_id, row["entrypoint"])
            mine = [attempt for attempt in self._taken[first:] if attempt.claim.run_id == run_id]
            await self._until_over(mine)
        return (await self._rows(mine, raise_errors))[0]

    # --- how --------------------------------------------------------------------------------------------

    def _note_outlook(self, outlook: Outlook) -> None:
        self._outlook = outlook

    def _note_raised(self, attempt: Attempt, outcome: Outcome, error: BaseException | None) -> None:
        if outcome.error is None or isinstance(error, RetryLater):
            return
        if attempt.stop is Stop.TIMEOUT:
            error = TimeoutError(outcome.error.message)
        elif not isinstance(error, Exception):  # a SystemExit must not end the test's process
            name = attempt.claimed.entrypoint
            error = RuntimeError(f"{name} raised {outcome.error.type}: {outcome.error.message}")
        self._raised[attempt.key] = error

    def _coming(self) -> datetime | None:
        """The next instant with new work, or None."""
        assert self._outlook is not None
        instants = (self._outlook.next_ahead, self._outlook.next_resume, self._dispatcher.opens)
        return min((each for each in instants if each is not None and each > self._outlook.now), default=None)

    async def _make_run(self, schedule: Schedule, at: datetime) -> int:
        """Makes the run of a fire time, past or future. Returns its id."""
        times = times_of(self._scheduler, schedule)
        if times.next(at - TICK) != at:
            before, after = times.latest(BEGINNING, at), times.next(at)
            raise InvalidArguments(f"{at} is no fire time of {schedule.name!r}: there are {before} and {after}.")
        params = {
            "name": schedule.name, "id": schedule.id, "timed_at": schedule.timed_at, "again": True, "priority": None,
            "fire_times": [at], "previous": [times.latest(BEGINNING, at - TICK)],
        }  # fmt: skip
        async with self._kit.control.use() as connection:
            made = await self._kit.store.claims.rows(connection, "backfill_runs", params)
        if not made:
            raise PgschedError(f"{schedule.name!r} was changed meanwhile: fire it again.")
        if made[0]["id"] is None:
            raise PgschedError(f"A run of {schedule.name!r} at {at} is live already.")
        return int(made[0]["id"])

    async def _claim(self, run_id: int, entrypoint: str) -> None:
        """Claims a queued run and starts it, regardless of other due or live runs."""
        known = self._scheduler.entrypoints.get(entrypoint)
        if known is None:
            names = ", ".join(self._scheduler.entrypoints) or "none"
            raise InvalidArguments(f"This scheduler has no entrypoint {entrypoint!r}: there are {names}.")
        statements, worker, retry = self._kit.store.claims, self._kit.worker, known.retry
        rules = EntrypointDefaults(entrypoint, retry.attempts, retry.backoff, retry.max_backoff, known.timeout)
        async with self._kit.control.use() as connection, connection.transaction():
            claimed = await statements.claim_runs(connection, worker, [rules], [run_id], [])
            claimed = await with_schedules(statements, connection, claimed)
        self._runner.take(claimed)

    async def _start(self) -> list[Attempt]:
        """Makes one pass. Returns the attempts that it started."""
        first = len(self._taken)
        await self._dispatcher.claim_pass(afresh=True)
        await self._heartbeat.beat()  # brings the pass's cancellations (overlap cancel) to running attempts
        await self._skips.deliver()
        return self._taken[first:]

    async def _until_over(self, runs: Sequence[Attempt]) -> None:
        """Waits until runs have ended, their ends are written and their hooks are done."""
        tasks = [attempt.task for attempt in runs if attempt.task is not None and not attempt.task.done()]
        if tasks:
            await asyncio.wait(tasks)
        await self._finisher.flush(self._limit)

    async def _rows(self, runs: Sequence[Attempt], raise_errors: bool | None) -> list[Row]:
        """The rows of runs. Raises the errors of their functions if that is wanted."""
        raised = [self._raised.pop(key) for attempt in runs if (key := attempt.key) in self._raised]
        if raised and (self._raise_errors if raise_errors is None else raise_errors):
            raise raised[0] if len(raised) == 1 else ExceptionGroup("Several runs failed", raised)
        ids = dict.fromkeys(attempt.claim.run_id for attempt in runs)
        return [await self.client.get_run(run_id) for run_id in ids]

    @contextlib.asynccontextmanager
    async def _limited(self) -> Any:
        """Limits real time: raises TimeoutError with the entrypoints that still run. Raises a service's error if that
        has ended the harness."""
        assert self._main is not None
        if self._main.done():
            await self._main
        try:
            async with asyncio.timeout(self._limit):
                yield
        except TimeoutError:
            names = ", ".join(sorted({attempt.claimed.entrypoint for attempt in self._roster.running()})) or "nothing"
            raise TimeoutError(f"after {self._limit:g} s of real time this still runs: {names}") from None


async def _drop(kit: Kit) -> None:
    schema = sql.Identifier(kit.settings.schema)
    async with kit.control.use() as connection:
        await connection.execute(sql.SQL("drop schema if exists {} cascade").format(schema))
