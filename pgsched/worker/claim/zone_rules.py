"""Keeps schedules planned by the newest time zone rules in the fleet.

Rules are noted for each zone (table zones) with the tzdata release that they come from.

- A worker with newer rules notes its own, and has the zone's schedules planned again.
- A worker whose rules differ and are not known to be newer withholds the zone: it leaves the zone's schedules to the
  workers that have the noted rules.
- If none of those is left, the live worker with the newest release replaces the noted rules with its own.

ledger decides how a change of rules affects the next fire time.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

from psycopg import sql

from pgsched import log
from pgsched.db.apart import Apart
from pgsched.db.session import Connection
from pgsched.db.statements.queries import Queries
from pgsched.db.statements.values import Withheld, Zoned
from pgsched.errors import InvalidExpression
from pgsched.expression.zone_files import REMEDY, rules, source_of
from pgsched.expression.zones import Rules, check_timezone, newer
from pgsched.model import Schedule
from pgsched.worker.aside import Aside, Kind

BATCH = 1000  # schedules that one statement has planned anew, at most
# Seconds between looks while a zone is withheld: the workers that have the noted rules may be gone.
AGAIN = 5.0
_LOCK = timedelta(milliseconds=100)  # how long a schedule's new plan waits for a client's lock
LOCKED = 3.0  # seconds between looks while schedules may be left that somebody had locked
_FIXED = "UTC"  # it has no rules


class Keeper(NamedTuple):
    """Another live worker."""

    app: str
    tzdata: str | None
    withheld: list[str]
    entrypoints: list[str]


def best(ours: str | None, others: Iterable[str | None]) -> bool:
    """Whether no other release is newer than ours. An unknown release is older than any known one."""
    return not any(newer(other, ours) or (ours is None and other is not None) for other in others)


def in_force(noted: Rules | None, planned: Iterable[Rules]) -> Rules | None:
    """The rules in force for a zone: the noted ones, unless a worker has planned by newer ones since."""
    for each in planned:
        if noted is None or newer(each.release, noted.release):
            noted = each
    return noted


class ZoneRules:
    """Compares one worker's rules with those of the fleet."""

    def __init__(self, queries: Queries, worker: Any, app: str, aside: Aside) -> None:
        self.withheld = Withheld()
        self._queries, self._worker, self._app, self._aside = queries, worker, app, aside
        self.due_at = float("inf")  # the next look, by time.monotonic(); the worker's start makes the first
        self._log = log.get()

    # --- for a claim pass -----------------------------------------------------------------------------------

    @property
    def due(self) -> bool:
        """Whether a look is due."""
        return time.monotonic() >= self.due_at

    def may_plan(self, schedule: Schedule) -> bool:
        """Whether this worker may plan a schedule that it has locked. The row says which rules count, even if
        others were noted since the last look: the worker that notes newer rules writes them into each row."""
        noted = None if schedule.zone_rules is None else Rules.read(schedule.zone_rules)
        ours = None if noted is None else known(schedule.timezone)
        if noted is None or ours is None or noted.digest == ours.digest:
            return True
        self.due_at = min(self.due_at, time.monotonic() + 1.0)
        if newer(ours.release, noted.release):
            return True
        if schedule.timezone in self.withheld.zones and schedule.entrypoint not in self.withheld.covered:
            return True  # no other worker of the application can
        self.due_at = float("-inf")
        return False

    @staticmethod
    def shifted(schedule: Schedule) -> bool:
        """Whether the schedule was planned by other rules than ours before."""
        ours = known(schedule.timezone)
        if schedule.zone_rules is None or ours is None:
            return schedule.moved_from is not None
        return schedule.moved_from is not None or Rules.read(schedule.zone_rules).digest != ours.digest

    # --- a look ---------------------------------------------------------------------------------------------

    async def look(self, connection: Connection) -> None:
        """Compares our rules with the noted ones. Writes nothing if nothing has changed.

        A zone's rules and its schedules are written in one transaction: a crash in between changes nothing.
        """
        zones = await self._queries.rows(connection, "read_zones", {})
        self.due_at = float("inf")
        differing: list[tuple[str, Rules, Rules]] = []
        for zone in zones:
            ours = known(zone["name"])
            if ours is None:  # UTC, or an unknown name, which the plan will report
                continue
            planned = [Rules.read(text) for text in zone["planned_by"] or ()]
            noted = None if zone["digest"] is None else Rules(zone["release"], zone["digest"])
            counts = in_force(noted, planned)
            if counts is None or counts.digest == ours.digest or newer(ours.release, counts.release):
                await self._keep(connection, zone["name"], ours, noted, planned)
            else:
                differing.append((zone["name"], ours, noted or counts))
        await self._withhold(connection, differing)

    async def _keep(
        self, connection: Connection, name: str, ours: Rules, noted: Rules | None, planned: list[Rules]
    ) -> None:
        """Our rules are in force: notes them, and has schedules planned again that other rules had planned."""
        if noted is None:  # the plans were made before rules were noted, by unknown ones
            await self._note(connection, name, ours, None)
        elif noted.digest == ours.digest and newer(ours.release, noted.release):
            await self._note(connection, name, ours, noted)
        if (noted is not None and noted.digest != ours.digest) or any(each.digest != ours.digest for each in planned):
            await self._take(connection, name, ours, noted)

    async def _withhold(self, connection: Connection, differing: list[tuple[str, Rules, Rules]]) -> None:
        keepers = []
        if differing:
            keepers = [Keeper(**row) for row in await self._queries.rows(
                connection, "read_keepers", {"worker": self._worker})]  # fmt: skip
        held: list[str] = []
        for name, ours, noted in differing:
            if any(name not in keeper.withheld for keeper in keepers) or not best(
                ours.release, (keeper.tzdata for keeper in keepers)
            ):
                held.append(name)
            else:
                await self._take(connection, name, ours, noted)
        if set(held) - set(self.withheld.zones):
            self._log.warning(
                "time_zones_withheld", zones=held, ours=source_of().release, noted=differing[0][2].release,
                advice=f"other workers have other rules for these time zones, and plan their schedules: {REMEDY}",
            )  # fmt: skip
        covered = {
            entrypoint
            for keeper in keepers
            if keeper.app == self._app and not set(keeper.withheld).intersection(held)
            for entrypoint in keeper.entrypoints
        }
        if held:
            self.due_at = min(self.due_at, time.monotonic() + AGAIN)
        if held or self.withheld.zones:
            await connection.execute(
                self._queries.query("withhold_zones"), {"worker": self._worker, "zones": sorted(held)}
            )
        self.withheld = Withheld(tuple(held), tuple(sorted(covered)))

    async def _note(self, connection: Connection, name: str, ours: Rules, noted: Rules | None) -> bool:
        params = {"name": name, "digest": ours.digest, "release": ours.release, "seen": noted and noted.digest}
        return bool(await self._queries.rows(connection, "note_zone", params))

    async def _take(self, connection: Connection, name: str, ours: Rules, noted: Rules | None) -> None:
        """Notes our rules, and has the zone's schedules planned by them."""
        # Rows that somebody has locked are passed over until the next look: by a worker that is planning one by other
        # rules, or by a client.
        self.due_at = time.monotonic() + LOCKED
        async with connection.transaction():
            # Another worker may have been quicker, with rules that are even newer.
            if noted is not None and not await self._note(connection, name, ours, noted):
                return
            count = await self._replan(connection, name, ours)
            if count:
                await connection.execute(sql.SQL("notify {}").format(self._queries.channel))
        if not count and noted == ours:  # all that is left is locked
            return
        before = None if noted is None else noted.release
        self._log.warning("time_zone_changed", zone=name, schedules=count, release=ours.release, before=before)

    async def _replan(self, connection: Connection, name: str, ours: Rules) -> int:
        """Has the zone's schedules planned by our rules; returns how many.

        A schedule that the database refuses to change keeps its old rules until its next plan, and stops no other.
        """
        refusals: list[tuple[int, BaseException]] = []

        async def send(part: Sequence[int]) -> Sequence[int]:
            async with connection.transaction():
                await self._queries.wait_briefly(connection, _LOCK)
                rows = await self._queries.rows(connection, "replan_zone", {"ids": list(part), "rules": str(ours)})
                await self._queries.settle_constraints(connection)
            return [row["id"] for row in rows]

        async def refuse(id: int, error: BaseException) -> None:
            refusals.append((id, error))

        after = count = 0
        while True:
            params = {"name": name, "after": after, "limit": BATCH, "rules": str(ours)}
            ids = [row["id"] for row in await self._queries.rows(connection, "find_replans", params)]
            count += len(await Apart(send, refuse, patience=0).all(ids))
            if len(ids) < BATCH:
                await self._aside.put(connection, Kind.REPLAN, refusals)
                return count
            after = max(ids)


@lru_cache(maxsize=2048)
def known(name: str) -> Rules | None:
    """This process's rules for a zone; None for UTC, which has none, and for an unknown zone."""
    if name == _FIXED:
        return None
    try:
        return rules(name)
    except InvalidExpression:
        return None


def zoned(schedule: Schedule, next_run: datetime | None, accounted: datetime | None, *, shifted: bool) -> Zoned:
    """The note that a plan makes of its time zone rules."""
    ours = known(schedule.timezone)
    if ours is None:
        return Zoned()
    zone = check_timezone(schedule.timezone)

    def wall(instant: datetime | None) -> datetime | None:
        return None if instant is None else instant.astimezone(zone).replace(tzinfo=None)

    counted = wall(accounted)
    came = accounted is not None and schedule.next_run is not None and accounted >= schedule.next_run
    if shifted and came and counted is not None and schedule.next_wall is not None:
        # It came by the earlier rules, so the local time that their clock showed then has passed too.
        counted = max(counted, schedule.next_wall)
    return Zoned(str(ours), wall(next_run), counted)
