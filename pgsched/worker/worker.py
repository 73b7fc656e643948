"""Builds the parts of a daemon, runs them in one task group, and ends them in order. READ THIS FIRST.

    reconciler  at the start brings the schedules to what the code declares; goes on where that has to wait
    listener    LISTEN on its own connection; wakes the others; the once-a-minute resync
    dispatcher  sleeps until something is due; the claim pass; hands claims to
    runner      starts each run at its instant; one claim, one outcome; hands outcomes to
    finisher    writes them in batches, under their claims
    heartbeat   renews the claims of what runs; hears of lost and cancelled ones; has written what runs say (scribe)
    guard       a thread that does so while a function blocks the loop
    reaper      takes away claims whose worker is dead
    retention   deletes old history, once an hour
    skip_hooks  tells the application of fire times that do not run; other hooks are called by runner

Two task groups: services, any of whose deaths ends the process; and runs, from which nothing escapes.
Three connections: one listens, one claims and reaps, one writes beats and outcomes; runs get none of them,
but others of their own where they ask for a transaction (fence.py). While old history is deleted there is one more.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog

from pgsched import config, log
from pgsched.config import Settings
from pgsched.db import migrate
from pgsched.db.session import Connection, Failures, Mishaps, Session, conninfo_for, unreachable
from pgsched.errors import ConfigurationError, DatabaseUnavailable, PgschedError, SchemaError
from pgsched.executors.capture import capturing
from pgsched.executors.threads import DaemonThreads
from pgsched.expression.zone_files import outdated_host, package_release, source_of
from pgsched.rules.outcome import Stop
from pgsched.scheduler import Scheduler
from pgsched.worker import systemd
from pgsched.worker.claim.dispatcher import Dispatcher
from pgsched.worker.clocks import Jump, Watch
from pgsched.worker.kit import Machine
from pgsched.worker.listener import Listener
from pgsched.worker.run.finisher import Finisher
from pgsched.worker.run.heartbeat import Guard, Heartbeat
from pgsched.worker.run.hook_calls import SkipHooks
from pgsched.worker.run.leftovers import Leftovers
from pgsched.worker.run.runner import Live, Runner, function_of
from pgsched.worker.upkeep.reaper import Reaper
from pgsched.worker.upkeep.reconciler import Reconciler
from pgsched.worker.upkeep.rejoin import Rejoin
from pgsched.worker.upkeep.retention import Retention
from pgsched.worker.whereabouts import route

GIVEN_BACK = 75  # EX_TEMPFAIL: a drain ran past its grace, and runs were given back
_ENDING = timedelta(seconds=5)  # for how long a hung thread counts after the goodbye of a process that ends at once
_PULSE = 5.0  # seconds between touches of the health file


class Worker:
    """One daemon: a worker id, its parts, and their life."""

    def __init__(
        self,
        scheduler: Scheduler,
        settings: Settings,
        hard_exit: Callable[[int], object] | None = None,
        watch: Watch | None = None,
    ) -> None:
        machine = self.machine = Machine.build(scheduler, settings, watch)
        self.given_back = 0
        self._hard_exit = hard_exit
        self._stop = asyncio.Event()
        self._forgotten = asyncio.Event()  # our row is gone, and has to be written again
        self._leaving = False
        self._log = log.get()
        self._threads = DaemonThreads(settings.max_threads)
        self.finisher = Finisher(machine)
        self.runner = Runner(machine, self.finisher, self._threads)
        self.dispatcher = Dispatcher(machine, self.runner)
        self.skip_hooks = SkipHooks(scheduler.hooks, self.runner.caller)
        self.heartbeat = Heartbeat(machine, self.runner)
        self.guard = Guard(machine, self.runner)
        self.leftovers = Leftovers(machine, self.runner)
        self.reaper = Reaper(machine, self.runner)
        self.reconciler = Reconciler(machine)
        self.rejoin = Rejoin(machine, self._look_again)
        self.retention = Retention(machine, self.finisher.wrote)
        self.listener = Listener(machine, self.dispatcher, self.runner)
        self.listener.saw_orphaned = self.reconciler.saw_orphaned
        self.listener.awaited = lambda: self.reconciler.awaited
        self.listener.woken.append(self.heartbeat.ask_now)
        self.dispatcher.saw_running = self.reaper.saw_running
        self.dispatcher.saw_forgotten = self._saw_forgotten
        self.dispatcher.skipped = self.skip_hooks.put
        self.runner.changed = self.dispatcher.slot_freed
        self.runner.started = self._runs_started
        self.runner.doubted = self.heartbeat.ask_now
        machine.watch.jumped = self._clocks_jumped
        machine.clock.stepped = self._database_stepped

    def _runs_started(self) -> None:
        self.heartbeat.wake()
        self.guard.wake()

    def _clocks_jumped(self, jump: Jump) -> None:
        """This machine slept, or its wall clock was set, which is all that one sees of a virtual machine that was
        paused. Either way nobody here knows how late it is."""
        self._log.warning("clocks_jumped", slept_s=round(jump.slept, 3), wall_s=round(jump.wall, 3))
        self.machine.clock.forget()
        self._look_again()

    def _database_stepped(self, seconds: float) -> None:
        self._log.warning("database_clock_stepped", by_s=round(seconds, 3))
        self._look_again()

    def _look_again(self) -> None:
        self.reaper.distrust()
        self.runner.doubt()
        self.dispatcher.wake()
        self.heartbeat.ask_now()
        self.listener.ask_now()

    # --- life -------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Asks for a drain."""
        self._stop.set()

    async def run(self) -> int:
        """Starts, runs until stop() or a signal, drains. Returns how many runs were given back unfinished."""
        try:
            with self._signals(), capturing():
                if await self._started():
                    self.guard.start()
                    await self._serve()
        finally:
            self.machine.scheduler.attach(None)
            self.guard.stop()
            self._threads.shutdown(wait=False, cancel_futures=True)
            await self.runner.transactions.close()
            await self.listener.close()
            for session in (self.machine.control, self.machine.writes):
                await session.discard()
        return self.given_back

    async def _started(self) -> bool:
        """Starts, unless it is asked to stop before it has: a start may have to wait for a lock."""
        start, stop = asyncio.create_task(self._start()), asyncio.create_task(self._stop.wait())
        self.machine.scheduler.attach(self.stop)
        try:
            await asyncio.wait([start, stop], return_when=asyncio.FIRST_COMPLETED)
            if not start.done():
                self._log.info("start_given_up")
                start.cancel()
                await asyncio.wait([start])
                await self._say_goodbye()
                return False
            await start
            return True
        finally:
            stop.cancel()
            start.cancel()

    async def _start(self) -> None:
        """Checks the schema, says hello, reconciles what the code declares. Any failure here is the caller's."""
        try:
            async with self.machine.control.use(self.reconciler.patience) as connection:
                await migrate.check(connection, self.machine.settings.schema)
                # Registered first: whoever starts beside us and is older must find us alive.
                await self._register(connection)
                await self.machine.store.forget_workers(connection)
                await self.reconciler.start(connection)
                await self.dispatcher.zones.look(connection)
        except SchemaError:
            raise
        except ConfigurationError:  # refused: as if it had never come
            await self._say_goodbye()
            raise
        except PgschedError:
            raise
        except Failures as error:
            locked = await self.reconciler.why_locked(error)
            raise (unreachable(error) if locked is None else DatabaseUnavailable(locked)) from None

    def _saw_forgotten(self, forgotten: bool) -> None:
        if forgotten and not self._leaving:
            self._forgotten.set()

    async def _stay_known(self) -> None:
        """Writes our row again whenever somebody has deleted it: others take a worker without a row for dead."""
        while True:
            await self._forgotten.wait()
            self._forgotten.clear()
            try:
                async with self.machine.control.use() as connection:
                    # The goodbye takes turns with this on the one connection, and must be the last word.
                    if not self._leaving:
                        await self._register(connection)
                        self._log.warning("worker_row_rewritten", worker=str(self.machine.worker))
            except Mishaps as error:  # the next look sees it again
                self.machine.outage.lost(error, "register")

    async def _register(self, connection: Connection) -> None:
        await self.machine.store.insert_worker(
            connection,
            worker=self.machine.worker,
            app=self.machine.scheduler.app_name,
            project=self.machine.scheduler.home.project or None,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=version("pgsched"),
            entrypoints=list(self.machine.scheduler.entrypoints),
            direct=self.machine.control.direct,
            heartbeat_interval=self.machine.settings.heartbeat_interval,
            stall_timeout=self.machine.settings.stall_timeout,
            fingerprint=self.reconciler.fingerprint,
            machine=self.machine.whereabouts.machine,
            process_started=self.machine.whereabouts.started,
            route=route(*self.machine.control.target),
            tzdata=source_of().release,
            tzdata_from=source_of().place,
            tzdata_package=package_release(),
        )

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as runs:
            self.runner.group = runs
            try:
                async with asyncio.TaskGroup() as services:
                    tasks = {name: services.create_task(part, name=name) for name, part in self._services().items()}
                    await self._stop.wait()
                    await self._drain(tasks)
                    for task in tasks.values():
                        task.cancel()
            except BaseException as error:
                await self._abort(error)
                raise

    async def _abort(self, error: BaseException) -> None:
        """A service died, or we are cancelled: nothing more is written, and what runs is ended."""
        self._log.error("worker_failed", error=type(error).__name__)
        for live in list(self.runner.live.values()):
            self.runner.stop(live, Stop.LOST)
        if self._hard_exit is not None and not await self.runner.until_empty(
            self.runner.running, self.machine.settings.cancel_timeout.total_seconds() + 0.5
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
            "presence": self._stay_known(),
            "pulse": self._pulse(),
            "retention": self.retention.run(),
            "skip_hooks": self.skip_hooks.run(),
        }

    async def _announce(self) -> None:
        """Says that the daemon is ready, once it listens and has looked after that."""
        await self.listener.listening.wait()
        self.dispatcher.passed.clear()
        self.dispatcher.wake()
        await self.dispatcher.passed.wait()
        self.machine.scheduler.ready.set()
        systemd.ready(f"{len(self.machine.scheduler.entrypoints)} entrypoints")
        self._log.info(
            "worker_ready",
            worker=str(self.machine.worker),
            app=self.machine.scheduler.app_name,
            entrypoints=len(self.machine.scheduler.entrypoints),
            schedules=len(self.machine.scheduler.declared),
            tzdata=source_of().release,
            tzdata_from=source_of().place,
        )
        if advice := outdated_host():
            self._log.warning("time_zone_files_outdated", advice=advice)

    async def _pulse(self) -> None:
        """Shows that the loop turns: to systemd's watchdog and to the health file. Asks no database."""
        watchdog = systemd.watchdog_interval()
        file = Path(self.machine.settings.health_file) if self.machine.settings.health_file else None
        wait = min([seconds for seconds in (watchdog, _PULSE if watchdog or file else None) if seconds], default=None)
        while wait is not None:
            systemd.notify(WATCHDOG=1, STATUS=self._status())
            if file is not None:
                with contextlib.suppress(OSError):  # a full disk makes the check fail, not the daemon
                    _write_fresh(file, f"{time.monotonic()}\n")
            await asyncio.sleep(wait)

    def _status(self) -> str:
        state = "database lost" if not self.machine.outage.up else "draining" if self._stop.is_set() else "running"
        return f"{state}, {self.runner.slots_used} runs"

    # --- the end ----------------------------------------------------------------------------------------

    async def _drain(self, services: Mapping[str, asyncio.Task[None]]) -> None:
        """Stops claiming, lets runs finish with their heartbeats going on, gives the rest back, says goodbye."""
        settings = self.machine.settings
        systemd.stopping()
        systemd.extend_timeout(
            2 * (settings.drain_timeout + settings.cancel_timeout) + timedelta(seconds=15) + settings.hook_timeout
        )
        self.listener.state = "draining"
        running = len(self.runner.running())
        grace, cancel = settings.drain_timeout.total_seconds(), settings.cancel_timeout.total_seconds()
        self._log.info("drain_started", running=running, grace_s=grace)
        # The pass that is under way may still claim: it ends first, then all that it took is given back.
        self.dispatcher.stop()
        await asyncio.wait([services["dispatcher"]], timeout=max(1.0, cancel))
        services["dispatcher"].cancel()
        unstarted = self.runner.release_held()
        stuck: list[Live] = []
        if not await self.runner.until_empty(self.runner.running, grace):
            left = self.runner.running()
            self._log.warning("drain_overdue", running=len(left))
            self.given_back = len(left)
            for live in left:
                self.runner.stop(live, Stop.DRAIN)
            await self.runner.until_empty(self.runner.running, cancel + 0.5)
            stuck = self.runner.running()
        await self._flush(grace)
        limit = settings.hook_timeout.total_seconds()
        await asyncio.gather(self.runner.settle(limit), self.skip_hooks.flush(limit))
        # What will not end is given back last: another worker starts it at once, and nothing of it goes on here.
        for live in stuck:
            self.runner.abandon(live)
        await self._flush(grace)
        self.given_back += self.finisher.pending  # others will find the runs whose ends are not written
        services["leftovers"].cancel()  # what it has on its way must not come after the goodbye
        await asyncio.wait([services["leftovers"]], timeout=1.0)
        await self._say_goodbye()
        self._log.info("drain_finished", given_back=self.given_back, unstarted=unstarted)
        hanging = [function_of(live) | {"run": live.run.id} for live in self.runner.left_behind.values()]
        if hanging:
            self._log.warning(
                "threads_end_with_process" if self._hard_exit else "threads_go_on", functions=hanging[:20]
            )
        if (stuck or hanging or self.runner.caller.stuck) and self._hard_exit is not None:
            # Nothing else ends a coroutine that swallows its cancellation, nor a thread.
            self._hard_exit(GIVEN_BACK if self.given_back else 0)

    async def _flush(self, grace: float) -> None:
        """Writes the ends that are there."""
        if not await self.finisher.flush(max(10.0, grace)):
            self._log.error("outcomes_not_written", count=self.finisher.pending)

    async def _say_goodbye(self) -> None:
        self._leaving = True
        hanging = [token for _, token in self.runner.in_threads()]
        lease = self.machine.settings.stall_timeout if self._hard_exit is None else _ENDING
        with contextlib.suppress(*Mishaps):  # others forget us in a day
            async with self.machine.control.use() as connection:
                await self.machine.store.delete_worker(connection, self.machine.worker, hanging, lease)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """The first SIGTERM, SIGINT or SIGHUP drains, the second ends the process at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()

        def received(number: signal.Signals) -> None:
            if self._stop.is_set():
                self._log.warning("worker_ended_hard", signal=number.name, running=len(self.runner.running()))
                os._exit(128 + number)
            self._log.info("signal_received", signal=number.name)
            self.stop()

        numbers = [signal.SIGTERM, signal.SIGINT]
        hangup = getattr(signal, "SIGHUP", None)  # not on Windows
        if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:  # nohup ignores it
            numbers.append(hangup)
        handled = []
        for number in numbers:
            with contextlib.suppress(NotImplementedError):  # an event loop without signals, as on Windows
                loop.add_signal_handler(number, received, number)
                handled.append(number)
        try:
            yield
        finally:
            for number in handled:
                loop.remove_signal_handler(number)


async def serve(
    scheduler: Scheduler,
    flags: Mapping[str, Any],
    *,
    file: str | None = None,
    migrate_first: bool = False,
    hard_exit: Callable[[int], object] | None = None,
) -> int:
    """Runs a scheduler with settings from all sources; starts the embedded server where no database is named.

    hard_exit: what ends the process where a run cannot be ended; without it, such a run is waited for.
    Returns how many runs were given back unfinished. Raises ConfigurationError, SchemaError or
    DatabaseUnavailable where it cannot start.
    """
    settings = config.load(flags, scheduler.settings, file=file)
    if not structlog.is_configured():
        log.configure(settings.log_level, settings.log_format)
    async with database(settings) as (dsn, embedded):
        if dsn is not None:
            settings = settings.merged({"dsn": dsn}, "embedded server")
        if embedded or migrate_first:
            await _migrate(settings)
        return await Worker(scheduler, settings, hard_exit).run()


def _write_fresh(file: Path, text: str) -> None:
    """Replaces a file by a new one, so that no reader finds half of it. Others may write to its folder: links of theirs
    under our names are replaced, too, and never followed."""
    fresh = file.with_name(f"{file.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    with open(fresh, "x") as stream:  # noqa: PTH123 - a link that is back again is an error
        stream.write(text)
    fresh.replace(file)


@contextlib.asynccontextmanager
async def database(settings: Settings) -> AsyncIterator[tuple[str | None, bool]]:
    """The DSN that the settings lead to, and whether it is the embedded server's, which runs meanwhile."""
    if settings.names_a_database:
        yield settings.dsn, False
        return
    from pgsched.db import embedded  # noqa: PLC0415 - the extra may not be installed

    context = embedded.start(settings.data_dir)
    dsn = await asyncio.to_thread(context.__enter__)
    try:
        log.get().info("embedded_started", data_dir=str(settings.data_dir or embedded.default_data_dir()))
        yield dsn, True
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)


async def _migrate(settings: Settings) -> None:
    session = Session(conninfo_for(settings.dsn, "pgsched migrate"), "migrate")
    try:
        connection = await session.connect()
        for applied in await migrate.migrate(connection, settings.schema):
            log.get().info("migration_applied", version=applied.version, name=applied.name)
    except PgschedError:
        raise
    except Failures as error:
        raise unreachable(error) from None
    finally:
        await session.discard()
