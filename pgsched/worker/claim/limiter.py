"""Claims runs of entrypoints that have limits, under the lock of these. What may be claimed is decided by limits.

The lock lies on a row of `limits`. Its holder counts the running runs, and nobody else claims at these limits
meanwhile. Nothing is counted up or down, so a worker that dies takes no place with it: its runs are
running until they are reaped, and then they are not.
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
from pgsched.rules.limits import Candidate, Gate, contest, noted, opens_at, rate_room, within
from pgsched.worker.kit import Kit


class Limiter:
    """The part of a claim pass that stands between lines and workers."""

    def __init__(self, kit: Kit) -> None:
        self._store = kit.store
        self._worker = kit.worker
        self.opens: datetime | None = None  # when the first of the used-up rates seen by this pass lets a run start
        self._gates: list[Gate] = []  # those that the last look has locked and found open
        self._at: dict[int, str] = {}  # at which of them the runs stand that it found

    async def look(
        self, connection: Connection, entrypoints: Sequence[str], limit: int
    ) -> tuple[list[fairness.Candidate], dict[Need, int]]:
        """Locks the limits, and returns the runs that stand in line, are due and could be claimed, with what the limits
        leave for them; of each entrypoint at most `limit`."""
        gates = await self._store.lock_limits(connection, entrypoints)
        opening = [opens for gate in gates if (opens := opens_at(gate)) is not None]
        self.opens = min([*opening, *([self.opens] if self.opens else [])], default=None)
        rooms = {gate.gate: limit if (room := rate_room(gate)) is None else room for gate in gates}
        self._gates = [gate for gate in gates if rooms[gate.gate] > 0]
        if not self._gates:
            return [], {}
        candidates = within(await self._store.read_lines(connection, entrypoints, rooms, limit), CLAIM_BYTES)
        self._at = {each.id: each.gate for each in candidates}
        return contest(candidates, self._gates, await self._schedule_rooms(connection, candidates))

    async def claim(
        self, connection: Connection, defaults: Sequence[EntrypointDefaults], chosen: Sequence[fairness.Candidate]
    ) -> list[ClaimedRun]:
        """Claims these of what the last look in this transaction returned."""
        notes = self._notes(self._gates, chosen)
        return await self._store.claim_runs(connection, self._worker, defaults, [c.id for c in chosen], notes)

    async def _schedule_rooms(self, connection: Connection, candidates: Sequence[Candidate]) -> dict[int, int]:
        """What the overlap of their schedules leaves. Lock first and then count, in a statement of its own, as
        everywhere; a schedule that somebody has locked gets nothing in this pass."""
        wanted = sorted({c.schedule_id for c in candidates if c.schedule_id is not None})
        if not wanted:
            return {}
        locked = await self._store.lock_schedules(connection, wanted)
        rooms = await self._store.read_rooms(connection, wanted)
        return {schedule: room if schedule in locked else 0 for schedule, room in rooms.items()}

    def _notes(
        self, gates: Sequence[Gate], chosen: Sequence[fairness.Candidate]
    ) -> list[tuple[str, datetime | None, int]]:
        """What to note at the limits. The newest time is None: the statement that claims reads the clock itself, since
        that of the look, earlier than the claims, would let the next ones come too early."""
        counts = Counter(self._at[each.id] for each in chosen)
        return [
            (gate.gate, at if at < gate.now else None, count)
            for gate in gates
            if gate.starts is not None and counts[gate.gate]
            for at, count in noted(gate, counts[gate.gate])
        ]
