"""Sets aside rows that the server refuses, logs each once, and takes them back when they can be changed again.

apart finds the refused rows. The statements that choose rows leave out those that are set aside.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence

from pgsched import log
from pgsched.db.mishaps import Mishaps, is_refusal, one_line, passing
from pgsched.db.session import Connection
from pgsched.db.statements.trials import TrialStatements

_REVIEW_EVERY = 1.0  # seconds between looks at the entries, at least


class Kind(enum.StrEnum):
    """The kind of change that the server refused."""

    RUN = "run"  # its claim
    SCHEDULE = "schedule"  # its plan, or the end of its pause
    REPLAN = "replan"  # a schedule's new plan by new time zone rules
    LIMITS = "limits"  # the note of starts at limits with a rate
    END = "end"  # of a run
    BEAT = "beat"
    REAP = "reap"


class Aside:
    """One per worker. It knows whether there may be entries, so that without any it never asks for them."""

    def __init__(self, statements: TrialStatements, elapsed: Callable[[], float]) -> None:
        self._statements = statements
        self._elapsed = elapsed
        self._any = False
        self._reviewed = 0.0
        self._log = log.get()

    async def put(self, connection: Connection, kind: Kind, rows: Sequence[tuple[int, BaseException]]) -> None:
        """Sets rows aside. rows: their ids, each with its error. In a transaction, the entries are part of it."""
        if not rows:
            return
        self._any = True
        entries = [(id, one_line(error)[:1000], passing(error)) for id, error in rows]
        try:
            async with connection.transaction():
                new = await self._statements.set_aside(connection, kind, entries)
        except Mishaps as error:
            if not is_refusal(error):
                raise
            # Without an entry the row is refused again and again. That is slow, but stops no other row.
            self._log.error("row_not_set_aside", kind=str(kind), id=rows[0][0], error=one_line(error))
            return
        for id, reason, _ in entries:
            if id in new:
                self._log.error("row_set_aside", kind=str(kind), id=id, reason=reason)

    async def sweep(self, connection: Connection) -> None:
        """Like review(), even if this worker has set nothing aside: there may be entries of a worker that has ended."""
        self._any = True
        await self.review(connection)

    async def review(self, connection: Connection, *, at_once: bool = True) -> None:
        """Forgets the entries of rows that work again. Asks nothing if this worker has set nothing aside.

        at_once: even if the last review was less than a second ago.
        """
        if not self._any or not (at_once or self._elapsed() > self._reviewed + _REVIEW_EVERY):
            return
        self._reviewed = self._elapsed()
        taken_back, self._any = await self._statements.take_back(connection)
        for kind, id in taken_back:
            self._log.info("row_taken_back", kind=kind, id=id)
