"""Keeps the claims of this worker alive, and hears which are lost or shall be cancelled. The guard thread
does the same while a function blocks the event loop."""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

from pgsched import log
from pgsched.db.apart import Apart
from pgsched.db.session import LOCKED_FOR, Backoff, Mishaps, Session, describe
from pgsched.model import Hold
from pgsched.worker.aside import Kind
from pgsched.worker.kit import Machine
from pgsched.worker.run.runner import Live, Runner, State
from pgsched.worker.run.scribe import Scribe

_ASK_EVERY = 0.05  # seconds between beats that notifications ask for, at least
_REFUSED_AGAIN = 5.0  # seconds between beats of a run whose beat the database refuses
_LIBRARY = (str(Path(asyncio.__file__).parent.parent), "site-packages", "dist-packages", "<frozen")

Beat = tuple[int, int, datetime | None]  # run id, token, started at


class Heartbeat:
    """One statement an interval for all claims. Each run that lives to see a beat has a task of its own that
    waits for its answer and acts on it; a run that is over sooner needs none, since the claim is its first beat."""

    def __init__(self, machine: Machine, runner: Runner) -> None:
        self._store = machine.store
        self._session = machine.writes
        self._worker = machine.worker
        self._interval = machine.settings.heartbeat_interval.total_seconds()
        self._lease = machine.settings.stall_timeout
        self._outage = machine.outage
        self._clock = machine.clock
        self._watch = machine.watch
        self._aside = machine.aside
        self._refused: dict[tuple[int, int], float] = {}  # claims whose beat was refused, and when it is tried again
        self._runner = runner
        self._scribe = Scribe(machine)
        self._wake = asyncio.Event()
        self._soon = asyncio.Event()
        self._asked_at = float("-inf")
        self._ask: asyncio.TimerHandle | None = None
        self._answers: dict[tuple[int, int], Hold | None] = {}
        self._sent_at = 0.0  # the beat that was answered last
        self._answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._backoff = Backoff(0.05, 2.0)

    def wake(self) -> None:
        """There is something to keep alive."""
        self._wake.set()

    def ask_now(self) -> None:
        """Somebody changed something: asks at once whether the claims still hold."""
        if self._runner.live and self._ask is None:
            # A storm of notifications is answered now and then, not one by one.
            wait = max(0.0, self._asked_at + _ASK_EVERY - time.monotonic())
            self._ask = asyncio.get_running_loop().call_later(wait, self._ask_due)

    def _ask_due(self) -> None:
        self._ask = None
        self._asked_at = time.monotonic()
        self._soon.set()

    async def run(self) -> None:
        """Beats for ever, at fixed deadlines while there are claims, and not at all while there are none."""
        due = time.monotonic() + self._interval
        while True:
            self._wake.clear()
            if not self._runner.live:
                await self._wake.wait()
                due = time.monotonic() + self._interval
                continue
            await self._until(due)
            if (now := time.monotonic()) >= due:
                due = max(due + self._interval, now)  # after a blocked loop one beat, not all that were missed
            try:
                await self.beat()
            except Mishaps as error:
                self._outage.lost(error, "heartbeat")
                await asyncio.sleep(self._backoff.delay())
                due = time.monotonic()
            else:
                self._outage.answered()

    async def _until(self, due: float) -> None:
        """Sleeps until the deadline, or until somebody asks for a beat sooner."""
        await self._watch.wait(self._soon, due)
        self._soon.clear()

    async def beat(self) -> None:
        """Sends one beat for all claims and hands out the answer; then what the runs say, where they say anything."""
        claims = self._claims()
        if not claims:
            return
        if not self._clock.known:  # and without it no held run can be started
            async with self._session.use() as connection:
                before = time.monotonic()
                self._clock.observe(await self._store.read_clock(connection), before, time.monotonic())
        sent_at = time.monotonic()
        held, unsent = await self._send(claims)
        self._sent_at = sent_at
        keys = [(run_id, token) for run_id, token, _ in claims]
        # A refused beat says nothing about its claim.
        self._answers = {key: held.get(key) for key in keys if key not in unsent}
        answered, self._answered = self._answered, asyncio.get_running_loop().create_future()
        answered.set_result(None)
        for (run_id, token), verdict in self._answers.items():
            live = self._runner.live.get((run_id, token))
            if live is not None and (live.state is State.HELD or live.keeper is None):
                self._runner.verdict(run_id, token, verdict, sent_at)
        running = [live for live in self._runner.live.values() if live.state is State.RUNNING]
        await self._scribe.write_some([(live.claim, live.journal) for live in running if live.journal.unwritten])

    async def _send(self, claims: Sequence[Beat]) -> tuple[dict[tuple[int, int], Hold], set[tuple[int, int]]]:
        """Sends the beats. Returns the answers, and the claims of which no beat was sent or answered.

        A run that the database refuses to change, or that waits for a lock of somebody's trigger, keeps no other from
        being kept alive: after its first refusal it comes after all others, and only now and then."""
        now = time.monotonic()
        self._refused = {key: again for key, again in self._refused.items() if key in self._runner.live}
        held: dict[tuple[int, int], Hold] = {}
        refusals: list[tuple[int, BaseException]] = []
        sound = [beat for beat in claims if (beat[0], beat[1]) not in self._refused]
        again = [beat for beat in claims if self._refused.get((beat[0], beat[1]), now + 1) <= now]

        async def send(part: Sequence[Beat]) -> tuple[()]:
            ids = {beat[0] for beat in part}
            threads = [claim for claim in self._runner.in_threads() if claim[0] in ids]
            async with self._session.use() as connection:
                held.update(await self._store.beat(connection, self._worker, part, threads, self._lease))
            for beat in part:
                self._refused.pop((beat[0], beat[1]), None)
            return ()

        async def refuse(beat: Beat, error: BaseException) -> None:
            self._refused[beat[0], beat[1]] = time.monotonic() + _REFUSED_AGAIN
            refusals.append((beat[0], error))

        await Apart(send, refuse, patience=0).all(sound)
        for beat in again:
            await Apart(send, refuse, patience=0).all([beat])
        if refusals:
            async with self._session.use() as connection:
                await self._aside.put(connection, Kind.BEAT, refusals)
        unsent = {key for key in self._refused if key not in held}
        return held, unsent

    def _claims(self) -> list[Beat]:
        claims: list[Beat] = []
        for live in self._runner.live.values():
            claims.append((live.claim.run_id, live.claim.token, live.started_at))
            if live.keeper is None and live.state is State.RUNNING:
                live.keeper = self._runner.group.create_task(self._keep(live))
        return claims

    async def _keep(self, live: Live) -> None:
        """A run's heartbeat task: waits for each beat's answer for as long as the run runs."""
        claim = live.claim
        while live.state is State.RUNNING:
            await asyncio.shield(self._answered)
            verdict = self._answers.get((claim.run_id, claim.token), Hold.HELD)
            self._runner.verdict(claim.run_id, claim.token, verdict, self._sent_at)


class Guard:
    """A thread that notices when the event loop is blocked, names the function that blocks it, and keeps the
    claims alive over a connection of its own."""

    def __init__(self, machine: Machine, runner: Runner) -> None:
        self._store = machine.store
        self._machine = machine
        self._worker = machine.worker
        self._interval = machine.settings.heartbeat_interval.total_seconds()
        self._limit = machine.settings.block_limit.total_seconds()
        self._runner = runner
        self._busy = threading.Event()
        self._stopped = threading.Event()
        self._tick = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._watched = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="pgsched-guard", daemon=True)
        self._log = log.get()

    def start(self) -> None:
        """Starts the thread, which sleeps until there are claims."""
        self._thread.start()

    def wake(self) -> None:
        """There are claims to watch over."""
        if not self._busy.is_set():
            self._tick = time.monotonic()
            self._busy.set()

    def stop(self) -> None:
        """Ends the thread."""
        self._stopped.set()
        self._busy.set()

    def _ticked(self) -> None:
        self._tick = time.monotonic()
        if not self._runner.live:
            self._busy.clear()

    def _watch(self) -> None:
        told = 0.0
        with asyncio.Runner() as runner:
            session: Session | None = None
            while True:
                self._busy.wait()
                if self._stopped.is_set():
                    break
                try:
                    self._loop.call_soon_threadsafe(self._ticked)
                except RuntimeError:  # the loop is closed
                    break
                if self._stopped.wait(self._interval):
                    break
                blocked = time.monotonic() - self._tick
                if blocked < 2 * self._interval:
                    if told:
                        self._log.warning("event_loop_unblocked")
                    told = 0.0
                    continue
                if not told or blocked >= 2 * told:
                    told = blocked
                    self._log.warning("event_loop_blocked", for_s=round(blocked, 1), **self._culprit())
                if blocked >= LOCKED_FOR.total_seconds() and self._machine.control.sever():
                    self._log.warning("claim_abandoned", advice="its locks would have kept others from their schedules")
                if blocked < self._limit:
                    session = session or self._machine.session("guard")
                    runner.run(self._beat(session))
            if session is not None:
                runner.run(session.discard())

    async def _beat(self, session: Session) -> None:
        claims = [(live.claim.run_id, live.claim.token, live.started_at) for live in list(self._runner.live.values())]

        async def refuse(beat: Beat, error: BaseException) -> None:
            self._log.error("guard_failed", run=beat[0], error=describe(error))

        try:
            await Apart(lambda part: self._beats(session, part), refuse, patience=0).all(claims)
        except Mishaps as error:
            self._log.error("guard_failed", error=describe(error))

    async def _beats(self, session: Session, claims: Sequence[Beat]) -> list[tuple[int, int]]:
        threads, lease = self._runner.in_threads(), self._machine.settings.stall_timeout
        async with session.use() as connection:
            return list(await self._store.beat(connection, self._worker, claims, threads, lease))

    def _culprit(self) -> dict[str, Any]:
        """Whose code holds the event loop's thread: the run's own function where it is found on the stack, else
        the innermost frame outside of libraries."""
        stack = _stack(sys._current_frames().get(self._watched))
        fields: dict[str, Any] = {}
        task = asyncio.current_task(self._loop)
        found = next((f for f in stack if not any(p in f.f_code.co_filename for p in _LIBRARY)), None)
        for live in list(self._runner.live.values()):
            if task is None or live.task is not task:
                continue
            fields = {"run": live.run.id, "entrypoint": live.run.entrypoint}
            function = live.executor.function if live.executor is not None else None
            own = getattr(inspect.unwrap(function), "__code__", None) if function is not None else None
            found = next((f for f in stack if f.f_code is own), found)
        if found is None and stack:
            found = stack[0]
        if found is not None:
            fields |= {
                "function": found.f_code.co_qualname,
                "file": found.f_code.co_filename,
                "line": found.f_lineno,
            }
        return fields


def _stack(frame: FrameType | None) -> list[FrameType]:
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames
