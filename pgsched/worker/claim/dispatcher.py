"""Sleeps until something is due or a hint says that it may be, and claims it. Retries belong to runner, dead workers to
reaper.

Each time it makes claim passes for as long as they leave work that there is room for. Then it looks ahead, and agenda
decides when to look next.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Protocol

from pgsched import log
from pgsched.db.mishaps import Mishaps, stood_still
from pgsched.db.session import Backoff, Connection
from pgsched.model import ClaimedRun, Schedule
from pgsched.rules.agenda import NextLook, Outlook, next_look
from pgsched.rules.fairness import SLOT, take
from pgsched.rules.ledger import Skip
from pgsched.worker.claim.careful import Careful
from pgsched.worker.claim.claim_pass import Claimed, ClaimPass
from pgsched.worker.claim.lanes import Lanes
from pgsched.worker.claim.planner import ClaimTools
from pgsched.worker.claim.zone_rules import ZoneRules
from pgsched.worker.kit import Kit
from pgsched.worker.run.attempt import Attempt
from pgsched.worker.run.roster import Roster

# How many schedules or runs one pass takes at most, even if more slots are free. It bounds the transaction. It is half
# the default of max_running, so that the database claims one half while the other half runs.
MOST = 500
_LOOK_EVERY = 1.0  # seconds; the longest time without a look ahead while there is more to claim
_CLAIMS = 50  # claim passes without a look ahead, at most
_IN_VAIN, _PACE = 3, 0.025  # after this many hints in a row for nothing: seconds between passes for further hints
_DUE_BUT_TAKEN = (0.01, 1.0)  # seconds between looks at due work that another worker holds: first, longest


class Intake(Protocol):
    """Takes in claimed runs: the runner."""

    @property
    def room(self) -> int:
        """How many runs may be claimed now."""

    def take(self, runs: Iterable[ClaimedRun], asked_at: float | None = None) -> None:
        """Takes committed claims in. asked_at: when the first statement that made them was sent."""

    def give_back(self, runs: Iterable[ClaimedRun]) -> None:
        """Gives claims back that nobody can take in."""


class Dispatcher:
    """Decides when to claim, and hands the claimed runs to runner.

    seen: gets the outlook after each look ahead.
    on_skip: gets each recorded skip once it is committed.
    """

    def __init__(
        self,
        kit: Kit,
        roster: Roster,
        runner: Intake,
        *,
        seen: Callable[[Outlook], None] = lambda outlook: None,
        on_skip: Callable[[Schedule, Skip], None] = lambda schedule, skip: None,
    ) -> None:
        self.passed = asyncio.Event()
        self.zones = ZoneRules(kit.store.claims, kit.worker, kit.scheduler.app_name, kit.aside)
        self.next = NextLook()
        self.opens: datetime | None = None  # when the first used-up rate that the last passes saw lets a run start
        self._kit = kit
        self._session = kit.control
        self._hint = kit.wakeups.due
        self._roster = roster
        self._runner = runner
        self._seen = seen
        self._on_skip = on_skip
        self._lanes = Lanes(kit.scheduler)
        self._careful = Careful(kit)
        self._tools = ClaimTools(kit, self._lanes, self._careful, self.zones, runner.give_back)
        self._ahead = False  # set by claim_ahead()
        self._stopping = False
        self._passing = False
        self._vain = 0  # passes in a row that a hint caused and that claimed nothing
        self._passed_at = float("-inf")
        self._most = MOST  # how many schedules or runs a pass takes at most
        self._claimed = 0  # by the last passes
        self._highest = 0  # the highest token of its claims
        self._numbered = 1  # the number of the session whose tokens are known to be higher
        self._looked = float("-inf")  # when it last looked ahead
        self._taken = Backoff(*_DUE_BUT_TAKEN, healthy=0.1)
        self._backoff = Backoff(0.05, 5.0)
        self._log = log.get()
        roster.watch(freed=self._slot_freed)

    # --- when -------------------------------------------------------------------------------------------

    def claim_ahead(self, on: bool) -> None:
        """Sets whether runs may be claimed ahead of their instants: only while notifications arrive, because a change
        must be known in time."""
        self._ahead = on

    def stop(self) -> None:
        """Stops claiming: run() returns after the pass that is under way."""
        self._stopping = True
        self._hint.stir()

    def _slot_freed(self, attempt: Attempt) -> None:
        """A run ended: looks again if something waited for a slot, or for its overlap or limit."""
        if self._hint.asked:
            return
        claimed = attempt.claimed
        known = self._kit.scheduler.entrypoints.get(claimed.entrypoint)
        gate = claimed.schedule_id is not None or (known is not None and known.limits.together)
        if self.next.is_freed(gate=gate, passing=self._passing):
            self._vain = 0  # this hint is our own: the next one is served at once
            self._hint.ask()

    def review(self, outlook: Outlook) -> None:
        """Accepts the outlook of a resync. A pass follows only if there is something to do."""
        self._arrange(outlook, 0, cut=False)
        self._hint.stir()

    async def run(self) -> None:
        """Makes passes, each when it is due, until stop()."""
        while not self._stopping:
            await self._until_next()
            if self._stopping:
                return
            woken = self._hint.take()
            self._passing = True
            try:
                self._vain = 0 if await self.claim_pass() else self._vain + woken
                self._passed_at = time.monotonic()
            except Mishaps as error:
                self._careful.failed(error)
                self._kit.outage.lost(error, "claim")
                if self._session.was_severed() or stood_still(error):
                    self._most = max(1, self._most // 8)
                self._kit.wakeups.reap.ask()  # the commit's answer may be lost: nobody may know of a claim of ours
                await asyncio.sleep(self._backoff.delay())
                self._hint.ask()
            else:
                if self._careful.passed():  # it left something out: a careful pass comes soon
                    self._hint.ask()
                    await asyncio.sleep(self._backoff.delay())
                self._most = min(MOST, 2 * self._most)
                self._kit.outage.answered("claim")
                self.passed.set()
            finally:
                self._passing = False

    async def _until_next(self) -> None:
        """Sleeps until the next pass is due or a wake-up comes; a resync may change the time meanwhile.

        NOTIFY needs no privilege. So if wake-ups keep coming and passes find nothing, a wake-up waits until _PACE after
        the last pass. The first ones, and one after a quiet moment, are served at once.
        """
        while not self._stopping:
            self._hint.event.clear()
            asked, now = self._hint.asked, time.monotonic()
            paced = self._passed_at + _PACE if asked and self._vain >= _IN_VAIN else float("-inf")
            if (asked and now >= paced) or (self.next.at is not None and self.next.at <= now):
                return
            ends = [each for each in (self.next.at, paced if asked else None) if each is not None]
            await self._kit.watch.wait(self._hint.event, min(ends, default=None))

    def _arrange(self, outlook: Outlook, claimed: int, *, cut: bool) -> None:
        """Decides when the next pass is due, from the last look and from the claims of the pass before it."""
        now, clock = time.monotonic(), self._kit.clock
        others = [self.zones.due_at] + ([clock.monotonic(self.opens)] if self.opens is not None else [])
        room = [lane.free > 0 for lane in self._lanes.of(self._lanes.rooms(self._runner.room, self._roster))]
        found = next_look(
            outlook, claimed=claimed, cut=cut, room=room, now=now, lookahead=self._lookahead.total_seconds(),
            moment=clock.monotonic, others=others,
        )  # fmt: skip
        if found.taken:
            again = now + self._taken.delay()
            found = replace(found, at=again if found.at is None else min(found.at, again))
        self.next = found
        if outlook.running_elsewhere:
            self._kit.wakeups.reap.ask()
        self._seen(outlook)

    # --- the passes -------------------------------------------------------------------------------------

    @property
    def _lookahead(self) -> timedelta:
        return self._kit.settings.lookahead if self._ahead else timedelta(0)

    async def claim_pass(self, *, afresh: bool = False) -> int:
        """Makes claim passes until no work is left that there is room for, and looks ahead.

        Returns how many runs they claimed; the runner has them by then.
        afresh: the known time may be wrong, because somebody has moved the clock.
        """
        count = 0
        cut = False
        self.opens = None
        async with self._session.use() as connection:
            await self._prepare(connection, afresh=afresh)
            rooms = self._lanes.rooms(self._runner.room, self._roster)
            free = rooms[SLOT] = min(rooms[SLOT], self._most)
            lanes = [lane for lane in self._lanes.of(rooms) if lane.free > 0]
            for _ in range(_CLAIMS):
                claimed = await ClaimPass(
                    self._tools, connection, lanes, rooms, lookahead=self._lookahead, most=self._most
                ).run()
                self._hand_on(claimed)
                for run in claimed.runs:
                    take(rooms, self._lanes.needs[run.entrypoint])
                count += len(claimed.runs)
                cut = cut or claimed.cut
                # The runs of lanes that are full now stood before others: look for these again.
                before, lanes = lanes, [lane for lane in self._lanes.of(rooms) if lane.free > 0]
                if not lanes or not (claimed.short or (claimed.runs and len(lanes) < len(before))):
                    break
            else:
                cut = True
            cut = cut or (free > 0 and rooms[SLOT] <= 0)
            await self._kit.aside.review(connection, at_once=False)
            if not self._at_once(cut=cut):
                if count:  # their first steps come before the next statement, which takes half a millisecond to build
                    await asyncio.sleep(0)
                await self._look_ahead(connection, count, cut=cut)
        self._claimed = count
        if count:
            self._log.debug("runs_claimed", count=count)
        return count

    async def _prepare(self, connection: Connection, *, afresh: bool) -> None:
        if self._highest and (self._session.generation != self._numbered or not self._session.direct):
            # The server may be a promoted standby that lacks our last claims; behind a pooler nothing would show it.
            await self._kit.store.claims.pass_tokens(connection, self._highest)
        self._numbered = self._session.generation
        if self._careful.on:
            await self._careful.find(connection, self._lookahead)
        if afresh or time.monotonic() >= self.next.resume_at:
            await self._kit.store.claims.resume_paused(connection)
        if self.zones.due:
            await self.zones.look(connection)
        if self.next.gated and not self._claimed:
            await self._kit.store.claims.settle_orphans(connection)
        if not self._kit.clock.known:  # nothing could start without it
            before = time.monotonic()
            self._kit.clock.observe(await self._kit.store.runs.read_clock(connection), before, time.monotonic())

    def _hand_on(self, claimed: Claimed) -> None:
        self._highest = max([self._highest, *(run.token for run in claimed.runs)])
        self._runner.take(claimed.runs, claimed.asked_at)
        for schedule, skip in claimed.skips:
            self._on_skip(schedule, skip)
        if claimed.opens is not None:
            self.opens = claimed.opens if self.opens is None else min(self.opens, claimed.opens)

    def _at_once(self, *, cut: bool) -> bool:
        """Whether the next pass comes now, without a look ahead: the database then claims while the claimed runs run.

        Not if a lane is full: the next pass could miss a place that becomes free in it.
        """
        if not cut or self._kit.elapsed() - self._looked > _LOOK_EVERY:
            return False
        if not all(lane.free for lane in self._lanes.of(self._lanes.rooms(self._runner.room, self._roster))):
            return False
        self.next = replace(self.next, at=time.monotonic())
        return True

    async def _look_ahead(self, connection: Connection, claimed: int, *, cut: bool) -> None:
        self._looked = self._kit.elapsed()
        before = time.monotonic()
        names = list(self._kit.scheduler.entrypoints)
        outlook = await self._kit.store.claims.read_outlook(connection, self._kit.worker, names, self._lookahead)
        self._kit.clock.observe(outlook.now, before, time.monotonic())
        self._arrange(outlook, claimed, cut=cut)
