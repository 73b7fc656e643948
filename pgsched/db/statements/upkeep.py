"""The statements of upkeep, for workers, stalled runs and old rows."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any

from psycopg.rows import class_row, dict_row, scalar_row

from pgsched.db.session import Connection
from pgsched.db.statements.queries import Queries
from pgsched.db.statements.values import Pruned
from pgsched.model import RunStatus
from pgsched.rules.retry import Silent

SILENT_PAGE = 1000  # silent runs that the reaper looks at in one statement


class UpkeepStatements(Queries):
    """One typed method per query file. Methods decide nothing; every write returns whether it landed."""

    async def find_silent_runs(
        self,
        connection: Connection,
        worker: uuid.UUID,
        silence: timedelta,
        *,
        stall_timeout: timedelta = timedelta(seconds=30),
        machine: str = "",
        after: int = 0,
        limit: int = SILENT_PAGE,
    ) -> tuple[datetime, datetime, int, list[Silent]]:
        """A page of running runs without a recent beat whose claims may be taken now or soon, by id.

        silence: how long they have been silent, at least.
        stall_timeout: for runs whose worker's own stall timeout is unknown; default 30 s.
        machine: the id of the asking worker's machine.
        after: the last id of the page before.
        Returns the database's now, when its server has started, how many runs other workers have running, and the
        silent runs. Fails if a beat would: on a read-only server, or behind a lock on the table.
        """
        cursor = connection.cursor(row_factory=dict_row)
        await cursor.execute(
            self.query("find_silent_runs"),
            {
                "worker": worker, "silence": silence, "stall_timeout": stall_timeout, "machine": machine,
                "after": after, "limit": limit,
            },
        )  # fmt: skip
        rows = await cursor.fetchall()
        head = rows[0]
        wanted = {f.name for f in fields(Silent)}
        silent = [Silent(**{k: v for k, v in row.items() if k in wanted}) for row in rows if row["id"] is not None]
        return head["now"], head["server_started"], head["elsewhere"], silent

    async def reap_runs(
        self, connection: Connection, verdicts: Sequence[tuple[Silent, RunStatus, timedelta, str]]
    ) -> list[int]:
        """Takes silent claims away, each only if the claim and its last beat are still those that were seen. Returns
        the ids of the runs that lost their claim."""
        cursor = connection.cursor(row_factory=scalar_row)
        await cursor.execute(
            self.query("reap_runs"),
            {
                "ids": [s.id for s, _, _, _ in verdicts],
                "tokens": [s.token for s, _, _, _ in verdicts],
                "beats": [s.heartbeat_at for s, _, _, _ in verdicts],
                "statuses": [str(status) for _, status, _, _ in verdicts],
                "delays": [delay.total_seconds() for _, _, delay, _ in verdicts],
                "messages": [message for _, _, _, message in verdicts],
                "channel": self.schema,
            },
        )
        return await cursor.fetchall()

    async def end_transactions(self, connection: Connection, names: Sequence[str]) -> int:
        """Ends the sessions with these names, which belong to attempts that lost their claims. Returns how many."""
        cursor = await connection.execute(self.query("end_transactions"), {"names": list(names)})
        return cursor.rowcount

    async def prune_runs(
        self,
        connection: Connection,
        status: str,
        age: timedelta,
        limit: int,
        last: Pruned | None,
        *,
        look: bool = False,
    ) -> Pruned:
        """Deletes runs of a status that ended longer than `age` ago. A batch looks at no more than `limit` of them.

        last: the previous batch; this one begins after it.
        look: deletes nothing.
        """
        cursor = connection.cursor(row_factory=class_row(Pruned))
        await cursor.execute(
            self.query("prune_runs"),
            {
                "status": status,
                "age": age,
                "limit": limit,
                "look": look,
                "after": last.after if last is not None else None,
                "after_id": last.after_id if last is not None else None,
            },
        )
        row = await cursor.fetchone()
        assert row is not None
        return row

    async def insert_worker(self, connection: Connection, **values: Any) -> None:
        """Registers this worker, also after its row was deleted."""
        await connection.execute(self.query("insert_worker"), values)

    async def delete_worker(
        self, connection: Connection, worker: uuid.UUID, hanging: Sequence[int] = (), lease: timedelta = timedelta(0)
    ) -> None:
        """Deletes this worker, and others that must be gone.

        hanging: the tokens of attempts that go on in its threads. They count for the lease.
        """
        await connection.execute(
            self.query("delete_worker"),
            {"worker": worker, "channel": self.schema, "hanging": list(hanging), "lease": lease},
        )

    async def forget_leftovers(self, connection: Connection) -> None:
        """Deletes the leftovers of removed schedules and of dead workers' threads after a day."""
        await connection.execute(self.query("forget_leftovers"), {})

    async def forget_workers(self, connection: Connection) -> int:
        """Deletes workers that died without a goodbye. Returns how many."""
        return (await connection.execute(self.query("forget_workers"), {})).rowcount
