"""Deletes old history now and then, in small transactions on its own connection.

It also deletes notes that would pile up: of removed schedules, of dead workers' threads, and of rows that were set
aside and are gone. The settings say how long to keep each status; the SQL keeps rows that a schedule still needs.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from psycopg.errors import QueryCanceled

from pgsched import log
from pgsched.db.mishaps import Mishaps, is_refusal, one_line
from pgsched.db.session import Session
from pgsched.db.statements.values import Pruned
from pgsched.worker.kit import Kit

_SOON = 300.0  # the first round comes within this many seconds after the first end
_ROUND = 3600.0  # seconds between rounds, about
_IDLE = 86400.0  # seconds between rounds while no run ends
_QUICK, _SLOW = 0.2, 1.0  # a batch that takes fewer seconds makes the next larger; more, smaller


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many runs a batch deletes: at first, and at most. Runs with long logs make it smaller."""

    first: int = 100
    most: int = 1000


class Retention:
    """A worker's deletion of history. ended: set when a run has ended, which makes it history."""

    def __init__(self, kit: Kit, ended: asyncio.Event, sizes: Sizes | None = None) -> None:
        self._kit = kit
        self._statements = kit.store.upkeep
        self._ended = ended
        self._sizes = sizes or Sizes()
        self._log = log.get()

    async def run(self) -> None:
        """Makes a round an hour while runs end, else one a day, since existing history grows older. Workers that start
        together make their rounds at different times."""
        watch = self._kit.watch
        pause = random.uniform(0, _SOON)  # noqa: S311 - spreads, hides nothing
        while True:
            # If the machine slept, a round comes early, which does no harm.
            await watch.wait(self._ended, time.monotonic() + _IDLE)
            self._ended.clear()
            await watch.sleep(pause)
            await self.round()
            pause = random.uniform(0.8 * _ROUND, 1.2 * _ROUND)  # noqa: S311

    async def round(self) -> int:
        """Deletes everything that is old enough. Returns the number of deleted runs. Failures wait for the next round.

        A run stays if the database refuses to delete it, because a table of the application refers to it.
        """
        session = self._kit.session("retention")
        gone = 0

        def deleted(runs: int) -> None:
            nonlocal gone
            gone += runs

        try:
            if not await self._tidy(session):
                return 0
            for status, age in self._kit.settings.ages.items():
                try:
                    if not await self._delete(session, status, age, deleted):
                        break
                except Mishaps as error:
                    self._log.warning("retention_failed", status=status, error=one_line(error))
                    if not is_refusal(error):
                        break
        finally:
            await session.discard()
        if gone:
            self._log.info("history_deleted", runs=gone)
        return gone

    async def _tidy(self, session: Session) -> bool:
        """Deletes small notes that no other statement would ever delete. Returns whether the database can be reached
        for the rest: if it only refuses this, history is deleted all the same."""
        try:
            async with session.use() as connection:
                await self._statements.forget_leftovers(connection)
                await self._kit.aside.sweep(connection)
        except Mishaps as error:
            self._log.warning("retention_failed", status="leftovers", error=one_line(error))
            return is_refusal(error)
        return True

    async def _delete(self, session: Session, status: str, age: timedelta, deleted: Callable[[int], None]) -> bool:
        """Deletes the runs of one status, batch by batch. Returns False if another worker is deleting them.

        A batch that the database refuses or that takes too long is made smaller; a run that is refused alone is kept.
        """
        size, last = self._sizes.first, None
        kept, why, looking = 0, "", False
        while True:
            began = time.monotonic()
            try:
                async with session.use() as connection:
                    batch: Pruned = await self._statements.prune_runs(connection, status, age, size, last, look=looking)
            except Mishaps as error:
                if not (is_refusal(error) or isinstance(error, (TimeoutError, QueryCanceled))) or (
                    size == 1 and looking
                ):
                    raise
                # If the batch is a single run, only look at it, so as to go on behind it.
                looking, why = size == 1, one_line(error)
                size = max(1, size // (2 if is_refusal(error) else 10))
                continue
            deleted(batch.gone)
            kept += looking and batch.seen
            if not batch.mine or batch.seen < size:
                if kept:
                    self._log.warning("history_kept", status=status, runs=kept, reason=why)
                return batch.mine
            last, looking = batch, False
            took = time.monotonic() - began
            if took > _SLOW:
                size = max(1, size // 2)
            elif took < _QUICK:
                size = min(self._sizes.most, size * 2)
            await asyncio.sleep(took)  # leaves the server to others half of the time
