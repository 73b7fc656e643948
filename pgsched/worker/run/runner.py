"""Takes claimed runs and passes their outcomes on. Read attempt.py for the life of one run.

Dispatcher hands over claims, held starts runs at their instant, beats say which claims still hold, and finisher writes
outcomes. The roster lists everything that is here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent import futures
from datetime import timedelta
from typing import Any

from pgsched import log
from pgsched.db.fence.fence import Transactions
from pgsched.model import Claim, ClaimedRun, Hold, Outcome, RunStatus
from pgsched.rules.outcome import Stop, where
from pgsched.worker.kit import Kit
from pgsched.worker.run.attempt import Attempt
from pgsched.worker.run.finisher import BATCH, Finisher
from pgsched.worker.run.held import Held
from pgsched.worker.run.hook_calls import Caller
from pgsched.worker.run.roster import Roster
from pgsched.worker.run.surroundings import State, Surroundings
from pgsched.worker.run.tasks import Group

UNWRITTEN = 3 * BATCH  # with this many ends waiting to be written, no more runs are claimed
_LATE = 5  # claims in a row that are not sure although the database has just confirmed them
_SAY_AGAIN = 60.0  # seconds between two log lines about a database that answers too late


class Runner:
    """Stands between the claim and the finisher.

    threads: the pool for synchronous functions.
    group: the task group of all runs.
    ends: whether the event loop ends, and has cancelled all its tasks.
    raised: called with the exceptions of functions; for tests.
    """

    def __init__(
        self,
        kit: Kit,
        roster: Roster,
        finisher: Finisher,
        *,
        threads: futures.Executor,
        group: Group,
        ends: Callable[[], bool] = lambda: False,
        raised: Callable[[Attempt, Outcome, BaseException | None], None] = lambda attempt, outcome, error: None,
    ) -> None:
        self._kit = kit
        self._roster = roster
        self._finisher = finisher
        self._interval = kit.settings.heartbeat_interval.total_seconds()
        self.transactions = Transactions(kit.settings.dsn, kit.store.runs, kit.worker, kit.settings.max_transactions)
        self.caller = Caller(kit.settings.hook_timeout)
        self.held = Held(kit.clock, kit.watch, roster, kit.wakeups.beat, self._interval)
        self.surroundings = Surroundings(
            worker=kit.worker,
            scheduler=kit.scheduler,
            clock=kit.clock,
            watch=kit.watch,
            grace=kit.settings.cancel_timeout.total_seconds(),
            group=group,
            threads=threads,
            caller=self.caller,
            transactions=self.transactions,
            ended=self._ended,
            committed=roster.changed,
            outlives=roster.leftovers_changed.set,
            ends=ends,
            raised=raised,
        )
        self._late_answers = 0
        self._said_late = float("-inf")
        self._log = log.get()
        self._finished = log.event_logger("run_finished")

    @property
    def room(self) -> int:
        """How many runs may be claimed now. If ends are written more slowly than runs end, claims wait until they are
        written: the claim of an unwritten end must be kept alive, and if this process dies, its run is executed
        again. If none can be written, none is claimed."""
        if self._kit.outage.unwritten:
            return 0
        free = self._kit.settings.max_running - self._roster.slots_used
        return max(0, min(free, UNWRITTEN - self._finisher.behind))

    # --- claims come in ---------------------------------------------------------------------------------

    def take(self, runs: Iterable[ClaimedRun], asked_at: float | None = None) -> None:
        """Accepts committed claims, and starts each run as soon as its instant has certainly come.

        If this process is still working on a run, it is given back instead.

        asked_at: when the first statement that made the claims was sent, on the monotonic clock; default now.
        """
        jumped = self._kit.watch.look()  # the machine may have slept since the pass saw the database's clock
        asked_at = time.monotonic() if asked_at is None else asked_at
        for run in runs:
            if (earlier := self._roster.busy_with(run.id)) is not None:
                # Another worker took it away and it has come back. Its first attempt goes on here: wait for that.
                earlier.end(Stop.LOST)
                self.give_back([run])
                continue
            name = run.schedule.name if run.schedule is not None else None
            executor = self._kit.scheduler.executor_for(run.entrypoint, name)
            attempt = Attempt(self.surroundings, run, executor, asked_at=asked_at)
            self._roster.add(attempt)
            if jumped:
                self.held.ask(attempt)
            else:
                self.held.arrange(attempt)

    def give_back(self, runs: Iterable[ClaimedRun]) -> None:
        """Gives back claims that cannot be accepted."""
        for run in runs:
            claim = Claim(run.id, run.token, self._kit.worker)
            back = Outcome(claim, RunStatus.QUEUED, refund=True, unbegun=run.schedule_id is not None)
            self._finisher.put(back, lambda outcome, landed: None)

    def release_held(self) -> int:
        """Gives back the runs that have not started; returns how many."""
        held = self._roster.held()
        for attempt in held:
            attempt.end(Stop.DRAIN)
        return len(held)

    # --- beats answer -----------------------------------------------------------------------------------

    def answered(self, run_id: int, token: int, hold: Hold | None, asked_at: float) -> None:
        """Acts on the answer to a beat about one claim.

        hold: None if the claim is lost.
        asked_at: when the beat was sent, on the monotonic clock.
        """
        attempt = self._roster.attempts.get((run_id, token))
        if attempt is None or attempt.state is State.ENDED:
            return
        if hold is None:
            if attempt.state is State.RUNNING and attempt.stop is not Stop.LOST:
                claimed = attempt.claimed
                self._log.warning("claim_lost", run=run_id, entrypoint=claimed.entrypoint, attempt=claimed.attempt)
            attempt.end(Stop.LOST)
            return
        attempt.renewed(asked_at)
        if hold is Hold.CANCEL and attempt.stop is None:
            attempt.end(Stop.REQUESTED)
        elif hold is Hold.WITHDRAWN and attempt.state is State.HELD:
            attempt.end(Stop.WITHDRAWN)
        elif hold is Hold.WITHDRAWN:
            # It goes on, because it has started. The first beat sent after that records the start.
            if attempt.started > asked_at:
                self._kit.wakeups.beat.ask()
        elif attempt.state is State.HELD and (sure := self.held.confirm(attempt)) is not None:
            self._late_answers = 0 if sure else self._late_answers + 1
            if self._late_answers > _LATE:
                self._say_late(time.monotonic() - asked_at)

    def _say_late(self, seconds: float) -> None:
        """Logs that answers come too late to start a run: otherwise nobody would know why it goes on asking."""
        now = time.monotonic()
        if now - self._said_late < _SAY_AGAIN:
            return
        self._said_late = now
        self._log.error(
            "answers_too_late", answer_s=round(seconds, 3), heartbeat_interval_s=self._interval,
            advice="no run starts while the database takes longer to answer than two heartbeat intervals: find out why,"
            " or set a longer heartbeat_interval",
        )  # fmt: skip

    # --- runs end ---------------------------------------------------------------------------------------

    def _ended(self, attempt: Attempt, outcome: Outcome | None) -> None:
        """A run is over here: frees its slot and has its outcome written. outcome: None if its claim is lost."""
        self._roster.free(attempt)
        self.held.forget(attempt)
        if outcome is None:
            self._forget(attempt, landed=False)
            if attempt.thread_call.future is not None:
                self._roster.leftovers_changed.set()  # a beat may have reported that its thread goes on
        else:
            self._finisher.put(outcome, self._landed)

    def _landed(self, outcome: Outcome, landed: bool) -> None:
        """Takes the finisher's answer: the end is written, or its claim is lost."""
        attempt = self._roster.attempts.get((outcome.claim.run_id, outcome.claim.token))
        if attempt is None:
            return
        self._forget(attempt, landed=landed)
        if outcome.left_behind or (not landed and attempt.thread_call.future is not None):
            # Its thread may have ended before this landed, or since a beat found its claim lost.
            self._roster.leftovers_changed.set()
        decided = attempt.outcome
        attempt.landed(outcome, landed)
        self._say_end(attempt, outcome, landed)
        if outcome.committed and decided is not None and decided.status is not RunStatus.SUCCEEDED:
            stop = attempt.stop and attempt.stop.value
            why = decided.error.type if decided.error is not None else decided.reason or stop
            claimed = attempt.claimed
            self._log.warning("error_after_commit", run=claimed.id, entrypoint=claimed.entrypoint, error=why)
        self._roster.changed(attempt)

    def _forget(self, attempt: Attempt, *, landed: bool) -> None:
        self._roster.forget(attempt, landed=landed)
        attempt.let_go()

    def _say_end(self, attempt: Attempt, outcome: Outcome, landed: bool) -> None:
        """Logs how a run ended."""
        run = attempt.claimed
        fields: dict[str, Any] = {"run": run.id, "entrypoint": run.entrypoint, "attempt": run.attempt}
        if run.schedule is not None:
            fields["schedule"] = run.schedule.name
        if attempt.started_at is not None and outcome.finished_at is not None:
            fields["took_s"] = round((outcome.finished_at - attempt.started_at).total_seconds(), 3)
            fields["late_ms"] = round((attempt.started_at - run.due_at) / timedelta(milliseconds=1), 1)
        if not landed:
            self._log.warning("claim_lost", **fields)
        elif outcome.status is RunStatus.SUCCEEDED:
            self._finished(**fields)
        elif outcome.status is RunStatus.CANCELLED and attempt.stop is None:
            self._log.info("run_discarded", **fields)
        elif outcome.status is RunStatus.CANCELLED:
            self._log.warning("run_cancelled", **fields)
        elif outcome.refund:
            self._log.info("run_given_back", **fields)
        else:
            assert outcome.error is not None
            fields["error"] = outcome.error.type
            if place := where(outcome.error):
                fields["at"] = place
            if outcome.status is RunStatus.QUEUED:
                self._log.warning("run_failed", retry_in_s=outcome.delay.total_seconds(), **fields)
            else:
                self._log.warning("run_failed_for_good", **fields)
