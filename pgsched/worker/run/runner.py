"""Takes claimed runs, starts each at its instant, and turns each into one outcome.

What is claimed comes from dispatcher, what came of it goes to finisher. Whatever a function raises ends here,
as its run's outcome: nothing of it ever reaches the task group.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import enum
import functools
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent import futures
from datetime import datetime, timedelta
from typing import Any

import structlog

from pgsched import log
from pgsched.db.fence.fence import Fence, Transactions
from pgsched.errors import InvalidArguments
from pgsched.executors.capture import JOURNAL, keep_on
from pgsched.executors.executor import THREADS, Executor, Place, Threads
from pgsched.model import Cancellation, Claim, ClaimedRun, Hold, Journal, Outcome, Run, RunError, RunStatus
from pgsched.rules.outcome import End, Stop, decide, where
from pgsched.worker.kit import Machine
from pgsched.worker.run.finisher import BATCH, Finisher
from pgsched.worker.run.hook_calls import Caller, told

UNWRITTEN = 3 * BATCH  # ends that wait to be written, at most, before no more is claimed
# Heartbeat intervals for which a claim is sure, from when the statement that made or renewed it was sent: nobody takes
# it away within three. A run starts without asking only as long as its claim is sure.
SURE = 2
_LATE = 5  # so many claims in a row that are not sure though the database has just said that they hold
_SAY_AGAIN = 60.0  # seconds between two log lines about a database that answers too late
_UNLANDED = 10_000  # claims without an end that are remembered
_AGAIN = 1.0  # seconds after which a run that ignored its cancellation is cancelled again


def _bound(*names: str) -> list[contextvars.ContextVar[Any]]:
    """The context variables in which structlog keeps these, for every logger that merges them."""
    context = contextvars.copy_context()
    context.run(structlog.contextvars.bind_contextvars, **dict.fromkeys(names))
    return [next(v for v in context if v.name == structlog.contextvars.STRUCTLOG_KEY_PREFIX + name) for name in names]


_RUN, _ENTRYPOINT, _ATTEMPT = _bound("run", "entrypoint", "attempt")


class State(enum.Enum):
    """Where a claimed run is in this process."""

    HELD = "held"  # claimed ahead of its instant, not started
    RUNNING = "running"
    ENDED = "ended"  # has an outcome that is not written yet


class Live:
    """A claimed run in this process. Only the event loop's thread writes it; the guard reads claims."""

    __slots__ = (
        "answer", "asked_at", "began", "cancellation", "claim", "context", "ended", "entered", "error", "executor",
        "fence", "gate", "hooked", "ignored", "journal", "keeper", "outcome", "place", "problem", "result", "run",
        "started", "started_at", "state", "stop", "task", "threaded", "threads", "timer", "unsure", "view",
    )  # fmt: skip

    def __init__(
        self, run: ClaimedRun, claim: Claim, executor: Executor | None, threads: Threads, grace: float
    ) -> None:
        self.threads = threads
        self.run = run
        self.claim = claim
        self.executor = executor
        self.place = executor.place if executor is not None else None
        self.threaded = self.place is Place.THREAD
        self.state = State.HELD
        self.entered = False
        self.unsure = False
        self.asked_at = 0.0  # on the monotonic clock: when the last statement was sent that made or renewed the claim
        self.ignored = 0
        self.hooked = False
        # Made as soon as it is claimed, so that a thousand which start at one instant need not wait for it.
        self.context: contextvars.Context
        self.view: Run
        self.fence: Fence
        self.problem: InvalidArguments | None = None  # with its arguments
        self.result: Any = None
        self.error: BaseException | None = None
        self.ended = 0.0  # when the function ended, on the monotonic clock
        self.outcome: Outcome | None = None
        self.answer: asyncio.Future[bool] | None = None  # whether the outcome landed, for the hooks
        self.started = self.began = 0.0  # on the monotonic clock: the attempt, and its function
        self.started_at: datetime | None = None
        self.stop: Stop | None = None
        self.cancellation = Cancellation(grace)
        self.journal = Journal()
        self.task: asyncio.Task[None] | None = None
        self.keeper: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.gate: asyncio.Future[None] | None = None  # behind which the task of a held run waits for its instant


class Runner:
    """The runs of this worker. `group` is set by worker before anything is taken."""

    group: asyncio.TaskGroup

    def __init__(self, machine: Machine, finisher: Finisher, threads: futures.Executor) -> None:
        self.worker = machine.worker
        # By (run id, token): a run that was lost may be claimed here again before its old attempt has ended.
        self.live: dict[tuple[int, int], Live] = {}
        # The last claims that began here and whose end did not land: the reaper counts their attempts.
        self.unlanded: dict[tuple[int, int], None] = {}
        self.changed: Callable[[Live], None] = lambda live: None  # a slot is free, or an overlap may be over
        self.started: Callable[[], None] = lambda: None  # there is something to keep alive
        self.left: Callable[[], None] = lambda: None  # what is left behind has changed
        self.doubted: Callable[[], None] = lambda: None  # a claim must be asked about before its run starts
        # The held runs by their instant on the monotonic clock: one timer for all that start at once.
        self._due: dict[float, tuple[asyncio.TimerHandle, list[Live]]] = {}
        self.used: Counter[Place] = Counter()
        # By (run id, token): attempts that have ended while their function goes on in its thread.
        self.left_behind: dict[tuple[int, int], Live] = {}
        self._threaded: dict[int, Live] = {}  # by run id: attempts in threads, also those that are left behind
        self.slots_used = 0
        self._scheduler = machine.scheduler
        self._settings = machine.settings
        self._interval = machine.settings.heartbeat_interval.total_seconds()
        self._clock = machine.clock
        self._watch = machine.watch
        self._finisher = finisher
        self._threads = threads
        self._hooks = machine.scheduler.hooks
        settings = machine.settings
        self._most = {
            Place.THREAD: settings.max_threads,
            Place.PROCESS: settings.max_processes or os.cpu_count() or 1,
            Place.COMMAND: settings.max_commands,
        }
        self.transactions = Transactions(settings.dsn, machine.store, machine.worker, settings.max_transactions)
        self.caller = Caller(machine.settings.hook_timeout)
        self._reporting: set[asyncio.Task[None]] = set()
        self._late_answers = 0
        self._said_late = float("-inf")
        self._log = log.get()
        self._finished = log.teller("run_finished")

    # --- taking and starting ----------------------------------------------------------------------------

    def take(self, runs: Iterable[ClaimedRun], asked_at: float | None = None) -> None:
        """Accepts claims that are committed, and starts each run as soon as its instant has certainly come.

        asked_at: when, on the monotonic clock, the first statement that made them was sent. Default now.
        """
        jumped = self._watch.look()  # the machine may have slept since the pass saw the database's clock
        asked_at = time.monotonic() if asked_at is None else asked_at
        grace = self._settings.cancel_timeout.total_seconds()
        for run in runs:
            if (old := self._threaded.get(run.id)) is not None and old.threads.busy:
                # Somebody took it away from us and it has come back. Its first attempt goes on here: it waits for that.
                self.stop(old, Stop.LOST)
                self.give_back([run])
                continue
            name = run.schedule.name if run.schedule is not None else None
            executor = self._scheduler.executor_for(run.entrypoint, name)
            claim = Claim(run.id, run.token, self.worker)
            live = Live(run, claim, executor, Threads(self._threads), grace)
            self.live[run.id, run.token] = live
            self.slots_used += 1
            if live.place is not None:
                self.used[live.place] += 1
            if live.threaded:
                self._threaded[run.id] = live
            live.asked_at = asked_at
            self._prepare(live)
            if jumped:
                self._doubt(live)
            else:
                self._start_in_time(live)
        if self.live:
            self.started()

    def give_back(self, runs: Iterable[ClaimedRun]) -> None:
        """Gives claims back that cannot be taken."""
        for run in runs:
            claim = Claim(run.id, run.token, self.worker)
            back = Outcome(claim, RunStatus.QUEUED, refund=True, unbegun=run.schedule_id is not None)
            self._finisher.put(back, lambda outcome, landed: None)

    def _is_sure(self, live: Live, now: float) -> bool:
        return now - live.asked_at < SURE * self._interval

    def _start_in_time(self, live: Live) -> None:
        """Starts a run whose claim is sure, or has it wait for its instant, with all others of that instant."""
        instant, now = self._clock.monotonic(live.run.due_at), time.monotonic()
        if instant <= now:
            if self._is_sure(live, now):
                self._start(live)
            else:
                self._doubt(live)
        elif self._clock.known:
            if (due := self._due.get(instant)) is None:
                timer = asyncio.get_running_loop().call_at(instant, self._start_held, instant)
                due = self._due[instant] = (timer, [])
            live.timer, held = due
            held.append(live)
            if live.gate is None:
                live.gate = asyncio.get_running_loop().create_future()
                self._make_task(live)
        else:
            self._doubt(live)

    def _start_held(self, instant: float) -> None:
        """The instant of held runs has come. If a claim is not sure any more, because the loop was blocked or the
        machine slept, it may be another's by now: a beat is asked first. A change of its schedule takes none away."""
        timer, held = self._due.pop(instant)
        jumped = self._watch.look()
        now = time.monotonic()
        for live in held:
            if live.state is not State.HELD or live.timer is not timer:
                continue  # dropped since, or to be asked about
            live.timer = None
            if jumped or not self._is_sure(live, now):
                self._doubt(live)
            elif self._clock.monotonic(live.run.due_at) <= now:
                self._start(live)
            else:
                self._start_in_time(live)  # the database's clock has been set back since

    def _doubt(self, live: Live) -> None:
        live.unsure = True
        live.timer = None  # it is others' too
        self.doubted()

    def doubt(self) -> None:
        """Time went by unseen, or the database's clock was set: no held run starts before its claim was asked
        about, and its instant is looked for anew."""
        for live in self.live.values():
            if live.state is State.HELD:
                self._doubt(live)

    def _start(self, live: Live) -> None:
        live.timer = None
        if live.gate is not None and live.gate.done():  # somebody has cancelled its task, and _over() comes later
            self.stop(live, Stop.DRAIN)
            return
        live.state = State.RUNNING
        live.started = time.monotonic()
        # The middle of the clock's bounds may be a little before what is certain.
        live.started_at = max(self._clock.at(live.started) or live.run.due_at, live.run.due_at)
        live.fence.started_at = live.started_at
        if live.gate is None:
            self._make_task(live)
        else:
            live.gate.set_result(None)
        if not live.hooked or not self._hooks.before_run:
            self._limit(live, live.started)

    def _make_task(self, live: Live) -> None:
        """Where a run is held this is done before its instant, which leaves next to nothing to do for each run then."""
        live.hooked = self._hooks.around_runs
        live.task = self.group.create_task(self._attempt(live), context=live.context)
        # What its end takes comes after the starts of all that are due with it.
        live.task.add_done_callback(lambda _: self._over(live))

    def _limit(self, live: Live, now: float) -> None:
        """The function's time begins."""
        live.began = now
        if live.run.timeout is not None:
            live.timer = asyncio.get_running_loop().call_later(
                live.run.timeout.total_seconds(), self.stop, live, Stop.TIMEOUT
            )

    # --- one attempt ------------------------------------------------------------------------------------

    async def _attempt(self, live: Live) -> None:
        if live.gate is not None:
            await live.gate  # cancelled where the run is let go of
        live.entered = True
        run = live.view
        try:
            if not live.began:
                await self._before(live, run)
            if live.problem is not None or live.executor is None:
                raise live.problem or InvalidArguments(f"this worker has no entrypoint {run.entrypoint!r}")
            live.result = await live.executor.execute(run)
        except BaseException as raised:
            live.error = raised
        live.ended = time.monotonic()
        if live.hooked:
            result, error = live.result, live.error
            took = timedelta(seconds=live.ended - live.began) if live.began else timedelta(0)
            self._over(live)
            await self._report(live, run, result, error, took)

    def _over(self, live: Live) -> None:
        """The attempt's task has ended, or comes to its hooks. One that was cancelled before its first step is told by
        nothing else. One that is cancelled while it is held has not started."""
        if live.state is State.HELD:
            self.stop(live, Stop.DRAIN)
            return
        result, error = live.result, live.error
        live.result = live.error = None  # an error holds the frames it came through
        self._conclude(live, result, error if live.entered else asyncio.CancelledError())

    async def _before(self, live: Live, run: Run) -> None:
        await self.caller.call(self._hooks.before_run, live.context, run)
        self._limit(live, time.monotonic())

    def _conclude(self, live: Live, result: Any, error: BaseException | None) -> None:
        """Nothing is awaited here, so nothing can interrupt the bookkeeping."""
        if live.state is State.ENDED:  # it was abandoned
            return
        if live.timer is not None:
            live.timer.cancel()
            live.timer = None
        if live.stop is Stop.LOST:
            self._ended(live, None)
            return
        try:
            outcome = self._outcome(live, result, error)
        except BaseException as odd:  # a fault of ours, or an object that misbehaves when it is looked at
            unknown = RunError(type(odd).__name__, "its end could not be understood")
            outcome = Outcome(live.claim, RunStatus.FAILED, live.started_at, self._clock.now(), error=unknown)
        self._ended(live, outcome)

    async def _report(self, live: Live, run: Run, result: Any, error: BaseException | None, took: timedelta) -> None:
        """Tells the hooks how it ended, once the database has answered: what is not recorded is not told as if it
        were. The run itself is over, so that it holds neither a slot nor a claim meanwhile."""
        task = asyncio.current_task()
        assert task is not None
        self._reporting.add(task)
        try:
            landed = live.answer is not None and await live.answer
            failure, end = told(live.outcome if landed else None, live.stop, result, error, took)
            if failure is not None:
                await self.caller.call(self._hooks.on_failure, live.context, run, failure)
            await self.caller.call(self._hooks.after_run, live.context, run, end)
        except asyncio.CancelledError:  # the worker ends, and waits for hooks no longer
            pass
        except Exception as odd:  # a fault of ours must not reach the task group
            self._log.error("hook_failed", kind="after_run", hook="(all)", error=type(odd).__name__)
        finally:
            self._reporting.discard(task)

    async def settle(self, seconds: float) -> None:
        """Waits for the hooks of runs that have ended, at most so long, and cancels what is left of them."""
        if self._reporting:
            await asyncio.wait(list(self._reporting), timeout=seconds)
        if left := list(self._reporting):
            self._log.warning("hooks_cancelled", runs=len(left))
            for task in left:
                task.cancel()

    def _prepare(self, live: Live) -> None:
        """Makes the run as its function sees it, and the context in which it is called."""
        run = live.run
        args: dict[str, Any] = {}
        try:
            args = json.loads(run.args_json) if run.args_json != "{}" else {}
        except (ValueError, RecursionError) as error:
            live.problem = InvalidArguments(f"the arguments cannot be read: {error}")
        live.fence = self.transactions.fence(
            live.claim, None, functools.partial(self._committed, live, asyncio.get_running_loop())
        )
        live.view = Run(
            id=run.id,
            entrypoint=run.entrypoint,
            schedule=run.schedule,
            fire_time=run.fire_time,
            previous_fire_time=run.previous_fire_time,
            attempt=run.attempt,
            token=run.token,
            args=args,
            worker=self.worker,
            resources=self._scheduler.resources,
            cancellation=live.cancellation,
            journal=live.journal,
            fence=live.fence,
        )
        live.context = contextvars.copy_context()
        live.context.run(self._bind, live)

    def _bind(self, live: Live) -> None:
        # What bind_contextvars() does, which also makes what it takes to undo it.
        _RUN.set(live.run.id)
        _ENTRYPOINT.set(live.run.entrypoint)
        _ATTEMPT.set(live.run.attempt)
        THREADS.set(live.threads)
        keep_on()
        JOURNAL.set(live.journal)

    def _outcome(self, live: Live, result: Any, error: BaseException | None) -> Outcome:
        if self._watch.looked < live.ended or not live.ended:
            self._watch.look()  # after a suspension the database stamps the end itself: nobody here knows the hour
        outcome = decide(
            live.run,
            live.claim,
            End(
                started_at=live.started_at,
                finished_at=self._clock.at(live.ended) if live.ended else self._clock.now(),
                result=result,
                error=error,
                stop=live.stop,
                noticed=live.cancellation.noticed,
                threaded=live.threads.busy,
                ignored=live.ignored,
            ),
            self._scheduler.retry_for(live.run.entrypoint, live.run.schedule.name if live.run.schedule else None),
        )
        if outcome.status is RunStatus.SUCCEEDED and result is not None and outcome.result_json is None:
            self._log.warning("result_not_stored", reason=outcome.reason)
        return outcome

    def _committed(self, live: Live, loop: asyncio.AbstractEventLoop) -> None:
        """A run's own transaction has committed its success; its function may go on for a while. Others that waited for
        its schedule's overlap, or for a place of its entrypoint's limits, need not. Called in any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(self.changed, live)

    def _ended(self, live: Live, outcome: Outcome | None) -> None:
        """The run is over here. Without an outcome nothing is written: its claim is another worker's."""
        if live.state is State.ENDED:
            return
        live.state = State.ENDED
        live.journal.close()
        if outcome is not None and live.journal.unwritten:
            outcome = dataclasses.replace(outcome, journal=live.journal)
        if outcome is not None and live.threads.busy and live.stop is not Stop.DRAIN:
            outcome = dataclasses.replace(outcome, left_behind=True)
        live.outcome = outcome
        if live.hooked and outcome is not None:
            live.answer = asyncio.get_running_loop().create_future()
        if live.keeper is not None:
            live.keeper.cancel()
        self._free(live)
        if outcome is None:
            self._forget(live, landed=False)
            if live.threads.call is not None:
                self.left()  # a beat may have said that its thread goes on
        else:
            self._finisher.put(outcome, self._landed)

    def _landed(self, outcome: Outcome, landed: bool) -> None:
        """The finisher's answer: what ended is written, or its claim was gone."""
        live = self.live.get((outcome.claim.run_id, outcome.claim.token))
        if live is None:
            return
        self._forget(live, landed)
        if outcome.left_behind or (not landed and live.threads.call is not None):
            self.left()  # its thread may have ended before this landed, or since a beat found its claim lost
        ended, live.outcome = live.outcome, outcome
        if live.answer is not None and not live.answer.done():
            live.answer.set_result(landed)
        self._tell(live, outcome, landed)
        if outcome.committed and ended is not None and ended.status is not RunStatus.SUCCEEDED:
            why = ended.error.type if ended.error is not None else ended.reason or (live.stop and live.stop.value)
            self._log.warning("error_after_commit", run=live.run.id, entrypoint=live.run.entrypoint, error=why)
        self.changed(live)

    def _forget(self, live: Live, landed: bool) -> None:
        key = (live.claim.run_id, live.claim.token)
        self.live.pop(key, None)
        if self._threaded.get(live.run.id) is live and not live.threads.busy:
            del self._threaded[live.run.id]
        if not landed and live.started_at is not None:
            self.unlanded[key] = None
            if len(self.unlanded) > _UNLANDED:
                del self.unlanded[next(iter(self.unlanded))]
        del live.view, live.fence  # which know it: nothing should have to wait for the garbage collector

    def _free(self, live: Live) -> None:
        self.slots_used -= 1
        if live.threads.call is not None and live.threads.busy:
            # A thread may outlive its run; its place is free when it is.
            self.left_behind[live.claim.run_id, live.claim.token] = live
            live.threads.call.add_done_callback(lambda _: self._thread_ended(live))
            self.left()
            self._log.warning("thread_left_behind", run=live.run.id, **function_of(live))
            if len(self.left_behind) == self._settings.max_threads:
                self._log.error(
                    "threads_exhausted",
                    max_threads=self._settings.max_threads,
                    advice="functions that hang have taken all threads, and this worker starts no synchronous run any "
                    "more: give what they wait for a timeout, and restart the worker",
                )
        else:
            self._free_place(live)
        self.changed(live)

    def _thread_ended(self, live: Live) -> None:
        """What was left behind has come to its end after all."""
        if len(self.left_behind) == self._settings.max_threads:
            self._log.warning("threads_free_again")
        self.left_behind.pop((live.claim.run_id, live.claim.token), None)
        if self._threaded.get(live.run.id) is live:
            del self._threaded[live.run.id]
        self.left()
        self._log.info("thread_ended", run=live.run.id, **function_of(live))
        self._free_place(live)

    def _free_place(self, live: Live) -> None:
        if live.place is not None:
            self.used[live.place] -= 1
            self.changed(live)

    @property
    def room(self) -> int:
        """How many runs may be claimed now. Where ends are written more slowly than runs end, no more are claimed until
        they are: what is not written yet has to be kept alive, and is run again should this process die."""
        return max(0, min(self._settings.max_running - self.slots_used, UNWRITTEN - self._finisher.behind))

    @property
    def threads_used(self) -> int:
        """How many threads are at work, be their runs ended or not."""
        return self.used[Place.THREAD]

    def free(self) -> dict[Place, int]:
        """How many more runs of each kind of place there is room for."""
        return {place: max(0, number - self.used[place]) for place, number in self._most.items()}

    def _tell(self, live: Live, outcome: Outcome, landed: bool) -> None:
        run = live.run
        fields: dict[str, Any] = {"run": run.id, "entrypoint": run.entrypoint, "attempt": run.attempt}
        if run.schedule is not None:
            fields["schedule"] = run.schedule.name
        if live.started_at is not None and outcome.finished_at is not None:
            fields["took_s"] = round((outcome.finished_at - live.started_at).total_seconds(), 3)
            fields["late_ms"] = round((live.started_at - run.due_at) / timedelta(milliseconds=1), 1)
        if not landed:
            self._log.warning("claim_lost", **fields)
        elif outcome.status is RunStatus.SUCCEEDED:
            self._finished(**fields)
        elif outcome.status is RunStatus.CANCELLED and live.stop is None:
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

    # --- stopping ---------------------------------------------------------------------------------------

    def stop(self, live: Live, why: Stop) -> None:
        """Stops a run. The first reason counts, except that a lost claim overrules: then nothing is written."""
        if live.state is State.ENDED:
            return
        asked = live.stop is not None
        if why is Stop.LOST and live.stop is not Stop.LOST and live.threads.busy:
            self.left()
        if live.stop is None or why is Stop.LOST:
            live.stop = why
        if live.state is State.HELD:
            self._drop(live)
            return
        if asked:
            return  # and its time runs already: each further beat that finds its claim lost must not give it more
        live.cancellation.requested = True
        if live.timer is not None:
            live.timer.cancel()
        if live.threaded and live.began:
            # A thread cannot be interrupted: it is asked, and given time, before its run is left behind.
            grace = self._settings.cancel_timeout.total_seconds()
            live.timer = asyncio.get_running_loop().call_later(grace, self._interrupt, live, False)
        else:
            self._interrupt(live, False)

    def _interrupt(self, live: Live, again: bool) -> None:
        if live.state is State.ENDED or live.task is None:
            return
        if live.stop is Stop.DRAIN and live.threads.busy:
            return  # its run is given back when nothing of this process goes on: by abandon()
        if not live.entered:
            # A task that is cancelled before its first step never enters its coroutine, and nothing would be
            # told of its end: it is cancelled as soon as it can notice.
            asyncio.get_running_loop().call_soon(self._interrupt, live, again)
            return
        if again:
            live.ignored += 1
            if live.ignored & (live.ignored - 1) == 0:  # told at the 1st, 2nd, 4th, 8th time, not once a second
                self._log.warning(
                    "run_ignores_cancellation", run=live.run.id, entrypoint=live.run.entrypoint, times=live.ignored
                )
        live.task.cancel()
        wait = _AGAIN
        if live.executor is not None and live.executor.asks_first and not again:
            wait += live.cancellation.grace  # which is not ignoring it
        live.timer = asyncio.get_running_loop().call_later(wait, self._interrupt, live, True)

    def _drop(self, live: Live) -> None:
        """Lets go of a run that has not started: gives it back, or forgets it where it is no longer ours."""
        live.timer = None  # it is others' too
        if live.task is not None:
            live.task.cancel()
        if live.stop is Stop.LOST:
            self._log.info("claim_dropped", run=live.run.id, entrypoint=live.run.entrypoint)
            self._ended(live, None)
        elif live.stop is Stop.REQUESTED:
            self._ended(live, Outcome(live.claim, RunStatus.CANCELLED, reason="cancelled on request"))
        else:
            if live.stop is Stop.WITHDRAWN:
                self._log.info("claim_withdrawn", run=live.run.id, entrypoint=live.run.entrypoint)
            unbegun = live.run.schedule_id is not None
            self._ended(live, Outcome(live.claim, RunStatus.QUEUED, refund=True, unbegun=unbegun))

    def verdict(self, run_id: int, token: int, hold: Hold | None, asked_at: float) -> None:
        """What the answer to a beat, sent at a monotonic moment, says of a claim. None: it is lost."""
        live = self.live.get((run_id, token))
        if live is None or live.state is State.ENDED:
            return
        if hold is None:
            if live.state is State.RUNNING and live.stop is not Stop.LOST:
                self._log.warning("claim_lost", run=run_id, entrypoint=live.run.entrypoint, attempt=live.run.attempt)
            self.stop(live, Stop.LOST)
            return
        live.asked_at = max(live.asked_at, asked_at)
        if hold is Hold.CANCEL and live.stop is None:
            self.stop(live, Stop.REQUESTED)
        elif hold is Hold.WITHDRAWN and live.state is State.HELD:
            self.stop(live, Stop.WITHDRAWN)
        elif hold is Hold.WITHDRAWN:
            # It has begun. That is the answer, and a beat that was sent since then has written it.
            if live.started > asked_at:
                self.doubted()
        elif live.unsure and live.state is State.HELD:
            live.unsure = False
            self._start_in_time(live)
            self._late_answers = self._late_answers + 1 if live.unsure else 0
            if self._late_answers > _LATE:
                self._say_late(time.monotonic() - asked_at)

    def _say_late(self, seconds: float) -> None:
        """The answers themselves are too old to start a run by. It goes on asking, and nobody would know why."""
        now = time.monotonic()
        if now - self._said_late < _SAY_AGAIN:
            return
        self._said_late = now
        self._log.error(
            "answers_too_late", answer_s=round(seconds, 3), heartbeat_interval_s=self._interval,
            advice="no run starts while the database takes longer to answer than two heartbeat intervals: find out why,"
            " or set a longer heartbeat_interval",
        )  # fmt: skip

    def release_held(self) -> int:
        """Gives back what is claimed and not started; returns how many."""
        held = [live for live in self.live.values() if live.state is State.HELD]
        for live in held:
            self.stop(live, Stop.DRAIN)
        return len(held)

    def count(self, entrypoint: str) -> int:
        """How many runs of an entrypoint have a place here."""
        return sum(live.state is not State.ENDED for live in self.live.values() if live.run.entrypoint == entrypoint)

    def outliving(self) -> list[tuple[int, int]]:
        """Which attempts, as (run id, token), have ended or lost their claim while their functions go on in threads."""
        lost = [key for key, live in self._in_threads() if live.stop is Stop.LOST and key not in self.left_behind]
        # A run that a drain gives back is others', and its thread ends with the process.
        return [*(key for key, live in self.left_behind.items() if live.stop is not Stop.DRAIN), *lost]

    def in_threads(self) -> list[tuple[int, int]]:
        """Which attempts, as (run id, token), have their function in a thread, be they over or not. For any thread."""
        return list(dict.fromkeys([*list(self.left_behind), *(key for key, _ in self._in_threads())]))

    def _in_threads(self) -> list[tuple[tuple[int, int], Live]]:
        return [(key, live) for key, live in list(self.live.items()) if live.threads.busy]

    def running(self) -> list[Live]:
        """What runs now."""
        return [live for live in self.live.values() if live.state is State.RUNNING]

    def abandon(self, live: Live) -> None:
        """Lets go of a run whose function will not end, before the process does: gives it back, unless it was to stop
        for another reason, which counts then."""
        live.stop = live.stop or Stop.DRAIN
        self._log.warning("run_left_behind", run=live.run.id, entrypoint=live.run.entrypoint)
        self._conclude(live, None, asyncio.CancelledError())
        if live.threads.busy and live.task is not None:
            live.task.cancel()  # it waits for the thread, which need not keep a host program

    async def until_empty(self, of: Callable[[], Iterable[Live]], seconds: float) -> bool:
        """Waits until there is none of these left, at most so long. Returns whether there is none."""
        deadline = time.monotonic() + seconds
        while any(True for _ in of()):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            tasks = [live.task for live in of() if live.task is not None]
            if tasks:
                await asyncio.wait(tasks, timeout=left)
        return True


def function_of(live: Live) -> dict[str, str]:
    """The fields that name the function of an attempt, for the log."""
    function = live.executor.function if live.executor is not None else None
    fields = {"entrypoint": live.run.entrypoint}
    if function is not None:
        module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", type(function).__name__)
        fields["function"] = f"{module}.{name}" if module else name
    return fields
