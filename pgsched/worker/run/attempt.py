"""One claimed run in this process: its call, its time limit, its stop and its outcome.

If the function raises, the exception becomes the run's outcome and never reaches the task group. An attempt knows
nothing of other attempts.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import time
from datetime import datetime, timedelta
from typing import Any

import structlog

from pgsched import log
from pgsched.db.fence.fence import Fence
from pgsched.errors import InvalidArguments
from pgsched.executors.capture import JOURNAL, keep_on
from pgsched.executors.executor import THREAD_CALL, Executor, Place, ThreadCall
from pgsched.journal import Journal
from pgsched.model import Cancellation, Claim, ClaimedRun, Outcome, Run, RunError, RunStatus
from pgsched.rules.nesting import read
from pgsched.rules.outcome import End, Stop, decide
from pgsched.worker.run.hook_calls import hook_arguments
from pgsched.worker.run.surroundings import Key, State, Surroundings

_AGAIN = 1.0  # seconds until a run that ignored its cancellation is cancelled again


def _bound(*names: str) -> list[contextvars.ContextVar[Any]]:
    """structlog's context variables for these names. Every logger that merges them shows their values."""
    context = contextvars.copy_context()
    context.run(structlog.contextvars.bind_contextvars, **dict.fromkeys(names))
    return [next(v for v in context if v.name == structlog.contextvars.STRUCTLOG_KEY_PREFIX + name) for name in names]


_RUN, _ENTRYPOINT, _ATTEMPT = _bound("run", "entrypoint", "attempt")


class Attempt:
    """One claim, one outcome. Only the event loop's thread changes it; the guard reads it."""

    __slots__ = (
        "answer", "asked_at", "began", "cancellation", "claim", "claimed", "context", "deadline", "ended", "entered",
        "error", "executor", "fence", "hooked", "ignored", "instant", "interrupt", "journal", "keeper",
        "key", "outcome", "place", "problem", "result", "run", "started", "started_at", "state", "stop",
        "surroundings", "task", "thread_call", "threaded", "transacted",
    )  # fmt: skip

    def __init__(
        self, surroundings: Surroundings[Attempt], claimed: ClaimedRun, executor: Executor | None, *, asked_at: float
    ) -> None:
        self.surroundings = surroundings
        self.claimed = claimed
        self.claim = Claim(claimed.id, claimed.token, surroundings.worker)
        self.key: Key = (claimed.id, claimed.token)
        self.executor = executor
        self.place = executor.place if executor is not None else None
        self.threaded = self.place is Place.THREAD
        self.thread_call = ThreadCall(surroundings.threads, surroundings.scheduler.hooks.around_sync)
        self.state = State.HELD
        self.entered = False
        self.asked_at = asked_at  # monotonic: when the last statement that made or renewed the claim was sent
        self.ignored = 0
        self.hooked = False
        self.problem: InvalidArguments | None = None  # with its arguments
        self.transacted = False  # whether its own transaction has committed
        self.result: Any = None
        self.error: BaseException | None = None
        self.ended = 0.0  # when the function ended, on the monotonic clock
        self.outcome: Outcome | None = None
        self.answer: asyncio.Future[bool] | None = None  # whether the outcome landed, for the hooks
        self.started = self.began = 0.0  # on the monotonic clock: starts of the attempt and of its function
        self.started_at: datetime | None = None
        self.stop: Stop | None = None
        self.cancellation = Cancellation(surroundings.grace)
        self.journal = Journal()
        self.task: asyncio.Task[None] | None = None
        self.keeper: asyncio.Task[None] | None = None
        self.deadline: asyncio.TimerHandle | None = None  # the timer of its timeout
        self.interrupt: asyncio.TimerHandle | None = None  # the next cancellation
        self.instant: asyncio.Future[None] | None = None  # the task of a held run waits for it
        # Made at the claim, so that a thousand runs that start at one instant need not wait for it then.
        self.context: contextvars.Context
        self.run: Run
        self.fence: Fence
        self._prepare()

    def _prepare(self) -> None:
        """Makes the Run that its function sees, and the context of the call."""
        claimed, around = self.claimed, self.surroundings
        args: dict[str, Any] = {}
        try:
            args = read(claimed.args_json) if claimed.args_json != "{}" else {}
        except ValueError as error:
            self.problem = InvalidArguments(f"the arguments cannot be read: {error}")
        loop = asyncio.get_running_loop()

        def committed() -> None:
            """Called in any thread once the run's own transaction has committed its success. Its function may go on."""
            self.transacted = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nothing waits any more
                loop.call_soon_threadsafe(around.committed, self)

        self.fence = around.transactions.fence(self.claim, None, committed)
        self.run = Run(
            id=claimed.id,
            entrypoint=claimed.entrypoint,
            schedule=claimed.schedule,
            fire_time=claimed.fire_time,
            previous_fire_time=claimed.previous_fire_time,
            attempt=claimed.attempt,
            token=claimed.token,
            args=args,
            worker=self.claim.worker,
            resources=around.scheduler.resources,
            cancellation=self.cancellation,
            journal=self.journal,
            fence=self.fence,
        )
        self.context = contextvars.copy_context()
        self.context.run(_bind, self)

    # --- starting ---------------------------------------------------------------------------------------

    def hold(self) -> None:
        """Makes the task before the run's instant, so that almost nothing is left to do then."""
        if self.instant is None:
            self.instant = asyncio.get_running_loop().create_future()
            self._make_task()

    def start(self) -> None:
        """Starts the run: its instant has come, and its claim is sure."""
        if self.instant is not None and self.instant.done():  # its task was cancelled, and _over() comes later
            self.end(Stop.DRAIN)
            return
        self.state = State.RUNNING
        keep_on()
        self.started = time.monotonic()
        due_at = self.claimed.due_at
        # clock.at() returns the middle of its bounds, which may be a little before due_at.
        self.started_at = max(self.surroundings.clock.at(self.started) or due_at, due_at)
        self.fence.started_at = self.started_at
        if self.instant is None:
            self._make_task()
        else:
            self.instant.set_result(None)
        if not self.hooked or not self.surroundings.scheduler.hooks.before_run:
            self._begin(self.started)

    def _make_task(self) -> None:
        self.hooked = self.surroundings.scheduler.hooks.around_runs
        self.task = self.surroundings.group.create_task(self._execute(), context=self.context)
        # In a callback, the work of its end comes after the starts of all runs of its instant.
        self.task.add_done_callback(lambda _: self._over())

    def _begin(self, now: float) -> None:
        """Starts the function's time and its timeout."""
        self.began = now
        if self.claimed.timeout is not None:
            self.deadline = asyncio.get_running_loop().call_later(
                self.claimed.timeout.total_seconds(), self.end, Stop.TIMEOUT
            )

    async def _execute(self) -> None:
        if self.instant is not None:
            await self.instant  # cancelled if the run is dropped
        self.entered = True
        run = self.run
        try:
            if not self.began:
                hooks = self.surroundings.scheduler.hooks.before_run
                await self.surroundings.caller.call(hooks, self.context, run)
                self._begin(time.monotonic())
            if self.problem is not None or self.executor is None:
                raise self.problem or InvalidArguments(f"this worker has no entrypoint {run.entrypoint!r}")
            self.result = await self.executor.execute(run)
        except BaseException as raised:
            self.error = raised
            if self.surroundings.ends():
                await _outlast_loop(self)
        self.ended = time.monotonic()
        if self.hooked:
            result, error = self.result, self.error
            took = timedelta(seconds=self.ended - self.began) if self.began else timedelta(0)
            self._over()
            await _report(self, run, result, error, took)

    # --- its end ----------------------------------------------------------------------------------------

    def _over(self) -> None:
        """The task has ended or has reached its hooks. Only this callback notices a task that was cancelled before its
        first step; one that was cancelled while it was held never started."""
        if self.state is State.HELD:
            self.end(Stop.DRAIN)
            return
        result, error = self.result, self.error
        self.result = self.error = None  # an error keeps its frames alive
        self._conclude(result, error if self.entered else asyncio.CancelledError())

    def _conclude(self, result: Any, error: BaseException | None) -> None:
        """Decides the outcome. Nothing is awaited here, so nothing can interrupt the bookkeeping."""
        if self.state is State.ENDED:  # it was abandoned
            return
        self._cancel_timers()
        if self.stop is None and isinstance(error, asyncio.CancelledError) and self.surroundings.ends():
            self.stop = Stop.DRAIN
        if self.stop is Stop.LOST:
            self._finish(None)
            return
        try:
            outcome = self._decide(result, error)
        except BaseException as odd:  # a bug here, or a result or an error that raises when it is examined
            unknown = RunError(type(odd).__name__, "its end could not be understood")
            now = self.surroundings.clock.now()
            outcome = Outcome(self.claim, RunStatus.FAILED, self.started_at, now, error=unknown)
        self._finish(outcome)

    def _decide(self, result: Any, error: BaseException | None) -> Outcome:
        around, claimed = self.surroundings, self.claimed
        if around.watch.looked < self.ended or not self.ended:
            around.watch.look()  # after a suspension the time is unknown here, and the database stamps the end
        outcome = decide(
            claimed,
            self.claim,
            End(
                started_at=self.started_at,
                finished_at=around.clock.at(self.ended) if self.ended else around.clock.now(),
                result=result,
                error=error,
                stop=self.stop,
                noticed=self.cancellation.noticed,
                threaded=self.thread_call.busy,
                ignored=self.ignored,
            ),
            around.scheduler.retry_for(claimed.entrypoint, claimed.schedule.name if claimed.schedule else None),
        )
        if outcome.status is RunStatus.SUCCEEDED and result is not None and outcome.result_json is None:
            log.get().warning("result_not_stored", reason=outcome.reason)
        around.raised(self, outcome, error)
        return outcome

    def _finish(self, outcome: Outcome | None) -> None:
        """Ends the run in this process. outcome: None if the claim is lost; then nothing is written."""
        if self.state is State.ENDED:
            return
        self.state = State.ENDED
        self.journal.close()
        if outcome is not None and self.journal.unwritten:
            outcome = dataclasses.replace(outcome, journal=self.journal)
        if outcome is not None and self.thread_call.busy and self.stop is not Stop.DRAIN:
            outcome = dataclasses.replace(outcome, left_behind=True)
        if outcome is not None and self.transacted:
            outcome = dataclasses.replace(outcome, transacted=True)
        self.outcome = outcome
        if self.hooked and outcome is not None:
            self.answer = asyncio.get_running_loop().create_future()
        if self.keeper is not None:
            self.keeper.cancel()
        self.surroundings.ended(self, outcome)

    def keep(self, task: asyncio.Task[None]) -> None:
        """Sets the task that acts on the answers to the run's beats, until it ends."""
        self.keeper = task

    def renewed(self, asked_at: float) -> None:
        """A beat that was sent then, on the monotonic clock, has renewed the claim."""
        self.asked_at = max(self.asked_at, asked_at)

    def landed(self, outcome: Outcome, landed: bool) -> None:
        """Takes the database's answer. outcome: as it was recorded."""
        self.outcome = outcome
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(landed)

    def let_go(self) -> None:
        """Drops the objects that refer back to this one, so that nothing waits for the garbage collector."""
        del self.run, self.fence

    # --- stopping ---------------------------------------------------------------------------------------

    def end(self, why: Stop) -> None:
        """Stops the run. The first reason counts, but a lost claim overrides it: then nothing is written."""
        if self.state is State.ENDED:
            return
        asked = self.stop is not None
        if why is Stop.LOST and self.stop is not Stop.LOST and self.thread_call.busy:
            self.surroundings.outlives()
        if self.stop is None or why is Stop.LOST:
            self.stop = why
        if self.state is State.HELD:
            self._drop()
            return
        if asked:
            return  # its grace period has started; another beat that finds the claim lost must not extend it
        self.cancellation.requested = True
        self._cancel_timers()
        if self.threaded and self.began:
            # A thread cannot be interrupted: it is asked to stop, and its run is left behind after the grace period.
            self.interrupt = asyncio.get_running_loop().call_later(self.surroundings.grace, self._interrupt, False)
        else:
            self._interrupt(False)

    def _interrupt(self, again: bool) -> None:
        if self.state is State.ENDED or self.task is None:
            return
        if self.stop is Stop.DRAIN and self.thread_call.busy:
            return  # its code goes on here: abandon() gives the run back just before the process ends
        if not self.entered:
            # A task that is cancelled before its first step never enters its coroutine, so its hooks would miss its
            # end: it is cancelled as soon as it has entered.
            asyncio.get_running_loop().call_soon(self._interrupt, again)
            return
        if again:
            self.ignored += 1
            if self.ignored & (self.ignored - 1) == 0:  # logged at the 1st, 2nd, 4th, 8th time, not once a second
                log.get().warning(
                    "run_ignores_cancellation", run=self.claimed.id, entrypoint=self.claimed.entrypoint,
                    times=self.ignored,
                )  # fmt: skip
        self.task.cancel()
        wait = _AGAIN
        if self.executor is not None and self.executor.asks_first and not again:
            wait += self.cancellation.grace  # until then it does not ignore the cancellation
        self.interrupt = asyncio.get_running_loop().call_later(wait, self._interrupt, True)

    def _drop(self) -> None:
        """Drops a run that has not started: gives it back, cancels it, or forgets it if its claim is lost."""
        if self.task is not None:
            self.task.cancel()
        if self.stop is Stop.LOST:
            log.get().info("claim_dropped", run=self.claimed.id, entrypoint=self.claimed.entrypoint)
            self._finish(None)
        elif self.stop is Stop.REQUESTED:
            self._finish(Outcome(self.claim, RunStatus.CANCELLED, reason="cancelled on request"))
        else:
            if self.stop is Stop.WITHDRAWN:
                log.get().info("claim_withdrawn", run=self.claimed.id, entrypoint=self.claimed.entrypoint)
            unbegun = self.claimed.schedule_id is not None
            self._finish(Outcome(self.claim, RunStatus.QUEUED, refund=True, unbegun=unbegun))

    def abandon(self) -> None:
        """Gives up a run whose function does not end before the process does. The run is given back, unless it was
        already being stopped for another reason: then that reason counts."""
        self.stop = self.stop or Stop.DRAIN
        log.get().warning("run_left_behind", run=self.claimed.id, entrypoint=self.claimed.entrypoint)
        self._conclude(None, asyncio.CancelledError())
        if self.thread_call.busy and self.task is not None:
            self.task.cancel()  # it waits for the thread, and must not hold up a host program

    def _cancel_timers(self) -> None:
        for timer in (self.deadline, self.interrupt):
            if timer is not None:
                timer.cancel()
        self.deadline = self.interrupt = None


async def _report(attempt: Attempt, run: Run, result: Any, error: BaseException | None, took: timedelta) -> None:
    """Reports the end to the hooks once the database has answered: only a recorded end is reported as one. The run
    itself is over, so it holds neither a slot nor a claim while the hooks run."""
    caller, hooks = attempt.surroundings.caller, attempt.surroundings.scheduler.hooks
    with caller.reporting():
        landed = attempt.answer is not None and await attempt.answer
        failure, end = hook_arguments(attempt.outcome if landed else None, attempt.stop, result, error, took)
        if failure is not None:
            await caller.call(hooks.on_failure, attempt.context, run, failure)
        await caller.call(hooks.after_run, attempt.context, run, end)


async def _outlast_loop(attempt: Attempt) -> None:
    """The event loop ends and has cancelled the attempt's task, not its run: a function in a thread may finish."""
    while attempt.thread_call.busy and attempt.state is State.RUNNING:
        with contextlib.suppress(asyncio.CancelledError):  # the tasks of one loop may be cancelled several times
            assert attempt.thread_call.future is not None
            ok, value = await asyncio.shield(attempt.thread_call.future)
            attempt.result, attempt.error = (value, None) if ok else (None, value)


def function_fields(attempt: Attempt) -> dict[str, str]:
    """The log fields that name the function of an attempt."""
    function = attempt.executor.function if attempt.executor is not None else None
    fields = {"entrypoint": attempt.claimed.entrypoint}
    if function is not None:
        module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", type(function).__name__)
        fields["function"] = f"{module}.{name}" if module else name
    return fields


def _bind(attempt: Attempt) -> None:
    """Sets the context variables as bind_contextvars() does, but makes no tokens to undo it."""
    _RUN.set(attempt.claimed.id)
    _ENTRYPOINT.set(attempt.claimed.entrypoint)
    _ATTEMPT.set(attempt.claimed.attempt)
    THREAD_CALL.set(attempt.thread_call)
    JOURNAL.set(attempt.journal)
