"""One claim pass: looks at due work, chooses (by fairness), locks, plans, writes and claims.

If nothing but queued runs is due, it claims them in one statement, else in one transaction. The caller starts the
claimed runs, and only after the pass has returned: then everything is committed.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from pgsched.db.session import STATEMENT_LIMIT, Connection
from pgsched.db.statements.claims import ClaimStatements
from pgsched.db.statements.values import Due, Share
from pgsched.model import ClaimedRun, Schedule
from pgsched.rules.fairness import SLOT, Candidate, Kind, Need, choose, overlap, take
from pgsched.rules.ledger import Skip
from pgsched.worker.claim.lanes import Lane, counted, shares
from pgsched.worker.claim.limiter import Limiter
from pgsched.worker.claim.planner import ClaimTools, Planner

_LOOKS = 5  # at most this many in one transaction


@dataclass(frozen=True, slots=True)
class Claimed:
    """The result of a pass. All of it is committed.

    asked_at: when its first statement was sent, on the monotonic clock; from then on the claims hold for a while.
    skips: the skips that it recorded.
    cut: whether it took all that it had room for, so that more may be due.
    short: whether it planned fire times that took no place, and others wait for that place.
    opens: when the first of the used-up rates that it saw lets a run start.
    """

    runs: list[ClaimedRun]
    asked_at: float
    skips: list[tuple[Schedule, Skip]] = field(default_factory=list)
    cut: bool = False
    short: bool = False
    opens: datetime | None = None


class ClaimPass:
    """Lives for one pass.

    lanes: the worker's lanes that have room.
    rooms: how much is left of each need.
    lookahead: how far ahead of its instant a run may be claimed.
    most: how many schedules that need no room yet are planned at most.
    """

    def __init__(
        self,
        tools: ClaimTools,
        connection: Connection,
        lanes: Sequence[Lane],
        rooms: Mapping[Need, int],
        *,
        lookahead: timedelta,
        most: int,
    ) -> None:
        self._tools = tools
        self._statements = tools.kit.store.claims
        self._connection = connection
        self._lanes = lanes
        self._rooms = rooms
        self._lookahead = lookahead
        self._most = most
        self._planner = Planner(tools, connection, lookahead)
        self._limiter = Limiter(tools.kit)
        self._cut = False
        self._short = False

    async def run(self) -> Claimed:
        """Claims due work. Without any lanes, it only plans schedules that were never planned."""
        # If lanes cross (runs of both need threads, runs of one also processes), only choose() keeps the order.
        crossing = len(self._lanes) > 1 and any(len(lane.shared) > 2 for lane in self._lanes)
        asked_at = time.monotonic()  # before anything is claimed
        runs, due = await self._statements.claim_due_runs(
            self._connection, self._tools.kit.worker, list(self._tools.lanes.defaults.values()),
            shares(self._lanes, self._rooms), lookahead=self._lookahead, limit=self._rooms[SLOT],
            known=list(self._tools.kit.scheduler.entrypoints), alone=True, crossing=crossing,
        )  # fmt: skip
        if due.mixed or crossing:
            async with self._locks():
                if len(self._lanes) == 1 and _plain(due, self._lanes[0].free):
                    claimed = await self._claim_all(self._lanes[0], due)
                elif not (due.waiting or due.lines or due.queued):
                    claimed = await self._claim_fire_times()
                else:
                    claimed = await self._claim_chosen(due)
        else:
            try:
                claimed = await self._with_schedules(runs)
            except BaseException:  # the runs are already claimed
                self._tools.give_back(runs)
                raise
        cut = self._cut or self._planner.cut
        return Claimed(claimed, asked_at, self._planner.skips, cut, self._short, self._limiter.opens)

    @contextlib.asynccontextmanager
    async def _locks(self) -> AsyncIterator[None]:
        """A transaction that locks schedules, which others may want. It may stand still for LOCKED_FOR.

        Plans that take longer (an executor's own next_fire_time) would be given up again and again. So each time that
        happens, the next pass plans fewer schedules. One schedule alone gets as much time as a statement.
        """
        if self._most > 1:
            async with self._tools.kit.control.transaction(self._connection):
                yield
        else:
            async with self._connection.transaction():
                await self._statements.set_patience(self._connection, STATEMENT_LIMIT)
                yield

    async def _claim_all(self, lane: Lane, due: Due) -> list[ClaimedRun]:
        """Claims without a choice: there is room for all due work, or only fire times are due."""
        claimed: list[ClaimedRun] = []
        names, free = lane.entrypoints, lane.free
        if due.fire_times or due.unplanned:
            schedules = await self._statements.lock_due_schedules(
                self._connection, [Share(names, free), self._fresh()], self._lookahead, self._tools.zones.withheld
            )
            spare = {SLOT: free - due.fire_times - due.waiting - due.queued}
            claimed += await self._planner.plan(schedules, spare, free)
            self._short = self._planner.left
        queued: list[ClaimedRun] = []
        if due.waiting and (left := free - len(claimed)) > 0:
            queued += await self._claim_waiting(names, left)
        if due.queued and (left := free - len(claimed) - len(queued)) > 0:
            queued += await self._claim_queued([Share(names, left)], left)
        return claimed + await self._with_schedules(queued)

    async def _claim_fire_times(self) -> list[ClaimedRun]:
        """Claims if only fire times are due, in several lanes: it chooses among their plans, which saves a look.

        At most as many schedules as a lane has room for are locked needlessly.
        """
        wanted = [Share(lane.entrypoints, lane.free) for lane in self._lanes]
        schedules = await self._statements.lock_due_schedules(
            self._connection, [*wanted, self._fresh()], self._lookahead, self._tools.zones.withheld
        )
        started = await self._planner.plan(schedules, self._rooms, self._rooms[SLOT], room_taken=None)
        # If a lane gave all that was asked for, others may stand behind those that took no place.
        counts = Counter(
            self._tools.lanes.needs[schedule.entrypoint] for schedule in schedules if schedule.next_run is not None
        )
        full = any(counts[lane.needs] >= lane.free for lane in self._lanes)
        self._short = self._planner.left or (full and self._planner.advanced and len(started) < self._rooms[SLOT])
        return started

    async def _claim_chosen(self, due: Due) -> list[ClaimedRun]:
        """Looks at due work of every kind, chooses some and claims it.

        Others may take some of it between the look and the claim. Then the claim takes the next ones of its kind, or
        none, and the next pass comes at once.
        """
        lined = (
            [name for lane in self._lanes for name in lane.entrypoints if self._planner.is_limited(name)]
            if due.fire_times
            else []
        )
        if due.unplanned or lined:
            # They need no room: their runs go and stand in line, or they are planned for later.
            schedules = await self._statements.lock_due_schedules(
                self._connection, [self._fresh(), Share(lined, self._most)], self._lookahead, self._tools.zones.withheld
            )
            await self._planner.plan(schedules, {SLOT: 0}, self._most, room_taken=False)
            if self._planner.left:
                due = replace(due, waiting=due.waiting + 1, lines=True)
        for _ in range(_LOOKS):
            candidates, left = await self._look(due)
            idle = [each for each in candidates if not each.needs]
            if not idle:
                break
            # They stand before others, and are done as soon as they are planned.
            schedules = await self._statements.lock_due_schedules(
                self._connection, counted(self._lanes, idle, idle=True), self._lookahead, self._tools.zones.withheld
            )
            await self._planner.plan(schedules, {SLOT: 0}, self._most, room_taken=False)
            if not self._planner.advanced:
                break  # somebody holds a lock that they need
        else:
            self._cut = True
            return []
        chosen = choose([each for each in candidates if each.needs], left)
        for each in chosen:
            take(left, each.needs)
        return await self._claim_these(chosen, left)

    async def _look(self, due: Due) -> tuple[list[Candidate], dict[Need, int]]:
        """The candidates, and how much is left of each need.

        Runs in line are read under the lock of their limits. A fire time that cannot run because of its overlap takes
        nobody's place.
        """
        names = [name for lane in self._lanes for name in lane.entrypoints]
        found: list[Candidate] = []
        left = dict(self._rooms)
        if due.lines:
            in_line, limits = await self._limiter.look(self._connection, names, self._rooms[SLOT])
            found += [replace(each, needs=(*self._tools.lanes.needs[each.entrypoint], *each.needs)) for each in in_line]
            left |= limits
        for candidate, room in await self._statements.read_candidates(
            self._connection,
            shares(self._lanes, self._rooms),
            lookahead=self._lookahead,
            limit=self._rooms[SLOT],
            due=due,
            leave=self._tools.zones.withheld,
        ):
            if candidate.kind is Kind.FIRE_TIME and room is not None and room <= 0:
                if not candidate.ahead:
                    found.append(candidate)  # it will wait, or be skipped, and needs nothing
                continue
            needs = self._tools.lanes.needs[candidate.entrypoint]
            # A fire time and a run that waits for the same overlap: one starts, the other waits until it has ended.
            if candidate.schedule_id is not None and candidate.kind is not Kind.QUEUED:
                needs += (overlap(candidate.schedule_id),)
                if candidate.kind is Kind.WAITING and room is not None:
                    left.setdefault(needs[-1], room)
            found.append(replace(candidate, needs=needs))
        return found, left

    async def _claim_these(
        self,
        chosen: Sequence[Candidate],
        spare: Mapping[Need, int],
    ) -> list[ClaimedRun]:
        """Claims the chosen candidates. A fire time and a waiting run of one schedule are claimed in the order that was
        chosen: each counts for the overlap of the other."""
        of = {kind: [each for each in chosen if each.kind is kind] for kind in Kind}
        started, schedules = list[ClaimedRun](), list[Schedule]()
        left = advanced = False
        after = _behind_waiting(chosen)
        if fire_times := of[Kind.FIRE_TIME]:
            schedules = await self._statements.lock_due_schedules(
                self._connection,
                counted(self._lanes, fire_times, idle=False),
                self._lookahead,
                self._tools.zones.withheld,
            )
            started += await self._planner.plan([s for s in schedules if s.id not in after], spare, self._rooms[SLOT])
            left, advanced = self._planner.left, self._planner.advanced
        queued: list[ClaimedRun] = []
        if waiting := of[Kind.WAITING]:
            queued += await self._claim_waiting(self._tools.kit.scheduler.entrypoints, len(waiting), waiting)
        if in_line := of[Kind.LINE]:
            defaults = list(self._tools.lanes.defaults.values())
            queued += await self._tools.careful.step(
                self._connection, lambda: self._limiter.claim(self._connection, defaults, in_line)
            )
        if others := of[Kind.QUEUED]:
            queued += await self._claim_queued(counted(self._lanes, others), len(others))
        claimed = await self._with_schedules(queued)
        if fire_times:
            # Ahead of the instant, the overlap of a schedule that has a live run cannot be judged.
            due = {each.schedule_id for each in fire_times if not each.ahead}
            behind = [s for s in schedules if s.id in after and s.id in due]
            started += await self._planner.plan(behind, spare, self._rooms[SLOT])
            # Some already had their run, or were skipped: others wait for their places.
            left, advanced = left or self._planner.left, advanced or self._planner.advanced
            self._short = left or (advanced and len(started) < len(schedules))
        return claimed + started

    async def _claim_queued(self, wanted: Sequence[Share], limit: int) -> list[ClaimedRun]:
        async def claim() -> list[ClaimedRun]:
            runs, _ = await self._statements.claim_due_runs(
                self._connection, self._tools.kit.worker, list(self._tools.lanes.defaults.values()), wanted,
                lookahead=self._lookahead, limit=limit,
            )  # fmt: skip
            return runs

        return await self._tools.careful.step(self._connection, claim)

    async def _claim_waiting(
        self, names: Iterable[str], limit: int, chosen: Sequence[Candidate] | None = None
    ) -> list[ClaimedRun]:
        return await self._tools.careful.step(
            self._connection,
            lambda: self._statements.claim_gated_runs(
                self._connection,
                self._tools.kit.worker,
                [self._tools.lanes.defaults[name] for name in names],
                lookahead=self._lookahead,
                limit=limit,
                chosen=chosen,
            ),
        )

    def _fresh(self) -> Share:
        """Schedules that were never planned, of full lanes too: they need no room."""
        return Share(list(self._tools.kit.scheduler.entrypoints), self._most, fresh=True)

    async def _with_schedules(self, runs: list[ClaimedRun]) -> list[ClaimedRun]:
        return await with_schedules(self._statements, self._connection, runs)


async def with_schedules(
    statements: ClaimStatements, connection: Connection, runs: list[ClaimedRun]
) -> list[ClaimedRun]:
    """Adds their schedules to retried, triggered and given-back runs of schedules."""
    ids = sorted({run.schedule_id for run in runs if run.schedule_id is not None and run.schedule is None})
    if not ids:
        return runs
    known = {s.id: s for s in await statements.get_schedules(connection, ids)}
    return [run.of(known[run.schedule_id]) if run.schedule_id in known else run for run in runs]


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
    """Whether no due work is in the way of other due work."""
    if due.lines or (due.fire_times and due.waiting):
        return False
    return not (due.waiting or due.queued) or due.fire_times + due.waiting + due.queued <= room
