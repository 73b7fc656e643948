"""Deletes history that is old enough, now and then and in small transactions, on a connection of its own; and what else
would grow: notes of removed schedules, of dead workers' threads, and of rows that were set aside and are gone.

How long what is kept, settings say; what a schedule still needs, the statement.
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
from pgsched.db.session import Mishaps, Session, describe, refused
from pgsched.db.statements.values import Pruned
from pgsched.worker.kit import Kit

_SOON = 300.0  # seconds after the first end within which the first round comes
_ROUND = 3600.0  # seconds between rounds, about
_IDLE = 86400.0  # seconds between rounds while nothing ends
_QUICK, _SLOW = 0.2, 1.0  # seconds that a batch takes at which the next one is larger, or smaller


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many runs a batch takes: at first, and at most. Runs with long logs make it smaller."""

    first: int = 100
    most: int = 1000


class Retention:
    """A worker's. ended: set when a run has ended; what has not is not history."""

    def __init__(self, kit: Kit, ended: asyncio.Event, sizes: Sizes | None = None) -> None:
        self._kit = kit
        self._ended = ended
        self._sizes = sizes or Sizes()
        self._log = log.get()

    async def run(self) -> None:
        """A round an hour, while runs end; else one a day, since what is there grows older. Workers that start together
        do not go together."""
        watch = self._kit.watch
        pause = random.uniform(0, _SOON)  # noqa: S311 - spreads, hides nothing
        while True:
            # Where the machine slept, a round comes early: that harms nobody.
            await watch.wait(self._ended, time.monotonic() + _IDLE)
            self._ended.clear()
            await watch.sleep(pause)
            await self.round()
            pause = random.uniform(0.8 * _ROUND, 1.2 * _ROUND)  # noqa: S311

    async def round(self) -> int:
        """Deletes all that is old enough. Returns how many runs went. The next round is soon enough for what fails.

        A run that the database refuses to delete, because a table of the application refers to it, stays."""
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
                    self._log.warning("retention_failed", status=status, error=describe(error))
                    if not refused(error):
                        break
        finally:
            await session.discard()
        if gone:
            self._log.info("history_deleted", runs=gone)
        return gone

    async def _tidy(self, session: Session) -> bool:
        """Forgets small things that nobody else may come by. Returns whether the database is there for the rest: if it
        refuses this, that is no reason to keep history."""
        try:
            async with session.use() as connection:
                await self._kit.store.forget_leftovers(connection)
                await self._kit.aside.sweep(connection)
        except Mishaps as error:
            self._log.warning("retention_failed", status="leftovers", error=describe(error))
            return refused(error)
        return True

    async def _delete(self, session: Session, status: str, age: timedelta, deleted: Callable[[int], None]) -> bool:
        """Deletes the runs of one status, batch by batch. Returns False where another worker is at it.

        A batch that the database refuses is made smaller, and a run that is refused alone is stepped over."""
        size, last = self._sizes.first, None
        kept, why, looking = 0, "", False
        while True:
            began = time.monotonic()
            try:
                async with session.use() as connection:
                    batch: Pruned = await self._kit.store.prune_runs(connection, status, age, size, last, look=looking)
            except Mishaps as error:
                if not (refused(error) or isinstance(error, (TimeoutError, QueryCanceled))) or (size == 1 and looking):
                    raise
                # At one run: only looks at it, so as to go on behind it.
                looking, why = size == 1, describe(error)
                size = max(1, size // (2 if refused(error) else 10))
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
            await asyncio.sleep(took)  # others have the server half of the time
