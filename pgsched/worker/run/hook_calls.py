"""Calls the application's own functions around runs: before and after each, on failures, on skips.

They can never harm a run:

- If a hook raises, even SystemExit, the error is logged and goes no further.
- A hook that takes longer than hook_timeout is cancelled and left behind.
- A hook whose last call still hangs is not called again until that call ends.
- Hooks are awaited while the heartbeat goes on, never inside a transaction.

An `async def` hook runs in its own task, in the run's context: the function and later hooks see the context variables
that it sets, and it can reset them with their tokens. A plain function runs in its own thread, in a copy of that
context. If it returns in time, its changes are copied to the run's context. (It cannot run in that context itself: if
it hung, the run could not enter its context any more.)
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from datetime import timedelta
from typing import Any

from pgsched import log
from pgsched.executors.executor import is_async
from pgsched.hooks import Hook, Hooks, RunEnd, RunFailure
from pgsched.model import Outcome, RunStatus, Schedule
from pgsched.rules.ledger import Skip
from pgsched.rules.outcome import Stop, storable, where

_GRACE = 1.0  # seconds that a cancelled hook has to end
_SKIPS = 1000  # skips that wait for their hooks, at most; then the oldest are dropped and counted


def hook_arguments(
    outcome: Outcome | None, stop: Stop | None, result: Any, error: BaseException | None, duration: timedelta
) -> tuple[RunFailure | None, RunEnd]:
    """The arguments of on_failure and after_run hooks. outcome: as it was recorded; None if it was not."""
    if outcome is None:
        return None, RunEnd(None, result, error, None, duration, None)
    if outcome.error is not None and (error is None or stop is Stop.TIMEOUT):
        error = TimeoutError(outcome.error.message)
    again = outcome.status is RunStatus.QUEUED
    retry_in = outcome.delay if again and not outcome.refund else None
    failure = RunFailure(error, not again, retry_in) if outcome.error is not None and error is not None else None
    return failure, RunEnd(outcome.status, result, error, outcome.reason, duration, retry_in)


class Caller:
    """A worker's caller of hooks. Each call has a time limit."""

    def __init__(self, limit: timedelta) -> None:
        self._limit = limit.total_seconds()
        self._left: set[asyncio.Task[Any]] = set()
        self._reporting: set[asyncio.Task[Any]] = set()
        self._log = log.get()

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """Surrounds the hooks that report a run's end, so that settle() waits for them. No error leaves this."""
        task = asyncio.current_task()
        assert task is not None
        self._reporting.add(task)
        try:
            yield
        except asyncio.CancelledError:  # the worker ends and no longer waits for hooks
            pass
        except Exception as odd:  # a bug here must not reach the task group
            self._log.error("hook_failed", kind="after_run", hook="(all)", error=type(odd).__name__)
        finally:
            self._reporting.discard(task)

    async def settle(self, seconds: float) -> None:
        """Waits for the hooks of runs that have ended, at most this many seconds, and cancels those that are left."""
        if self._reporting:
            await asyncio.wait(list(self._reporting), timeout=seconds)
        if left := list(self._reporting):
            self._log.warning("hooks_cancelled", runs=len(left))
            for task in left:
                task.cancel()

    @property
    def stuck(self) -> bool:
        """Whether an async hook swallows its cancellation, so that the event loop cannot be closed."""
        return bool(self._left)

    async def call(self, hooks: Sequence[Hook], context: contextvars.Context, *arguments: Any) -> None:
        """Calls hooks one after the other. Raises only CancelledError, if the caller's own task is cancelled."""
        for hook in hooks:
            if hook.hanging:
                if not hook.skip_logged:
                    self._log.warning("hook_skipped", kind=hook.kind, hook=hook.name, advice="an earlier call hangs")
                hook.skip_logged = True
                continue
            hook.skip_logged = False
            try:
                if is_async(hook.function):
                    await self._in_task(hook, context, arguments)
                else:
                    await self._in_thread(hook, context, arguments)
            except Exception as error:  # a bug here, or no thread could be started
                self._failed(hook, error)

    async def _in_task(self, hook: Hook, context: contextvars.Context, arguments: tuple[Any, ...]) -> None:
        task = asyncio.get_running_loop().create_task(_awaited(hook.function(*arguments)), context=context)
        try:
            if not (await asyncio.wait([task], timeout=self._limit))[0]:
                self._leave(hook, task)
                await asyncio.wait([task], timeout=_GRACE)
                self._failed(hook, TimeoutError(f"took longer than hook_timeout of {self._limit:g} s"))
            elif not task.cancelled() and (error := task.result()) is not None:
                self._failed(hook, error)
        except asyncio.CancelledError:  # the run was stopped
            self._leave(hook, task)
            raise

    async def _in_thread(self, hook: Hook, context: contextvars.Context, arguments: tuple[Any, ...]) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[BaseException | None] = loop.create_future()
        copy = context.copy()

        def work() -> None:
            error = copy.run(_called, hook.function, arguments)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nothing waits any more
                loop.call_soon_threadsafe(future.set_result, error)

        # One daemon thread per call: if it hangs, it takes no other's place and does not keep the process alive.
        threading.Thread(target=work, name="pgsched-hook", daemon=True).start()
        try:
            if not (await asyncio.wait([future], timeout=self._limit))[0]:
                self._hangs(hook, future)
                self._failed(hook, TimeoutError(f"took longer than hook_timeout of {self._limit:g} s"))
                return
        except asyncio.CancelledError:  # the run was stopped; the thread still gets its time
            loop.call_later(self._limit, self._hangs, hook, future)
            raise
        _adopt(copy, context)
        if (error := future.result()) is not None:
            self._failed(hook, error)

    def _leave(self, hook: Hook, task: asyncio.Task[Any]) -> None:
        """Cancels a call and gives it a moment to end."""
        task.cancel()
        self._left.add(task)
        task.add_done_callback(self._left.discard)
        asyncio.get_running_loop().call_later(_GRACE, self._hangs, hook, task)

    def _hangs(self, hook: Hook, call: asyncio.Future[Any]) -> None:
        """Lets the hook rest until this call has ended, unless it already has."""

        def back(_: object) -> None:
            hook.hanging -= 1

        if not call.done():
            hook.hanging += 1
            call.add_done_callback(back)

    def _failed(self, hook: Hook, error: BaseException) -> None:
        found = storable(error)
        fields = {"error": found.type, "message": found.message}
        if place := where(found):
            fields["at"] = place
        self._log.error("hook_failed", kind=hook.kind, hook=hook.name, **fields)


class SkipHooks:
    """Calls on_skip hooks with the skips that claim passes recorded, in its own service: no claim waits for it."""

    def __init__(self, hooks: Hooks, caller: Caller) -> None:
        self._hooks, self._caller = hooks, caller
        self._waiting: deque[tuple[Schedule, Skip]] = deque()
        self._dropped = 0
        self._stir = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def put(self, schedule: Schedule, skip: Skip) -> None:
        """Takes a committed skip."""
        if not self._hooks.on_skip:
            return
        if len(self._waiting) >= _SKIPS:
            self._waiting.popleft()
            self._dropped += 1
        self._waiting.append((schedule, skip))
        self._idle.clear()
        self._stir.set()

    async def deliver(self) -> None:
        """Calls the hooks for all waiting skips."""
        while self._waiting:
            schedule, skip = self._waiting.popleft()
            # In a task of its own: the variables that a plain hook sets would stay in ours.
            context = contextvars.copy_context()
            call = self._caller.call(self._hooks.on_skip, context, schedule, skip)
            await asyncio.get_running_loop().create_task(call, context=context)
        if self._dropped:
            log.get().warning("hook_skips_dropped", count=self._dropped)
            self._dropped = 0
        self._idle.set()

    async def run(self) -> None:
        """Delivers skips until it is cancelled."""
        while True:
            await self._stir.wait()
            self._stir.clear()
            await self.deliver()

    async def flush(self, seconds: float) -> None:
        """Waits until all skips are delivered, at most this many seconds."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            log.get().warning("hook_skips_dropped", count=len(self._waiting))


async def _awaited(coroutine: Coroutine[Any, Any, Any]) -> BaseException | None:
    # A SystemExit that leaves a task would end the event loop.
    try:
        await coroutine
    except BaseException as error:
        return error
    return None


def _called(function: Callable[..., Any], arguments: tuple[Any, ...]) -> BaseException | None:
    try:
        value = function(*arguments)
        if inspect.iscoroutine(value):
            value.close()
            raise TypeError("the hook returned a coroutine without being `async def`: make it one")
    except BaseException as error:
        return error
    return None


def _adopt(copy: contextvars.Context, context: contextvars.Context) -> None:
    """Sets the variables that changed in the copy. They are set in the current context: the run's own, if its task
    called the hook."""
    changed = [(var, value) for var, value in copy.items() if var not in context or context[var] is not value]
    for var, value in changed:
        var.set(value)
