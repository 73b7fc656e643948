"""Plans locked schedules and writes the plans, for one claim pass. rules.plan decides; the pass holds the locks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from pgsched import log
from pgsched.db.mishaps import one_line
from pgsched.db.session import Connection
from pgsched.db.statements.values import Planned
from pgsched.errors import InvalidExpression
from pgsched.executors.executor import Executor, OverriddenTimes
from pgsched.model import ClaimedRun, Schedule, ScheduleStatus
from pgsched.rules.fairness import Candidate, Kind, Need, choose
from pgsched.rules.ledger import FireTimes, Skip
from pgsched.rules.plan import Occupancy, Plan, fire_times, plan
from pgsched.scheduler import Scheduler
from pgsched.worker.claim.careful import Careful
from pgsched.worker.claim.lanes import Lanes
from pgsched.worker.claim.zone_rules import ZoneRules, zoned
from pgsched.worker.kit import Kit


@dataclass(frozen=True, slots=True)
class ClaimTools:
    """The objects that all claim passes of a worker share. give_back: gives back claims that cannot be taken."""

    kit: Kit
    lanes: Lanes
    careful: Careful
    zones: ZoneRules
    give_back: Callable[[Sequence[ClaimedRun]], None]


class Planner:
    """Lives for one claim pass.

    left: whether the last plan() made due runs and did not claim them.
    advanced: whether the last plan() changed anything.
    cut: whether any plan() got as many schedules as were asked for.
    skips: all that were written.
    """

    def __init__(self, tools: ClaimTools, connection: Connection, lookahead: timedelta) -> None:
        self._tools = tools
        self._statements = tools.kit.store.claims
        self._connection = connection
        self._lookahead = lookahead
        self.left = self.advanced = self.cut = False
        self.skips: list[tuple[Schedule, Skip]] = []

    def is_limited(self, entrypoint: str) -> bool:
        """Whether runs of an entrypoint stand in line at a limit that workers share."""
        return self._tools.kit.scheduler.entrypoints[entrypoint].limits.together

    async def plan(
        self,
        schedules: Sequence[Schedule],
        spare: Mapping[Need, int],
        asked: int,
        *,
        room_taken: bool | None = True,
    ) -> list[ClaimedRun]:
        """Plans locked schedules and writes the plans. Their locks are held until the commit. Returns the claimed runs.

        spare: how much is left of each need. Runs that find no room are queued.
        asked: how many schedules were asked for at most.
        room_taken: if True, the first run of each schedule has its room already, and `spare` is for the others. If
            None, a schedule whose first run finds no room is left unchanged.
        """
        self.left = self.advanced = False
        # A locked row says which time zone rules count for it, even if our last look at them was long ago.
        schedules = [s for s in schedules if self._tools.zones.may_plan(s)]
        if not schedules:
            return []
        now, live = await self._statements.count_live_runs(self._connection, schedules)
        if astray := [schedule for schedule, found in live.items() if found.astray]:
            refused = await self._redirect(astray)
            schedules = [s for s in schedules if s.id not in refused]
        horizon = now + self._lookahead
        # Counted under the lock: a change that came after the lock's own snapshot may have withdrawn a claim.
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
            # If somebody has one of the old runs locked, the fire time stays due, and the next pass tries again.
            blocked = await self._replace(replacing)
            changed = [p for p in changed if p.schedule.id not in blocked]
        if not changed:
            return []
        self.advanced = True
        # New schedules advance without producing a run, and others may be waiting behind them. Those that cannot
        # advance do not count: each further pass would find them again.
        self.cut = self.cut or len(schedules) >= asked
        fits = self._within(changed, spare, now, room_taken)
        kept = {p.schedule.id for p in fits}
        coming = 0
        for p in changed:
            until = now if self.is_limited(p.schedule.entrypoint) else horizon  # no run in line is claimed ahead
            if p.schedule.id in kept:
                coming += sum(run.due_at <= until and not run.waits for run in p.plan.runs)
        changed = fits
        by_id = {p.schedule.id: p for p in changed}
        made = await self._write(changed, horizon)
        # Some stand in line, or wait for room.
        self.left = len(made) < coming
        return [by_id[schedule].claimed(run_id, fire_time, token) for run_id, schedule, fire_time, token in made]

    async def _redirect(self, schedules: Sequence[int]) -> set[int]:
        """Has queued runs follow their schedules. Returns the schedules whose runs the database refused to change."""
        if not self._tools.careful.on:
            await self._statements.redirect_runs(self._connection, schedules)
            return set()

        async def redirect_runs(part: Sequence[int]) -> list[int]:
            return [await self._statements.redirect_runs(self._connection, part)]

        _, refused = await self._tools.careful.change(self._connection, schedules, redirect_runs)
        return refused

    async def _replace(self, schedules: Sequence[int]) -> set[int]:
        """Cancels runs that others replace. Returns the schedules whose runs it could not cancel."""
        if not self._tools.careful.on:
            return await self._statements.replace_runs(self._connection, schedules)

        async def replace_runs(part: Sequence[int]) -> list[int]:
            return list(await self._statements.replace_runs(self._connection, part))

        blocked, refused = await self._tools.careful.change(self._connection, schedules, replace_runs)
        return refused.union(blocked)

    def _within(
        self, planned: Sequence[Planned], spare: Mapping[Need, int], now: datetime, room_taken: bool | None
    ) -> list[Planned]:
        """Queues the runs that there is no room for: a backlog has many fire times (catch_up all), and a new schedule
        may be due at once."""

        def beyond(p: Planned) -> int:
            return 1 if room_taken and p.schedule.next_run is not None else 0

        if not any(len(p.plan.runs) > beyond(p) for p in planned):
            return list(planned)
        candidates = []
        for p in planned:
            schedule, needs = p.schedule, self._tools.lanes.needs[p.schedule.entrypoint]
            if self.is_limited(schedule.entrypoint):
                needs = ()  # its run goes and stands in line
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

    async def _write(self, planned: Sequence[Planned], horizon: datetime) -> list[tuple[int, int, datetime, int]]:
        """Writes plans; carefully, after a pass that the database refused: then a fault in one schedule makes only that
        one invalid, and stops no other."""

        async def write(part: Sequence[Planned]) -> list[tuple[int, int, datetime, int]]:
            return await self._statements.write_plans(self._connection, self._tools.kit.worker, part, horizon)

        left_out = set[int]()
        if self._tools.careful.on:
            made, left_out = await self._tools.careful.write(self._connection, planned, write, self._refused)
        else:
            made = await write(planned)
        self.skips += [(p.schedule, skip) for p in planned for skip in p.plan.skips if p.schedule.id not in left_out]
        return made

    def _refused(self, planned: Planned, error: BaseException) -> Planned:
        return replace(planned, plan=self._invalid(planned.schedule, f"its plan was refused: {one_line(error)}"))

    def _planned(self, schedule: Schedule, live: Occupancy, now: datetime, horizon: datetime) -> Planned:
        entrypoint = self._tools.kit.scheduler.entrypoints[schedule.entrypoint]
        shifted = self._tools.zones.shifted(schedule)
        decided = self._decide(schedule, live, now, horizon, shifted=shifted)
        noted = zoned(schedule, decided.next_run, decided.accounted_through, shifted=shifted)
        return Planned.of(schedule, decided, entrypoint.retry, entrypoint.timeout, noted)

    def _decide(self, schedule: Schedule, live: Occupancy, now: datetime, horizon: datetime, *, shifted: bool) -> Plan:
        """The plan. A fault in one schedule makes only that one invalid, and stops no other."""
        try:
            return plan(schedule, times_of(self._tools.kit.scheduler, schedule), live, now, horizon, shifted=shifted)
        except InvalidExpression as error:
            problem = str(error)
        except Exception as error:  # an executor's own next_fire_time, or a fault of ours
            problem = f"{type(error).__name__} while planning: {error}"
        return self._invalid(schedule, problem)

    def _invalid(self, schedule: Schedule, problem: str) -> Plan:
        log.get().warning("schedule_invalid", schedule=schedule.name, reason=problem[:500])
        note = problem.replace("\0", "").encode(errors="backslashreplace").decode()[:1000]
        return Plan(None, status=ScheduleStatus.INVALID, note=note)


def times_of(scheduler: Scheduler, schedule: Schedule) -> FireTimes:
    """A schedule's fire times: its executor's own, or else those of its expression. Raises InvalidExpression."""
    executor = scheduler.executor_for(schedule.entrypoint, schedule.name)
    if executor is not None and type(executor).next_fire_time is not Executor.next_fire_time:
        return OverriddenTimes(executor, schedule)
    return fire_times(schedule)
