"""Brings the schedules to what the code declares: at the start, and later where the start had to leave them alone.

Which version of an application counts is declaration's rule; what a retired schedule leaves behind, its query's.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from datetime import datetime, timedelta

import psycopg

from pgsched import declaration, log
from pgsched.db import STATEMENT_LIMIT, Connection, Failures
from pgsched.declaration import Compared, Kind, Standing, Verdict
from pgsched.duration import format_duration
from pgsched.errors import InvalidExpression
from pgsched.machine import Machine
from pgsched.model import Schedule
from pgsched.policy import fire_times, retire
from pgsched.store import Planned

# Seconds for which nobody may be left who has the declarations in force, before a worker that runs puts its own in
# their place: a restart of the newer version's only worker takes less, and must not cost it its schedules.
RESTART = 45.0
# What a start may take for each schedule that it declares, beyond what any statement may.
_EACH = timedelta(milliseconds=1)
_LOOK = timedelta(seconds=5)  # what the look for the holder of a lock may take
_BATCH = 5000  # schedules that one statement writes


class Reconciler:
    """One transaction: whose word counts, what differs, write only that. Other owners' schedules are never touched."""

    def __init__(self, machine: Machine) -> None:
        scheduler = machine.scheduler
        self.fingerprint = scheduler.fingerprint
        self.restart = RESTART
        self._app, self._owner, self._rows = scheduler.app_name, scheduler.owner, scheduler.rows()
        self._limits = scheduler.limit_rows()
        self.patience = STATEMENT_LIMIT + _EACH * len(self._rows)
        self._worker = machine.worker
        self._store = machine.store
        self._session = machine.control
        self._outage = machine.outage
        self._orphaned_since: float | None = None
        self._due = asyncio.Event()
        self._log = log.get()

    async def start(self, connection: Connection) -> Verdict:
        """Applies what the code declares, unless the worker is an old one beside newer ones."""
        async with connection.transaction():
            standing = await self._turn(connection)
            found = declaration.verdict(self.fingerprint, standing)
            if found is not Verdict.DEFERRED:
                await self._apply(connection, found, standing.now)
        if found is Verdict.DEFERRED:
            self._log.warning(
                "declarations_deferred",
                app=self._app,
                in_force=standing.in_force,
                ours=self.fingerprint,
                workers=standing.alive,
                advice="workers of another version are alive, and the schedules stay as that one declares them until "
                "they are gone; `pgsched check` shows the difference",
            )
        return found

    async def why_locked(self, error: BaseException) -> str | None:
        """The sentence about whoever keeps a start from the schedules that it has to write. None if the error speaks of
        no wait, or if nobody does."""
        waited = isinstance(error, (TimeoutError, psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled))
        if not waited:
            return None
        names = [row["name"] for row in self._rows]
        try:
            async with self._session.use(_LOOK) as connection:
                found = await self._store.find_lock(connection, self._worker, self._owner, names)
        except Failures:
            return None
        if found is None:
            return None
        what, pid, since = found
        when = "" if since is None else f" since {since:%Y-%m-%dT%H:%M:%SZ}"
        return (
            f"{what} is locked by session pid {pid}{when}: the start needs it, and has waited for "
            f"{format_duration(self.patience)}. End that transaction, or start again once it is over."
        )

    def saw_orphaned(self, orphaned: bool) -> None:
        """Takes in what a resync saw: whether the declarations in force are another version's that nobody has now."""
        now = time.monotonic()
        if not orphaned:
            self._orphaned_since = None
        elif self._orphaned_since is None:
            self._orphaned_since = now
        elif now - self._orphaned_since >= self.restart:
            self._due.set()

    async def run(self) -> None:
        """Takes over from a version that is gone for good, whenever there is one."""
        while True:
            await self._due.wait()
            self._due.clear()
            try:
                async with self._session.use(self.patience) as connection:
                    await self._take_over(connection)
            except Failures as error:  # the next resync asks again
                self._outage.lost(error, "declare")
            else:
                self._orphaned_since = None
                self._outage.answered()

    async def _take_over(self, connection: Connection) -> None:
        async with connection.transaction():
            standing = await self._turn(connection)
            # Since the look somebody may have come back, or an equal of ours may have been quicker.
            if not standing.alive and standing.in_force != self.fingerprint:
                await self._apply(connection, Verdict.BACK, standing.now)

    async def _turn(self, connection: Connection) -> Standing:
        # A start that has as much to declare as this one is waited for, too.
        await self._store.set_patience(connection, self.patience)
        # Lock first and then a look, in a statement of its own: it must see what the one before us committed.
        await self._store.lock_declarations(connection, self._app)
        return await self._store.read_declarations(connection, self._app, self.fingerprint)

    async def _settle(self, connection: Connection, gone: list[Schedule], now: datetime) -> None:
        """Records what was due of retired schedules and not claimed: no claim pass looks at them any more."""
        plans = []
        for schedule in gone:
            behind = schedule.next_run is None or schedule.next_run <= now or schedule.interruptions_json
            if behind and schedule.status in ("active", "paused"):
                with contextlib.suppress(InvalidExpression):  # then it had no fire times
                    plans.append(Planned.of(schedule, retire(schedule, fire_times(schedule), now)))
        if plans:
            await self._store.write_plans(connection, self._worker, plans, now)

    async def _apply(self, connection: Connection, found: Verdict, now: datetime) -> None:
        """Writes what differs, and nothing else: a start that changes nothing neither locks a schedule nor wakes
        anybody."""
        kinds: dict[Kind, list[Compared]] = {each: [] for each in Kind}
        for compared in await self._store.compare_schedules(connection, self._owner, self._rows):
            kinds[declaration.kind(compared, self._owner)].append(compared)
        foreign = {compared.name for compared in kinds[Kind.FOREIGN]}
        wanted = {c.name for each in (Kind.NEW, Kind.CHANGED, Kind.RETURNING) for c in kinds[each]}
        if wanted:
            rows, written = [row for row in self._rows if row["name"] in wanted], list[str]()
            for first in range(0, len(rows), _BATCH):
                written += await self._store.upsert_schedules(connection, rows[first : first + _BATCH])
            # Another application may have taken a name since the comparison.
            foreign |= wanted.difference(written)
        for compared in kinds[Kind.CHANGED]:
            self._log.info("schedule_changed", schedule=compared.name, options=sorted(compared.changes))
        for name in sorted(foreign):
            self._log.warning("schedule_not_ours", schedule=name, advice="another application owns that name")
        if kinds[Kind.RETIRED]:
            names = [row["name"] for row in self._rows]
            gone = await self._store.retire_schedules(connection, self._owner, names)
            await self._settle(connection, gone, now)
            for retired in gone:
                self._log.info("schedule_retired", schedule=retired.name)
        for entrypoint in await self._store.declare_limits(connection, self._owner, self._limits):
            self._log.info("limits_changed", entrypoint=entrypoint)
        if found is not Verdict.CURRENT:
            await self._store.record_declarations(connection, self._app, self.fingerprint)
            counts = {each.name.lower(): len(rows) for each, rows in kinds.items() if rows}
            self._log.info("declarations_applied", app=self._app, version=str(found), **counts)
