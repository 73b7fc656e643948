"""The client's operations on runs that take several statements, as `client.runs`.

It waits for ends, reads and follows logs, and queues many runs again. Operations on one run, and lists of runs, are
methods of the client itself.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from pgsched.client.attempts import attempts_of
from pgsched.client.connections import End, Row, Statements
from pgsched.errors import InvalidArguments, NotFound
from pgsched.rules import options

# Seconds between two looks: short at first, since most runs are short, then longer and longer.
_FIRST, _GROWTH, _MOST = 0.02, 1.5, 0.5
ENDED = frozenset({"succeeded", "failed", "cancelled", "skipped"})
DEAD = ("failed", "cancelled")
REACH = 100_000  # how many runs of history a list searches for a filter that no index has
LAST_LOOK = 2.0  # seconds for the last look of a wait with a timeout
_DAY = 86_400.0
_BATCH = 500  # runs that are queued again in one transaction


class Runs:
    """A client's `runs`."""

    def __init__(self, statements: Statements) -> None:
        self._sql = statements

    async def wait(self, run_id: int, timeout: timedelta | float | None = None) -> Row:
        """Waits until a run has ended: succeeded, failed with no attempt left, or cancelled. Returns it like get_run().

        timeout: a timedelta or seconds. Default: none.

        It looks every 20 ms at first, later twice a second, always over one of the client's own connections: in the
        caller's transaction it could never see an end. Raises TimeoutError, and NotFound, also if the run is deleted
        meanwhile or its enqueue has not been committed; and DatabaseUnavailable if the database does not answer until
        the timeout, or the client's own. Each look gets 2 s at least, so the call may end so much later.
        """
        limit = _seconds(timeout)
        params = {"run_id": options.run_id(run_id)}
        start, pause = time.monotonic(), _FIRST
        while True:
            left = float("inf") if limit is None else start + limit - time.monotonic()
            end = self._sql.until(None if left > _DAY else max(round(left, 1), LAST_LOOK))
            status = await self._sql.call("read_status", params, None, end)
            if status is None:
                raise NotFound(f"There is no run {run_id}.")
            if status in ENDED:
                return await self._get(run_id, None, end)
            left = float("inf") if limit is None else start + limit - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"Run {run_id} is still {status} after {limit:g} s.")
            await self._sql.connections.sleep(min(pause, left))
            pause = min(pause * _GROWTH, _MOST)

    async def list_dead(
        self,
        ids: Sequence[int] | None = None,
        *,
        status: str | None = None,
        entrypoint: str | None = None,
        schedule: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        connection: Any = None,
    ) -> list[Row]:
        """The failed or cancelled runs, in the order of their ends; retry_many() takes their ids.

        ids: only these runs.
        status: "failed" or "cancelled".
        entrypoint: only runs of this entrypoint.
        schedule: only runs of the schedule with this name; raises NotFound if there is none.
        since, until: aware instants; only runs that ended from `since` through `until`.
        """
        if status is not None and status not in DEAD:
            raise InvalidArguments(f"status must be 'failed' or 'cancelled', not {status!r}.")
        params = {
            "ids": None if ids is None else [options.run_id(run_id) for run_id in ids],
            "statuses": list(DEAD) if status is None else [status],
            "entrypoint": entrypoint,
            "schedule": schedule,
            "since": options.instant("since", since),
            "until": options.instant("until", until),
        }
        end = self._sql.until()
        rows = await self._sql.rows("list_dead_runs", params, connection, end)
        if not rows and schedule is not None:
            await self._sql.schedule(schedule, connection, end)
        return rows

    async def retry_many(
        self,
        ids: Sequence[int],
        *,
        progress: Callable[[int, int], None] | None = None,
        connection: Any = None,
    ) -> list[int]:
        """Queues many runs again, like retry(), in batches with one transaction each. Returns the ids of queued runs.

        Runs are left alone if they are no longer failed or cancelled, are locked by somebody else, or share a
        unique_key with a live run. So repeating the call does no harm.

        progress: called with the number of runs done, and the number of all.
        connection: everything happens in the caller's one transaction.
        """
        wanted = [options.run_id(run_id) for run_id in dict.fromkeys(ids)]
        queued: list[int] = []
        for first in range(0, len(wanted), _BATCH):
            batch = wanted[first : first + _BATCH]
            queued += [row["id"] for row in await self._sql.rows("retry_runs", {"ids": batch}, connection)]
            if progress is not None:
                progress(first + len(batch), len(wanted))
        return queued

    async def get(self, run_id: int, *, connection: Any = None) -> Row:
        """A run with its args, its result, and the errors and ends of its attempts. Raises NotFound.

        attempts: a list of dicts with attempt, worker, started_at, ended_at, end (running, succeeded, failed,
        timed_out, retry_later, discarded, cancelled, worker_lost, given_back) and why.
        """
        return await self._get(run_id, connection, self._sql.until())

    async def _get(self, run_id: int, connection: Any, end: End) -> Row:
        rows = await self._sql.rows("get_run", {"run_id": options.run_id(run_id)}, connection, end)
        if not rows:
            raise NotFound(f"There is no run {run_id}.")
        attempts = attempts_of(rows[0])
        del rows[0]["stops"]
        return {**rows[0], "attempts": attempts}

    async def log(
        self,
        run_id: int,
        *,
        attempt: int | None = None,
        after: int = 0,
        limit: int = 100_000,
        connection: Any = None,
    ) -> list[Row]:
        """The lines that a run logged, oldest first: id, attempt, worker, at, level, text. Raises NotFound.

        attempt: only lines of this attempt.
        after: only lines with a greater id; pass the last line's id to get the newer lines.
        limit: at most this many lines, the newest.

        A running run's lines are there within a heartbeat.
        """
        params = {
            "run_id": options.run_id(run_id),
            "attempt": None if attempt is None else options.whole("attempt", attempt, 1, 2**31 - 1),
            "after": options.whole("after", after, 0, 2**63 - 1),
            "limit": options.whole("limit", limit, 1, 1_000_000),
        }
        rows = await self._sql.rows("read_log", params, connection)
        if not rows:
            raise NotFound(f"There is no run {run_id}.")
        return [row for row in rows if row["id"] is not None]

    async def follow(self, run_id: int, *, attempt: int | None = None, after: int = 0) -> AsyncIterator[Row]:
        """The lines that a run has logged, then new lines until the run has ended.

        attempt: only lines of this attempt, until it has ended.
        after: only lines with a greater id.

        It looks twice a second. Raises NotFound, also if the run is deleted meanwhile.
        """
        while True:
            # Read the status before the lines: if the run has ended, all its lines are there.
            status = await self._sql.call("read_status", {"run_id": options.run_id(run_id)}, None)
            over = status in ENDED
            if attempt is not None and not over:
                over = attempt < (await self.get(run_id))["attempt"] + (status == "queued")
            for line in await self.log(run_id, attempt=attempt, after=after):
                after = line["id"]
                yield line
            if over:
                return
            await self._sql.connections.sleep(_MOST)

    async def beyond_reach(self, *, connection: Any = None) -> bool:
        """Whether there may be more history than a list with a filter such as entrypoint= searches."""
        return bool(await self._sql.call("read_reach", {"most": REACH}, connection))

    async def count(self, ids: Sequence[int], *, connection: Any = None) -> dict[str, int]:
        """The number of these runs in each status; deleted runs are not counted."""
        rows = await self._sql.rows("count_runs_by_status", {"ids": [int(run_id) for run_id in ids]}, connection)
        return {row["status"]: row["count"] for row in rows}


def _seconds(timeout: Any) -> float | None:
    if isinstance(timeout, timedelta):
        timeout = timeout.total_seconds()
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout >= 0:
        raise InvalidArguments(f"timeout must be a timedelta or a number of seconds of 0 or more, not {timeout!r}.")
    return float(timeout)
