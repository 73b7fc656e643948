"""Re-queues or fails what stalled. Decides by the run's own heartbeat, never by how long a run takes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from datetime import datetime, timedelta

import psycopg

from pgsched import log
from pgsched.db import Backoff, Failures
from pgsched.fence import session_name
from pgsched.machine import Machine
from pgsched.model import Claim, RunStatus, Silent
from pgsched.policy import after_loss, is_stalled
from pgsched.runner import Runner


class Reaper:
    """Looks after other workers' claims while there are any, and sleeps while there are none.

    Every start of a run comes from something that was due, or that woke everybody: the other workers look too,
    and see it running.
    """

    def __init__(self, machine: Machine, runner: Runner) -> None:
        self._store = machine.store
        self._session = machine.control
        self._worker = machine.worker
        self._settings = machine.settings
        self._outage = machine.outage
        self._watch = machine.watch
        self._runner = runner
        self._distrust_until = 0.0
        self._interval = machine.settings.heartbeat_interval.total_seconds()
        self._armed = asyncio.Event()
        self._armed_until = 0.0
        self._looked_at: datetime | None = None
        self._backoff = Backoff(0.1, 5.0)
        self._log = log.get()

    def saw_running(self, elsewhere: bool) -> None:
        """A look saw whether anybody else has runs going."""
        if elsewhere:
            # Long enough for a claim that nobody holds to fall silent and be seen.
            self._armed_until = time.monotonic() + 5 * self._interval
            self._armed.set()

    async def run(self) -> None:
        """Passes for ever, while armed."""
        while True:
            if not self._armed.is_set():
                self._looked_at = None
                await self._armed.wait()
            try:
                wait = await self.reap_pass()
            except Failures as error:
                self._outage.lost(error, "reap")
                wait = self._backoff.delay()
            else:
                self._outage.answered()
            await self._watch.sleep(wait)

    async def reap_pass(self) -> float:
        """One look, and what follows from it. Returns the seconds until the next look is worth while."""
        try:
            return await self._look()
        except Failures:
            # Whatever kept this look from the database may have kept others' beats from it.
            self.distrust()
            raise

    async def _look(self) -> float:
        self._watch.look()  # it may have been asleep until now, as other workers on this machine were
        async with self._session.use() as connection:
            now, server_up, elsewhere, silent = await self._store.find_silent_runs(
                connection, self._worker, self._settings.heartbeat_interval
            )
            if elsewhere == 0 and not silent and time.monotonic() >= self._armed_until:
                self._armed.clear()
            self._note_gap(now)
            if self._in_grace(server_up):
                return self._interval
            verdicts = [(s, *self._fate(s), self._message(s, now)) for s in silent if self._is_lost(s, now)]
            reaped = set(await self._store.reap_runs(connection, verdicts)) if verdicts else set()
            if names := [_transaction(s) for s in silent if s.id in reaped and s.worker is not None]:
                with contextlib.suppress(psycopg.Error):  # then they end by themselves, and are fenced all the same
                    await self._store.end_transactions(connection, names)
        for run, status, delay, _ in verdicts:
            if run.id in reaped:
                event = "run_reaped" if status is RunStatus.QUEUED else "run_failed_for_good"
                self._log.warning(
                    event, run=run.id, entrypoint=run.entrypoint, attempt=run.attempt, lost_worker=str(run.worker),
                    silent_s=round((now - run.heartbeat_at).total_seconds(), 1), retry_in_s=delay.total_seconds(),
                )  # fmt: skip
        return self._next_look([s for s in silent if s.id not in reaped], now)

    def _is_lost(self, run: Silent, now: datetime) -> bool:
        if run.worker == self._worker:
            # Our own claims are the heartbeat's business, but for one that we do not know of: the answer to the
            # commit that made it never came.
            known = (run.id, run.token) in self._runner.live
            return not known and now - run.heartbeat_at >= 3 * self._settings.heartbeat_interval
        return is_stalled(run, now, self._settings.heartbeat_interval, self._settings.stall_timeout)

    def _fate(self, run: Silent) -> tuple[RunStatus, timedelta]:
        # One of our own that nobody here knows of was never started: it is no attempt that failed.
        return (RunStatus.QUEUED, timedelta(0)) if run.worker == self._worker else after_loss(run)

    def _message(self, run: Silent, now: datetime) -> str:
        silence = (now - run.heartbeat_at).total_seconds()
        how = "is gone" if run.direct and not run.connected else "is silent"
        return f"its worker {run.worker} {how}: no heartbeat for {silence:.1f} s"

    def _note_gap(self, now: datetime) -> None:
        """A long gap between looks on the database's clock is an outage too: it, or this machine, stood still."""
        if self._looked_at is not None and now - self._looked_at > timedelta(seconds=5 * self._interval + 5):
            self.distrust()
        self._looked_at = now

    def distrust(self) -> None:
        """Time went by that others may have had no part in: their silence means nothing for a while."""
        self._distrust_until = time.monotonic() + self._settings.stall_timeout.total_seconds()

    def _in_grace(self, server_up: timedelta) -> bool:
        """After an outage every owner gets a fresh stall timeout in which to beat again."""
        return server_up < self._settings.stall_timeout or time.monotonic() < self._distrust_until

    def _next_look(self, silent: list[Silent], now: datetime) -> float:
        """Sooner than the interval where a dead worker's third beat is about to be missed."""
        left = [
            (3 * (s.heartbeat_interval or self._settings.heartbeat_interval) - (now - s.heartbeat_at)).total_seconds()
            for s in silent
            if s.direct and not s.connected
        ]
        return min([self._interval, *(max(0.05, seconds) for seconds in left)])


def _transaction(run: Silent) -> str:
    assert run.worker is not None
    return session_name(Claim(run.id, run.token, run.worker))
