"""Claims runs of entrypoints that have limits, under the lock of these. What may be claimed is decided by limits.

The lock lies on a row of `limits`. Its holder counts the running runs, and nobody else claims at these limits
meanwhile. Nothing is counted up or down, so a worker that dies takes no place with it: its runs are
running until they are reaped, and then they are not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from pgsched.db import Connection
from pgsched.limits import Candidate, Gate, admit, noted, opens_at, rate_room
from pgsched.machine import Machine
from pgsched.model import ClaimedRun
from pgsched.store import EntrypointDefaults


class Limiter:
    """The part of a claim pass that stands between lines and workers."""

    def __init__(self, machine: Machine) -> None:
        self._store = machine.store
        self._worker = machine.worker
        self.opens: datetime | None = None  # when the first of the used-up rates seen by this pass lets a run start

    async def claim(
        self, connection: Connection, defaults: Sequence[EntrypointDefaults], limit: int, priority: int | None
    ) -> list[ClaimedRun]:
        """Claims runs that stand in line and are due, at most `limit`; of one priority where it is given."""
        entrypoints = [d.entrypoint for d in defaults]
        gates = await self._store.lock_limits(connection, entrypoints)
        opening = [opens for gate in gates if (opens := opens_at(gate)) is not None]
        self.opens = min([*opening, *([self.opens] if self.opens else [])], default=None)
        rooms = {gate.gate: limit if (room := rate_room(gate)) is None else room for gate in gates}
        open_gates = [gate for gate in gates if rooms[gate.gate] > 0]
        if not open_gates:
            return []
        candidates = await self._store.read_lines(connection, entrypoints, rooms, limit, priority)
        admitted = admit(candidates, open_gates, await self._schedule_rooms(connection, candidates), limit)
        if not admitted:
            return []
        return await self._store.claim_runs(
            connection, self._worker, defaults, [c.id for c in admitted], self._notes(open_gates, admitted)
        )

    async def _schedule_rooms(self, connection: Connection, candidates: Sequence[Candidate]) -> dict[int, int]:
        """What the overlap of their schedules leaves. Lock first and then count, in a statement of its own, as
        everywhere; a schedule that somebody has locked gets nothing in this pass."""
        wanted = sorted({c.schedule_id for c in candidates if c.schedule_id is not None})
        if not wanted:
            return {}
        locked = await self._store.lock_schedules(connection, wanted)
        rooms = await self._store.read_rooms(connection, wanted)
        return {schedule: room if schedule in locked else 0 for schedule, room in rooms.items()}

    def _notes(self, gates: Sequence[Gate], admitted: Sequence[Candidate]) -> list[tuple[str, datetime, int]]:
        counts = Counter(c.gate for c in admitted)
        return [
            (gate.gate, at, count)
            for gate in gates
            if gate.starts is not None and counts[gate.gate]
            for at, count in noted(gate, counts[gate.gate])
        ]
