"""Makes the schedules match the code's declarations: at the start, or later if the start had to leave them alone.

deploy decides which version of an application counts; plan decides how the fire times of a retired schedule end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import datetime, timedelta

import psycopg
from psycopg import sql

from pgsched import log
from pgsched.db.mishaps import Mishaps
from pgsched.db.session import STATEMENT_LIMIT, Connection
from pgsched.db.statements.values import Planned
from pgsched.errors import ConfigurationError, InvalidExpression
from pgsched.executors.home import is_gone
from pgsched.expression.duration import format_duration
from pgsched.model import Schedule
from pgsched.rules import deploy
from pgsched.rules.deploy import Compared, Kind, Other, Standing, Verdict
from pgsched.rules.plan import fire_times, retire
from pgsched.worker.kit import Kit

# Seconds without a live worker of the version in force, before a running worker applies its own declarations: a restart
# of the newer version's only worker takes less, and must not cost it its schedules.
RESTART = 45.0
# Extra time of a start for each schedule that it declares, beyond the limit of any statement.
_EACH = timedelta(milliseconds=1)
_ANSWER = timedelta(seconds=5)  # for an answer that the server has sent already
_LOOK = timedelta(seconds=5)  # time limit of the look for a lock's holder
_BATCH = 5000  # schedules that one statement writes, at most


class Reconciler:
    """Finds in one transaction which declarations count and how the tables differ, and writes only the differences. It
    never touches other owners' schedules."""

    def __init__(self, kit: Kit) -> None:
        scheduler = kit.scheduler
        self.fingerprint = scheduler.fingerprint
        self.restart = RESTART
        self._app, self._owner, self._rows = scheduler.app_name, scheduler.owner, scheduler.rows()
        self._home, self._former = scheduler.home, scheduler.former_names
        self.awaited: list[str] = []  # applications that ours takes over once their workers are gone
        self._limits = scheduler.limit_rows()
        self.patience = STATEMENT_LIMIT + _EACH * len(self._rows)
        self._worker = kit.worker
        self._statements = kit.store.declarations
        self._plans = kit.store.claims
        self._session = kit.control
        self._outage = kit.outage
        self._elapsed = kit.elapsed
        self._orphaned_since: float | None = None
        self._due = asyncio.Event()
        self._log = log.get()

    async def start(self, connection: Connection) -> Verdict:
        """Applies the code's declarations, unless this worker is of an old version and newer workers are alive. Raises
        ConfigurationError, and changes nothing, if that would retire schedules that a worker of another code base
        serves."""
        async with connection.transaction():
            standing, earlier = await self._turn(connection)
            found = deploy.verdict(self.fingerprint, standing)
            if found is not Verdict.DEFERRED:
                await self._apply(connection, found, standing, earlier)
        if found is Verdict.DEFERRED:
            self._log.warning(
                "declarations_deferred",
                app=self._app,
                in_force=standing.in_force,
                ours=self.fingerprint,
                workers=standing.alive,
                advice="workers of another version are alive: the schedules stay as that version declares them until "
                "those workers are gone; `pgsched check` shows the difference",
            )
        return found

    @property
    def limit(self) -> timedelta:
        """The limit of a start's block: the server gives up first, so that we learn what it has waited for."""
        return self.patience + _ANSWER

    async def why_locked(self, error: BaseException) -> str | None:
        """A sentence that names the session whose lock keeps a start from the schedules that it has to write. None if
        the error is about no wait, or if there is no such session."""
        waited = isinstance(error, (TimeoutError, psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled))
        if not waited:
            return None
        names = [row["name"] for row in self._rows]
        try:
            async with self._session.use(_LOOK) as connection:
                found = await self._statements.find_lock(connection, self._worker, self._owner, names)
        except Mishaps:
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
        """Takes a resync's finding: whether the declarations in force are another version's without live workers."""
        now = self._elapsed()
        if not orphaned:
            self._orphaned_since = None
        elif self._orphaned_since is None:
            self._orphaned_since = now
        elif now - self._orphaned_since >= self.restart:
            self._due.set()

    async def run(self) -> None:
        """Takes over whenever the version in force is gone for good, until it is cancelled."""
        while True:
            await self._due.wait()
            self._due.clear()
            try:
                async with self._session.use(self.limit) as connection:
                    await self._take_over(connection)
            except Mishaps as error:  # the next resync asks again
                self._outage.lost(error, "declare")
            else:
                self._orphaned_since = None
                self._outage.answered("declare")

    async def _take_over(self, connection: Connection) -> None:
        async with connection.transaction():
            standing, earlier = await self._turn(connection)
            # Since the resync a worker may have come back, or another of our version may have been quicker.
            if not standing.alive and standing.in_force != self.fingerprint:
                await self._apply(connection, Verdict.BACK, standing, earlier)
            elif standing.in_force == self.fingerprint and any(not other.alive for other in earlier):
                await self._apply(connection, Verdict.CURRENT, standing, earlier)

    async def _turn(self, connection: Connection) -> tuple[Standing, list[Other]]:
        """Waits for our turn. Returns the standing of our declarations, and the applications that are ours under
        earlier names."""
        # Long enough to wait for a start that has as much to declare as this one.
        await self._statements.set_patience(connection, self.patience)
        # All starts lock in the same order, so two that take over from each other wait and never deadlock.
        earlier = {other.app for other in await self._earlier(connection)}
        for app in sorted({self._app, *earlier}):
            await self._statements.lock_declarations(connection, app)
        # Lock first and then a look, in a statement of its own: it must see the commits of the start before us. An
        # application that turned up in between is not locked, and left to the next look.
        standing = await self._statements.read_declarations(connection, self._app, self.fingerprint)
        found = [other for other in await self._earlier(connection) if other.app in earlier] if earlier else []
        self.awaited = [other.app for other in found if other.alive]
        return standing, found

    async def _earlier(self, connection: Connection) -> list[Other]:
        names = [row["name"] for row in self._rows]
        others = await self._statements.read_owners(connection, self._owner, names)
        return [other for other in others if deploy.is_ours(other, self._home.project, self._former, is_gone)]

    async def _adopt(self, connection: Connection, earlier: Sequence[Other]) -> None:
        """Takes over the schedules and runs that our application owns under earlier names, except names with live
        workers."""
        for other in earlier:
            command = deploy.adopt_command(other.app, self._app)
            if other.alive:
                self._log.warning(
                    "application_move_waits",
                    app=self._app,
                    old=other.app,
                    workers=other.alive,
                    advice="these schedules are ours under an earlier name, and are taken over once its workers "
                    f"are gone; `{command} --yes` does it at once",
                )
            else:
                names, runs = await self._statements.adopt(connection, other.app, self._app)
                await connection.execute(sql.SQL("notify {}").format(self._statements.channel))
                self._log.warning("application_moved", app=self._app, old=other.app, schedules=len(names), runs=runs)

    async def _check(self, connection: Connection, compared: Sequence[Compared]) -> None:
        """Refuses to retire schedules that a live worker of another code base serves. Raises ConfigurationError."""
        holders = await self._statements.read_holders(connection, self._app, in_force=True)
        problem = deploy.why_refused(self._app, compared, holders, self._home.project)
        if problem is not None:
            raise ConfigurationError(problem)

    async def _settle(self, connection: Connection, gone: list[Schedule], now: datetime) -> None:
        """Records the due, unclaimed fire times of retired schedules: claim passes no longer look at them."""
        plans = []
        for schedule in gone:
            behind = schedule.next_run is None or schedule.next_run <= now or schedule.interruptions_json
            if behind and schedule.status in ("active", "paused"):
                with contextlib.suppress(InvalidExpression):  # then it had no fire times
                    plans.append(Planned.of(schedule, retire(schedule, fire_times(schedule), now)))
        if plans:
            await self._plans.write_plans(connection, self._worker, plans, now)

    async def _apply(
        self, connection: Connection, found: Verdict, standing: Standing, earlier: Sequence[Other]
    ) -> None:
        """Writes only the differences: a start that changes nothing neither locks a schedule nor wakes a worker."""
        await self._adopt(connection, earlier)
        kinds: dict[Kind, list[Compared]] = {each: [] for each in Kind}
        awaited = {f"code:{app}" for app in self.awaited}
        stored = await self._statements.compare_schedules(connection, [self._owner], self._rows)
        if found is Verdict.NEW and standing.alive:
            await self._check(connection, stored)
        for compared in stored:
            kinds[deploy.kind(compared, self._owner, awaited=awaited)].append(compared)
        foreign = {compared.name: compared.owner for compared in kinds[Kind.FOREIGN]}
        wanted = {c.name for each in (Kind.NEW, Kind.CHANGED, Kind.RETURNING) for c in kinds[each]}
        if wanted:
            rows, written = [row for row in self._rows if row["name"] in wanted], list[str]()
            for first in range(0, len(rows), _BATCH):
                written += await self._statements.upsert_schedules(connection, rows[first : first + _BATCH])
            # Another application may have taken a name since the comparison.
            foreign |= dict.fromkeys(wanted.difference(written))
        for compared in kinds[Kind.CHANGED]:
            self._log.info("schedule_changed", schedule=compared.name, options=sorted(compared.changes))
        for name, owner in sorted(foreign.items()):
            if owner not in awaited:
                advice = deploy.whose(owner, self._app)
                self._log.warning("schedule_not_ours", schedule=name, owner=owner, advice=advice)
        if kinds[Kind.RETIRED]:
            names = [row["name"] for row in self._rows]
            gone = await self._statements.retire_schedules(connection, self._owner, names)
            await self._settle(connection, gone, standing.now)
            for retired in gone:
                self._log.info("schedule_retired", schedule=retired.name)
        changed, taken = await self._statements.declare_limits(connection, self._owner, self._limits)
        for entrypoint in changed:
            self._log.info("limits_changed", entrypoint=entrypoint)
        for shared, owner in taken:
            advice = "declare the same limits under one shared name: the last start wins"
            self._log.warning("shared_limits_differ", shared=shared, declared_before_by=owner, advice=advice)
        if found is not Verdict.CURRENT:
            await self._statements.record_declarations(connection, self._app, self.fingerprint)
            counts = {each.name.lower(): len(rows) for each, rows in kinds.items() if rows}
            self._log.info("declarations_applied", app=self._app, version=str(found), **counts)
