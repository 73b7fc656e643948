"""Claims due runs and starts them. Retries belong to runner, dead workers to reaper.

Sleeps until the earliest fire time or a wake-up; then one pass. Where nothing but queued runs is due it claims them in
one statement, else in one transaction: lock, plan, write, claim. Nothing is started before the commit. Then it looks
ahead.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from pgsched import log
from pgsched.account import FireTimes, Skip
from pgsched.careful import Careful
from pgsched.db import STATEMENT_LIMIT, Backoff, Connection, Mishaps, describe, stood_still
from pgsched.errors import InvalidExpression
from pgsched.executors import Executor, OverriddenTimes, Place
from pgsched.limiter import Limiter
from pgsched.machine import Machine
from pgsched.model import ClaimedRun, Schedule, ScheduleStatus
from pgsched.policy import Occupancy, Plan, fire_times, plan
from pgsched.replanner import ZoneRules, zoned
from pgsched.runner import Live, Runner
from pgsched.scheduler import Entrypoint
from pgsched.store import Due, EntrypointDefaults, Outlook, Planned

# How many schedules or runs one pass takes at most, whatever is free: it bounds the transaction, and half of what may
# run at once by default leaves the database something to do while the other half runs.
MOST = 500
_LOOK_EVERY = 1.0  # seconds without a look ahead at most, while there is more to claim
# Seconds by which the pass that claims ahead comes later than it could. Fire times lie on whole seconds, and where the
# lookahead is a whole one, too, it would come just when held runs start, and be in their way.
_ASIDE = 0.1
_DUE_BUT_TAKEN = (0.01, 1.0)  # seconds between looks at something due that another worker holds: first, most


# With fewer free slots than this a pass looks first whether more is due than it can take, and goes by priority.
_SCARCE = 50


@dataclass(frozen=True, slots=True)
class Lane:
    """Entrypoints that share this worker's limits: those whose runs take the same places (none, a thread each, a
    process each), and each one that has a limit of its own on this worker."""

    entrypoints: tuple[Entrypoint, ...]
    free: int
    places: frozenset[Place]


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
        self.zones = ZoneRules(machine.store, machine.worker, machine.scheduler.app_name)
        self._woken = False
        self._stir = asyncio.Event()
        self._stopping = False
        self._passing = False
        self._careful = Careful(machine)
        self._aside = machine.aside
        self._most = MOST  # how many schedules or runs a pass takes at most
        self._near = False
        self._gated = True  # whether a run waits for its schedule's overlap, or in a line
        self._full = False  # no lane has room: nothing to look for until a run ends
        self._lane_full = False
        self._scarce = True  # whether more may be due than there is room for
        self._cut = False  # whether a pass took all that it had room for
        self._looked = float("-inf")  # when it was last looked ahead
        self._due: Due  # what the pass has to look for in the lane that it is at
        self._skips: list[tuple[Schedule, Skip]] = []
        self._next: float | None = None
        self._resume = float("inf")
        self._taken = Backoff(*_DUE_BUT_TAKEN, healthy=0.1)
        self._backoff = Backoff(0.05, 5.0)
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
            self._woken = False
            self._passing = True
            try:
                await self.claim_pass()
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
        """Sleeps until it is time, or somebody wakes us; a resync may move the time meanwhile."""
        while not self._woken and not self._stopping:
            self._stir.clear()
            if self._next is not None and self._next <= time.monotonic():
                return
            await self._watch.wait(self._stir, self._next)

    def _arrange(self, outlook: Outlook, claimed: int, cut: bool) -> None:
        """Decides when the next pass is due, from what the last look saw, and from what the pass claimed and
        whether it took all that it had room for."""
        now = time.monotonic()
        lookahead = self._lookahead.total_seconds()
        lookahead -= min(_ASIDE, lookahead / 2)
        times = []
        self._near = outlook.next_near is not None
        self._gated = outlook.gated_near
        room = [lane.free > 0 for lane in self._lanes()]
        self._lane_full = self._near and not all(room)
        self._scarce = cut or self._lane_full
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

    def _lanes(self) -> list[Lane]:
        slots = self._runner.room
        free = self._runner.free()
        shared: dict[frozenset[Place], list[Entrypoint]] = {frozenset(): []}
        lanes = []
        for known in self._scheduler.entrypoints.values():
            places, own = known.places, known.limits.per_worker
            if own is None:
                shared.setdefault(places, []).append(known)
            else:
                room = min(slots, own - self._runner.count(known.name), *(free[place] for place in places))
                lanes.append(Lane((known,), max(0, room), places))
        lanes += [
            Lane(tuple(entrypoints), min([slots, *(free[place] for place in places)]), places)
            for places, entrypoints in shared.items()
            if entrypoints
        ]
        return lanes

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
            if not self._clock.known:  # and without it nothing could start
                await self._read_clock(connection)
            slots = self._runner.room
            free = self._runner.free()
            for lane in self._lanes():
                room = min(lane.free, self._most, slots, *(free[place] for place in lane.places))
                if room > 0:
                    taken = await self._claim_lane(connection, lane, room)
                    self._cut = self._cut or len(taken) >= room
                    slots -= len(taken)
                    for place in lane.places:
                        free[place] -= len(taken)
                    count += len(taken)
            await self._aside.review(connection, at_once=False)
            if not self._at_once():
                await self._look_ahead(connection, count)
        if count:
            self._log.debug("runs_claimed", count=count)
        return count

    def _at_once(self) -> bool:
        """Whether the next pass comes now, whatever a look ahead would say: the database then claims while what was
        claimed runs. Not where a lane is full: whose places become free may go unnoticed by the next pass."""
        if not self._cut or time.monotonic() - self._looked > _LOOK_EVERY or not all(x.free for x in self._lanes()):
            return False
        self._next, self._scarce = time.monotonic(), True
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

    async def _claim_lane(self, connection: Connection, lane: Lane, room: int) -> list[ClaimedRun]:
        """Claims what is due of a lane, and starts it once that is committed."""
        runs, self._due = await self._store.claim_due_runs(
            connection, self._worker, _defaults(lane), self._lookahead, room, alone=True
        )
        skips = self._skips = []
        if self._due.mixed:
            async with self._locks(connection):
                claimed = await self._claim_levels(connection, lane, room)
        else:
            try:
                claimed = await self._with_schedules(connection, runs)
            except BaseException:  # they are claimed already
                self._runner.give_back(runs)
                raise
        self._runner.take(claimed)
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

    async def _claim_levels(self, connection: Connection, lane: Lane, room: int) -> list[ClaimedRun]:
        """Where there may be more than there is room for, what has the highest priority goes first, be it a fire time,
        a run that waits at a gate, or a queued one."""
        levels: list[int | None] = [None]
        if self._scarce or room < _SCARCE:
            levels = [*await self._store.read_levels(connection, [e.name for e in lane.entrypoints], self._lookahead)]
        claimed: list[ClaimedRun] = []
        for level in levels:
            if len(claimed) < room:
                claimed += await self._claim_level(connection, lane, room - len(claimed), level)
        return claimed

    async def _claim_level(
        self, connection: Connection, lane: Lane, room: int, priority: int | None
    ) -> list[ClaimedRun]:
        names = [e.name for e in lane.entrypoints]
        claimed: list[ClaimedRun] = []
        if self._due.fire_times and (
            schedules := await self._store.lock_due_schedules(
                connection, names, self._lookahead, room, priority=priority, leave=self.zones.withheld
            )
        ):
            claimed += await self._plan(connection, schedules, room)
        defaults = _defaults(lane)
        queued: list[ClaimedRun] = []
        if self._due.lines and (left := room - len(claimed)) > 0:
            in_line = left
            queued += await self._careful.step(
                connection, lambda: self._limiter.claim(connection, defaults, in_line, priority)
            )
        look = self._lookahead
        if self._due.waiting and (left := room - len(claimed) - len(queued)) > 0:
            waiting = left
            queued += await self._careful.step(
                connection,
                lambda: self._store.claim_gated_runs(
                    connection, self._worker, defaults, look, waiting, priority=priority
                ),
            )
        if self._due.queued and (left := room - len(claimed) - len(queued)) > 0:
            queued += await self._careful.step(
                connection, lambda: self._claim_queued(connection, defaults, left, priority)
            )
        return claimed + await self._with_schedules(connection, queued)

    async def _claim_queued(
        self, connection: Connection, defaults: Sequence[EntrypointDefaults], limit: int, priority: int | None
    ) -> list[ClaimedRun]:
        runs, _ = await self._store.claim_due_runs(
            connection, self._worker, defaults, self._lookahead, limit, priority=priority
        )
        return runs

    async def _plan(self, connection: Connection, schedules: Sequence[Schedule], room: int) -> list[ClaimedRun]:
        """Plans locked schedules and writes the plans. Their locks are held until the commit."""
        # Locked, a row says which time zone rules count for it, however long ago we looked at those.
        schedules = [s for s in schedules if self.zones.may_plan(s)]
        now, live = await self._store.count_live_runs(connection, [s.id for s in schedules])
        horizon = now + self._lookahead
        planned = [self._planned(s, live.get(s.id, Occupancy()), now, horizon) for s in schedules]
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
        by_id = {p.schedule.id: p for p in changed}
        # Schedules that were made just now advance without a run of theirs, and others wait behind them. Those that
        # cannot advance do not count: the next pass would find them again, and again.
        self._cut = self._cut or len(schedules) >= room
        made = await self._write(connection, changed, horizon)
        if len(made) < sum(len(p.plan.runs) for p in changed):
            # Some stand in line, at the limits of their entrypoint, and may be claimed by this pass.
            self._due = replace(self._due, lines=True)
        return [by_id[schedule].claimed(run_id, fire_time, token) for run_id, schedule, fire_time, token in made]

    async def _replace(self, connection: Connection, schedules: Sequence[int]) -> set[int]:
        """Cancels runs that others replace. Returns the schedules of which it could not."""
        if not self._careful.on:
            return await self._store.replace_runs(connection, schedules)

        async def replace_runs(part: Sequence[int]) -> list[int]:
            return list(await self._store.replace_runs(connection, part))

        blocked, refused = await self._careful.change(connection, schedules, replace_runs)
        return refused.union(blocked)

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
        ids = sorted({run.schedule_id for run in runs if run.schedule_id is not None})
        if not ids:
            return runs
        known = {s.id: s for s in await self._store.get_schedules(connection, ids)}
        return [run.of(known[run.schedule_id]) if run.schedule_id in known else run for run in runs]


def _defaults(lane: Lane) -> list[EntrypointDefaults]:
    return [
        EntrypointDefaults(e.name, e.retry.attempts, e.retry.backoff, e.retry.max_backoff, e.timeout)
        for e in lane.entrypoints
    ]
