"""Claims runs of entrypoints that have limits, under the lock of these. rules.limits decides which may start.

The lock is on a row of `limits`. Its holder counts the running runs, and nobody else claims at these limits meanwhile.
There is no counter to keep, so a worker that dies takes no place with it: its runs count as running until they are
reaped, and then no longer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from pgsched.db.session import Connection
from pgsched.db.statements.claims import CLAIM_BYTES
from pgsched.db.statements.values import EntrypointDefaults
from pgsched.model import ClaimedRun
from pgsched.rules import fairness
from pgsched.rules.fairness import Need
from pgsched.rules.limits import Candidate, LockedLimits, contest, noted, opens_at, rate_room, within
from pgsched.worker.kit import Kit


class Limiter:
    """The part of a claim pass that claims runs from lines."""

    def __init__(self, kit: Kit) -> None:
        self._statements = kit.store.claims
        self._worker = kit.worker
        self.opens: datetime | None = None  # when the first of the used-up rates seen by this pass lets a run start
        self._locked: list[LockedLimits] = []  # those that the last look locked and found open
        self._at: dict[int, str] = {}  # by run id, for the runs that it found: the key of the limits that count it

    async def look(
        self, connection: Connection, entrypoints: Sequence[str], limit: int
    ) -> tuple[list[fairness.Candidate], dict[Need, int]]:
        """Locks the limits. Returns the due runs in line that could be claimed, at most `limit`, and the room that the
        limits leave for them."""
        locked = await self._statements.lock_limits(connection, entrypoints)
        opening = [opens for limits in locked if (opens := opens_at(limits)) is not None]
        self.opens = min([*opening, *([self.opens] if self.opens else [])], default=None)
        rooms = {limits.gate: limit if (room := rate_room(limits)) is None else room for limits in locked}
        self._locked = [limits for limits in locked if rooms[limits.gate] > 0]
        if not self._locked:
            return [], {}
        candidates = within(await self._statements.read_queues(connection, entrypoints, rooms, limit), CLAIM_BYTES)
        self._at = {each.id: each.gate for each in candidates}
        return contest(candidates, self._locked, await self._schedule_rooms(connection, candidates))

    async def claim(
        self, connection: Connection, defaults: Sequence[EntrypointDefaults], chosen: Sequence[fairness.Candidate]
    ) -> list[ClaimedRun]:
        """Claims runs that the last look in this transaction returned."""
        notes = self._notes(self._locked, chosen)
        return await self._statements.claim_runs(connection, self._worker, defaults, [c.id for c in chosen], notes)

    async def _schedule_rooms(self, connection: Connection, candidates: Sequence[Candidate]) -> dict[int, int]:
        """How many more runs each schedule's overlap allows. Lock first and then count, in a statement of its own, as
        everywhere. A schedule that somebody else has locked gets no room in this pass."""
        wanted = sorted({c.schedule_id for c in candidates if c.schedule_id is not None})
        if not wanted:
            return {}
        locked = await self._statements.lock_schedules(connection, wanted)
        rooms = await self._statements.read_rooms(connection, wanted)
        return {schedule: room if schedule in locked else 0 for schedule, room in rooms.items()}

    def _notes(
        self, locked: Sequence[LockedLimits], chosen: Sequence[fairness.Candidate]
    ) -> list[tuple[str, datetime | None, int]]:
        """The starts to note at the limits: (key of the limits, time, count).

        The newest time is None: the claiming statement reads the clock itself. The time of the look is earlier than
        the claims, and would let the next ones start too early.
        """
        counts = Counter(self._at[each.id] for each in chosen)
        return [
            (limits.gate, at if at < limits.now else None, count)
            for limits in locked
            if limits.starts is not None and counts[limits.gate]
            for at, count in noted(limits, counts[limits.gate])
        ]
