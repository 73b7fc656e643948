"""Calls the application's own functions around runs: before and after each, on failures, on skips.

They can never harm a run. Each call is fenced off: whatever a hook raises, SystemExit among it, is logged and goes no
further; one that takes longer than hook_timeout is cancelled and left behind; one of which a call is still hanging is
not called again until that has ended. What is awaited of them is awaited beside the run's claim, never inside a
transaction.

An `async def` hook runs in a task of its own, in the run's own context: context variables that it sets are seen by the
function and by later hooks, and it can reset them with their tokens. A plain function runs in a thread of its own, in a
copy of that context, of which the run takes over what the hook has changed, once it has returned in time. (In the
context itself it could not run: one that hangs would keep the run out of it.)
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
from pgsched.rules.outcome import Stop, describe, where

_GRACE = 1.0  # seconds that a cancelled hook has to end
_SKIPS = 1000  # skips that wait for their hooks; beyond them the oldest are dropped, and counted


def hook_arguments(
    outcome: Outcome | None, stop: Stop | None, result: Any, error: BaseException | None, duration: timedelta
) -> tuple[RunFailure | None, RunEnd]:
    """The arguments of on_failure and after_run hooks. outcome: as it is recorded; None if it is not."""
    if outcome is None:
        return None, RunEnd(None, result, error, None, duration, None)
    if outcome.error is not None and (error is None or stop is Stop.TIMEOUT):
        error = TimeoutError(outcome.error.message)
    again = outcome.status is RunStatus.QUEUED
    retry_in = outcome.delay if again and not outcome.refund else None
    failure = RunFailure(error, not again, retry_in) if outcome.error is not None and error is not None else None
    return failure, RunEnd(outcome.status, result, error, outcome.reason, duration, retry_in)


class Caller:
    """Calls hooks, each within its time. One a worker."""

    def __init__(self, limit: timedelta) -> None:
        self._limit = limit.total_seconds()
        self._left: set[asyncio.Task[Any]] = set()
        self._reporting: set[asyncio.Task[Any]] = set()
        self._log = log.get()

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """Around the hooks that hear of a run's end. settle() waits for them. No error leaves this."""
        task = asyncio.current_task()
        assert task is not None
        self._reporting.add(task)
        try:
            yield
        except asyncio.CancelledError:  # the worker ends, and waits for hooks no longer
            pass
        except Exception as odd:  # a fault of ours must not reach the task group
            self._log.error("hook_failed", kind="after_run", hook="(all)", error=type(odd).__name__)
        finally:
            self._reporting.discard(task)

    async def settle(self, seconds: float) -> None:
        """Waits for the hooks of runs that have ended, at most so long, and cancels those that are left."""
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
        """Calls hooks one after the other. Raises nothing but the cancellation of whoever waits here."""
        for hook in hooks:
            if hook.hanging:
                if not hook.told:
                    self._log.warning("hook_skipped", kind=hook.kind, hook=hook.name, advice="an earlier call hangs")
                hook.told = True
                continue
            hook.told = False
            try:
                if is_async(hook.function):
                    await self._in_task(hook, context, arguments)
                else:
                    await self._in_thread(hook, context, arguments)
            except Exception as error:  # a fault of ours, or no more threads to be had
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
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(future.set_result, error)

        # A daemon thread each: one that hangs takes no other's place, and does not keep the process from ending.
        threading.Thread(target=work, name="pgsched-hook", daemon=True).start()
        try:
            if not (await asyncio.wait([future], timeout=self._limit))[0]:
                self._hangs(hook, future)
                self._failed(hook, TimeoutError(f"took longer than hook_timeout of {self._limit:g} s"))
                return
        except asyncio.CancelledError:  # the run was stopped; the thread has its time all the same
            loop.call_later(self._limit, self._hangs, hook, future)
            raise
        _adopt(copy, context)
        if (error := future.result()) is not None:
            self._failed(hook, error)

    def _leave(self, hook: Hook, task: asyncio.Task[Any]) -> None:
        """Cancels a call, which then has a moment to end."""
        task.cancel()
        self._left.add(task)
        task.add_done_callback(self._left.discard)
        asyncio.get_running_loop().call_later(_GRACE, self._hangs, hook, task)

    def _hangs(self, hook: Hook, call: asyncio.Future[Any]) -> None:
        """Lets the hook rest until a call has ended, unless it has."""

        def back(_: object) -> None:
            hook.hanging -= 1

        if not call.done():
            hook.hanging += 1
            call.add_done_callback(back)

    def _failed(self, hook: Hook, error: BaseException) -> None:
        told = describe(error)
        fields = {"at": place} if (place := where(told)) else {}
        self._log.error("hook_failed", kind=hook.kind, hook=hook.name, error=told.type, message=told.message, **fields)


class SkipHooks:
    """Tells on_skip hooks of what claim passes have recorded, in a service of its own: no claim waits for it."""

    def __init__(self, hooks: Hooks, caller: Caller) -> None:
        self._hooks, self._caller = hooks, caller
        self._waiting: deque[tuple[Schedule, Skip]] = deque()
        self._dropped = 0
        self._stir = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def put(self, schedule: Schedule, skip: Skip) -> None:
        """Takes in a skip that is committed."""
        if not self._hooks.on_skip:
            return
        if len(self._waiting) >= _SKIPS:
            self._waiting.popleft()
            self._dropped += 1
        self._waiting.append((schedule, skip))
        self._idle.clear()
        self._stir.set()

    async def deliver(self) -> None:
        """Calls the hooks for all that waits."""
        while self._waiting:
            schedule, skip = self._waiting.popleft()
            await self._caller.call(self._hooks.on_skip, contextvars.copy_context(), schedule, skip)
        if self._dropped:
            log.get().warning("hook_skips_dropped", count=self._dropped)
            self._dropped = 0
        self._idle.set()

    async def run(self) -> None:
        """Delivers for ever."""
        while True:
            await self._stir.wait()
            self._stir.clear()
            await self.deliver()

    async def flush(self, seconds: float) -> None:
        """Waits until all is delivered, at most so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            log.get().warning("hook_skips_dropped", count=len(self._waiting))


async def _awaited(coroutine: Coroutine[Any, Any, Any]) -> BaseException | None:
    # A SystemExit that left a task would end the event loop.
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
    """Sets in the one context what has changed in its copy. The caller's own task may be the one that runs in it."""
    changed = [(var, value) for var, value in copy.items() if var not in context or context[var] is not value]
    for var, value in changed:
        var.set(value)
