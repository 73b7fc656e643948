"""The statements about claimed runs, each under its claim: beats, log lines, ends."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta

from psycopg.rows import tuple_row

from pgsched.db.session import Connection
from pgsched.db.statements.parameters import array, floats, instants, texts
from pgsched.db.statements.queries import Queries
from pgsched.journal import Said, clean
from pgsched.model import Claim, Hold, Outcome


class RunStatements(Queries):
    """One typed method per query file. Methods decide nothing; every write returns whether it landed."""

    async def beat(
        self,
        connection: Connection,
        worker: uuid.UUID,
        claims: Sequence[tuple[int, int, datetime | None]],
        threads: Sequence[tuple[int, int]] = (),
        lease: timedelta = timedelta(seconds=30),
    ) -> dict[tuple[int, int], Hold]:
        """Renews claims, given as (run id, token, started at).

        threads: the (run id, token) of attempts whose function runs in a thread. If such a claim is lost, its attempt
            counts as left behind, for the lease.
        Returns a Hold for each (run id, token) whose claim holds. A claim that is missing in the answer is lost.
        """
        cursor = await connection.execute(
            self.query("beat"),
            {
                "worker": worker,
                "ids": array(c[0] for c in claims),
                "tokens": array(c[1] for c in claims),
                "started": instants(c[2] for c in claims),
                "thread_ids": array(run_id for run_id, _ in threads),
                "thread_tokens": array(token for _, token in threads),
                "lease": lease,
            },
        )
        return {(row[0], row[1]): Hold(row[2]) for row in await cursor.fetchall()}

    async def finish_runs(
        self,
        connection: Connection,
        worker: uuid.UUID,
        outcomes: Sequence[Outcome],
        lease: timedelta = timedelta(seconds=30),
    ) -> dict[tuple[int, int], bool]:
        """Records how attempts ended, each under its claim.

        Returns the (run id, token) of the ends that landed, each with whether the run's own transaction had already
        committed its success. look_after_ends() finds out about the others.
        """
        cursor = await self._send(
            connection,
            "finish_runs",
            {
                "worker": worker,
                "ids": array(o.claim.run_id for o in outcomes),
                "tokens": array(o.claim.token for o in outcomes),
                "statuses": array(o.status for o in outcomes),
                "started": instants(o.started_at for o in outcomes),
                "finished": instants(o.finished_at for o in outcomes),
                "results": texts(o.result_json for o in outcomes),
                "error_types": texts(o.error.type if o.error else None for o in outcomes),
                "messages": texts(o.error.message if o.error else None for o in outcomes),
                "tracebacks": texts(o.error.traceback if o.error else None for o in outcomes),
                "reasons": texts(o.reason for o in outcomes),
                "delays": floats(o.delay.total_seconds() for o in outcomes),
                "refunds": array(int(o.refund) for o in outcomes),
                "transacted": [o.transacted for o in outcomes],
                "left": [o.claim.run_id for o in outcomes if o.left_behind],
                "left_tokens": [o.claim.token for o in outcomes if o.left_behind],
                "lease": lease,
            },
            tuple_row,
        )
        return {(row[0], row[1]): row[2] for row in await cursor.fetchall()}

    async def give_back_runs(
        self, connection: Connection, worker: uuid.UUID, claims: Sequence[Claim], *, stay: bool = False
    ) -> set[tuple[int, int]]:
        """Gives back to the queue runs of schedules that were claimed but never begun.

        If a schedule has changed since, it gets the fire time back instead, and the row is deleted.
        stay: keeps such rows, as cancelled.
        Returns the (run id, token) of those that landed.
        """
        cursor = await connection.execute(
            self.query("give_back_runs"),
            {
                "worker": worker,
                "ids": [claim.run_id for claim in claims],
                "tokens": [claim.token for claim in claims],
                "stay": stay,
                "channel": self.schema,
            },
        )
        return {(row[0], row[1]) for row in await cursor.fetchall()}

    async def look_after_ends(
        self, connection: Connection, worker: uuid.UUID, outcomes: Sequence[Outcome]
    ) -> dict[tuple[int, int], tuple[bool, bool]]:
        """Finds out about outcomes that did not land just now, by (run id, token).

        Returns whether the outcome landed at an earlier try, and whether the run's own transaction has committed. If it
        has not landed, another session has the row locked, so try again, or a failover has undone that transaction.
        Missing: the claim is lost.
        """
        cursor = await connection.execute(
            self.query("look_after_ends"),
            {
                "worker": worker,
                "ids": [o.claim.run_id for o in outcomes],
                "tokens": [o.claim.token for o in outcomes],
            },
        )
        return {(row[0], row[1]): (row[2], row[3]) for row in await cursor.fetchall()}

    async def write_journals(
        self, connection: Connection, worker: uuid.UUID, said: Sequence[tuple[Claim, Said]]
    ) -> set[tuple[int, int]]:
        """Writes the log lines and the progress of attempts, each under its claim.

        Returns the (run id, token) of those whose claim holds and whose row no other session has locked. Nothing is
        written for the others.
        """
        lines = [(c, n, line) for c, s in said for n, line in enumerate(s.lines, s.number)]
        cursor = await connection.execute(
            self.query("write_journals"),
            {
                "worker": worker,
                "ids": [c.run_id for c, _ in said],
                "tokens": [c.token for c, _ in said],
                "done": floats(s.progress[0] if s.progress else None for _, s in said),
                "total": floats(s.progress[1] if s.progress else None for _, s in said),
                "line_ids": [c.run_id for c, _, _ in lines],
                "line_tokens": [c.token for c, _, _ in lines],
                "numbers": [n for _, n, _ in lines],
                "ats": instants(line.at for _, _, line in lines),
                "levels": [clean(line.level)[:20] for _, _, line in lines],
                "texts": [clean(line.text) for _, _, line in lines],
            },
        )
        return {(row[0], row[1]) for row in await cursor.fetchall()}

    async def read_clock(self, connection: Connection) -> datetime:
        """The database's clock."""
        row = await (await connection.execute(self.query("read_clock"))).fetchone()
        assert row is not None
        now: datetime = row[0]
        return now

    async def keep_left_behind(
        self,
        connection: Connection,
        worker: uuid.UUID,
        claims: Sequence[tuple[int, int]],
        busy: Sequence[int],
        lease: timedelta,
    ) -> None:
        """Records all attempts of this worker that have ended or lost their claim while their threads go on.

        claims: these attempts, as (run id, token). They count for the lease.
        busy: the tokens of all attempts whose threads are at work.
        """
        ids, tokens = [run_id for run_id, _ in claims], [token for _, token in claims]
        params = {
            "worker": worker, "ids": ids, "tokens": tokens, "busy": list(busy), "lease": lease, "channel": self.schema,
        }  # fmt: skip
        await connection.execute(self.query("keep_left_behind"), params)
