"""The client for applications: schedules, jobs and their history, a thin layer over the schema's SQL functions.

options checks the values; failures words the database's refusals.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from pgsched.client.connections import Pooled, Row, conninfo_of
from pgsched.client.looks import Looks, required_instant
from pgsched.client.runs import ENDED
from pgsched.client.timeouts import TIMEOUT, seconds_of
from pgsched.db.failures import reach
from pgsched.db.session import Connection
from pgsched.db.statements.queries import Queries
from pgsched.errors import PgschedError
from pgsched.expression.expression import parse
from pgsched.rules import backfill, options
from pgsched.rules.backfill import Backfill
from pgsched.rules.retry import Retry

__all__ = ["Client", "Enqueued", "Row", "connect"]

BATCH = 500  # fire times that a backfill writes in one statement


class Enqueued(int):
    """The id of a run, and whether the call has queued it.

    If a run already had the unique key, `queued` is false and this is that run's id.
    """

    queued: bool

    def __new__(cls, run_id: int, queued: bool) -> Enqueued:
        """Made by enqueue() and enqueue_many()."""
        made = super().__new__(cls, run_id)
        made.queued = queued
        return made


@contextlib.asynccontextmanager
async def connect(
    dsn: str | None = None, *, schema: str = "pgsched", timeout: timedelta | float | None = TIMEOUT
) -> AsyncIterator[Client]:
    """A client of the database, for use in `async with`; connect_sync() makes one for synchronous code.

    dsn: a URI or libpq's key=value pairs. Default: PGSCHED_DSN, then libpq's own environment.
    schema: the schema that `pgsched migrate` made.
    timeout: a timedelta or seconds, at most one day; None for no limit. Default 30 s. A call ends within it, with the
        wait for a free connection and for a new one. Each batch of backfill() and runs.retry_many() has it, and each
        look of runs.wait() and runs.follow().

    Opens at most four connections and closes them at the end of the block. Raises DatabaseUnavailable if nothing
    answers, ConfigurationError for a DSN that cannot be read, InvalidArguments for another timeout.
    """
    info = conninfo_of(dsn, schema, "connect()")
    async with opened(info, Queries(schema), seconds_of(timeout)) as client:
        yield client


@contextlib.asynccontextmanager
async def opened(info: str, queries: Queries, timeout: float | None = TIMEOUT) -> AsyncIterator[Client]:
    """A client of the database that a connection string leads to; pgsched.testing sends queries of its own."""
    # A pool keeps trying until the timeout; one connection made by hand fails at once with the reason.
    await (await reach(info, timeout)).close()
    async with Pooled(info, timeout).opened() as connections:
        yield Client(connections, queries)


class Client(Looks):
    """Schedules, jobs and their history. Made by connect(); tasks may share one.

    Every method takes connection=, a psycopg AsyncConnection, to be part of the caller's transaction: its effect then
    happens when that transaction commits. Without one, it has happened when the method returns. Rows are dicts
    with the columns' names; times are aware and in UTC, durations timedeltas, JSON is parsed.

    All methods also raise DatabaseUnavailable if the database is gone or has not answered within connect()'s timeout,
    SchemaError if it has not been migrated, and InvalidArguments for values that it refuses.

    On a connection= of yours, the timeout is for the answer alone. After it, psycopg cancels the statement, which can
    take ten seconds more: the transaction has failed then, or the connection is closed. A psycopg.Connection, in
    synchronous code, has no such limit: set its tcp_user_timeout, or statement_timeout in its transaction.
    """

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

        expression: a cron expression, every(...), at(...) or a macro, read on the wall clock of `timezone`.
        args: JSON, given to the function by name.
        overlap: for a fire time that comes while an earlier run is live: "skip" (it does not run), "queue" (it waits;
            at most one does), "cancel" (the earlier run is cancelled first), "allow", or N (at most N run at once).
        catch_up: which of several missed fire times run: "latest", "all" (the newest catch_up_limit, oldest first), or
            "none".
        grace: a fire time older than this is missed.
        jitter: delay each start by up to this much.
        timeout, retry: default: the entrypoint's.
        starts_at, ends_at: aware instants; the schedule fires from the one through the other, and at no other time.
        max_runs: the schedule is finished after this many runs.
        priority: -100 to 100; due runs of a higher priority start first.
        app: only workers of that application run it. Default: any worker that has the entrypoint.

        Raises InvalidExpression, InvalidArguments (both ValueErrors), PgschedError if the name is taken.
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
        """Changes options of a schedule, under the names of create_schedule().

        After a change of the expression, the time zone or the bounds, the schedule is replanned. The changes of a
        declared schedule are undone when its application starts again. Raises NotFound, InvalidExpression,
        InvalidArguments.
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
        """Pauses a schedule, until an aware instant (a fire time at that instant runs) or until resume().

        note: the reason, shown with the schedule.
        backlog: on resume, treat fire times that fell into the pause as missed and apply catch_up. Default: they are
            recorded as skipped.

        Raises NotFound, and PgschedError if the schedule is finished or invalid.
        """
        params = {"name": name, "note": note, "until": options.instant("until", until), "backlog": backlog}
        await self._sql.call("pause_schedule", params, connection)

    async def resume(self, name: str, *, backlog: bool | None = None, connection: Connection | None = None) -> None:
        """Resumes a paused schedule.

        backlog: if False, fire times that fell into the pause are recorded as skipped; if True, they are treated as
            missed and catch_up applies. Default None: as chosen in pause().

        Raises NotFound, and PgschedError if the schedule is finished or invalid.
        """
        await self._sql.call("resume_schedule", {"name": name, "backlog": backlog}, connection)

    async def trigger(self, name: str, *, connection: Connection | None = None) -> int:
        """Runs a schedule now, in any status. Returns the run's id. Raises NotFound."""
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
        """Queues one run for each of the schedule's fire times from `start` through `end` (aware, past).

        It works for a schedule in any status, and for fire times that were skipped or came before the schedule was
        made. A fire time that already has a run is left alone, so a second call does nothing. Each run stands for the
        window since the fire time before it (`previous_fire_time`). The runs obey the schedule's overlap.

        again: run fire times again that already have a run, unless that run is still live.
        dry_run: only return the runs that would be queued.
        limit: refuse a range with more fire times than this, 1 to 1,000,000.
        priority: -100 to 100. Default: ten less than the schedule's, so that its regular fire times go first.
        progress: called with the number of fire times done, and the number of all.

        Raises NotFound, InvalidArguments, InvalidExpression; PgschedError if the schedule is removed or retimed
        meanwhile.
        """
        start, end = required_instant("start", start), required_instant("end", end)
        options.whole("limit", limit, 1, backfill.MOST)
        if priority is not None:
            options.whole("priority", priority, -100, 100)
        row = await self.get_schedule(name, connection=connection)
        times = backfill.past_fire_times(row, start, end, await self.now(connection=connection), limit)
        found = Backfill()
        for first in range(0, len(times), BATCH):
            batch = times[first : first + BATCH]
            params: Row = {"name": name, "fire_times": [time for time, _ in batch]}
            made: dict[datetime, int | None] = {}
            if not dry_run:
                more = {"previous": [before for _, before in batch], "again": again, "priority": priority}
                same = {"id": row["id"], "timed_at": row["timed_at"]}
                rows = await self._sql.rows("backfill_runs", params | more | same, connection)
                if not rows:
                    raise PgschedError(
                        f'Schedule "{name}" was changed during the backfill: {len(found.queued)} of its runs are '
                        "queued. Check the schedule, then repeat the backfill to queue the missing runs."
                    )
                made = {row["fire_time"]: row["id"] for row in rows if row["id"] is not None}
            # Read afterwards, so that runs made meanwhile by others are included.
            had = {r["fire_time"]: r for r in await self._sql.rows("list_fire_times", params, connection)}
            if dry_run:
                free = {time for time in params["fire_times"] if time not in had}
                made = dict.fromkeys(free | {time for time, row in had.items() if again and row["status"] in ENDED})
            found.queued.update({time: made[time] for time in params["fire_times"] if time in made})
            found.left_alone.update({time: row["id"] for time, row in had.items() if time not in made})
            if progress is not None:
                progress(first + len(batch), len(times))
        return found

    async def remove(self, name: str, *, connection: Connection | None = None) -> None:
        """Removes a schedule and its queued runs; its history stays. Raises NotFound."""
        await self._sql.call("remove_schedule", {"name": name}, connection)

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
        due_at: an aware instant. Default: now.
        priority: -100 to 100; due runs of a higher priority start first.
        unique_key: if a run with the key is queued or running, nothing is queued and its id is returned.
        unique: "live" (default), or "waiting": the key only counts while a run is queued, so that one can wait while
            another runs. Use only one of the two for a key. A run that would be tried again ends if another one waits.
        app: only workers of that application run it. Default: any worker that has the entrypoint. Each application
            has its own unique keys, and so do runs without an application.
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
        """Queues one run for each of the arguments, all or none, in one statement. Returns their ids in order, like
        enqueue().

        unique_keys: one key or None for each of the arguments. If a run already has the key, also one from an earlier
            place in this call, nothing is queued for this place and that run's id is returned in it.

        The other parameters are those of enqueue().
        """
        texts = [options.json_object(f"args number {n}", args) for n, args in enumerate(list_of_args)]
        params = {**options.job(entrypoint, due_at, priority, app, unique), "args": texts}
        params["unique_keys"] = options.keys("unique_keys", unique_keys, len(texts))
        if not texts:
            return []
        [row] = await self._sql.rows("enqueue_runs", params, connection)
        return [Enqueued(run_id, queued) for run_id, queued in zip(row["ids"], row["queued"], strict=True)]

    async def cancel(self, run_id: int, *, connection: Connection | None = None) -> str:
        """Cancels a queued run and returns "cancelled", or asks the worker of a running one and returns "requested".

        Raises NotFound, and PgschedError if the run has ended.
        """
        return str(await self._sql.call("cancel_run", {"run_id": options.run_id(run_id)}, connection))

    async def retry(self, run_id: int, *, connection: Connection | None = None) -> None:
        """Queues a failed or cancelled run again, with at least one more attempt.

        Raises NotFound, and PgschedError if it has neither failed nor been cancelled.
        """
        await self._sql.call("retry_run", {"run_id": options.run_id(run_id)}, connection)

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A transaction on a connection of the client's: `async with client.transaction() as connection:`.

        Pass the connection to calls as connection=: all their effects happen at the end of the block, or none. Other
        statements may use it too, and take as long as they need: the timeout is for BEGIN, for COMMIT, and for calls.
        An exception in the block rolls back and passes unchanged.
        """
        async with self._sql.transaction() as connection:
            yield connection


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
