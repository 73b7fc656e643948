"""Keeps the claims of this worker alive, and learns which are lost, cancelled or withdrawn.

The guard does the same while a function blocks the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from pgsched.db.apart import Apart
from pgsched.db.mishaps import Mishaps
from pgsched.db.session import Backoff
from pgsched.model import Hold
from pgsched.worker.aside import Kind
from pgsched.worker.kit import Kit
from pgsched.worker.run.attempt import Attempt
from pgsched.worker.run.guard import Beat
from pgsched.worker.run.roster import Roster
from pgsched.worker.run.runner import Runner
from pgsched.worker.run.scribe import Scribe
from pgsched.worker.run.surroundings import State
from pgsched.worker.run.tasks import Group

_ASK_EVERY = 0.05  # minimum seconds between beats that notifications ask for
_REFUSED_AGAIN = 5.0  # seconds between beats of a run whose beat the database refuses


class Heartbeat:
    """Sends one statement per interval for all claims. Each run that lives to see a beat has its own task that waits
    for the answers and acts on them. A shorter run needs none: the claim is its first beat."""

    def __init__(self, kit: Kit, roster: Roster, runner: Runner, group: Group) -> None:
        """group: the runs' task group, also for the tasks that wait for answers."""
        self._kit = kit
        self._statements = kit.store.runs
        self._session = kit.writes
        self._interval = kit.settings.heartbeat_interval.total_seconds()
        self._lease = kit.settings.stall_timeout
        self._hint = kit.wakeups.beat
        self._refused: dict[tuple[int, int], float] = {}  # claims whose beat was refused, and when to try again
        self._roster = roster
        self._runner = runner
        self._group = group
        self._scribe = Scribe(kit)
        self._idle = True
        self._busy = asyncio.Event()
        self._asked_at = float("-inf")
        self._answers: dict[tuple[int, int], Hold | None] = {}
        self._sent_at = 0.0  # when the last beat that was answered was sent
        self._answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._backoff = Backoff(0.05, 2.0)
        roster.watch(filled=self._wake)

    def _wake(self) -> None:
        if self._idle:
            self._hint.take()  # it was about claims that are gone: a new claim needs no beat at once
            self._idle = False
            self._busy.set()

    async def run(self) -> None:
        """Beats until it is cancelled: at fixed deadlines while there are claims, else not at all."""
        due = time.monotonic() + self._interval
        while True:
            if not self._roster.attempts:
                self._idle = True
                self._kit.outage.ceased("heartbeat")
                self._busy.clear()
                await self._busy.wait()
                due = time.monotonic() + self._interval
                continue
            await self._until(due)
            if (now := time.monotonic()) >= due:
                due = max(due + self._interval, now)  # after a blocked loop, one beat instead of all missed ones
            try:
                await self.beat()
            except Mishaps as error:
                self._kit.outage.lost(error, "heartbeat")
                await asyncio.sleep(self._backoff.delay())
                due = time.monotonic()
            else:
                self._kit.outage.answered("heartbeat")

    async def _until(self, due: float) -> None:
        """Sleeps until the deadline, or until a hint asks for an earlier beat. One beat answers many hints that come
        close together."""
        await self._kit.watch.wait(self._hint.event, due)
        if not self._hint.asked:
            return
        if (pause := self._asked_at + _ASK_EVERY - time.monotonic()) > 0:
            await asyncio.sleep(pause)
        self._asked_at = time.monotonic()
        self._hint.take()

    async def beat(self) -> None:
        """Sends one beat for all claims and hands out the answers. Then writes new lines and progress of the runs, if
        there are any."""
        self._keep_all()
        claims = self._roster.claims()
        if not claims:
            return
        if not self._kit.clock.known:  # without it no held run can start
            async with self._session.use() as connection:
                before = time.monotonic()
                self._kit.clock.observe(await self._statements.read_clock(connection), before, time.monotonic())
        sent_at = time.monotonic()
        held, unsent = await self._send(claims)
        self._sent_at = sent_at
        keys = [(run_id, token) for run_id, token, _ in claims]
        # A refused beat says nothing about its claim.
        self._answers = {key: held.get(key) for key in keys if key not in unsent}
        answered, self._answered = self._answered, asyncio.get_running_loop().create_future()
        answered.set_result(None)
        for (run_id, token), hold in self._answers.items():
            attempt = self._roster.attempts.get((run_id, token))
            if attempt is not None and (attempt.state is State.HELD or attempt.keeper is None):
                self._runner.answered(run_id, token, hold, sent_at)
        running = self._roster.running()
        await self._scribe.write_some([(each.claim, each.journal) for each in running if each.journal.unwritten])

    async def _send(self, claims: Sequence[Beat]) -> tuple[dict[tuple[int, int], Hold], set[tuple[int, int]]]:
        """Sends the beats. Returns the answers, and the claims whose beat was not sent or not answered.

        If the database refuses to change a run, or the run waits for a lock that a trigger needs, the other claims must
        be kept alive all the same. After a run's first refusal, its beat is sent last, and only now and then.
        """
        now = self._kit.elapsed()
        self._refused = {key: again for key, again in self._refused.items() if key in self._roster.attempts}
        held: dict[tuple[int, int], Hold] = {}
        refusals: list[tuple[int, BaseException]] = []
        sound = [beat for beat in claims if (beat[0], beat[1]) not in self._refused]
        again = [beat for beat in claims if self._refused.get((beat[0], beat[1]), now + 1) <= now]

        async def send(part: Sequence[Beat]) -> tuple[()]:
            ids = {beat[0] for beat in part}
            threads = [claim for claim in self._roster.in_threads() if claim[0] in ids]
            async with self._session.use() as connection:
                held.update(await self._statements.beat(connection, self._kit.worker, part, threads, self._lease))
            for beat in part:
                self._refused.pop((beat[0], beat[1]), None)
            return ()

        async def refuse(beat: Beat, error: BaseException) -> None:
            self._refused[beat[0], beat[1]] = self._kit.elapsed() + _REFUSED_AGAIN
            refusals.append((beat[0], error))

        await Apart(send, refuse, patience=0).all(sound)
        for beat in again:
            await Apart(send, refuse, patience=0).all([beat])
        if refusals:
            async with self._session.use() as connection:
                await self._kit.aside.put(connection, Kind.BEAT, refusals)
        unsent = {key for key in self._refused if key not in held}
        return held, unsent

    def _keep_all(self) -> None:
        """Makes the heartbeat tasks of the runs that have started since the last beat."""
        for attempt in self._roster.running():
            if attempt.keeper is None:
                attempt.keep(self._group.create_task(self._keep(attempt)))

    async def _keep(self, attempt: Attempt) -> None:
        """A run's heartbeat task: waits for each beat's answer and acts on it, as long as the run goes on."""
        claim = attempt.claim
        while attempt.state is State.RUNNING:
            await asyncio.shield(self._answered)
            hold = self._answers.get((claim.run_id, claim.token), Hold.HELD)
            self._runner.answered(claim.run_id, claim.token, hold, self._sent_at)
