"""Writes outcomes, many in one fenced statement, until the database has them. Decides nothing about them."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable

import psycopg

from pgsched import log
from pgsched.db import Backoff, Failures, describe
from pgsched.machine import Machine
from pgsched.model import Outcome, RunError, RunStatus

BATCH = 1000
Answer = Callable[[Outcome, bool], None]


class Finisher:
    """A queue of outcomes. While one batch is being written the next one gathers, so a single outcome goes out
    at once and a thousand go out together."""

    def __init__(self, machine: Machine) -> None:
        self._store = machine.store
        self._session = machine.writes
        self._worker = machine.worker
        self._outage = machine.outage
        self._waiting: list[tuple[Outcome, Answer]] = []
        self._writing = 0
        self._wake = asyncio.Event()
        self._done = asyncio.Event()
        self._done.set()
        self.wrote = asyncio.Event()
        self._backoff = Backoff(0.02, 2.0)
        self._log = log.get()

    def put(self, outcome: Outcome, answer: Answer) -> None:
        """Takes an outcome in. `answer` is called once it is certain whether it landed."""
        self._waiting.append((outcome, answer))
        self._done.clear()
        self._wake.set()

    @property
    def pending(self) -> int:
        """Outcomes that are not written yet."""
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
                landed = await self._send([outcome for outcome, _ in batch])
            except Failures as error:
                if isinstance(error, psycopg.DataError):
                    await self._write_singly(batch, error)
                    return
                self._outage.lost(error, "finish")
                await asyncio.sleep(self._backoff.delay())
            else:
                self._outage.answered()
                self.wrote.set()
                for outcome, answer in batch:
                    answer(outcome, outcome.claim.run_id in landed)
                return

    async def _send(self, outcomes: list[Outcome]) -> set[int]:
        async with self._session.use() as connection:
            return await self._store.finish_runs(connection, self._worker, outcomes)

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
        )
        if bare == outcome:
            raise error  # nothing left to leave out: a fault of ours, and the service must not hide it
        await self._write([(bare, lambda _, landed: answer(outcome, landed))])
