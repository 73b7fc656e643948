"""Writes outcomes, many in one fenced statement, until the database has them. Decides nothing about them.

What an attempt said last goes out before its end, by scribe.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
from collections.abc import Callable
from datetime import timedelta

from pgsched import log
from pgsched.db import Backoff, Failures, describe, refused
from pgsched.machine import Machine
from pgsched.model import Outcome, RunError, RunStatus
from pgsched.scribe import Scribe

BATCH = 1000
_LOCKED_AGAIN = 0.1  # seconds until an outcome whose row a client has locked is tried again
Answer = Callable[[Outcome, bool], None]


class Landing(enum.IntEnum):
    """What became of an outcome under its claim."""

    LOCKED = 0  # somebody has the row: it has to be tried again
    LANDED = 1
    COMMITTED = 2  # and its run had succeeded already, by its own transaction


class Finisher:
    """A queue of outcomes. While one batch is being written the next one gathers, so a single outcome goes out
    at once and a thousand go out together."""

    def __init__(self, machine: Machine) -> None:
        self._store = machine.store
        self._session = machine.writes
        self._worker = machine.worker
        self._outage = machine.outage
        self._scribe = Scribe(machine)
        self._waiting: list[tuple[Outcome, Answer]] = []
        self._writing = 0
        self._locked = 0
        self._wake = asyncio.Event()
        self._done = asyncio.Event()
        self._done.set()
        self.wrote = asyncio.Event()
        self._backoff = Backoff(0.02, 2.0)
        self._log = log.get()

    def put(self, outcome: Outcome, answer: Answer) -> None:
        """Takes an outcome in. `answer` is called with it once it is certain whether it landed; where the run's own
        transaction had committed, with the success that it is then."""
        self._waiting.append((outcome, answer))
        self._done.clear()
        self._wake.set()

    @property
    def pending(self) -> int:
        """Outcomes that are not written yet."""
        return len(self._waiting) + self._writing + self._locked

    @property
    def behind(self) -> int:
        """Outcomes that only wait for their turn; not those whose rows somebody has locked, for which nobody waits."""
        return len(self._waiting) + self._writing

    async def flush(self, seconds: float) -> bool:
        """Waits until all is written, at most so long. Returns whether it is."""
        try:
            async with asyncio.timeout(seconds):
                await self._done.wait()
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """Writes for ever. An outcome leaves the queue only when the database has answered for it."""
        while True:
            # Clear before looking: an outcome that comes in between costs one spare turn, never a lost write.
            self._wake.clear()
            if not self._waiting:
                if not self._locked:
                    self._done.set()
                await self._wake.wait()
                continue
            batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
            self._writing = len(batch)
            await self._write(batch)
            self._writing = 0

    async def _write(self, batch: list[tuple[Outcome, Answer]]) -> None:
        while True:
            try:
                answers = await self.send([outcome for outcome, _ in batch])
            except Failures as error:
                if refused(error):
                    await self._write_singly(batch, error)
                    return
                self._outage.lost(error, "finish")
                await asyncio.sleep(self._backoff.delay())
                if isinstance(error, TimeoutError) and len(batch) > 1:
                    # Perhaps it is only too much at once.
                    await self._write(batch[: len(batch) // 2])
                    batch = batch[len(batch) // 2 :]
            else:
                self._outage.answered()
                self.wrote.set()
                self._answer(batch, answers)
                return

    def _answer(self, batch: list[tuple[Outcome, Answer]], answers: dict[tuple[int, int], Landing]) -> None:
        locked = []
        with log.together():
            for outcome, answer in batch:
                landing = answers.get((outcome.claim.run_id, outcome.claim.token))
                if landing is Landing.LOCKED:
                    locked.append((outcome, answer))
                elif landing is Landing.COMMITTED:
                    answer(_committed(outcome), True)
                else:
                    answer(outcome, landing is Landing.LANDED)
        if locked:
            self._locked += len(locked)
            asyncio.get_running_loop().call_later(_LOCKED_AGAIN, self._put_again, locked)

    def _put_again(self, locked: list[tuple[Outcome, Answer]]) -> None:
        self._locked -= len(locked)
        self._waiting += locked
        self._wake.set()

    async def send(self, outcomes: list[Outcome]) -> dict[tuple[int, int], Landing]:
        """Writes outcomes; returns by (run id, token) what became of each. Those that lost their claim are left
        out."""
        speaking = [(o.claim, o.journal) for o in outcomes if o.journal is not None]
        # First what they said: when a run has ended, all of it is there. One whose lines do not land does not end yet.
        mute = await self._scribe.write_all(speaking) if speaking else set()
        ready = [o for o in outcomes if (o.claim.run_id, o.claim.token) not in mute] if mute else outcomes
        async with self._session.use() as connection:
            landed = await self._store.finish_runs(connection, self._worker, ready) if ready else {}
            answers = {key: Landing.COMMITTED if early else Landing.LANDED for key, early in landed.items()}
            if len(landed) < len(outcomes):
                missing = [o for o in outcomes if (o.claim.run_id, o.claim.token) not in landed]
                seen = await self._store.look_after_ends(connection, self._worker, missing)
                answers |= {key: Landing.LANDED if early else Landing.LOCKED for key, early in seen.items()}
        return answers

    async def _write_singly(self, batch: list[tuple[Outcome, Answer]], error: BaseException) -> None:
        """One outcome holds something that the database refuses: it must not keep the others from landing."""
        if len(batch) > 1:
            for item in batch:
                await self._write([item])
            return
        outcome, answer = batch[0]
        self._log.error("outcome_reduced", run=outcome.claim.run_id, error=describe(error))
        bare = dataclasses.replace(
            outcome,
            result_json=None,
            reason="the result could not be stored" if outcome.status is RunStatus.SUCCEEDED else outcome.reason,
            error=RunError("Unstorable", "the error could not be stored") if outcome.error else None,
            journal=None,
        )
        if bare == outcome:
            # Nothing left to leave out: somebody's own constraint or trigger. The reaper will find the run.
            self._log.error("outcome_refused", run=outcome.claim.run_id, error=describe(error))
            answer(outcome, False)
            return
        await self._write([(bare, lambda told, landed: answer(told if told.committed else outcome, landed))])


def _committed(outcome: Outcome) -> Outcome:
    """The success that the run's own transaction has committed, whatever came after it."""
    return dataclasses.replace(
        outcome, status=RunStatus.SUCCEEDED, error=None, delay=timedelta(0), refund=False, committed=True
    )
