"""The claim pass after one that the database refused: finds the rows that it refuses and sets them aside.

A claim chooses its rows itself, so a refusal does not show which row caused it. Therefore the rows that may be claimed
are changed in the same way by id, in a transaction that is rolled back. No run can start from such a try.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import TypeVar

from pgsched.db.apart import Apart
from pgsched.db.mishaps import Mishaps, answered, passing
from pgsched.db.session import Connection
from pgsched.db.statements.values import Planned
from pgsched.model import ClaimedRun
from pgsched.worker.aside import Kind
from pgsched.worker.kit import Kit

_FIRST, _MOST = 500, 100_000  # runs of each entrypoint to try: at first, and if passes are still refused
_LOCK = timedelta(milliseconds=100)  # how long a careful statement waits for a client's lock
Result = TypeVar("Result")


class Careful:
    """One per dispatcher. on: whether the next pass must be careful."""

    def __init__(self, kit: Kit, limit: int = _FIRST) -> None:
        self.on = False
        self._statements = kit.store.trials
        self._worker = kit.worker
        self._entrypoints = list(kit.scheduler.entrypoints)
        self._aside = kit.aside
        self._limit = limit
        self._left_out = False

    def failed(self, error: BaseException) -> None:
        """A pass failed. If the server answered, one row may be at fault, no matter the error."""
        if self.on:
            self._limit = min(4 * self._limit, _MOST)
        self.on = answered(error)

    def passed(self) -> bool:
        """A pass did not fail. Returns whether it left something out, so that the next one must be careful too."""
        self.on, self._left_out = self._left_out, False
        self._limit = min(4 * self._limit, _MOST) if self.on else _FIRST
        return self.on

    async def find(self, connection: Connection, lookahead: timedelta) -> None:
        """Sets aside rows that the database refuses to change: runs to claim, schedules to resume, and limits."""
        statements, worker = self._statements, self._worker
        async with connection.transaction():
            paused = await statements.find_ended_pauses(connection, self._limit)
            await self._try(connection, Kind.SCHEDULE, paused, lambda ids: statements.try_resume(connection, ids))
        # In a transaction of its own: the entries stay even if the pass fails. The rows stay locked until its commit,
        # so that each is noted in the version that was tried.
        async with connection.transaction():
            due = await statements.find_due_runs(connection, self._entrypoints, lookahead, self._limit)
            await self._try(connection, Kind.RUN, due, lambda ids: statements.try_claim(connection, worker, ids))
        # Limits that another worker claims from are locked, and are passed over.
        async with connection.transaction():
            limits = await statements.find_limits(connection, self._entrypoints, self._limit)
            await self._try(connection, Kind.LIMITS, limits, lambda ids: statements.try_limits(connection, ids))

    async def _try(
        self, connection: Connection, kind: Kind, ids: Sequence[int], change: Callable[[Sequence[int]], Awaitable[None]]
    ) -> None:
        async def send(part: Sequence[int]) -> tuple[()]:
            async with connection.transaction(force_rollback=True):
                await self._statements.wait_briefly(connection, _LOCK)
                await change(part)
                await self._statements.settle_constraints(connection)
            return ()

        await self._apart(connection, kind, ids, send)

    async def step(self, connection: Connection, claim: Callable[[], Awaitable[list[ClaimedRun]]]) -> list[ClaimedRun]:
        """Makes a claim in the middle of a pass.

        If the claim of a careful pass is refused, the pass goes on without it: it commits the runs that it has just
        made, and the next pass tries them one by one.
        """
        if not self.on:
            return await claim()
        try:
            return list(await self._settled(connection, claim))
        except Mishaps as error:
            if not answered(error):
                raise
            self._left_out = True
            return []

    async def change(
        self, connection: Connection, ids: Sequence[int], change: Callable[[Sequence[int]], Awaitable[Sequence[Result]]]
    ) -> tuple[list[Result], set[int]]:
        """Changes locked schedules. Returns the results, and the ids of schedules whose change was refused."""

        async def send(part: Sequence[int]) -> Sequence[Result]:
            return await self._settled(connection, lambda: change(part))

        return await self._apart(connection, Kind.SCHEDULE, ids, send)

    async def write(
        self,
        connection: Connection,
        planned: Sequence[Planned],
        write: Callable[[Sequence[Planned]], Awaitable[Sequence[Result]]],
        invalid: Callable[[Planned, BaseException], Planned],
    ) -> tuple[list[Result], set[int]]:
        """Writes plans. Returns the results, and the ids of schedules whose plan was not written.

        A schedule whose plan is refused becomes invalid. If even that is refused, or a client holds a lock that it
        needs, the schedule is set aside.
        """
        refusals: list[tuple[int, BaseException]] = []
        left_out: set[int] = set()

        async def send(part: Sequence[Planned]) -> Sequence[Result]:
            return await self._settled(connection, lambda: write(part))

        async def refuse(one: Planned, error: BaseException) -> None:
            left_out.add(one.schedule.id)
            if not passing(error):
                try:
                    await send([invalid(one, error)])
                    return
                except Mishaps as second:
                    if not answered(second):
                        raise
                    error = second
            refusals.append((one.schedule.id, error))

        made = await Apart(send, refuse, patience=0).all(planned)
        await self._aside.put(connection, Kind.SCHEDULE, refusals)
        return made, left_out

    async def _settled(
        self, connection: Connection, change: Callable[[], Awaitable[Sequence[Result]]]
    ) -> Sequence[Result]:
        """Makes a change in a savepoint. Constraints and triggers that are deferred to the commit run there too."""
        async with connection.transaction():
            await self._statements.wait_briefly(connection, _LOCK)
            result = await change()
            await self._statements.settle_constraints(connection)
        return result

    async def _apart(
        self,
        connection: Connection,
        kind: Kind,
        ids: Sequence[int],
        send: Callable[[Sequence[int]], Awaitable[Sequence[Result]]],
    ) -> tuple[list[Result], set[int]]:
        refusals: list[tuple[int, BaseException]] = []

        async def refuse(id: int, error: BaseException) -> None:
            refusals.append((id, error))

        results = await Apart(send, refuse, patience=0).all(ids)
        await self._aside.put(connection, kind, refusals)
        return results, {id for id, _ in refusals}
