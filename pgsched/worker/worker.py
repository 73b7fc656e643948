"""Builds the parts of a daemon, runs them in one task group, and ends them in order. READ THIS FIRST.

    reconciler  makes the schedules match the code at the start, or later if that has to wait
    listener    LISTEN on its own connection; wakes the others; the once-a-minute resync
    dispatcher  sleeps until something is due; the claim pass; hands claims to
    runner      starts each run at its instant; one claim, one outcome; hands outcomes to
    finisher    writes them in batches, under their claims
    heartbeat   renews the claims of runs; learns which were lost or cancelled; has scribe write the runs' logs
    guard       a thread that renews claims while a function blocks the loop
    reaper      takes away claims whose worker is dead
    retention   deletes old history, once an hour
    skip_hooks  calls the application's hooks for fire times that do not run; runner calls the other hooks

Services are in one task group: when one of them dies, the process ends. The tasks of runs let nothing escape (tasks). A
cancellation of run() drains, too (life).

There are three connections: one listens, one claims and reaps, one writes beats and outcomes. Runs get none of these,
but others of their own if they ask for a transaction (fence.py). There is one more while old history is deleted, and
guard opens one if the loop is blocked.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from pgsched import log
from pgsched.config import Settings
from pgsched.db import migrate
from pgsched.db.failures import unreachable
from pgsched.db.mishaps import Failures
from pgsched.errors import ConfigurationError, DatabaseUnavailable, PgschedError, SchemaError
from pgsched.executors.capture import capturing
from pgsched.executors.threads import DaemonThreads
from pgsched.expression.zone_files import outdated_host, source_of
from pgsched.rules.outcome import Stop
from pgsched.scheduler import Scheduler
from pgsched.worker import systemd
from pgsched.worker.claim.dispatcher import Dispatcher
from pgsched.worker.clocks import Jump, Watch
from pgsched.worker.kit import Kit
from pgsched.worker.life import Life
from pgsched.worker.listener import DEAF_RESYNC, Listener
from pgsched.worker.presence import Presence
from pgsched.worker.run.attempt import Attempt, function_fields
from pgsched.worker.run.finisher import Finisher
from pgsched.worker.run.guard import Guard
from pgsched.worker.run.heartbeat import Heartbeat
from pgsched.worker.run.hook_calls import SkipHooks
from pgsched.worker.run.leftovers import Leftovers
from pgsched.worker.run.roster import Roster
from pgsched.worker.run.runner import Runner
from pgsched.worker.run.tasks import RunTasks
from pgsched.worker.signals import SIGNALS
from pgsched.worker.upkeep.reaper import Reaper
from pgsched.worker.upkeep.reconciler import Reconciler
from pgsched.worker.upkeep.rejoin import Rejoin
from pgsched.worker.upkeep.retention import Retention

GIVEN_BACK = 75  # EX_TEMPFAIL: a drain exceeded its grace period, and runs were given back
LISTENS = 10.0  # seconds within which LISTEN should be there at the start
_PULSE = 5.0  # seconds between touches of the health file


class Worker:
    """One daemon: a worker id, its parts, and their lifetime."""

    def __init__(
        self,
        scheduler: Scheduler,
        settings: Settings,
        hard_exit: Callable[[int], object] | None = None,
        watch: Watch | None = None,
        elapsed: Callable[[], float] = time.monotonic,
        *,
        owns_process: bool = False,
    ) -> None:
        """owns_process: whether it takes the process's signals; a guest leaves them to their handlers (signals.py)."""
        kit = self.kit = Kit.build(scheduler, settings, watch, elapsed)
        self.given_back = 0
        self._hard_exit = hard_exit
        self._owns_process = owns_process
        self._life = Life(self._asked)
        self.stopping = asyncio.Event()
        self._log = log.get()
        self._threads = DaemonThreads(settings.max_threads)
        self._runs = RunTasks()
        self.roster = Roster(settings)
        self.finisher = Finisher(kit)
        self.runner = Runner(
            kit, self.roster, self.finisher, threads=self._threads, group=self._runs, ends=lambda: self._life.loop_ends
        )
        self.skip_hooks = SkipHooks(scheduler.hooks, self.runner.caller)
        self.reconciler = Reconciler(kit)
        self.presence = Presence(kit, self.roster, self.reconciler.fingerprint, ends=hard_exit is not None)
        self.dispatcher = Dispatcher(kit, self.roster, self.runner, seen=self.presence.saw, on_skip=self.skip_hooks.put)
        self.heartbeat = Heartbeat(kit, self.roster, self.runner, self._runs)
        self.guard = Guard(kit, self.roster)
        self.leftovers = Leftovers(kit, self.roster)
        self.reaper = Reaper(kit, self.roster, self.finisher.write_again)
        self.rejoin = Rejoin(kit, self._look_again)
        self.retention = Retention(kit, self.finisher.wrote)
        self.listener = Listener(
            kit, self.roster, self.dispatcher,
            seen=lambda outlook: self.reconciler.saw_orphaned(outlook.orphaned),
            awaited=lambda: self.reconciler.awaited,
        )  # fmt: skip
        kit.watch.subscribe(self._clocks_jumped)
        kit.clock.subscribe(self._database_stepped)

    def _clocks_jumped(self, jump: Jump) -> None:
        """This machine slept, or its wall clock was set: the only sign that a virtual machine was paused.

        In both cases the database's time is no longer known here.
        """
        self._log.warning("clocks_jumped", slept_s=round(jump.slept, 3), wall_s=round(jump.wall, 3))
        self.kit.clock.forget()
        self._look_again()

    def _database_stepped(self, seconds: float) -> None:
        self._log.warning("database_clock_stepped", by_s=round(seconds, 3))
        self._look_again()

    def _look_again(self) -> None:
        self.reaper.distrust()
        self.runner.held.ask_all()
        self.kit.wakeups.ask_all()

    # --- life -------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Asks for a drain."""
        self.stopping.set()

    def _asked(self) -> None:
        """The program that we are a guest of asks for a drain."""
        SIGNALS.forgive()
        self.stop()

    def _signalled(self, number: signal.Signals, again: bool) -> None:
        if again:
            self._log.warning("worker_ended_hard", signal=number.name, running=len(self.roster.running()))
        else:
            self._log.info("signal_received", signal=number.name)
            self.stop()

    async def run(self) -> int:
        """Starts, runs until stop() or a signal, and drains. Returns how many runs were given back unfinished.

        A cancellation drains, too, and is raised after that. A second one ends all runs and writes nothing more.
        """
        await self._life.lead(self._live())
        return self.given_back

    async def _live(self) -> None:
        try:
            with SIGNALS.heard(self._signalled, owner=self._owns_process), capturing():
                if await self._started():
                    self.guard.start()
                    await self._serve()
        finally:
            self.kit.scheduler.attach(None)
            self.guard.stop()
            self._threads.shutdown(wait=False, cancel_futures=True)
            await self.runner.transactions.close()
            await self.listener.close()
            for session in (self.kit.control, self.kit.writes):
                await session.discard()

    async def _started(self) -> bool:
        """Starts. Returns False if a stop was asked for before that was done: a start may have to wait for a lock."""
        start, stop = asyncio.create_task(self._start()), asyncio.create_task(self.stopping.wait())
        self.kit.scheduler.attach(self._asked)
        try:
            await asyncio.wait([start, stop], return_when=asyncio.FIRST_COMPLETED)
            if not start.done():
                self._log.info("start_given_up")
                start.cancel()
                await asyncio.wait([start])
                await self.presence.say_goodbye()
                return False
            await start
            return True
        finally:
            stop.cancel()
            start.cancel()

    async def _start(self) -> None:
        """Checks the schema, registers the worker and reconciles the declared schedules. Any failure is raised."""
        try:
            async with self.kit.control.use(self.reconciler.limit) as connection:
                there = await migrate.check(connection, self.kit.settings.schema)
                if there > (ours := len(migrate.migrations())):
                    self._log.info("schema_newer", version=there, built_for=ours)
                # Registered first: an older version that starts at the same time must find us alive.
                await self.presence.register(connection)
                await self.kit.store.upkeep.forget_workers(connection)
                await self.reconciler.start(connection)
                await self.dispatcher.zones.look(connection)
        except SchemaError:
            raise
        except ConfigurationError:  # refused: as if it had never started
            await self.presence.say_goodbye()
            raise
        except PgschedError:
            raise
        except Failures as error:
            locked = await self.reconciler.why_locked(error)
            raise (unreachable(error) if locked is None else DatabaseUnavailable(locked)) from None

    async def _serve(self) -> None:
        tasks: dict[str, asyncio.Task[None]] = {}
        try:
            async with asyncio.TaskGroup() as services:
                tasks |= {name: services.create_task(part, name=name) for name, part in self._services().items()}
                await self.stopping.wait()
                await self._drain(tasks, self.kit.settings.drain_timeout.total_seconds())
                for task in tasks.values():
                    task.cancel()
        except BaseException as error:
            await (self._drain_again(tasks) if self._life.loop_ends else self._abort(error))
            raise
        finally:
            if left := await self._runs.ended(self.kit.settings.cancel_timeout.total_seconds() + 0.5):
                self._log.warning("runs_go_on", count=left, advice="they ignore their cancellation")

    async def _drain_again(self, tasks: dict[str, asyncio.Task[None]]) -> None:
        """Drains without the services, which the end of the event loop has cancelled together with the runs.

        A function in a thread still gets its grace period, unless the drain was under way.
        """
        grace = 0.0 if self.listener.draining else self.kit.settings.drain_timeout.total_seconds()
        for name, part in (("finisher", self.finisher), ("heartbeat", self.heartbeat)):
            tasks[name] = asyncio.create_task(part.run(), name=name)
        try:
            await self._drain(tasks, grace)
        finally:
            tasks["finisher"].cancel()
            tasks["heartbeat"].cancel()

    async def _abort(self, error: BaseException) -> None:
        """A service died, or we are cancelled a second time: ends all attempts and writes nothing more."""
        self._log.error("worker_failed", error=type(error).__name__)
        for attempt in list(self.roster.attempts.values()):
            attempt.end(Stop.LOST)
        if self._hard_exit is not None and not await self.roster.until_empty(
            self.roster.running, self.kit.settings.cancel_timeout.total_seconds() + 0.5
        ):
            traceback.print_exception(error)
            self._hard_exit(1)

    def _services(self) -> dict[str, Any]:
        return {
            "listener": self.listener.run(),
            "dispatcher": self.dispatcher.run(),
            "finisher": self.finisher.run(),
            "heartbeat": self.heartbeat.run(),
            "leftovers": self.leftovers.run(),
            "reaper": self.reaper.run(),
            "reconciler": self.reconciler.run(),
            "rejoin": self.rejoin.run(),
            "announce": self._announce(),
            "presence": self.presence.run(),
            "pulse": self._pulse(),
            "retention": self.retention.run(),
            "skip_hooks": self.skip_hooks.run(),
        }

    async def _announce(self) -> None:
        """Reports that the daemon is ready, once it listens and has made a pass after that. If it cannot listen for a
        while it is ready too: it looks every few seconds."""
        try:
            async with asyncio.timeout(LISTENS):
                await self.listener.listening.wait()
        except TimeoutError:
            self._log.warning("not_listening", advice="check listen_dsn", asks_every_s=DEAF_RESYNC.total_seconds())
        self.dispatcher.passed.clear()
        self.kit.wakeups.due.ask()
        await self.dispatcher.passed.wait()
        self.kit.scheduler.ready.set()
        entrypoints = f"{len(self.kit.scheduler.entrypoints)} entrypoints"
        systemd.ready(", ".join(filter(None, [entrypoints, self.kit.outage.trouble()])))
        self._log.info(
            "worker_ready",
            worker=str(self.kit.worker),
            app=self.kit.scheduler.app_name,
            entrypoints=len(self.kit.scheduler.entrypoints),
            schedules=len(self.kit.scheduler.declared),
            tzdata=source_of().release,
            tzdata_from=source_of().place,
        )
        if advice := outdated_host():
            self._log.warning("time_zone_files_outdated", advice=advice)

    async def _pulse(self) -> None:
        """Shows systemd's watchdog and the health file that the loop turns. Never asks the database."""
        watchdog = systemd.watchdog_interval()
        file = Path(self.kit.settings.health_file) if self.kit.settings.health_file else None
        wait = min([seconds for seconds in (watchdog, _PULSE if watchdog or file else None) if seconds], default=None)
        while wait is not None:
            systemd.notify(WATCHDOG=1, STATUS=self.status())
            if file is not None:
                with contextlib.suppress(OSError):  # a full disk makes the check fail, not the daemon
                    _write_fresh(file, f"{time.monotonic()}\n")
            await asyncio.sleep(wait)

    def status(self) -> str:
        """The line that the service manager shows."""
        state = "draining" if self.stopping.is_set() else "running"
        return ", ".join(filter(None, [state, f"{self.roster.slots_used} runs", self.kit.outage.trouble()]))

    # --- the end ----------------------------------------------------------------------------------------

    async def _drain(self, services: Mapping[str, asyncio.Task[None]], grace: float) -> None:
        """Stops claiming, lets runs finish while heartbeats continue, gives the rest back and says goodbye."""
        settings = self.kit.settings
        systemd.stopping()
        systemd.extend_timeout(
            2 * (settings.drain_timeout + settings.cancel_timeout) + timedelta(seconds=15) + settings.hook_timeout
        )
        self.listener.drain()
        running = len(self.roster.running())
        cancel = settings.cancel_timeout.total_seconds()
        self._log.info("drain_started", running=running, grace_s=grace)
        # The pass that is under way may still claim: it ends first, then all its claims are given back.
        self.dispatcher.stop()
        await asyncio.wait([services["dispatcher"]], timeout=max(1.0, cancel))
        services["dispatcher"].cancel()
        unstarted = self.runner.release_held()
        stuck: list[Attempt] = []
        if not await self.roster.until_empty(self.roster.running, grace):
            left = self.roster.running()
            self._log.warning("drain_overdue", running=len(left))
            self.given_back = len(left)
            for attempt in left:
                attempt.end(Stop.DRAIN)
            await self.roster.until_empty(self.roster.running, cancel + 0.5)
            stuck = self.roster.running()
        await self._flush(grace)
        limit = settings.hook_timeout.total_seconds()
        await asyncio.gather(self.runner.caller.settle(limit), self.skip_hooks.flush(limit))
        # Runs that do not end are given back last, after everything else here: another worker starts them at once.
        for attempt in stuck:
            attempt.abandon()
        await self._flush(grace)
        self.given_back += self.finisher.pending  # others will reap the runs whose ends are not written
        services["leftovers"].cancel()  # its statement under way must not arrive after the goodbye
        await asyncio.wait([services["leftovers"]], timeout=1.0)
        await self.presence.say_goodbye()
        self._log.info("drain_finished", given_back=self.given_back, unstarted=unstarted)
        hanging = [function_fields(each) | {"run": each.claimed.id} for each in self.roster.left_behind.values()]
        if hanging:
            self._log.warning(
                "threads_end_with_process" if self._hard_exit else "threads_go_on", functions=hanging[:20]
            )
        if (stuck or hanging or self.runner.caller.stuck) and self._hard_exit is not None:
            # Nothing else ends a thread, or a coroutine that swallows its cancellation.
            self._hard_exit(GIVEN_BACK if self.given_back else 0)

    async def _flush(self, grace: float) -> None:
        """Writes all pending outcomes."""
        if not await self.finisher.flush(max(10.0, grace)):
            self._log.error("outcomes_not_written", count=self.finisher.pending)


def _write_fresh(file: Path, text: str) -> None:
    """Replaces a file with a new one, so that no reader finds half of it.

    Others may write to its folder: links that they put under our names are replaced, never followed.
    """
    fresh = file.with_name(f"{file.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    with open(fresh, "x") as stream:  # noqa: PTH123 - if a link is there again, that is an error
        stream.write(text)
    fresh.replace(file)
