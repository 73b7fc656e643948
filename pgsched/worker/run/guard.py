"""A thread that notices when the event loop is blocked, names the function that blocks it, and keeps the claims alive
meanwhile."""

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
from pgsched.db.mishaps import Mishaps, one_line
from pgsched.db.session import LOCKED_FOR, Session
from pgsched.worker.kit import WRITES_WAIT, Kit
from pgsched.worker.run.roster import Roster

_LIBRARY = (str(Path(asyncio.__file__).parent.parent), "site-packages", "dist-packages", "<frozen")

Beat = tuple[int, int, datetime | None]  # run id, token, started at


class Guard:
    """The thread, with a connection of its own. It sleeps while there are no claims."""

    def __init__(self, kit: Kit, roster: Roster) -> None:
        self._statements = kit.store.runs
        self._kit = kit
        self._worker = kit.worker
        self._interval = kit.settings.heartbeat_interval.total_seconds()
        self._limit = kit.settings.block_limit.total_seconds()
        self._roster = roster
        self._busy = threading.Event()
        self._stopped = threading.Event()
        self._tick = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._watched = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="pgsched-guard", daemon=True)
        self._log = log.get()
        roster.watch(filled=self._wake)

    def start(self) -> None:
        """Starts the thread, which sleeps until there are claims."""
        self._thread.start()

    def _wake(self) -> None:
        """Wakes the thread: there are claims to watch over."""
        if not self._busy.is_set():
            self._tick = time.monotonic()
            self._busy.set()

    def stop(self) -> None:
        """Ends the thread."""
        self._stopped.set()
        self._busy.set()

    def _ticked(self) -> None:
        self._tick = time.monotonic()
        if not self._roster.attempts:
            self._busy.clear()

    def _watch(self) -> None:
        logged = 0.0
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
                    if logged:
                        self._log.warning("event_loop_unblocked")
                    logged = 0.0
                    continue
                if not logged or blocked >= 2 * logged:
                    logged = blocked
                    self._log.warning("event_loop_blocked", for_s=round(blocked, 1), **self._culprit())
                if blocked >= LOCKED_FOR.total_seconds() and self._kit.control.sever():
                    self._log.warning("claim_abandoned", advice="its locks would have kept others from their schedules")
                if blocked < self._limit:
                    session = session or self._kit.session("guard", lock=WRITES_WAIT)
                    runner.run(self._beat(session))
            if session is not None:
                runner.run(session.discard())

    async def _beat(self, session: Session) -> None:
        async def refuse(beat: Beat, error: BaseException) -> None:
            self._log.error("guard_failed", run=beat[0], error=one_line(error))

        try:
            await Apart(lambda part: self._beats(session, part), refuse, patience=0).all(self._roster.claims())
        except Mishaps as error:
            self._log.error("guard_failed", error=one_line(error))

    async def _beats(self, session: Session, claims: Sequence[Beat]) -> list[tuple[int, int]]:
        threads, lease = self._roster.in_threads(), self._kit.settings.stall_timeout
        async with session.use() as connection:
            return list(await self._statements.beat(connection, self._worker, claims, threads, lease))

    def _culprit(self) -> dict[str, Any]:
        """The log fields that name the code on the event loop's thread: the run's own function if it is on the stack,
        else the innermost frame outside of libraries."""
        stack = _stack(sys._current_frames().get(self._watched))
        fields: dict[str, Any] = {}
        task = asyncio.current_task(self._loop)
        found = next((f for f in stack if not any(p in f.f_code.co_filename for p in _LIBRARY)), None)
        for attempt in list(self._roster.attempts.values()):
            if task is None or attempt.task is not task:
                continue
            fields = {"run": attempt.claimed.id, "entrypoint": attempt.claimed.entrypoint}
            function = attempt.executor.function if attempt.executor is not None else None
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
