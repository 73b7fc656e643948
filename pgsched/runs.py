"""What a client can do about runs beyond one statement: `client.runs`. Waits for their ends, queues many again.

One run at a time, and lists of them, are methods of the client itself.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from pgsched import definition
from pgsched.connections import Row, Statements
from pgsched.errors import InvalidArguments, NotFound

# Seconds between two looks: soon at first, since most runs are short, then ever less often.
_FIRST, _GROWTH, _MOST = 0.02, 1.5, 0.5
ENDED = frozenset({"succeeded", "failed", "cancelled", "skipped"})


class Runs:
    """A client's `runs`."""

    def __init__(self, statements: Statements) -> None:
        self._sql = statements

    async def wait(self, run_id: int, timeout: timedelta | float | None = None) -> Row:
        """Waits until a run has ended: succeeded, failed with no attempt left, or cancelled. Returns it, as get_run().

        timeout: a timedelta or seconds, default none. It looks by the run's id, at first every 20 ms, in the end twice
        a second, over a connection of its own each time: in a transaction of the caller's it could never see an end.
        Raises NotFound, also where it is deleted meanwhile, or its enqueue has not been committed; TimeoutError.
        """
        limit = _seconds(timeout)
        params = {"run_id": definition.run_id(run_id)}
        start, pause = time.monotonic(), _FIRST
        while True:
            status = await self._sql.call("read_status", params, None)
            if status is None:
                raise NotFound(f"There is no run {run_id}.")
            if status in ENDED:
                return await self.get(run_id)
            left = float("inf") if limit is None else start + limit - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"Run {run_id} is still {status} after {limit:g} s.")
            await self._sql.connections.sleep(min(pause, left))
            pause = min(pause * _GROWTH, _MOST)

    async def get(self, run_id: int, *, connection: Any = None) -> Row:
        """A run with its args, its result and the errors of its attempts. Raises NotFound."""
        rows = await self._sql.rows("get_run", {"run_id": definition.run_id(run_id)}, connection)
        if not rows:
            raise NotFound(f"There is no run {run_id}.")
        return rows[0]

    async def count(self, ids: Sequence[int], *, connection: Any = None) -> dict[str, int]:
        """How many of these runs are in which status; those that are deleted are in none."""
        rows = await self._sql.rows("count_runs_by_status", {"ids": list(ids)}, connection)
        return {row["status"]: row["count"] for row in rows}


def _seconds(timeout: Any) -> float | None:
    if isinstance(timeout, timedelta):
        timeout = timeout.total_seconds()
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout >= 0:
        raise InvalidArguments(f"timeout is a timedelta or a number of seconds from 0 on, not {timeout!r}.")
    return float(timeout)
