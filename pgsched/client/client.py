"""What applications call: schedules, jobs and their history, thin over the schema's SQL functions.

Whether values make sense is options' to check; what the database refuses, failures' to tell.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from pgsched.client.connections import Connections, Pooled, Row, Statements, conninfo_of
from pgsched.client.runs import ENDED, REACH, Runs
from pgsched.client.why import Situation
from pgsched.db.failures import reach
from pgsched.db.session import Connection
from pgsched.db.statements.store import Store
from pgsched.errors import InvalidArguments, NotFound, PgschedError
from pgsched.expression.expression import parse
from pgsched.model import RunStatus, ScheduleStatus
from pgsched.rules import backfill, options
from pgsched.rules.backfill import Backfill
from pgsched.rules.retry import Retry

__all__ = ["Client", "Enqueued", "Row", "connect"]

_BATCH = 500  # fire times that a backfill writes in one statement


class Enqueued(int):
    """The id of a run, and whether the call has queued it. It is false if a run had the unique key already: then this
    is that run's id."""

    queued: bool

    def __new__(cls, run_id: int, queued: bool) -> Enqueued:
        """Made by enqueue() and enqueue_many()."""
        made = super().__new__(cls, run_id)
        made.queued = queued
        return made


@contextlib.asynccontextmanager
async def connect(dsn: str | None = None, *, schema: str = "pgsched") -> AsyncIterator[Client]:
    """A client of the database, to be used inside `async with`; connect_sync() makes one for synchronous code.

    dsn: a URI or libpq's key=value pairs; default PGSCHED_DSN, then libpq's own environment. schema: the one
    that `pgsched migrate` made. Opens at most four connections and closes them at the end of the block.

    Raises DatabaseUnavailable where nothing answers, ConfigurationError for a DSN that cannot be read.
    """
    info = conninfo_of(dsn, schema, "connect()")
    # A pool keeps trying and never says why; one connection by hand tells at once what is wrong.
    await (await reach(info)).close()
    connections = Pooled(info)
    async with connections.pool:
        yield Client(connections, schema)


class Client:
    """Schedules, jobs and their history. Made by connect(); tasks may share one.

    Every method takes connection=, a psycopg AsyncConnection, to be part of the caller's transaction: what it
    does then happens when that commits. Without one, it has happened when the method returns. Rows are dicts
    with the columns' names; times are aware and in UTC, durations timedeltas, JSON is parsed.

    Besides what they say, all raise DatabaseUnavailable where the database is gone, SchemaError where it has
    not been migrated, InvalidArguments for values it refuses.
    """

    runs: Runs  # what takes more than one statement: wait(), retry_many()

    def __init__(self, connections: Connections, schema: str = "pgsched") -> None:
        self._sql = Statements(connections, Store(schema))
        self.runs = Runs(self._sql)

    def use(self, store: Store) -> None:
        """Has it send other statements: tests have some that go by another clock."""
        self._sql.store = store

    # --- schedules --------------------------------------------------------------------------------------

    async def create_schedule(
        self,
        name: str,
        entrypoint: str,
        expression: str,
        *,
        timezone: str = "UTC",
        args: Mapping[str, Any] | None = None,
        overlap: str | int = "skip",
        catch_up: str = "latest",
        catch_up_limit: int = 1000,
        grace: timedelta | None = None,
        jitter: timedelta | None = None,
        timeout: timedelta | None = None,
        retry: Retry | None = None,
        starts_at: datetime | None = None,
        ends_at: datetime | None = None,
        max_runs: int | None = None,
        priority: int = 0,
        app: str | None = None,
        connection: Connection | None = None,
    ) -> int:
        """Makes a schedule, which a worker plans as soon as this commits. Returns its id.

        expression: cron, every(...), at(...) or a macro, on the wall clock of `timezone`. args: given to the
        function by name. overlap: what a fire time does while an earlier run is live, "skip", "queue" (at most one
        waits), "cancel" (the earlier one), "allow", or at most N at once. catch_up: which of several missed fire
        times run, "latest", "all" (the newest catch_up_limit of them, oldest first), "none". grace: a fire time older
        than this is missed. jitter: starts are put off by up to this. timeout, retry: default as the entrypoint says.
        starts_at, ends_at: it fires from the one through the other. max_runs: then it is finished. priority: -100 to
        100, higher first. app: only workers of that application run it; default any worker that has the entrypoint.

        Raises InvalidExpression, InvalidArguments (both ValueErrors), PgschedError where the name is taken.
        """
        options.name_of("name", name)
        options.check_stored({"retry": retry})
        parse(expression, timezone, name=name)
        columns = options.columns(
            {
                "entrypoint": entrypoint,
                "expression": expression,
                "timezone": timezone,
                "args": args,
                "overlap": overlap,
                "catch_up": catch_up,
                "catch_up_limit": catch_up_limit,
                "grace": grace,
                "jitter": jitter,
                "timeout": timeout,
                "retry": retry,
                "starts_at": starts_at,
                "ends_at": ends_at,
                "max_runs": max_runs,
                "priority": priority,
                "app": app,
            }
        )
        params = {key: columns.pop(key) for key in ("entrypoint", "expression", "timezone", "args")}
        params |= {"name": name, "args": _json(params["args"]), "options": _json(columns)}
        return int(await self._sql.call("create_schedule", params, connection))

    async def alter(self, name: str, /, *, connection: Connection | None = None, **changes: Any) -> None:
        """Changes options of a schedule, under the names that create_schedule() has for them.

        A change of the expression, the zone or the bounds has it planned anew. One that the code declares is
        set back when its application starts again. Raises NotFound, InvalidExpression, InvalidArguments.
        """
        options.check_stored(changes)
        params = {"name": name, "changes": _json(options.columns(changes))}
        await self._sql.call("alter_schedule", params, connection)

    async def pause(
        self,
        name: str,
        note: str | None = None,
        until: datetime | None = None,
        *,
        backlog: bool = False,
        connection: Connection | None = None,
    ) -> None:
        """Pauses a schedule, until an aware instant (a fire time at that instant runs) or until resume(). note: why,
        for those who look.

        backlog: what falls into the pause is treated as missed afterwards, by catch_up; by default it is recorded as
        skipped. Raises NotFound, and PgschedError where it is finished or invalid.
        """
        params = {"name": name, "note": note, "until": options.instant("until", until), "backlog": backlog}
        await self._sql.call("pause_schedule", params, connection)

    async def resume(self, name: str, *, backlog: bool | None = None, connection: Connection | None = None) -> None:
        """Lets a paused schedule go on.

        backlog: False, its fire times meanwhile are recorded as skipped; True, they are treated as missed, by
        catch_up; None, as pause() said. Raises NotFound, and PgschedError where it is finished or invalid.
        """
        await self._sql.call("resume_schedule", {"name": name, "backlog": backlog}, connection)

    async def trigger(self, name: str, *, connection: Connection | None = None) -> int:
        """Runs a schedule now, whatever its status. Returns the run's id. Raises NotFound."""
        return int(await self._sql.call("trigger_schedule", {"name": name}, connection))

    async def backfill(
        self,
        name: str,
        start: datetime,
        end: datetime,
        *,
        again: bool = False,
        dry_run: bool = False,
        limit: int = 10_000,
        priority: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        connection: Connection | None = None,
    ) -> Backfill:
        """Queues the schedule's fire times from `start` through `end` (aware, past) as runs of their own.

        Whatever its status is, and whether they were skipped or it did not exist then. A fire time that has a run is
        left alone, so that a second call does nothing; with `again` one more run is made where none is live.
        Each run stands for the window from the fire time before (`previous_fire_time`). They keep to the schedule's
        overlap, and let its own fire times go first: priority is -100 to 100, default ten less than the schedule's.

        dry_run: only tells what would be queued. limit: refuses a range with more fire times (1 to 1,000,000).
        progress: called with how many fire times are done, and how many there are.
        Raises NotFound, InvalidArguments, InvalidExpression; PgschedError where the schedule is removed or retimed
        meanwhile.
        """
        start, end = _given("start", start), _given("end", end)
        options.whole("limit", limit, 1, backfill.MOST)
        if priority is not None:
            options.whole("priority", priority, -100, 100)
        row = await self.get_schedule(name, connection=connection)
        times = backfill.fire_times(row, start, end, await self.now(connection=connection), limit)
        found = Backfill()
        for first in range(0, len(times), _BATCH):
            batch = times[first : first + _BATCH]
            params: Row = {"name": name, "fire_times": [time for time, _ in batch]}
            made: dict[datetime, int | None] = {}
            if not dry_run:
                more = {"previous": [before for _, before in batch], "again": again, "priority": priority}
                same = {"id": row["id"], "timed_at": row["timed_at"]}
                rows = await self._sql.rows("backfill_runs", params | more | same, connection)
                if not rows:
                    raise PgschedError(
                        f'Schedule "{name}" was changed while it was being backfilled: {len(found.queued)} of its runs '
                        "are queued. Look at it, and backfill again what is missing."
                    )
                made = {row["fire_time"]: row["id"] for row in rows if row["id"] is not None}
            # Afterwards, so that a run that somebody made meanwhile is told too.
            had = {r["fire_time"]: r for r in await self._sql.rows("list_fire_times", params, connection)}
            if dry_run:
                free = {time for time in params["fire_times"] if time not in had}
                made = dict.fromkeys(free | {time for time, row in had.items() if again and row["status"] in ENDED})
            found.queued.update({time: made[time] for time in params["fire_times"] if time in made})
            found.left_alone.update({time: row["id"] for time, row in had.items() if time not in made})
            if progress is not None:
                progress(first + len(batch), len(times))
        return found

    async def now(self, *, connection: Connection | None = None) -> datetime:
        """The database's clock: the one that decides."""
        found: datetime = await self._sql.call("read_clock", {}, connection)
        return found.astimezone(UTC)

    async def remove(self, name: str, *, connection: Connection | None = None) -> None:
        """Removes a schedule and what it has queued; its history stays. Raises NotFound."""
        await self._sql.call("remove_schedule", {"name": name}, connection)

    async def list_schedules(
        self,
        *,
        entrypoint: str | None = None,
        status: str | None = None,
        connection: Connection | None = None,
    ) -> list[Row]:
        """The schedules, by name; those of an entrypoint or a status where one is given."""
        status = options.one_of(ScheduleStatus, status)
        params = {"name": None, "entrypoint": entrypoint, "status": status}
        return await self._sql.rows("list_schedules", params, connection)

    async def get_schedule(self, name: str, *, connection: Connection | None = None) -> Row:
        """A schedule. Raises NotFound."""
        params = {"name": name, "entrypoint": None, "status": None}
        rows = await self._sql.rows("list_schedules", params, connection)
        if not rows:
            raise _no_schedule(name)
        return rows[0]

    # --- runs -------------------------------------------------------------------------------------------

    async def enqueue(
        self,
        entrypoint: str,
        args: Mapping[str, Any] | None = None,
        *,
        due_at: datetime | None = None,
        priority: int = 0,
        unique_key: str | None = None,
        unique: str = "live",
        app: str | None = None,
        connection: Connection | None = None,
    ) -> Enqueued:
        """Queues one run of an entrypoint. Returns its id, whose attribute `queued` is true if the call queued it.

        args: given to the function by name.
        due_at: aware; default at once.
        priority: -100 to 100, higher first.
        unique_key: if a run with the key is queued or running, nothing is queued and its id is returned.
        unique: "live" (default), or "waiting": the key only counts while a run is queued, so that one can wait while
            another runs. Use one of the two for a key. A run that would be tried again ends if another one waits.
        app: only workers of that application run it; default any that has the entrypoint. Keys of applications are
            apart, those of no application too.
        """
        params = {**options.job(entrypoint, due_at, priority, app, unique), "unique_key": unique_key}
        params["args"] = options.json_object("args", args)
        [row] = await self._sql.rows("enqueue_run", params, connection)
        return Enqueued(row["run_id"], row["queued"])

    async def enqueue_many(
        self,
        entrypoint: str,
        list_of_args: Sequence[Mapping[str, Any] | None],
        *,
        due_at: datetime | None = None,
        priority: int = 0,
        unique_keys: Sequence[str | None] | None = None,
        unique: str = "live",
        app: str | None = None,
        connection: Connection | None = None,
    ) -> list[Enqueued]:
        """Queues one run for each of the arguments, all or none, in one statement. Returns their ids, in order, as
        enqueue() does.

        unique_keys: one for each of the arguments, or None. If a run has the key, one of an earlier place included, its
        id stands in this place and nothing is queued for it. The others: as enqueue() has them.
        """
        texts = [options.json_object(f"args number {n}", args) for n, args in enumerate(list_of_args)]
        params = {**options.job(entrypoint, due_at, priority, app, unique), "args": texts}
        params["unique_keys"] = options.keys("unique_keys", unique_keys, len(texts))
        if not texts:
            return []
        [row] = await self._sql.rows("enqueue_runs", params, connection)
        return [Enqueued(run_id, queued) for run_id, queued in zip(row["ids"], row["queued"], strict=True)]

    async def cancel(self, run_id: int, *, connection: Connection | None = None) -> str:
        """Cancels a queued run (returns "cancelled"), or asks the worker of a running one to ("requested").

        Raises NotFound, and PgschedError where it has ended.
        """
        return str(await self._sql.call("cancel_run", {"run_id": options.run_id(run_id)}, connection))

    async def retry(self, run_id: int, *, connection: Connection | None = None) -> None:
        """Queues a failed or cancelled run again, with at least one more attempt.

        Raises NotFound, and PgschedError where it has neither failed nor been cancelled.
        """
        await self._sql.call("retry_run", {"run_id": options.run_id(run_id)}, connection)

    async def list_runs(
        self,
        schedule: str | None = None,
        status: str | None = None,
        entrypoint: str | None = None,
        limit: int = 100,
        *,
        since: datetime | None = None,
        connection: Connection | None = None,
    ) -> list[Row]:
        """The newest runs first, skips among them, at most `limit`; without args, result and errors.

        schedule: a name; raises NotFound if no schedule has it. since: an aware instant; only runs that ended from
        then on, or have not ended. status: the newest of an ended status are those that ended last.

        The cost does not grow with history. Filters that no index has therefore search the newest 100,000 runs, and all
        live ones: entrypoint=, and since= or status="succeeded" beside schedule=. Of these, status="failed" and
        "cancelled" search everything, unless both entrypoint= and schedule= are given.
        """
        params = {
            "schedule": schedule,
            "status": options.one_of(RunStatus, status),
            "entrypoint": entrypoint,
            "limit": options.whole("limit", limit, 1, 1_000_000),
            "since": options.instant("since", since),
            "most": REACH,
            "near": REACH // 50,
        }
        rows = await self._sql.rows("list_runs", params, connection)
        if not rows and schedule is not None:
            await self.get_schedule(schedule, connection=connection)
        return rows

    async def list_runs_between(
        self,
        schedule: str,
        start: datetime,
        through: datetime,
        limit: int = 1000,
        *,
        connection: Connection | None = None,
    ) -> list[Row]:
        """What is recorded of a schedule's fire times from `start` through `through`, oldest first, at most `limit`:
        runs, and skips that reach into it; without args, result and errors."""
        params = {"name": schedule, "start": _given("start", start), "through": _given("through", through)}
        params |= {"limit": options.whole("limit", limit, 1, 1_000_000)}
        return await self._sql.rows("list_runs_between", params, connection)

    async def situation(self, schedule: str, *, connection: Connection | None = None) -> Situation:
        """What a due fire time of a schedule may be waiting for. Raises NotFound."""
        rows = await self._sql.rows("read_situation", {"name": schedule}, connection)
        if not rows:
            raise _no_schedule(schedule)
        row = rows[0]
        return Situation(row["now"].astimezone(UTC), row["served"], tuple(row["live"]), row["refused"])

    async def get_run(self, run_id: int, *, connection: Connection | None = None) -> Row:
        """A run with its args, its result, the errors of its attempts and how each ended; see runs.get(). Raises
        NotFound."""
        return await self.runs.get(run_id, connection=connection)

    async def list_workers(self, *, connection: Connection | None = None) -> list[Row]:
        """The workers, oldest first; `connected` tells whether the server sees a session of theirs."""
        return await self._sql.rows("list_workers", {}, connection)

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A transaction on a connection of the client's: `async with client.transaction() as connection:`.

        Given to calls as connection=, all of what they do happens at the end of the block, or nothing of it; other
        statements may go over it, too. What the block raises ends it and passes unchanged.
        """
        async with self._sql.transaction() as connection:
            yield connection


def _given(what: str, value: Any) -> datetime:
    found = options.instant(what, value)
    if found is None:
        raise InvalidArguments(f"{what} is a datetime with a time zone, not None.")
    return found


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _no_schedule(name: str) -> NotFound:
    return NotFound(f'There is no schedule "{name}".')
