"""The statements of a careful pass, which tries changes, rolls them back, and sets refused rows aside."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import timedelta

from psycopg.rows import scalar_row

from pgsched.db.session import Connection
from pgsched.db.statements.queries import Queries
from pgsched.journal import clean


class TrialStatements(Queries):
    """One typed method per query file. Methods decide nothing; every write returns whether it landed."""

    async def find_due_runs(
        self, connection: Connection, entrypoints: Sequence[str], lookahead: timedelta, limit: int
    ) -> list[int]:
        """Locks queued runs that a claim may take next, at most `limit` per entrypoint and kind. Returns the ids."""
        cursor = connection.cursor(row_factory=scalar_row)
        params = {"entrypoints": list(entrypoints), "lookahead": lookahead, "limit": limit, "app": self.app}
        await cursor.execute(self.query("find_due_runs"), params)
        return await cursor.fetchall()

    async def try_claim(self, connection: Connection, worker: uuid.UUID, ids: Sequence[int]) -> None:
        """Changes runs as a claim does. The caller rolls this back."""
        await connection.execute(self.query("try_claim"), {"worker": worker, "ids": list(ids)})

    async def find_limits(self, connection: Connection, entrypoints: Sequence[str], limit: int) -> list[int]:
        """Locks the limits of these entrypoints that have a rate: a claim records starts there. Returns the ids."""
        cursor = connection.cursor(row_factory=scalar_row)
        params = {"app": self.app, "entrypoints": list(entrypoints), "limit": limit}
        await cursor.execute(self.query("find_limits"), params)
        return await cursor.fetchall()

    async def try_limits(self, connection: Connection, ids: Sequence[int]) -> None:
        """Records starts at limits. The caller rolls this back."""
        await connection.execute(self.query("try_limits"), {"ids": list(ids)})

    async def find_ended_pauses(self, connection: Connection, limit: int) -> list[int]:
        """Locks schedules whose pause is over. Returns the ids."""
        cursor = connection.cursor(row_factory=scalar_row)
        await cursor.execute(self.query("find_ended_pauses"), {"limit": limit})
        return await cursor.fetchall()

    async def try_resume(self, connection: Connection, ids: Sequence[int]) -> None:
        """Resumes schedules. The caller rolls this back."""
        await connection.execute(self.query("try_resume"), {"ids": list(ids)})

    async def set_aside(self, connection: Connection, kind: str, rows: Sequence[tuple[int, str, bool]]) -> set[int]:
        """Sets rows aside, given as (id, reason, whether the error passes by itself). Returns the ids of rows
        whose current version had no entry yet."""
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
        """Deletes the entries of rows that are gone or work again. Returns these as (kind, id), and whether other
        entries are left."""
        cursor = await connection.execute(self.query("take_back"), {})
        rows = await cursor.fetchall()
        return [(row[1], row[2]) for row in rows if row[1] is not None], rows[0][0]
