"""The client's methods that only read. Those that change something are in client."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pgsched.client.connections import Connections, Row, Statements, no_schedule
from pgsched.client.runs import REACH, Runs
from pgsched.client.why import Situation
from pgsched.db.session import Connection
from pgsched.db.statements.queries import Queries
from pgsched.errors import InvalidArguments
from pgsched.model import RunStatus, ScheduleStatus
from pgsched.rules import options


class Looks:
    """The half of a client that reads."""

    runs: Runs  # operations that take more than one statement: wait(), retry_many()

    def __init__(self, connections: Connections, queries: Queries) -> None:
        self._sql = Statements(connections, queries)
        self.runs = Runs(self._sql)

    async def now(self, *, connection: Connection | None = None) -> datetime:
        """The database's clock, which decides everything."""
        found: datetime = await self._sql.call("read_clock", {}, connection)
        return found.astimezone(UTC)

    async def list_schedules(
        self,
        *,
        entrypoint: str | None = None,
        status: str | None = None,
        connection: Connection | None = None,
    ) -> list[Row]:
        """The schedules, by name. entrypoint, status: only schedules with these."""
        status = options.one_of(ScheduleStatus, status)
        params = {"name": None, "entrypoint": entrypoint, "status": status}
        return await self._sql.rows("list_schedules", params, connection)

    async def get_schedule(self, name: str, *, connection: Connection | None = None) -> Row:
        """A schedule. Raises NotFound."""
        return await self._sql.schedule(name, connection, self._sql.until())

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
        """The newest runs first, including skips, at most `limit`; without args, result and errors.

        schedule: a name; raises NotFound if no schedule has it.
        status: in an ended status, the newest runs are those that ended last.
        since: an aware instant; only runs that ended from then on, or have not ended.

        The cost does not grow with history. So filters without an index search only the newest 100,000 runs and all
        live runs: entrypoint=, and schedule= with since= or with status="succeeded". With status="failed" or
        "cancelled" everything is searched, unless both entrypoint= and schedule= are given.
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
        until = self._sql.until()
        rows = await self._sql.rows("list_runs", params, connection, until)
        if not rows and schedule is not None:
            await self._sql.schedule(schedule, connection, until)
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
        """The records of a schedule's fire times from `start` through `through`, oldest first, at most `limit`.

        These are runs, and skips that reach into the range; without args, result and errors.
        """
        params = {
            "name": schedule,
            "start": required_instant("start", start),
            "through": required_instant("through", through),
        }
        params |= {"limit": options.whole("limit", limit, 1, 1_000_000)}
        return await self._sql.rows("list_runs_between", params, connection)

    async def situation(self, schedule: str, *, connection: Connection | None = None) -> Situation:
        """The possible reasons why a due fire time of a schedule waits. Raises NotFound."""
        rows = await self._sql.rows("read_situation", {"name": schedule}, connection)
        if not rows:
            raise no_schedule(schedule)
        row = rows[0]
        return Situation(row["now"].astimezone(UTC), row["served"], tuple(row["live"]), row["refused"])

    async def get_run(self, run_id: int, *, connection: Connection | None = None) -> Row:
        """A run with its args, its result, and the errors and ends of its attempts; see runs.get(). Raises NotFound."""
        return await self.runs.get(run_id, connection=connection)

    async def list_workers(self, *, connection: Connection | None = None) -> list[Row]:
        """The workers, oldest first; `connected` is whether the server sees a session of the worker."""
        return await self._sql.rows("list_workers", {}, connection)


def required_instant(what: str, value: Any) -> datetime:
    """An aware instant that must be given. Raises InvalidArguments, which names it."""
    found = options.instant(what, value)
    if found is None:
        raise InvalidArguments(f"{what} must be a datetime with a time zone, not None.")
    return found
