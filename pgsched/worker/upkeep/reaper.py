"""Re-queues or fails stalled runs. Decides by signs of life that it watches itself, never by how long a run takes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta

import psycopg

from pgsched import log
from pgsched.db.apart import Apart
from pgsched.db.fence.fence import session_name
from pgsched.db.mishaps import Mishaps, is_refusal
from pgsched.db.session import Backoff, Connection
from pgsched.db.statements.upkeep import SILENT_PAGE
from pgsched.model import Claim, Process, RunStatus
from pgsched.rules.retry import Seen, Silent, after_loss, is_stalled
from pgsched.worker.aside import Kind
from pgsched.worker.kit import Kit
from pgsched.worker.run.roster import Roster
from pgsched.worker.run.surroundings import Key
from pgsched.worker.upkeep.silences import Silences

Verdict = tuple[Silent, RunStatus, timedelta, str]
_LOCK = timedelta(milliseconds=100)  # how long a reap waits for a lock that a trigger or an index needs


class Reaper:
    """Watches other workers' claims while there are any, and sleeps while there are none.

    Each run starts after something was due or a wake-up reached all workers, so the other workers look too and see it
    run.
    """

    def __init__(self, kit: Kit, roster: Roster, write_again: Callable[[Key], bool] = lambda key: False) -> None:
        """write_again: has the end of a claim of our own written again, if it was; returns whether it was."""
        self._write_again = write_again
        self._statements = kit.store.upkeep
        self._session = kit.control
        self._worker = kit.worker
        self._settings = kit.settings
        self._outage = kit.outage
        self._aside = kit.aside
        self._watch = kit.watch
        self._elapsed = kit.elapsed
        self._roster = roster
        self._whereabouts = kit.whereabouts
        self._interval = kit.settings.heartbeat_interval.total_seconds()
        self._silences = Silences(self._interval, kit.elapsed)
        self._hint = kit.wakeups.reap
        self._armed = False
        self._armed_until = 0.0
        self._backoff = Backoff(0.1, 5.0)
        self._log = log.get()

    async def run(self) -> None:
        """Makes passes while it is armed, until it is cancelled."""
        while True:
            if not self._armed:
                self._silences.rest()
                await self._hint.event.wait()
            if self._hint.take():
                self._armed = True
                # Long enough to see that a claim without a worker has fallen silent.
                self._armed_until = self._elapsed() + 5 * self._interval
            try:
                wait = await self.reap_pass()
            except Mishaps as error:
                self._outage.lost(error, "reap")
                wait = self._backoff.delay()
            else:
                self._outage.answered("reap")
            await self._watch.sleep(wait)

    async def reap_pass(self) -> float:
        """Looks once, and takes lost claims away. Returns the seconds until the next look is worthwhile."""
        try:
            return await self._look()
        except Mishaps as error:
            if not is_refusal(error):  # others' beats may have failed for the same reason
                self.distrust()
            raise

    async def _look(self) -> float:
        self._watch.look()  # this machine may have slept, and the other workers on it too
        after, wait, reaped = 0, self._interval, list[tuple[Silent, RunStatus, timedelta, datetime]]()
        async with self._session.use() as connection:
            while True:
                now, server_started, elsewhere, silent = await self._statements.find_silent_runs(
                    connection, self._worker, self._settings.heartbeat_interval,
                    stall_timeout=self._settings.stall_timeout, machine=self._whereabouts.machine, after=after,
                )  # fmt: skip
                if after == 0:
                    self._silences.begin(now, server_started, self._session.generation)
                    if elsewhere == 0 and not silent and self._elapsed() >= self._armed_until:
                        self._armed = False
                silences = {run.id: self._silences.of(run, now) for run in silent}
                gone = await self._judge(connection, silent, now, silences)
                reaped += gone
                taken = {run.id for run, *_ in gone}
                wait = min(wait, self._next_look([s for s in silent if s.id not in taken], now, silences))
                if len(silent) < SILENT_PAGE:
                    break
                after = silent[-1].id
            self._silences.end()
            await self._aside.review(connection)
        for run, status, delay, seen in reaped:
            event = "run_reaped" if status is RunStatus.QUEUED else "run_failed_for_good"
            self._log.warning(
                event, run=run.id, entrypoint=run.entrypoint, attempt=run.attempt, lost_worker=str(run.worker),
                silent_s=round((seen - run.alive_at).total_seconds(), 1), retry_in_s=delay.total_seconds(),
            )  # fmt: skip
        return wait

    async def _judge(
        self, connection: Connection, silent: list[Silent], now: datetime, seen: Mapping[int, Seen]
    ) -> list[tuple[Silent, RunStatus, timedelta, datetime]]:
        """Takes away the lost claims of a page, and returns them."""
        processes: dict[tuple[str, int, str], Process] = {}
        verdicts = []
        for run in silent:
            where = (run.machine, run.pid, run.process_started)
            if where not in processes:
                processes[where] = self._whereabouts.state_of(*where)
            if self._is_lost(run, now, seen[run.id], processes[where]) and not self._had_ended(run):
                verdicts.append((run, *self._fate(run), self._message(run, now, processes[where])))
        if not verdicts:
            return []
        reaped = set(await self._reap(connection, verdicts))
        if names := [_transaction(run) for run, *_ in verdicts if run.id in reaped and run.worker is not None]:
            with contextlib.suppress(psycopg.Error):  # then they end by themselves; they are fenced anyway
                await self._statements.end_transactions(connection, names)
        return [(run, status, delay, now) for run, status, delay, _ in verdicts if run.id in reaped]

    async def _reap(self, connection: Connection, verdicts: Sequence[Verdict]) -> list[int]:
        """Takes claims away. A run that the database refuses to change is set aside, so that no other waits for it."""
        refusals: list[tuple[int, BaseException]] = []

        async def refuse(verdict: Verdict, error: BaseException) -> None:
            refusals.append((verdict[0].id, error))

        async def reap(part: Sequence[Verdict]) -> list[int]:
            async with connection.transaction():
                await self._statements.wait_briefly(connection, _LOCK)
                return await self._statements.reap_runs(connection, part)

        reaped = await Apart(reap, refuse, patience=0).all(verdicts)
        await self._aside.put(connection, Kind.REAP, refusals)
        return reaped

    def _is_lost(self, run: Silent, now: datetime, seen: Seen, process: Process) -> bool:
        interval, stall_timeout = self._settings.heartbeat_interval, self._settings.stall_timeout
        if run.worker == self._worker:
            # Our own claims are the heartbeat's business, except one that we do not know: the answer to the commit
            # that made it never came.
            known = (run.id, run.token) in self._roster.attempts
            return not known and seen.watched >= 2 * interval and now - run.alive_at >= 3 * interval
        return is_stalled(run, now, interval, stall_timeout, seen=seen, process=process)

    def _had_ended(self, run: Silent) -> bool:
        """Whether it is a run of our own that has ended: after a failover, the database may not know of that."""
        return run.worker == self._worker and self._write_again((run.id, run.token))

    def _fate(self, run: Silent) -> tuple[RunStatus, timedelta]:
        # A claim of our own that this process never knew was never started, so no attempt has failed.
        never_started = (
            run.worker == self._worker and not run.begun and (run.id, run.token) not in self._roster.unlanded
        )
        return (RunStatus.QUEUED, timedelta(0)) if never_started else after_loss(run)

    def _message(self, run: Silent, now: datetime, process: Process) -> str:
        silence = (now - run.alive_at).total_seconds()
        how = "is gone" if process is Process.ENDED or (run.direct and not run.connected) else "is silent"
        return f"its worker {run.worker} {how}: no heartbeat for {silence:.1f} s"

    def distrust(self) -> None:
        """Stops trusting silence for one stall timeout: others may have had no chance to beat."""
        self._silences.disrupted()

    def _next_look(self, silent: list[Silent], now: datetime, seen: Mapping[int, Seen]) -> float:
        """The seconds until the next look: less than the interval if a silent worker's third beat is about to be missed
        and its silence has nearly been watched for long enough."""
        left = []
        for run in silent:
            if run.direct and run.connected:
                continue
            interval = run.heartbeat_interval or self._settings.heartbeat_interval
            left.append(max(3 * interval - (now - run.alive_at), 2 * interval - seen[run.id].watched).total_seconds())
        return min([self._interval, *(max(0.05, seconds) for seconds in left if seconds > 0)])


def _transaction(run: Silent) -> str:
    assert run.worker is not None
    return session_name(Claim(run.id, run.token, run.worker))
