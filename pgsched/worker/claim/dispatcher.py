"""Claims due runs and starts them. Retries belong to runner, dead workers to reaper.

Sleeps until the earliest fire time or a wake-up; then one pass. If nothing but queued runs is due, it claims them in
one statement, else in one transaction: look, choose (fairness says how), lock, plan, write, claim. Nothing is started
before the commit. Then it looks ahead.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from pgsched import log
from pgsched.db.session import STATEMENT_LIMIT, Backoff, Connection, Mishaps, describe, stood_still
from pgsched.db.statements.store import Due, EntrypointDefaults, Outlook, Planned, Share
from pgsched.errors import InvalidExpression
from pgsched.executors.executor import Executor, OverriddenTimes
from pgsched.model import ClaimedRun, Schedule, ScheduleStatus
from pgsched.rules.fairness import SLOT, Candidate, Kind, Need, choose, on_worker, overlap, place, take
from pgsched.rules.ledger import FireTimes, Skip
from pgsched.rules.plan import Occupancy, Plan, fire_times, plan
from pgsched.worker.claim.careful import Careful
from pgsched.worker.claim.limiter import Limiter
from pgsched.worker.claim.zone_rules import ZoneRules, zoned
from pgsched.worker.kit import Machine
from pgsched.worker.run.runner import Live, Runner

# How many schedules or runs one pass takes at most, whatever is free: it bounds the transaction, and half of what may
# run at once by default leaves the database something to do while the other half runs.
MOST = 500
_LOOK_EVERY = 1.0  # seconds without a look ahead at most, while there is more to claim
# Seconds by which the pass that claims ahead comes later than it could. Fire times lie on whole seconds, and where the
# lookahead is a whole one, too, it would come just when held runs start, and be in their way.
_ASIDE = 0.1
_LOOKS = 5  # at most so many in one transaction
_CLAIMS = 50  # at most so many in one pass
_IN_VAIN, _PACE = 3, 0.025  # after so many wake-ups in a row for nothing: seconds between the passes of others
_DUE_BUT_TAKEN = (0.01, 1.0)  # seconds between looks at something due that another worker holds: first, most


@dataclass(frozen=True, slots=True)
class Lane:
    """Entrypoints whose runs need the same of this worker: a slot, the same places (none, a thread, a process), and for
    each one that has a limit of its own on this worker, one of that. free: how many of them there is room for."""

    entrypoints: tuple[str, ...]
    needs: tuple[Need, ...]
    free: int

    @property
    def shared(self) -> tuple[Need, ...]:
        """What other lanes may need, too."""
        return tuple(need for need in self.needs if need not in map(on_worker, self.entrypoints))


class Dispatcher:
    """The claim pass and when it comes."""

    def __init__(self, machine: Machine, runner: Runner) -> None:
        self.passed = asyncio.Event()
        self.saw_running: Callable[[bool], None] = lambda elsewhere: None  # the reaper hears of it
        self.saw_forgotten: Callable[[bool], None] = lambda forgotten: None  # the worker writes its row again
        self.skipped: Callable[[Schedule, Skip], None] = lambda schedule, skip: None  # once it is committed
        self.listening = False  # only then may a claim be made ahead: a change must be heard of in time
        self._store = machine.store
        self._session = machine.control
        self._worker = machine.worker
        self._scheduler = machine.scheduler
        self._settings = machine.settings
        self._clock = machine.clock
        self._watch = machine.watch
        self._outage = machine.outage
        self._runner = runner
        self._limiter = Limiter(machine)
        self.zones = ZoneRules(machine.store, machine.worker, machine.scheduler.app_name, machine.aside)
        self._woken = False
        self._vain = 0  # passes in a row to which a wake-up led, and that claimed nothing
        self._passed_at = float("-inf")
        self._stir = asyncio.Event()
        self._stopping = False
        self._passing = False
        self._careful = Careful(machine)
        self._aside = machine.aside
        self._most = MOST  # how many schedules or runs a pass takes at most
        self._near = False
        self._gated = True  # whether a run waits for its schedule's overlap, or in a line
        self._claimed = 0  # by the last pass
        self._full = False  # no lane has room: nothing to look for until a run ends
        self._lane_full = False
        self._cut = False  # whether a pass took all that it had room for
        self._looked = float("-inf")  # when it was last looked ahead
        self._left = False  # whether a pass made runs that are due and did not claim them
        self._advanced = False  # whether planning has changed anything
        self._short = False  # whether it planned fire times that took no place, and others wait for that
        self._skips: list[tuple[Schedule, Skip]] = []
        self._next: float | None = None
        self._resume = float("inf")
        self._taken = Backoff(*_DUE_BUT_TAKEN, healthy=0.1)
        self._backoff = Backoff(0.05, 5.0)
        # Of each entrypoint, as of the last look at them.
        self._needs: dict[str, tuple[Need, ...]] = {}
        self._defaults: dict[str, EntrypointDefaults] = {}
        self._names: dict[tuple[Need, ...], tuple[str, ...]] = {}  # the entrypoints of each lane
        self._log = log.get()

    # --- when -------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something may be due earlier than was thought."""
        self._woken = True
        self._stir.set()

    def stop(self) -> None:
        """Claims no more: run() returns after the pass that is under way."""
        self._stopping = True
        self._stir.set()

    def slot_freed(self, live: Live) -> None:
        """A run ended: looks again if something waited for a slot, or for its schedule's overlap to be over.

        A pass that is under way may have seen it live still, and does not know yet what it leaves behind.
        """
        if self._woken:
            return
        known = self._scheduler.entrypoints.get(live.run.entrypoint)
        gate = live.run.schedule_id is not None or (known is not None and known.limits.together)
        if self._lane_full or (self._near and self._gated) or (gate and (self._near or self._passing)):
            self._vain = 0  # no stranger's doing: whoever comes next is served at once
            self.wake()

    def review(self, outlook: Outlook) -> None:
        """Takes in what a resync saw, without a pass of its own unless there is something to do."""
        self.saw_forgotten(outlook.forgotten)
        self._arrange(outlook, 0, False)
        self._stir.set()

    async def run(self) -> None:
        """Passes, each when it is time, until stop()."""
        while not self._stopping:
            await self._until_next()
            if self._stopping:
                return
            # Clear before looking: a wake-up in between costs one spare pass, never a lost one.
            woken, self._woken = self._woken, False
            self._passing = True
            try:
                self._vain = 0 if await self.claim_pass() else self._vain + woken
                self._passed_at = time.monotonic()
            except Mishaps as error:
                self._careful.failed(error)
                self._outage.lost(error, "claim")
                if stood_still(error) or self._session.severed:
                    self._session.severed = False
                    self._most = max(1, self._most // 8)
                self.saw_running(True)  # the commit's answer may have been lost: the reaper looks for orphans
                await asyncio.sleep(self._backoff.delay())
                self._woken = True
            else:
                if self._careful.passed():  # it left something out: a pass with more care comes soon
                    self._woken = True
                    await asyncio.sleep(self._backoff.delay())
                self._most = min(MOST, 2 * self._most)
                self._outage.answered()
                self.passed.set()
            finally:
                self._passing = False

    async def _until_next(self) -> None:
        """Sleeps until it is time, or somebody wakes us; a resync may move the time meanwhile.

        A NOTIFY needs no right. If wake-ups keep coming and passes find nothing, a wake-up waits until _PACE after the
        last pass; the first ones, and one after a quiet moment, are served at once.
        """
        while not self._stopping:
            self._stir.clear()
            now = time.monotonic()
            paced = self._passed_at + _PACE if self._woken and self._vain >= _IN_VAIN else float("-inf")
            if (self._woken and now >= paced) or (self._next is not None and self._next <= now):
                return
            ends = [each for each in (self._next, paced if self._woken else None) if each is not None]
            await self._watch.wait(self._stir, min(ends, default=None))

    def _arrange(self, outlook: Outlook, claimed: int, cut: bool) -> None:
        """Decides when the next pass is due, from what the last look saw, and from what the pass claimed and
        whether it took all that it had room for."""
        now = time.monotonic()
        lookahead = self._lookahead.total_seconds()
        lookahead -= min(_ASIDE, lookahead / 2)
        times = []
        self._near = outlook.next_near is not None
        self._gated = outlook.gated_near
        room = [lane.free > 0 for lane in self._lanes(self._rooms())]
        self._lane_full = self._near and not all(room)
        self._full = self._near and not any(room)
        self._resume = float("inf")
        if outlook.next_resume is not None:
            self._resume = self._clock.monotonic(outlook.next_resume)
            times.append(self._resume if self._resume > now else now + self._taken.delay())
        if outlook.next_ahead is not None:
            times.append(max(now, self._clock.monotonic(outlook.next_ahead) - lookahead))
        if self._limiter.opens is not None:
            times.append(self._clock.monotonic(self._limiter.opens))
        if self.zones.due_at < float("inf"):
            times.append(max(now, self.zones.due_at))
        if outlook.next_near is not None and not self._full:
            # Not due yet: blocked by its overlap until then, or more than one pass takes. Due: likewise, or another
            # worker holds it just now, and nobody will tell should that one fail.
            near = self._clock.monotonic(outlook.next_near)
            if cut or (near <= now and claimed):
                times.append(now)
            else:
                times.append(near if near > now else now + self._taken.delay())
        self._next = min(times, default=None)
        self.saw_running(outlook.running_elsewhere)

    # --- the pass ---------------------------------------------------------------------------------------

    @property
    def _lookahead(self) -> timedelta:
        return self._settings.lookahead if self.listening else timedelta(0)

    def _rooms(self) -> dict[Need, int]:
        """How much there is of all that runs need of this worker."""
        rooms: dict[Need, int] = {SLOT: self._runner.room}
        rooms |= {place(which): number for which, number in self._runner.free().items()}
        for known in self._scheduler.entrypoints.values():
            if known.limits.per_worker is not None:
                rooms[on_worker(known.name)] = max(0, known.limits.per_worker - self._runner.count(known.name))
        return rooms

    def _learn(self) -> None:
        """Looks at the entrypoints once, and not at two hundred of them several times in each pass; again, if there are
        more of them now."""
        if len(self._needs) == len(self._scheduler.entrypoints):
            return
        of: dict[tuple[Need, ...], list[str]] = {}
        for name, known in self._scheduler.entrypoints.items():
            own = [on_worker(name)] if known.limits.per_worker is not None else []
            needs = self._needs[name] = (SLOT, *map(place, sorted(known.places)), *own)
            of.setdefault(needs, []).append(name)
            self._defaults[name] = EntrypointDefaults(
                name, known.retry.attempts, known.retry.backoff, known.retry.max_backoff, known.timeout
            )
        self._names = {needs: tuple(names) for needs, names in of.items()}

    def _lanes(self, rooms: Mapping[Need, int]) -> list[Lane]:
        self._learn()
        return [Lane(names, needs, min(rooms[need] for need in needs)) for needs, names in self._names.items()]

    async def claim_pass(self) -> int:
        """One pass. Returns how many runs it claimed; they are with the runner then."""
        count = 0
        self._cut = False
        self._limiter.opens = None
        async with self._session.use() as connection:
            if self._careful.on:
                await self._careful.find(connection, self._lookahead)
            if time.monotonic() >= self._resume:
                await self._store.resume_paused(connection)
            if self.zones.due:
                await self.zones.look(connection)
            if self._gated and not self._claimed:
                await self._store.settle_orphans(connection)
            if not self._clock.known:  # and without it nothing could start
                await self._read_clock(connection)
            rooms = self._rooms()
            free = rooms[SLOT] = min(rooms[SLOT], self._most)
            lanes = [lane for lane in self._lanes(rooms) if lane.free > 0]
            for _ in range(_CLAIMS):
                self._short = False
                taken = await self._claim(connection, lanes, rooms)
                for run in taken:
                    take(rooms, self._needs[run.entrypoint])
                count += len(taken)
                # What is in the lanes that are full now stood before others, which are looked for anew.
                before, lanes = lanes, [lane for lane in self._lanes(rooms) if lane.free > 0]
                if not lanes or not (self._short or (taken and len(lanes) < len(before))):
                    break
            else:
                self._cut = True
            self._cut = self._cut or (free > 0 and rooms[SLOT] <= 0)
            await self._aside.review(connection, at_once=False)
            if not self._at_once():
                if count:  # their first steps come before the next statement is made: that takes half a millisecond
                    await asyncio.sleep(0)
                await self._look_ahead(connection, count)
        self._claimed = count
        if count:
            self._log.debug("runs_claimed", count=count)
        return count

    def _at_once(self) -> bool:
        """Whether the next pass comes now, whatever a look ahead would say: the database then claims while what was
        claimed runs. Not where a lane is full: whose places become free may go unnoticed by the next pass."""
        if (
            not self._cut
            or time.monotonic() - self._looked > _LOOK_EVERY
            or not all(x.free for x in self._lanes(self._rooms()))
        ):
            return False
        self._next = time.monotonic()
        return True

    async def _look_ahead(self, connection: Connection, claimed: int) -> None:
        before = self._looked = time.monotonic()
        names = list(self._scheduler.entrypoints)
        outlook = await self._store.read_outlook(connection, self._worker, names, self._lookahead)
        self._clock.observe(outlook.now, before, time.monotonic())
        self.saw_forgotten(outlook.forgotten)
        self._arrange(outlook, claimed, self._cut)

    async def _read_clock(self, connection: Connection) -> None:
        before = time.monotonic()
        self._clock.observe(await self._store.read_clock(connection), before, time.monotonic())

    async def _claim(
        self, connection: Connection, lanes: Sequence[Lane], rooms: Mapping[Need, int]
    ) -> list[ClaimedRun]:
        """Claims what is due in some lanes, and starts it once that is committed. Without any, it only plans what was
        never planned."""
        # Where lanes cross (some of both need threads, some of one also processes), only choose() does it justice.
        crossing = len(lanes) > 1 and any(len(lane.shared) > 2 for lane in lanes)
        names = list(self._scheduler.entrypoints)
        asked_at = time.monotonic()  # before anything is claimed: from here on the claims are sure for a while
        runs, due = await self._store.claim_due_runs(
            connection, self._worker, list(self._defaults.values()), _shares(lanes, rooms),
            lookahead=self._lookahead, limit=rooms[SLOT], known=names, alone=True, crossing=crossing,
        )  # fmt: skip
        skips = self._skips = []
        if due.mixed or crossing:
            async with self._locks(connection):
                if len(lanes) == 1 and _plain(due, lanes[0].free):
                    claimed = await self._claim_all(connection, lanes[0], due)
                elif not (due.waiting or due.lines or due.queued):
                    claimed = await self._claim_fire_times(connection, lanes, rooms)
                else:
                    claimed = await self._claim_chosen(connection, lanes, rooms, due)
        else:
            try:
                claimed = await self._with_schedules(connection, runs)
            except BaseException:  # they are claimed already
                self._runner.give_back(runs)
                raise
        self._runner.take(claimed, asked_at)
        for schedule, skip in skips:
            self.skipped(schedule, skip)
        return claimed

    @contextlib.asynccontextmanager
    async def _locks(self, connection: Connection) -> AsyncIterator[None]:
        """A transaction that locks schedules, which others want. It may stand still for LOCKED_FOR.

        A plan that takes longer (an executor's own next_fire_time) would be given up again and again. So after each
        time the next pass plans fewer schedules, and one schedule alone gets the time that a statement has.
        """
        if self._most > 1:
            async with self._session.transaction(connection):
                yield
        else:
            async with connection.transaction():
                await self._store.set_patience(connection, STATEMENT_LIMIT)
                yield

    async def _claim_all(self, connection: Connection, lane: Lane, due: Due) -> list[ClaimedRun]:
        """Where there is room for all that is due, or only one kind of it, nothing has to be chosen."""
        claimed: list[ClaimedRun] = []
        names, free = lane.entrypoints, lane.free
        if due.fire_times or due.unplanned:
            schedules = await self._store.lock_due_schedules(
                connection, [Share(names, free), self._fresh()], self._lookahead, self.zones.withheld
            )
            spare = {SLOT: free - due.fire_times - due.waiting - due.queued}
            claimed += await self._plan(connection, schedules, spare, free)
            self._short = self._left
        queued: list[ClaimedRun] = []
        if due.waiting and (left := free - len(claimed)) > 0:
            queued += await self._claim_waiting(connection, names, left)
        if due.queued and (left := free - len(claimed) - len(queued)) > 0:
            queued += await self._claim_queued(connection, [Share(names, left)], left)
        return claimed + await self._with_schedules(connection, queued)

    async def _claim_fire_times(
        self, connection: Connection, lanes: Sequence[Lane], rooms: Mapping[Need, int]
    ) -> list[ClaimedRun]:
        """If nothing but fire times is due, in several lanes, it chooses among their plans: one look less for a herd.
        At most a lane's room is locked in vain."""
        shares = [Share(lane.entrypoints, lane.free) for lane in lanes]
        schedules = await self._store.lock_due_schedules(
            connection, [*shares, self._fresh()], self._lookahead, self.zones.withheld
        )
        started = await self._plan(connection, schedules, rooms, rooms[SLOT], room_taken=None)
        # Where a lane gave all that was asked for, others may stand behind those that took no place.
        counts = Counter(self._needs[schedule.entrypoint] for schedule in schedules if schedule.next_run is not None)
        full = any(counts[lane.needs] >= lane.free for lane in lanes)
        self._short = self._left or (full and self._advanced and len(started) < rooms[SLOT])
        return started

    async def _claim_chosen(
        self, connection: Connection, lanes: Sequence[Lane], rooms: Mapping[Need, int], due: Due
    ) -> list[ClaimedRun]:
        """Looks at what is due of every kind, chooses, and claims that. Between the look and the claim others may have
        taken some of it: the claim takes the next ones of its kind, or none, and the next pass comes at once."""
        lined = (
            [name for lane in lanes for name in lane.entrypoints if self._is_limited(name)] if due.fire_times else []
        )
        if due.unplanned or lined:
            # Those need no room: they go and stand in line, or are planned for later.
            schedules = await self._store.lock_due_schedules(
                connection, [self._fresh(), Share(lined, self._most)], self._lookahead, self.zones.withheld
            )
            await self._plan(connection, schedules, {SLOT: 0}, self._most, room_taken=False)
            if self._left:
                due = replace(due, waiting=due.waiting + 1, lines=True)
        for _ in range(_LOOKS):
            candidates, left = await self._look(connection, lanes, rooms, due)
            idle = [each for each in candidates if not each.needs]
            if not idle:
                break
            # They stand before others, and are over as soon as they are planned.
            schedules = await self._store.lock_due_schedules(
                connection, _counted(lanes, idle, idle=True), self._lookahead, self.zones.withheld
            )
            await self._plan(connection, schedules, {SLOT: 0}, self._most, room_taken=False)
            if not self._advanced:
                break  # somebody holds up what they need
        else:
            self._cut = True
            return []
        chosen = choose([each for each in candidates if each.needs], left)
        for each in chosen:
            take(left, each.needs)
        return await self._claim_these(connection, lanes, rooms[SLOT], chosen, left)

    async def _look(
        self, connection: Connection, lanes: Sequence[Lane], rooms: Mapping[Need, int], due: Due
    ) -> tuple[list[Candidate], dict[Need, int]]:
        """The candidates, and how much there is of what they need. Those in line are looked at under the lock of their
        limits. A fire time that cannot run, because of its overlap, takes nobody's place."""
        names = [name for lane in lanes for name in lane.entrypoints]
        found: list[Candidate] = []
        left = dict(rooms)
        if due.lines:
            in_line, limits = await self._limiter.look(connection, names, rooms[SLOT])
            found += [replace(each, needs=(*self._needs[each.entrypoint], *each.needs)) for each in in_line]
            left |= limits
        shares = _shares(lanes, rooms)
        for candidate, room in await self._store.read_candidates(
            connection, shares, lookahead=self._lookahead, limit=rooms[SLOT], due=due, leave=self.zones.withheld
        ):
            if candidate.kind is Kind.FIRE_TIME and room is not None and room <= 0:
                if not candidate.ahead:
                    found.append(candidate)  # it will wait, or be skipped, and needs nothing
                continue
            needs = self._needs[candidate.entrypoint]
            # A fire time and a run that waits for the same overlap: one of them, and the other when it is over.
            if candidate.schedule_id is not None and candidate.kind is not Kind.QUEUED:
                needs += (overlap(candidate.schedule_id),)
                if candidate.kind is Kind.WAITING and room is not None:
                    left.setdefault(needs[-1], room)
            found.append(replace(candidate, needs=needs))
        return found, left

    async def _claim_these(
        self,
        connection: Connection,
        lanes: Sequence[Lane],
        room: int,
        chosen: Sequence[Candidate],
        spare: Mapping[Need, int],
    ) -> list[ClaimedRun]:
        """Claims what was chosen. Of one schedule a fire time and a run that waits are claimed in the order in which
        they were chosen: each counts for the overlap of the other."""
        of = {kind: [each for each in chosen if each.kind is kind] for kind in Kind}
        started, schedules = list[ClaimedRun](), list[Schedule]()
        left = advanced = False
        after = _behind_waiting(chosen)
        if fire_times := of[Kind.FIRE_TIME]:
            schedules = await self._store.lock_due_schedules(
                connection, _counted(lanes, fire_times, idle=False), self._lookahead, self.zones.withheld
            )
            started += await self._plan(connection, [s for s in schedules if s.id not in after], spare, room)
            left, advanced = self._left, self._advanced
        queued: list[ClaimedRun] = []
        if waiting := of[Kind.WAITING]:
            queued += await self._claim_waiting(connection, self._scheduler.entrypoints, len(waiting), waiting)
        if in_line := of[Kind.LINE]:
            queued += await self._careful.step(
                connection, lambda: self._limiter.claim(connection, list(self._defaults.values()), in_line)
            )
        if others := of[Kind.QUEUED]:
            queued += await self._claim_queued(connection, _counted(lanes, others), len(others))
        claimed = await self._with_schedules(connection, queued)
        if fire_times:
            # Ahead of its instant the overlap of a schedule that has a run going cannot be judged.
            due = {each.schedule_id for each in fire_times if not each.ahead}
            behind = [s for s in schedules if s.id in after and s.id in due]
            started += await self._plan(connection, behind, spare, room)
            # Some had their run already, or were skipped: others wait for their places.
            left, advanced = left or self._left, advanced or self._advanced
            self._short = left or (advanced and len(started) < len(schedules))
        return claimed + started

    async def _claim_queued(self, connection: Connection, shares: Sequence[Share], limit: int) -> list[ClaimedRun]:
        async def claim() -> list[ClaimedRun]:
            runs, _ = await self._store.claim_due_runs(
                connection, self._worker, list(self._defaults.values()), shares, lookahead=self._lookahead, limit=limit
            )
            return runs

        return await self._careful.step(connection, claim)

    async def _claim_waiting(
        self, connection: Connection, names: Iterable[str], limit: int, chosen: Sequence[Candidate] | None = None
    ) -> list[ClaimedRun]:
        return await self._careful.step(
            connection,
            lambda: self._store.claim_gated_runs(
                connection,
                self._worker,
                [self._defaults[name] for name in names],
                lookahead=self._lookahead,
                limit=limit,
                chosen=chosen,
            ),
        )

    def _is_limited(self, entrypoint: str) -> bool:
        return self._scheduler.entrypoints[entrypoint].limits.together

    def _fresh(self) -> Share:
        """What was never planned, whatever is full: it needs no room."""
        return Share(list(self._scheduler.entrypoints), self._most, fresh=True)

    async def _plan(
        self,
        connection: Connection,
        schedules: Sequence[Schedule],
        spare: Mapping[Need, int],
        asked: int,
        *,
        room_taken: bool | None = True,
    ) -> list[ClaimedRun]:
        """Plans locked schedules and writes the plans. Their locks are held until the commit.

        spare: what there is room for beside the first run of each (room_taken), or at all; where that is used up runs
        are queued, or (None) their schedules are left as they are. asked: how many schedules were asked for at most.
        """
        self._left = self._advanced = False
        # Locked, a row says which time zone rules count for it, however long ago we looked at those.
        schedules = [s for s in schedules if self.zones.may_plan(s)]
        if not schedules:
            return []
        now, live = await self._store.count_live_runs(connection, schedules)
        if astray := [schedule for schedule, found in live.items() if found.astray]:
            refused = await self._redirect(connection, astray)
            schedules = [s for s in schedules if s.id not in refused]
        horizon = now + self._lookahead
        # Seen under the lock: a change that came after the lock's own snapshot may have withdrawn a claim.
        unanswered = {schedule_id for schedule_id, seen in live.items() if seen.withdrawn}
        planned = [
            self._planned(s, live.get(s.id, Occupancy()), now, horizon) for s in schedules if s.id not in unanswered
        ]
        changed = [
            p for p in planned
            if p.plan.runs or p.plan.skips or p.plan.status is not ScheduleStatus.ACTIVE
            or p.plan.next_run != p.schedule.next_run or p.schedule.interruptions_json
        ]  # fmt: skip
        if replacing := [p.schedule.id for p in changed if p.plan.replaces]:
            # Somebody has one of the old runs locked: the fire time stays due, and is looked at again.
            blocked = await self._replace(connection, replacing)
            changed = [p for p in changed if p.schedule.id not in blocked]
        if not changed:
            return []
        self._advanced = True
        # Schedules that were made just now advance without a run of theirs, and others wait behind them. Those that
        # cannot advance do not count: the next pass would find them again, and again.
        self._cut = self._cut or len(schedules) >= asked
        fits = self._within(changed, spare, now, room_taken)
        kept = {p.schedule.id for p in fits}
        coming = 0
        for p in changed:
            until = now if self._is_limited(p.schedule.entrypoint) else horizon  # from a line nothing is claimed ahead
            if p.schedule.id in kept:
                coming += sum(run.due_at <= until and not run.waits for run in p.plan.runs)
        changed = fits
        by_id = {p.schedule.id: p for p in changed}
        made = await self._write(connection, changed, horizon)
        # Some stand in line, or wait until there is room.
        self._left = len(made) < coming
        return [by_id[schedule].claimed(run_id, fire_time, token) for run_id, schedule, fire_time, token in made]

    async def _redirect(self, connection: Connection, schedules: Sequence[int]) -> set[int]:
        """Has queued runs follow their schedules. Returns the schedules of which the database refused it."""
        if not self._careful.on:
            await self._store.redirect_runs(connection, schedules)
            return set()

        async def redirect_runs(part: Sequence[int]) -> list[int]:
            return [await self._store.redirect_runs(connection, part)]

        _, refused = await self._careful.change(connection, schedules, redirect_runs)
        return refused

    async def _replace(self, connection: Connection, schedules: Sequence[int]) -> set[int]:
        """Cancels runs that others replace. Returns the schedules of which it could not."""
        if not self._careful.on:
            return await self._store.replace_runs(connection, schedules)

        async def replace_runs(part: Sequence[int]) -> list[int]:
            return list(await self._store.replace_runs(connection, part))

        blocked, refused = await self._careful.change(connection, schedules, replace_runs)
        return refused.union(blocked)

    def _within(
        self, planned: Sequence[Planned], spare: Mapping[Need, int], now: datetime, room_taken: bool | None
    ) -> list[Planned]:
        """Has runs for which there is no room wait, like any others that are queued: the fire times of a backlog are
        many (catch_up all), and a new schedule may be due at once."""

        def beyond(p: Planned) -> int:
            return 1 if room_taken and p.schedule.next_run is not None else 0

        if not any(len(p.plan.runs) > beyond(p) for p in planned):
            return list(planned)
        candidates = []
        for p in planned:
            schedule, needs = p.schedule, self._needs[p.schedule.entrypoint]
            if self._is_limited(schedule.entrypoint):
                needs = ()  # it goes and stands in line
            candidates += [
                Candidate(
                    Kind.FIRE_TIME, schedule.id, schedule.id, schedule.entrypoint, schedule.priority, run.due_at,
                    run.due_at > now, needs,
                )
                for run in p.plan.runs[beyond(p):] if not run.waits
            ]  # fmt: skip
        fit = {(each.id, each.due_at) for each in choose(candidates, spare)}
        if len(fit) == len(candidates):
            return list(planned)

        def queued(p: Planned) -> Planned:
            runs = [
                run if number < beyond(p) or (p.schedule.id, run.due_at) in fit else replace(run, waits=True)
                for number, run in enumerate(p.plan.runs)
            ]
            return replace(p, plan=replace(p.plan, runs=tuple(runs)))

        def starts(p: Planned) -> bool:
            return any((p.schedule.id, run.due_at) in fit or run.waits for run in p.plan.runs[:1])

        left = room_taken is None
        return [
            queued(p) for p in planned
            if not left or not p.plan.runs or p.schedule.next_run is None or starts(p)
        ]  # fmt: skip

    async def _write(
        self, connection: Connection, planned: Sequence[Planned], horizon: datetime
    ) -> list[tuple[int, int, datetime, int]]:
        """Writes plans, after a pass that the database refused with care: what is wrong with one schedule makes
        that one invalid and stops no other."""

        async def write(part: Sequence[Planned]) -> list[tuple[int, int, datetime, int]]:
            return await self._store.write_plans(connection, self._worker, part, horizon)

        left_out = set[int]()
        if self._careful.on:
            made, left_out = await self._careful.write(connection, planned, write, self._refused)
        else:
            made = await write(planned)
        self._skips += [(p.schedule, skip) for p in planned for skip in p.plan.skips if p.schedule.id not in left_out]
        return made

    def _refused(self, planned: Planned, error: BaseException) -> Planned:
        return replace(planned, plan=self._invalid(planned.schedule, f"its plan was refused: {describe(error)}"))

    def _planned(self, schedule: Schedule, live: Occupancy, now: datetime, horizon: datetime) -> Planned:
        entrypoint = self._scheduler.entrypoints[schedule.entrypoint]
        shifted = self.zones.shifted(schedule)
        decided = self._decide(schedule, live, now, horizon, shifted=shifted)
        noted = zoned(schedule, decided.next_run, decided.accounted_through, shifted=shifted)
        return Planned.of(schedule, decided, entrypoint.retry, entrypoint.timeout, noted)

    def _decide(self, schedule: Schedule, live: Occupancy, now: datetime, horizon: datetime, *, shifted: bool) -> Plan:
        """The plan; whatever is wrong with one schedule makes that one invalid and stops no other."""
        try:
            return plan(schedule, self._times(schedule), live, now, horizon, shifted=shifted)
        except InvalidExpression as error:
            problem = str(error)
        except Exception as error:  # an executor's own next_fire_time, or a fault of ours
            problem = f"{type(error).__name__} while planning: {error}"
        return self._invalid(schedule, problem)

    def _invalid(self, schedule: Schedule, problem: str) -> Plan:
        self._log.warning("schedule_invalid", schedule=schedule.name, reason=problem[:500])
        note = problem.replace("\0", "").encode(errors="backslashreplace").decode()[:1000]
        return Plan(None, status=ScheduleStatus.INVALID, note=note)

    def _times(self, schedule: Schedule) -> FireTimes:
        executor = self._scheduler.executor_for(schedule.entrypoint, schedule.name)
        if executor is not None and type(executor).next_fire_time is not Executor.next_fire_time:
            return OverriddenTimes(executor, schedule)
        return fire_times(schedule)

    async def _with_schedules(self, connection: Connection, runs: list[ClaimedRun]) -> list[ClaimedRun]:
        """Gives retried, triggered and given-back runs of schedules their schedule again."""
        ids = sorted({run.schedule_id for run in runs if run.schedule_id is not None and run.schedule is None})
        if not ids:
            return runs
        known = {s.id: s for s in await self._store.get_schedules(connection, ids)}
        return [run.of(known[run.schedule_id]) if run.schedule_id in known else run for run in runs]


def _shares(lanes: Sequence[Lane], rooms: Mapping[Need, int]) -> list[Share]:
    """As much of each lane as there is room for; lanes that need the same places share these."""
    pools = {needs: number for number, needs in enumerate(dict.fromkeys(lane.shared for lane in lanes))}
    return [
        Share(lane.entrypoints, lane.free, pools[lane.shared], min(rooms[need] for need in lane.shared))
        for lane in lanes
    ]


def _counted(lanes: Sequence[Lane], chosen: Sequence[Candidate], *, idle: bool | None = None) -> list[Share]:
    """As many of each lane as were chosen: the first of a lane are those."""
    of = {name: number for number, lane in enumerate(lanes) for name in lane.entrypoints}
    counts = Counter(of[each.entrypoint] for each in chosen)
    return [Share(lanes[number].entrypoints, count, idle=idle) for number, count in counts.items()]


def _behind_waiting(chosen: Sequence[Candidate]) -> set[int]:
    """The schedules whose fire time was chosen after a run that waits for their overlap."""
    waiting, found = set[int | None](), set[int]()
    for each in chosen:
        if each.kind is Kind.WAITING:
            waiting.add(each.schedule_id)
        elif each.kind is Kind.FIRE_TIME and each.schedule_id in waiting:
            found.add(each.id)
    return found


def _plain(due: Due, room: int) -> bool:
    """Whether nothing of what is due stands in the way of anything else."""
    if due.lines or (due.fire_times and due.waiting):
        return False
    return not (due.waiting or due.queued) or due.fire_times + due.waiting + due.queued <= room
