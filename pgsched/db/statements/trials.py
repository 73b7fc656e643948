"""The statements of a careful pass: they try changes that are rolled back, and set refused rows aside."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import timedelta

from psycopg.rows import scalar_row

from pgsched.db.session import Connection
from pgsched.db.statements.statements import Statements
from pgsched.journal import clean


class TrialStatements(Statements):
    """One typed method a query file. Decides nothing; every write returns whether it landed."""

    async def find_due_runs(
        self, connection: Connection, entrypoints: Sequence[str], lookahead: timedelta, limit: int
    ) -> list[int]:
        """Locks the queued runs that a claim may take next, at most so many of each entrypoint."""
        cursor = connection.cursor(row_factory=scalar_row)
        params = {"entrypoints": list(entrypoints), "lookahead": lookahead, "limit": limit, "app": self.app}
        await cursor.execute(self.query("find_due_runs"), params)
        return await cursor.fetchall()

    async def try_claim(self, connection: Connection, worker: uuid.UUID, ids: Sequence[int]) -> None:
        """Changes runs as a claim does. The caller takes it back."""
        await connection.execute(self.query("try_claim"), {"worker": worker, "ids": list(ids)})

    async def find_limits(self, connection: Connection, entrypoints: Sequence[str], limit: int) -> list[int]:
        """Locks the limits of these entrypoints at which a claim notes starts. Returns their ids."""
        cursor = connection.cursor(row_factory=scalar_row)
        params = {"app": self.app, "entrypoints": list(entrypoints), "limit": limit}
        await cursor.execute(self.query("find_limits"), params)
        return await cursor.fetchall()

    async def try_limits(self, connection: Connection, ids: Sequence[int]) -> None:
        """Notes starts at limits. The caller takes it back."""
        await connection.execute(self.query("try_limits"), {"ids": list(ids)})

    async def find_ended_pauses(self, connection: Connection, limit: int) -> list[int]:
        """Locks schedules whose pause is over."""
        cursor = connection.cursor(row_factory=scalar_row)
        await cursor.execute(self.query("find_ended_pauses"), {"limit": limit})
        return await cursor.fetchall()

    async def try_resume(self, connection: Connection, ids: Sequence[int]) -> None:
        """Resumes schedules. The caller takes it back."""
        await connection.execute(self.query("try_resume"), {"ids": list(ids)})

    async def settle_constraints(self, connection: Connection) -> None:
        """Has deferred constraints of this transaction speak now."""
        await connection.execute(self.query("settle_constraints"), {})

    async def wait_briefly(self, connection: Connection, limit: timedelta) -> None:
        """How long each statement of this transaction may wait for a lock; it may take ten times as long."""
        wait = limit // timedelta(milliseconds=1)
        await connection.execute(self.query("wait_briefly"), {"limit": f"{wait}ms", "most": f"{10 * wait}ms"})

    async def set_aside(self, connection: Connection, kind: str, rows: Sequence[tuple[int, str, bool]]) -> set[int]:
        """Sets rows aside, given as (id, reason, whether the error passes by itself). Returns the ids of those that had
        no entry yet."""
        cursor = await connection.execute(
            self.query("set_aside"),
            {
                "kind": kind,
                "ids": [id for id, _, _ in rows],
                "reasons": [clean(reason) for _, reason, _ in rows],
                "passing": [passing for _, _, passing in rows],
            },
        )
        return {row[0] for row in await cursor.fetchall() if row[1]}

    async def take_back(self, connection: Connection) -> tuple[list[tuple[str, int]], bool]:
        """Forgets the entries of rows that are gone or work again. Returns these as (kind, id), and whether there are
        others."""
        cursor = await connection.execute(self.query("take_back"), {})
        rows = await cursor.fetchall()
        return [(row[1], row[2]) for row in rows if row[1] is not None], rows[0][0]
