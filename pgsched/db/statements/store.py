"""One typed method a query file, and the only caller of queries/.

Decides nothing; every write says whether it landed.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from importlib.resources import files
from typing import Any, NamedTuple, TypeVar

from psycopg import AsyncClientCursor, AsyncCursor, AsyncRawCursor, sql
from psycopg.pq import Format
from psycopg.rows import AsyncRowFactory, class_row, dict_row, scalar_row, tuple_row
from psycopg.types.json import Jsonb

from pgsched.db.session import Connection, InUtcBinary, Plain, application_name
from pgsched.model import Claim, ClaimedRun, Hold, Outcome, Retry, RunStatus, Said, Schedule, Silent, clean
from pgsched.rules import limits
from pgsched.rules import options as definition
from pgsched.rules.agenda import Outlook
from pgsched.rules.deploy import Compared, Holder, Other, Standing
from pgsched.rules.fairness import Candidate, Kind
from pgsched.rules.ledger import undecided_since
from pgsched.rules.limits import Gate
from pgsched.rules.plan import Occupancy, Plan

_Row = TypeVar("_Row")


def _dense(text: bytes) -> bytes:
    """A statement without indentation, and of its comments with the first line alone, by which people know it again in
    pg_stat_activity."""
    first, *lines = map(bytes.strip, text.splitlines())
    return b"\n".join([first, *(line for line in lines if line and not line.startswith(b"--"))])


_FILES = {
    entry.name.removesuffix(".sql"): _dense(entry.read_bytes())
    for folder in files("pgsched.db").joinpath("queries").iterdir()
    if folder.is_dir()
    for entry in folder.iterdir()
    if entry.name.endswith(".sql")
}
_DEFAULT = Retry()
# Of the arguments that one statement claims, as the server stores them. An answer that took longer than a statement may
# take would be lost, and its runs claimed again and again.
CLAIM_BYTES = 16 * 2**20
SILENT_PAGE = 1000  # silent runs that the reaper looks at in one statement
_QUALIFIER = re.compile(rb"\bpgsched\.(?=[a-z])")
_PLACEHOLDER = re.compile(rb"%(?:%|\((\w+)\)s)")


def in_schema(statement: bytes, schema: str, *, parametrised: bool = True) -> bytes:
    """A statement that was written for the schema pgsched, for another. Psycopg reads % in parametrised ones."""
    quoted = sql.Identifier(schema).as_bytes()
    if parametrised:
        quoted = quoted.replace(b"%", b"%%")
    return _QUALIFIER.sub(lambda _: quoted + b".", statement)


class Numbered(NamedTuple):
    """A statement as the server reads it: its parameters have numbers. names: theirs, in that order."""

    text: bytes
    names: tuple[str, ...]

    @classmethod
    def of(cls, statement: bytes) -> Numbered:
        numbers: dict[bytes, int] = {}

        def number(found: re.Match[bytes]) -> bytes:
            return b"%" if found[1] is None else b"$%d" % numbers.setdefault(found[1], len(numbers) + 1)

        return cls(_PLACEHOLDER.sub(number, statement), tuple(name.decode() for name in numbers))


@dataclass(frozen=True, slots=True)
class Due:
    """What is due if a claim of queued runs was to be made alone, and was not because there is more than them.

    unplanned: schedules that were never planned. fire_times: others to be planned. waiting: runs that wait for their
    schedule's overlap. lines: runs that stand in line at a limit. queued: the others. Counts go up to one more than
    there is room for.
    """

    unplanned: bool
    fire_times: int
    waiting: int
    lines: bool
    queued: int

    @property
    def mixed(self) -> bool:
        """Whether there is more than queued runs."""
        return bool(self.unplanned or self.fire_times or self.waiting or self.lines)


@dataclass(frozen=True, slots=True)
class Share:
    """How many runs, or schedules, of some entrypoints a statement takes.

    pool: shares of the same one together take no more than `pool_room`. Of schedules, fresh: those that were never
    planned; idle: those whose overlap lets no run start now, or those of which it does.
    """

    entrypoints: Sequence[str]
    room: int
    pool: int = 0
    pool_room: int = 2**31 - 1
    fresh: bool = False
    idle: bool | None = None


class Store:
    """The statements, for one schema. Methods take the connection, so that they can share a transaction.

    app: the application whose worker sends them. Without one, claims see only work that names no application.
    """

    def __init__(self, schema: str = "pgsched", app: str = "") -> None:
        self.schema, self.app = schema, app
        self._queries = {name: in_schema(text, schema) for name, text in _FILES.items()}
        self._numbered: dict[bytes, Numbered] = {}

    @staticmethod
    def texts() -> dict[str, bytes]:
        """The statements as they are written, for the schema pgsched."""
        return dict(_FILES)

    def query(self, name: str) -> bytes:
        """The text of a query file, for this schema."""
        return self._queries[name]

    async def _send(
        self, connection: Connection, name: str, params: Mapping[str, Any], rows: AsyncRowFactory[_Row]
    ) -> AsyncRawCursor[_Row]:
        """Sends one of the long statements that workers send often. Psycopg would search what is longer than 4096 bytes
        for placeholders anew each time: a tenth of a millisecond at each start."""
        text = self.query(name)
        statement = self._numbered.get(text)
        if statement is None:
            statement = self._numbered[text] = Numbered.of(text)
        cursor = AsyncRawCursor(connection, row_factory=rows)
        if connection.cursor_factory is Plain:
            cursor.format = Format.BINARY
        await cursor.execute(statement.text, [params[each] for each in statement.names])
        return cursor

    @property
    def channel(self) -> sql.Identifier:
        """The notification channel, as an identifier for LISTEN."""
        return sql.Identifier(self.schema)

    # --- the claim pass ---------------------------------------------------------------------------------

    async def lock_due_schedules(
        self, connection: Connection, shares: Sequence[Share], lookahead: timedelta, leave: Withheld | None = None
    ) -> list[Schedule]:
        """Locks schedules to be planned: due, due within the lookahead, or never planned yet; the first ones of each
        share. Those in a withheld time zone are left to others if their entrypoint is covered."""
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
        """What may be claimed, but for what stands in line: the first ones of each share, of every kind that is due.
        With each run that waits, and each fire time, how many its schedule's overlap leaves room for; None if it allows
        any number."""
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
        return [(Candidate(Kind(row[0]), *row[1:7]), row[7]) for row in await cursor.fetchall()]

    async def count_live_runs(
        self, connection: Connection, schedules: Sequence[Schedule]
    ) -> tuple[datetime, dict[int, Occupancy]]:
        """The transaction's now, and what is live of each schedule; those without anything are left out."""
        # What has run since the plan before the last pauses and changes is told, too.
        open_since = [(s.id, since) for s in schedules if (since := undecided_since(s)) is not None]
        cursor = await connection.execute(
            self.query("count_live_runs"),
            {
                "schedule_ids": _array(s.id for s in schedules),
                "open_ids": [id for id, _ in open_since],
                "open_since": [since for _, since in open_since],
            },
        )
        rows = await cursor.fetchall()
        return rows[0][5], {
            schedule_id: Occupancy(running, waiting, requested, tuple(ids or ()), astray, tuple(times or ()), withdrawn)
            for schedule_id, running, waiting, requested, ids, _, astray, times, withdrawn in rows
            if schedule_id is not None
        }

    async def redirect_runs(self, connection: Connection, schedule_ids: Sequence[int]) -> int:
        """Has queued runs of locked schedules follow these to their new entrypoint. Returns how many."""
        return (await connection.execute(self.query("redirect_runs"), {"schedule_ids": list(schedule_ids)})).rowcount

    async def replace_runs(self, connection: Connection, schedule_ids: Sequence[int]) -> set[int]:
        """Cancels what is live of locked schedules, but for what somebody asked for. Returns the ids of schedules of
        which a row is locked by somebody else, so that they have to be asked again."""
        cursor = connection.cursor(row_factory=scalar_row)
        await cursor.execute(self.query("replace_runs"), {"schedule_ids": list(schedule_ids)})
        return set(await cursor.fetchall())

    async def write_plans(
        self, connection: Connection, worker: uuid.UUID, plans: Sequence[Planned], horizon: datetime
    ) -> list[tuple[int, int, datetime, int]]:
        """Advances locked schedules and makes their runs, claimed already where they are due by the horizon.

        Returns (run id, schedule id, fire time, token) of the runs that this worker now holds. A fire time that has
        a row already is left as it is.
        """
        runs = [(p, r) for p in plans for r in p.plan.runs]
        skips = [(p, s) for p in plans for s in p.plan.skips]
        cursor = await self._send(
            connection,
            "write_plans",
            {
                "worker": worker,
                "app": self.app,
                "schedule_ids": _array(p.schedule.id for p in plans),
                "next_runs": _array(p.plan.next_run for p in plans),
                "last_runs": _array(p.plan.runs[-1].fire_time if p.plan.runs else None for p in plans),
                "run_counts": _array(len(p.plan.runs) for p in plans),
                "statuses": _array(p.plan.status for p in plans),
                "notes": _texts(p.plan.note for p in plans),
                "accounted": _array(p.plan.accounted_through for p in plans),
                "rules": _array(p.zoned.rules for p in plans),
                "next_walls": _array(p.zoned.next_wall for p in plans),
                "walls": _array(p.zoned.accounted_wall for p in plans),
                "run_schedule_ids": _array(p.schedule.id for p, _ in runs),
                "fire_times": _array(r.fire_time for _, r in runs),
                "due_ats": _array(r.due_at for _, r in runs),
                "previous": _array(r.previous for _, r in runs),
                "waits": _array(r.waits for _, r in runs),
                "max_attempts": _array(p.max_attempts for p, _ in runs),
                "backoffs": _array(_seconds(p.backoff) for p, _ in runs),
                "max_backoffs": _array(_seconds(p.max_backoff) for p, _ in runs),
                "timeouts": _array(_seconds(p.timeout) for p, _ in runs),
                "horizon": horizon,
                "skip_schedule_ids": [p.schedule.id for p, _ in skips],
                "skip_fire_times": [s.fire_time for _, s in skips],
                "skip_throughs": [s.through for _, s in skips],
                "skip_counts": [s.count for _, s in skips],
                "skip_reasons": [str(s.reason) for _, s in skips],
                "skip_details": [s.detail for _, s in skips],
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
        """Claims queued runs that are due, or will be within the lookahead; not those that wait for an overlap. The
        first ones of all shares, and of each share no more than its room.

        alone: only if nothing else is due, be it a fire time, a run at a gate, or a schedule that was never planned of
        an entrypoint that is `known`; returns what is, too. crossing: claims nothing, and only returns that.
        """
        of = {name: (lane, share) for lane, share in enumerate(shares) for name in share.entrypoints}
        defaults = [d for d in defaults if d.entrypoint in of]
        mine = [of[d.entrypoint] for d in defaults]
        cursor = await self._send(
            connection,
            "claim_due_runs",
            _claim_params(worker, defaults)
            | {
                "lanes": _array(lane for lane, _ in mine),
                "rooms": _array(share.room for _, share in mine),
                "pools": _array(share.pool for _, share in mine),
                "pool_rooms": _array(share.pool_room for _, share in mine),
                "app": self.app,
                "lookahead": lookahead,
                "limit": limit,
                "bytes": CLAIM_BYTES,
                "known": _names(known),
                "alone": alone,
                "crossing": crossing,
            },
            tuple_row,
        )
        rows = await cursor.fetchall()
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
        """Claims queued runs that wait for their schedule's overlap, as far as it leaves room; locks the schedules.

        chosen: only these of them.
        """
        cursor = connection.cursor(row_factory=class_row(Schedule))
        look = {"app": self.app, "lookahead": lookahead, "limit": limit}
        names = _names(d.entrypoint for d in defaults)
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

    async def lock_limits(self, connection: Connection, entrypoints: Sequence[str]) -> list[Gate]:
        """Locks the limits of these entrypoints at which something may be claimed; others' locks are passed over."""
        cursor = connection.cursor(row_factory=class_row(Gate))
        await cursor.execute(self.query("lock_limits"), {"app": self.app, "entrypoints": list(entrypoints)})
        return await cursor.fetchall()

    async def read_lines(
        self, connection: Connection, entrypoints: Sequence[str], rooms: Mapping[str, int], limit: int
    ) -> list[limits.Candidate]:
        """The runs of these entrypoints that stand first in the lines of locked limits.

        rooms: of each limit's key, how many runs at most.
        """
        cursor = await self._send(
            connection,
            "read_lines",
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
        """Locks schedules whose overlap has to be looked at. Returns the ids of those that nobody else has locked."""
        cursor = connection.cursor(row_factory=scalar_row)
        await cursor.execute(self.query("lock_schedules"), {"ids": list(ids)})
        return set(await cursor.fetchall())

    async def read_rooms(self, connection: Connection, ids: Sequence[int]) -> dict[int, int]:
        """How many more runs of each schedule its overlap lets run; those that allow it are left out."""
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
        """Claims these runs, and writes down when runs were claimed at their limits: (key of the limits, at, count).
        None is the time at which these are claimed."""
        cursor = connection.cursor(row_factory=class_row(ClaimedRun))
        params = _claim_params(worker, defaults) | {
            "ids": list(ids),
            "noted": [gate for gate, _, _ in notes],
            "started_at": [at for _, at, _ in notes],
            "started": [count for _, _, count in notes],
        }
        await cursor.execute(self.query("claim_runs"), params)
        return await cursor.fetchall()

    async def settle_orphans(self, connection: Connection) -> None:
        """Settles waiting runs whose schedules are gone: those that had begun go on, the others are cancelled."""
        await connection.execute(self.query("settle_orphans"), {})

    async def resume_paused(self, connection: Connection) -> int:
        """Resumes schedules whose pause is over."""
        return (await connection.execute(self.query("resume_paused"), {})).rowcount

    async def read_outlook(
        self,
        connection: Connection,
        worker: uuid.UUID,
        entrypoints: Sequence[str],
        lookahead: timedelta,
        *,
        seen: tuple[str, int] | None = None,
        awaited: Sequence[str] = (),
    ) -> Outlook:
        """When there is something to do next, and whether other workers have anything running.

        seen: the worker's state and how many runs it has; given, its row in workers is brought up to date too.
        awaited: applications whose schedules this one takes over once none of their workers is alive.
        """
        state, running = seen or ("running", 0)
        cursor = await self._send(
            connection,
            "read_outlook",
            {
                "worker": worker,
                "app": self.app,
                "entrypoints": _names(entrypoints),
                "lookahead": lookahead,
                "touch": seen is not None,
                "awaited": list(awaited),
                "state": state,
                "running": running,
            },
            class_row(Outlook),
        )
        row = await cursor.fetchone()
        assert row is not None
        return row

    async def get_schedules(self, connection: Connection, ids: Sequence[int]) -> list[Schedule]:
        """The schedules with these ids; those that are gone are left out."""
        cursor = connection.cursor(row_factory=class_row(Schedule))
        await cursor.execute(self.query("get_schedules"), {"ids": list(ids)})
        return await cursor.fetchall()

    # --- claims and their ends --------------------------------------------------------------------------

    async def beat(
        self,
        connection: Connection,
        worker: uuid.UUID,
        claims: Sequence[tuple[int, int, datetime | None]],
        threads: Sequence[tuple[int, int]] = (),
        lease: timedelta = timedelta(seconds=30),
    ) -> dict[tuple[int, int], Hold]:
        """Renews claims, given as (run id, token, started at).

        threads: those, as (run id, token), whose functions are in a thread; if their claim is lost they count as left
        behind, for the lease.
        Returns what becomes of each (run id, token) that still holds. A claim that is missing in the answer is lost.
        """
        cursor = await connection.execute(
            self.query("beat"),
            {
                "worker": worker,
                "ids": _array(c[0] for c in claims),
                "tokens": _array(c[1] for c in claims),
                "started": _array(c[2] for c in claims),
                "thread_ids": _array(run_id for run_id, _ in threads),
                "thread_tokens": _array(token for _, token in threads),
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
        """Writes how attempts ended, each under its claim.

        Returns the (run id, token) of those that landed, and of each whether its own transaction had committed its
        success before. look_after_ends() tells what became of the others.
        """
        cursor = await self._send(
            connection,
            "finish_runs",
            {
                "worker": worker,
                "ids": _array(o.claim.run_id for o in outcomes),
                "tokens": _array(o.claim.token for o in outcomes),
                "statuses": _array(o.status for o in outcomes),
                "started": _array(o.started_at for o in outcomes),
                "finished": _array(o.finished_at for o in outcomes),
                "results": _texts(o.result_json for o in outcomes),
                "error_types": _texts(o.error.type if o.error else None for o in outcomes),
                "messages": _texts(o.error.message if o.error else None for o in outcomes),
                "tracebacks": _texts(o.error.traceback if o.error else None for o in outcomes),
                "reasons": _texts(o.reason for o in outcomes),
                "delays": _array(o.delay.total_seconds() for o in outcomes),
                "refunds": _array(int(o.refund) for o in outcomes),
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
        """Gives back runs of schedules that were claimed and never begun: to the queue, or with their fire time to a
        schedule that has changed since; then their rows stay if they shall (`stay`), as cancelled. Returns the
        (run id, token) of those that landed."""
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
    ) -> dict[tuple[int, int], bool]:
        """What became of outcomes that did not land just now, by (run id, token).

        True: they landed at an earlier try. False: somebody has their row locked, try again. The others are lost.
        """
        cursor = await connection.execute(
            self.query("look_after_ends"),
            {
                "worker": worker,
                "ids": [o.claim.run_id for o in outcomes],
                "tokens": [o.claim.token for o in outcomes],
            },
        )
        return {(row[0], row[1]): row[2] for row in await cursor.fetchall()}

    async def write_journals(
        self, connection: Connection, worker: uuid.UUID, said: Sequence[tuple[Claim, Said]]
    ) -> set[tuple[int, int]]:
        """Writes what attempts say, each under its claim. Returns the (run id, token) of those whose claim holds and
        whose row nobody else has locked; of the others nothing is written."""
        lines = [(c, n, line) for c, s in said for n, line in enumerate(s.lines, s.number)]
        cursor = await connection.execute(
            self.query("write_journals"),
            {
                "worker": worker,
                "ids": [c.run_id for c, _ in said],
                "tokens": [c.token for c, _ in said],
                "done": [s.progress[0] if s.progress else None for _, s in said],
                "total": [s.progress[1] if s.progress else None for _, s in said],
                "line_ids": [c.run_id for c, _, _ in lines],
                "line_tokens": [c.token for c, _, _ in lines],
                "numbers": [n for _, n, _ in lines],
                "ats": [line.at for _, _, line in lines],
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

    # --- the reaper -------------------------------------------------------------------------------------

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
    ) -> tuple[datetime, timedelta, int, list[Silent]]:
        """Running runs that have not beaten for a while, and whose claims may be taken now or soon: a page of them, by
        id, behind `after`.

        silence, stall_timeout, machine: the asker's; a worker's own stall timeout counts if it is known.
        Returns the database's now, how long the server has been up, how many runs other workers have running,
        and the silent ones.
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
        return head["now"], head["server_up"], head["elsewhere"], silent

    async def reap_runs(
        self, connection: Connection, verdicts: Sequence[tuple[Silent, RunStatus, timedelta, str]]
    ) -> list[int]:
        """Takes silent claims away, each only if it is still the claim that was seen, with the beat that was
        seen. Returns the ids of those that were."""
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
        """Ends the sessions of these names, which belong to attempts that lost their claims. Returns how many."""
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
        """Deletes runs of a status that ended longer ago than `age`, looking at `limit` of them at most, from where the
        last batch stopped. look: deletes nothing."""
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

    # --- rows that the server refuses -------------------------------------------------------------------

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

    # --- workers and declared schedules -----------------------------------------------------------------

    async def insert_worker(self, connection: Connection, **values: Any) -> None:
        """Says that this worker is here."""
        await connection.execute(self.query("insert_worker"), values)

    async def delete_worker(
        self, connection: Connection, worker: uuid.UUID, hanging: Sequence[int] = (), lease: timedelta = timedelta(0)
    ) -> None:
        """Says that this worker is gone, and forgets others that must be. hanging: the tokens of what goes on in its
        threads, and counts for so long."""
        await connection.execute(
            self.query("delete_worker"),
            {"worker": worker, "channel": self.schema, "hanging": list(hanging), "lease": lease},
        )

    async def keep_left_behind(
        self,
        connection: Connection,
        worker: uuid.UUID,
        claims: Sequence[tuple[int, int]],
        busy: Sequence[int],
        lease: timedelta,
    ) -> None:
        """Says which attempts of this worker, as (run id, token), have ended or lost their claim while their threads go
        on: all of them. They count for the lease. busy: the tokens of all attempts whose threads are at work."""
        ids, tokens = [run_id for run_id, _ in claims], [token for _, token in claims]
        params = {
            "worker": worker, "ids": ids, "tokens": tokens, "busy": list(busy), "lease": lease, "channel": self.schema,
        }  # fmt: skip
        await connection.execute(self.query("keep_left_behind"), params)

    async def forget_leftovers(self, connection: Connection) -> None:
        """Forgets what removed schedules and dead workers' threads have left, a day after."""
        await connection.execute(self.query("forget_leftovers"), {})

    async def forget_workers(self, connection: Connection) -> int:
        """Forgets workers that said no goodbye. Returns how many."""
        return (await connection.execute(self.query("forget_workers"), {})).rowcount

    async def lock_declarations(self, connection: Connection, app: str) -> None:
        """Waits until no other transaction is at work on the application's declarations, and keeps others out
        until this one ends."""
        while True:
            cursor = await connection.execute(self.query("lock_declarations"), {"app": app})
            if cursor.rowcount:
                return
            await connection.execute(self.query("add_declarations"), {"app": app})

    async def set_patience(self, connection: Connection, limit: timedelta) -> None:
        """How long each statement of this transaction may take, wait for a lock, and be waited for."""
        await connection.execute(self.query("set_patience"), {"limit": f"{limit // timedelta(milliseconds=1)}ms"})

    async def find_lock(
        self, connection: Connection, worker: uuid.UUID, owner: str, names: Sequence[str]
    ) -> tuple[str, int, datetime | None] | None:
        """What a start of this owner cannot lock, the process id of the session that has it locked, and since when that
        one has been in its transaction. None if nobody has."""
        own = {"own": application_name(worker)}
        for query, params in (
            ("find_table_lock", own | {"schema": self.schema}),
            ("find_row_lock", own | {"owner": owner, "names": list(names)}),
        ):
            for row in await self.rows(connection, query, params):
                return row["what"], row["pid"], row["since"]
        return None

    async def read_declarations(self, connection: Connection, app: str, fingerprint: str) -> Standing:
        """Where the application's declarations stand, seen by a worker whose own have this fingerprint."""
        cursor = connection.cursor(row_factory=class_row(Standing))
        await cursor.execute(self.query("read_declarations"), {"app": app, "fingerprint": fingerprint})
        row = await cursor.fetchone()
        assert row is not None
        return row

    async def record_declarations(self, connection: Connection, app: str, fingerprint: str) -> None:
        """Puts a fingerprint in force for the application."""
        await connection.execute(self.query("record_declarations"), {"app": app, "fingerprint": fingerprint})

    async def read_owners(self, connection: Connection, owner: str, declared: Sequence[str]) -> list[Other]:
        """The other applications that own a name which the owner declares."""
        cursor = connection.cursor(row_factory=class_row(Other))
        await cursor.execute(self.query("read_owners"), {"owner": owner, "declared": list(declared)})
        return await cursor.fetchall()

    async def read_holders(self, connection: Connection, app: str, *, in_force: bool) -> list[Holder]:
        """The live workers of an application; with in_force only those that have the declarations in force."""
        cursor = connection.cursor(row_factory=class_row(Holder))
        await cursor.execute(self.query("read_holders"), {"app": app, "in_force": in_force})
        return await cursor.fetchall()

    async def adopt(self, connection: Connection, old: str, new: str) -> tuple[list[str], int]:
        """Gives what one application owns to another, in the caller's transaction. Returns the names of its schedules,
        and how many live runs of no schedule there were."""
        names = connection.cursor(row_factory=scalar_row)
        await names.execute(self.query("adopt_schedules"), {"old": old, "new": new})
        runs = connection.cursor(row_factory=scalar_row)
        await runs.execute(self.query("adopt_runs"), {"old": old, "new": new})
        await self.declare_limits(connection, f"code:{old}", [])  # nobody of that name keeps them any more
        await connection.execute(self.query("forget_declarations"), {"app": old})
        return await names.fetchall(), await runs.fetchone() or 0

    async def compare_schedules(
        self, connection: Connection, owners: Sequence[str], declared: Sequence[dict[str, Any]]
    ) -> list[Compared]:
        """The schedules that the code declares, and those the owners have and it does not declare, by name. Locks
        nothing."""
        cursor = connection.cursor(row_factory=dict_row)
        params = {"owners": list(owners), "declared": Jsonb(list(declared))}
        await cursor.execute(self.query("compare_schedules"), params)
        return [_compared(row) for row in await cursor.fetchall()]

    async def upsert_schedules(self, connection: Connection, declared: Sequence[dict[str, Any]]) -> list[str]:
        """Makes or changes declared schedules. Returns the names it wrote; the others belong to somebody else."""
        cursor = connection.cursor(row_factory=scalar_row)
        await cursor.execute(self.query("upsert_schedules"), {"declared": Jsonb(list(declared))})
        return await cursor.fetchall()

    async def retire_schedules(self, connection: Connection, owner: str, declared: Sequence[str]) -> list[Schedule]:
        """Finishes the owner's schedules that it does not declare any more. Returns them as they were before."""
        cursor = connection.cursor(row_factory=class_row(Schedule))
        await cursor.execute(self.query("retire_schedules"), {"owner": owner, "declared": list(declared)})
        return await cursor.fetchall()

    async def declare_limits(
        self, connection: Connection, owner: str, declared: Sequence[dict[str, Any]]
    ) -> tuple[list[str], list[tuple[str, str]]]:
        """Puts an owner's limits in force, and lifts those that it declares no more.

        Returns the entrypoints of which something changed, and the shared limits, with their owner, that another owner
        had declared otherwise.
        """
        params = {"app": _app(owner), "owner": owner, "declared": Jsonb(list(declared))}
        rows = await (await connection.execute(self.query("declare_limits"), params)).fetchall()
        return [row[0] for row in rows if row[0] is not None], [(row[1], row[2]) for row in rows if row[0] is None]

    async def compare_limits(
        self, connection: Connection, owner: str, declared: Sequence[dict[str, Any]]
    ) -> dict[str, dict[str, tuple[Any, Any]]]:
        """Of each entrypoint whose limits differ from the declared ones, what does: the value stored, and declared."""
        params = {"app": _app(owner), "declared": Jsonb(list(declared))}
        rows = await self.rows(connection, "compare_limits", params)
        return {
            row["entrypoint"]: {
                name: (_limit(name, was), _limit(name, will))
                for name, was, will in zip(row["names"], row["were"], row["become"], strict=True)
            }
            for row in rows
        }

    # --- people -----------------------------------------------------------------------------------------

    async def rows(self, connection: Connection, name: str, params: dict[str, Any]) -> list[dict[str, Any]]:
        """The rows of a query that is only shown to people."""
        cursor = _anybodys(connection, dict_row)
        await cursor.execute(self.query(name), params)
        return await cursor.fetchall()

    async def call(self, connection: Connection, name: str, params: dict[str, Any]) -> Any:
        """The one value of a query that calls one of the schema's functions."""
        cursor = _anybodys(connection, scalar_row)
        await cursor.execute(self.query(name), params)
        return await cursor.fetchone()


def _anybodys(connection: Connection, row_factory: AsyncRowFactory[_Row]) -> AsyncCursor[_Row]:
    """A cursor of a connection that may be a caller's, in any time zone, with any DateStyle and IntervalStyle: values
    come as numbers, and instants in UTC."""
    cursor = connection.cursor(row_factory=row_factory, binary=True)
    if isinstance(cursor, AsyncClientCursor):  # a framework's choice, which cannot
        cursor = AsyncCursor(connection, row_factory=row_factory)
        cursor.format = Format.BINARY
    cursor.adapters.register_loader("timestamptz", InUtcBinary)
    return cursor


@dataclass(frozen=True, slots=True)
class Pruned:
    """A batch of old runs: whether it was this worker's turn, how many were looked at and deleted, the last of them."""

    mine: bool
    seen: int
    gone: int
    after: datetime | None
    after_id: int | None


@dataclass(frozen=True, slots=True)
class EntrypointDefaults:
    """What an entrypoint of this worker says of runs that say nothing themselves."""

    entrypoint: str
    max_attempts: int
    backoff: timedelta
    max_backoff: timedelta
    timeout: timedelta | None


class Withheld(NamedTuple):
    """What a claim pass leaves to others: schedules of these zones, if their entrypoint is among the covered ones."""

    zones: tuple[str, ...] = ()
    covered: tuple[str, ...] = ()


class Zoned(NamedTuple):
    """What a plan notes of its time zone: the rules it went by, and what the zone's clock shows by them at next_run
    and at accounted_through. All None for UTC."""

    rules: str | None = None
    next_wall: datetime | None = None
    accounted_wall: datetime | None = None


@dataclass(frozen=True, slots=True)
class Planned:
    """A locked schedule, what was decided for it, and the rules its runs get."""

    schedule: Schedule
    plan: Plan
    max_attempts: int
    backoff: timedelta
    max_backoff: timedelta
    timeout: timedelta | None
    zoned: Zoned = Zoned()

    @classmethod
    def of(
        cls,
        schedule: Schedule,
        plan: Plan,
        retry: Retry | None = None,
        timeout: timedelta | None = None,
        zoned: Zoned | None = None,
    ) -> Planned:
        """With the schedule's own rules, and where it has none those of its entrypoint."""
        retry = retry or Retry()
        return cls(
            schedule=schedule,
            plan=plan,
            max_attempts=schedule.max_attempts or retry.attempts,
            backoff=retry.backoff if schedule.backoff is None else schedule.backoff,
            max_backoff=retry.max_backoff if schedule.max_backoff is None else schedule.max_backoff,
            timeout=schedule.timeout or timeout,
            zoned=zoned or Zoned(),
        )

    def claimed(self, run_id: int, fire_time: datetime, token: int) -> ClaimedRun:
        """The run as it was just made and claimed."""
        run = next(r for r in self.plan.runs if r.fire_time == fire_time)
        return ClaimedRun(
            id=run_id,
            schedule_id=self.schedule.id,
            entrypoint=self.schedule.entrypoint,
            args_json=self.schedule.args_json,
            fire_time=fire_time,
            previous_fire_time=run.previous,
            due_at=run.due_at,
            attempt=1,
            token=token,
            max_attempts=self.max_attempts,
            backoff=self.backoff,
            max_backoff=self.max_backoff,
            timeout=self.timeout,
            schedule=self.schedule,
        )


def _claim_params(worker: uuid.UUID, defaults: Sequence[EntrypointDefaults]) -> dict[str, Any]:
    return {
        "worker": worker,
        "entrypoints": _names(d.entrypoint for d in defaults),
        "max_attempts": _array(d.max_attempts for d in defaults),
        "backoffs": _array(_seconds(d.backoff) for d in defaults),
        "max_backoffs": _array(_seconds(d.max_backoff) for d in defaults),
        "timeouts": _array(_seconds(d.timeout) for d in defaults),
    }


def _array(values: Iterable[object]) -> str:
    """An array of numbers, instants or bare words, as PostgreSQL writes it: of a thousand values one by one, psycopg
    would take as long as everything else."""
    return "{" + ",".join(["NULL" if value is None else str(value) for value in values]) + "}"


def _names(names: Iterable[str]) -> str:
    """An array of names, likewise."""
    return "{" + ",".join(['"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"' for name in names]) + "}"


def _seconds(duration: timedelta | None) -> str | None:
    """A duration in such an array."""
    return None if duration is None else f"{duration.days} days {duration.seconds}.{duration.microseconds:06d}s"


def _texts(values: Iterable[str | None]) -> list[str | None] | None:
    """An array of texts; none where all are null, with which unnest() fills up beside longer ones."""
    texts = list(values)
    return texts if any(text is not None for text in texts) else None


def claim_of(run: ClaimedRun, worker: uuid.UUID) -> Claim:
    """The claim under which a run is held."""
    return Claim(run.id, run.token, worker)


def _app(owner: str) -> str:
    """The name of the application that owns what the code declares."""
    return owner.removeprefix("code:")


_DURATIONS = frozenset({"grace", "jitter", "timeout", "backoff", "max_backoff"})
_INSTANTS = frozenset({"starts_at", "ends_at"})


def _compared(row: dict[str, Any]) -> Compared:
    options, were, become = row.pop("options"), row.pop("were"), row.pop("become")
    values = zip(options, were, become, strict=True)
    row["run_count"] = row["run_count"] or 0
    row["retired"], row["paused"] = bool(row["retired"]), bool(row["paused"])
    return Compared(**row, changes={name: (_value(name, old), _value(name, new)) for name, old, new in values})


def _limit(name: str, text: str | None) -> Any:
    """A limit's value out of its JSON text."""
    value = definition.parsed(text)
    return timedelta(seconds=float(value)) if name == "period" and value is not None else value


def _value(option: str, text: str | None) -> Any:
    """An option's value out of its JSON text."""
    value = definition.parsed(text)
    if value is not None and option in _DURATIONS:
        return timedelta(seconds=value)
    return datetime.fromisoformat(value) if value is not None and option in _INSTANTS else value
