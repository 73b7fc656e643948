"""The statements of a claim pass, which looks, locks, plans and claims."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from psycopg.rows import class_row, scalar_row, tuple_row

from pgsched.db.session import Connection
from pgsched.db.statements.parameters import array, durations, instants, name_array, numbers, texts, walls
from pgsched.db.statements.queries import Queries
from pgsched.db.statements.values import Due, EntrypointDefaults, Planned, Share, Withheld
from pgsched.model import ClaimedRun, Schedule
from pgsched.rules import limits
from pgsched.rules.agenda import Outlook
from pgsched.rules.fairness import Candidate, Kind
from pgsched.rules.ledger import undecided_since
from pgsched.rules.limits import LockedLimits
from pgsched.rules.plan import Occupancy

# The most bytes of arguments, as stored, that one statement claims. If an answer took longer than a statement may take,
# it would be lost, and its runs would be claimed again and again.
CLAIM_BYTES = 16 * 2**20
TOKENS = 100_000  # that one statement draws at most


class ClaimStatements(Queries):
    """One typed method per query file. Methods decide nothing; every write returns whether it landed."""

    async def lock_due_schedules(
        self, connection: Connection, shares: Sequence[Share], lookahead: timedelta, leave: Withheld | None = None
    ) -> list[Schedule]:
        """Locks schedules to plan: due, due within the lookahead, or never planned; the first ones of each share.

        leave: schedules that are left to other workers; by default none.
        """
        leave = leave or Withheld()
        params = {
            "entrypoints": [name for share in shares for name in share.entrypoints],
            "lanes": [lane for lane, share in enumerate(shares) for _ in share.entrypoints],
            "rooms": [share.room for share in shares for _ in share.entrypoints],
            "fresh": [share.fresh for share in shares for _ in share.entrypoints],
            "idle": [share.idle for share in shares for _ in share.entrypoints],
            "app": self.app,
            "lookahead": lookahead,
            "withheld": list(leave.zones),
            "covered": list(leave.covered),
        }
        cursor = await self._send(connection, "lock_due_schedules", params, class_row(Schedule))
        return await cursor.fetchall()

    async def read_candidates(
        self,
        connection: Connection,
        shares: Sequence[Share],
        *,
        lookahead: timedelta,
        limit: int,
        due: Due,
        leave: Withheld,
    ) -> list[tuple[Candidate, int | None]]:
        """The candidates for a claim, except runs that stand in line: the first ones of each share, of every due kind.

        With each waiting run and each fire time comes the room that its schedule's overlap leaves; None if it allows
        any number.
        """
        cursor = await self._send(
            connection,
            "read_candidates",
            {
                "entrypoints": [name for share in shares for name in share.entrypoints],
                "lanes": [lane for lane, share in enumerate(shares) for _ in share.entrypoints],
                "rooms": [share.room for share in shares for _ in share.entrypoints],
                "app": self.app,
                "lookahead": lookahead,
                "limit": limit,
                "withheld": list(leave.zones),
                "covered": list(leave.covered),
                "fire_times": due.fire_times > 0,
                "waiting": due.waiting > 0,
            },
            tuple_row,
        )
        # By place, as the claimed runs of claim_due_runs(); the same test compares these columns.
        return [(Candidate(Kind(row[0]), *row[1:7]), row[7]) for row in await cursor.fetchall()]

    async def count_live_runs(
        self, connection: Connection, schedules: Sequence[Schedule]
    ) -> tuple[datetime, dict[int, Occupancy]]:
        """The transaction's now, and the live runs of each schedule; schedules without any are left out."""
        # Includes runs that have ended since the plan before the last pauses and changes.
        open_since = [(s.id, since) for s in schedules if (since := undecided_since(s)) is not None]
        cursor = await connection.execute(
            self.query("count_live_runs"),
            {
                "schedule_ids": array(s.id for s in schedules),
                "open_ids": [id for id, _ in open_since],
                "open_since": instants(since for _, since in open_since),
            },
        )
        rows = await cursor.fetchall()
        return rows[0][5], {
            schedule_id: Occupancy(running, waiting, requested, tuple(ids or ()), astray, tuple(times or ()), withdrawn)
            for schedule_id, running, waiting, requested, ids, _, astray, times, withdrawn in rows
            if schedule_id is not None
        }

    async def redirect_runs(self, connection: Connection, schedule_ids: Sequence[int]) -> int:
        """Moves queued runs of locked schedules to their schedule's new entrypoint. Returns how many."""
        return (await connection.execute(self.query("redirect_runs"), {"schedule_ids": list(schedule_ids)})).rowcount

    async def replace_runs(self, connection: Connection, schedule_ids: Sequence[int]) -> set[int]:
        """Cancels the live runs of locked schedules, except those that somebody asked for.

        Returns the ids of schedules with a run that another session has locked: these must be tried again.
        """
        cursor = connection.cursor(row_factory=scalar_row)
        await cursor.execute(self.query("replace_runs"), {"schedule_ids": list(schedule_ids)})
        return set(await cursor.fetchall())

    async def write_plans(
        self, connection: Connection, worker: uuid.UUID, plans: Sequence[Planned], horizon: datetime
    ) -> list[tuple[int, int, datetime, int]]:
        """Advances locked schedules and creates their runs, already claimed if they are due by the horizon.

        Returns (run id, schedule id, fire time, token) of the runs that this worker now holds. A fire time that already
        has a row is left unchanged.
        """
        runs = [(p, r) for p in plans for r in p.plan.runs]
        skips = [(p, s) for p in plans for s in p.plan.skips]
        cursor = await self._send(
            connection,
            "write_plans",
            {
                "worker": worker,
                "app": self.app,
                "schedule_ids": array(p.schedule.id for p in plans),
                "next_runs": instants(p.plan.next_run for p in plans),
                "last_runs": instants(p.plan.runs[-1].fire_time if p.plan.runs else None for p in plans),
                "run_counts": array(len(p.plan.runs) for p in plans),
                "statuses": array(p.plan.status for p in plans),
                "notes": texts(p.plan.note for p in plans),
                "accounted": instants(p.plan.accounted_through for p in plans),
                "rules": texts(p.zoned.rules for p in plans),
                "next_walls": walls(p.zoned.next_wall for p in plans),
                "walls": walls(p.zoned.accounted_wall for p in plans),
                "run_schedule_ids": array(p.schedule.id for p, _ in runs),
                "fire_times": instants(r.fire_time for _, r in runs),
                "due_ats": instants(r.due_at for _, r in runs),
                "previous": instants(r.previous for _, r in runs),
                "waits": array(r.waits for _, r in runs),
                "max_attempts": array(p.max_attempts for p, _ in runs),
                "backoffs": durations(p.backoff for p, _ in runs),
                "max_backoffs": durations(p.max_backoff for p, _ in runs),
                "timeouts": durations(p.timeout for p, _ in runs),
                "horizon": horizon,
                "skip_schedule_ids": [p.schedule.id for p, _ in skips],
                "skip_fire_times": instants(s.fire_time for _, s in skips),
                "skip_throughs": instants(s.through for _, s in skips),
                "skip_counts": [s.count for _, s in skips],
                "skip_reasons": [str(s.reason) for _, s in skips],
                "skip_details": texts(s.detail for _, s in skips),
            },
            tuple_row,
        )
        return [(row[0], row[1], row[2], row[3]) for row in await cursor.fetchall()]

    async def claim_due_runs(
        self,
        connection: Connection,
        worker: uuid.UUID,
        defaults: Sequence[EntrypointDefaults],
        shares: Sequence[Share],
        *,
        lookahead: timedelta,
        limit: int,
        known: Sequence[str] = (),
        alone: bool = False,
        crossing: bool = False,
    ) -> tuple[list[ClaimedRun], Due]:
        """Claims queued runs that are due, or will be within the lookahead, but do not wait for an overlap or a limit.

        It claims the first ones of all shares, and of each share no more than its room. Returns them, and the due work.

        known: the entrypoints whose schedules count as due if they were never planned.
        alone: claims only if nothing else is due: no fire time, no gated run, and no schedule that was never planned.
        crossing: claims nothing, and only returns the due work.
        """
        of = {name: (lane, share) for lane, share in enumerate(shares) for name in share.entrypoints}
        defaults = [d for d in defaults if d.entrypoint in of]
        mine = [of[d.entrypoint] for d in defaults]
        cursor = await self._send(
            connection,
            "claim_due_runs",
            _claim_params(worker, defaults)
            | {
                "lanes": array(lane for lane, _ in mine),
                "rooms": array(share.room for _, share in mine),
                "pools": numbers(share.pool for _, share in mine),
                "pool_rooms": numbers(share.pool_room for _, share in mine),
                "app": self.app,
                "lookahead": lookahead,
                "limit": limit,
                "bytes": CLAIM_BYTES,
                "known": name_array(known),
                "alone": alone,
                "crossing": crossing,
            },
            tuple_row,
        )
        rows = await cursor.fetchall()
        # By place: by name, each run would take 3 µs more, ten times as long, before the first of them starts. A test
        # compares the columns with the fields.
        return [ClaimedRun(*row[5:]) for row in rows if row[5] is not None], Due(*rows[0][:5])

    async def claim_gated_runs(
        self,
        connection: Connection,
        worker: uuid.UUID,
        defaults: Sequence[EntrypointDefaults],
        *,
        lookahead: timedelta,
        limit: int,
        chosen: Sequence[Candidate] | None = None,
    ) -> list[ClaimedRun]:
        """Claims queued runs that wait for their schedule's overlap, if it leaves room. Locks the schedules.

        chosen: claims only these runs; by default any.
        """
        cursor = connection.cursor(row_factory=class_row(Schedule))
        look = {"app": self.app, "lookahead": lookahead, "limit": limit}
        names = name_array(d.entrypoint for d in defaults)
        ids = None if chosen is None else sorted({c.schedule_id for c in chosen if c.schedule_id is not None})
        await cursor.execute(self.query("lock_gated_schedules"), look | {"entrypoints": names, "ids": ids})
        locked = {schedule.id: schedule for schedule in await cursor.fetchall()}
        if not locked:
            return []
        ids = None if chosen is None else [c.id for c in chosen]
        look |= {"entrypoints": names, "schedule_ids": list(locked), "ids": ids, "bytes": CLAIM_BYTES}
        found = await (await connection.execute(self.query("lock_gated_runs"), look)).fetchall()
        claimed = await self.claim_runs(connection, worker, defaults, [id_ for (id_,) in found], []) if found else []
        return [run.of(locked[run.schedule_id]) for run in claimed if run.schedule_id is not None]

    async def lock_limits(self, connection: Connection, entrypoints: Sequence[str]) -> list[LockedLimits]:
        """Locks the limits of these entrypoints with claimable runs; limits that others have locked are left out."""
        cursor = connection.cursor(row_factory=class_row(LockedLimits))
        await cursor.execute(self.query("lock_limits"), {"app": self.app, "entrypoints": list(entrypoints)})
        return await cursor.fetchall()

    async def read_queues(
        self, connection: Connection, entrypoints: Sequence[str], rooms: Mapping[str, int], limit: int
    ) -> list[limits.Candidate]:
        """The runs of these entrypoints that stand first in the lines of locked limits.

        rooms: for each limit's key, how many runs to return at most.
        """
        cursor = await self._send(
            connection,
            "read_queues",
            {
                "app": self.app,
                "entrypoints": list(entrypoints),
                "gates": list(rooms),
                "rooms": list(rooms.values()),
                "limit": limit,
            },
            class_row(limits.Candidate),
        )
        return await cursor.fetchall()

    async def lock_schedules(self, connection: Connection, ids: Sequence[int]) -> set[int]:
        """Locks schedules whose overlap must be checked. Returns the ids of those that no other session has locked."""
        cursor = connection.cursor(row_factory=scalar_row)
        await cursor.execute(self.query("lock_schedules"), {"ids": list(ids)})
        return set(await cursor.fetchall())

    async def read_rooms(self, connection: Connection, ids: Sequence[int]) -> dict[int, int]:
        """How many more runs each schedule's overlap lets start; schedules that allow any number are left out."""
        cursor = await connection.execute(self.query("read_rooms"), {"ids": list(ids)})
        return {row[0]: row[1] for row in await cursor.fetchall()}

    async def claim_runs(
        self,
        connection: Connection,
        worker: uuid.UUID,
        defaults: Sequence[EntrypointDefaults],
        ids: Sequence[int],
        notes: Sequence[tuple[str, datetime | None, int]],
    ) -> list[ClaimedRun]:
        """Claims these runs, and records when runs were claimed at their limits.

        notes: (key of the limits, at, count). If `at` is None, it is the time of this claim.
        """
        cursor = connection.cursor(row_factory=class_row(ClaimedRun))
        params = _claim_params(worker, defaults) | {
            "ids": list(ids),
            "noted": [gate for gate, _, _ in notes],
            "started_at": instants(at for _, at, _ in notes),
            "started": [count for _, _, count in notes],
        }
        await cursor.execute(self.query("claim_runs"), params)
        return await cursor.fetchall()

    async def settle_orphans(self, connection: Connection) -> None:
        """Settles waiting runs whose schedules are gone: those that have begun go on, the others are cancelled."""
        await connection.execute(self.query("settle_orphans"), {})

    async def pass_tokens(self, connection: Connection, held: int) -> None:
        """Makes sure that new claims get higher tokens than `held`, the highest one that this worker has had."""
        drawn = 0
        while drawn < held:
            cursor = await connection.execute(self.query("pass_tokens"), {"held": held, "most": TOKENS})
            [drawn] = await cursor.fetchone() or [held]

    async def resume_paused(self, connection: Connection) -> int:
        """Resumes schedules whose pause is over. Returns how many."""
        return (await connection.execute(self.query("resume_paused"), {})).rowcount

    async def read_outlook(
        self,
        connection: Connection,
        worker: uuid.UUID,
        entrypoints: Sequence[str],
        lookahead: timedelta,
        *,
        seen: tuple[str, int, str] | None = None,
        awaited: Sequence[str] = (),
    ) -> Outlook:
        """When the next work is due, and whether other workers have anything running.

        seen: the worker's state, its number of runs and its trouble; if given, its row in workers is updated too.
        awaited: applications whose schedules this one takes over once none of their workers is alive.
        """
        state, running, trouble = seen or ("running", 0, "")
        cursor = await self._send(
            connection,
            "read_outlook",
            {
                "worker": worker,
                "app": self.app,
                "entrypoints": name_array(entrypoints),
                "lookahead": lookahead,
                "touch": seen is not None,
                "awaited": list(awaited),
                "state": state,
                "running": running,
                "trouble": trouble or None,
            },
            class_row(Outlook),
        )
        row = await cursor.fetchone()
        assert row is not None
        return row

    async def get_schedules(self, connection: Connection, ids: Sequence[int]) -> list[Schedule]:
        """The schedules with these ids; schedules that are gone are left out."""
        cursor = connection.cursor(row_factory=class_row(Schedule))
        await cursor.execute(self.query("get_schedules"), {"ids": list(ids)})
        return await cursor.fetchall()


def _claim_params(worker: uuid.UUID, defaults: Sequence[EntrypointDefaults]) -> dict[str, Any]:
    return {
        "worker": worker,
        "entrypoints": name_array(d.entrypoint for d in defaults),
        "max_attempts": array(d.max_attempts for d in defaults),
        "backoffs": durations(d.backoff for d in defaults),
        "max_backoffs": durations(d.max_backoff for d in defaults),
        "timeouts": durations(d.timeout for d in defaults),
    }
