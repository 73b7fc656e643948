"""The tasks of a worker's runs. No error leaves them, so they need no asyncio.TaskGroup, which would wait for each.

A coroutine may swallow its cancellation for ever. In somebody else's process, that must not hold up the worker's end.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any, Protocol


class Group(Protocol):
    """Makes tasks and keeps them; asyncio.TaskGroup is one."""

    def create_task(
        self, coro: Coroutine[Any, Any, None], *, name: str | None = None, context: contextvars.Context | None = None
    ) -> asyncio.Task[None]: ...


class RunTasks:
    """Keeps tasks until they have ended."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def create_task(
        self, coro: Coroutine[Any, Any, None], *, name: str | None = None, context: contextvars.Context | None = None
    ) -> asyncio.Task[None]:
        """Makes a task."""
        task = asyncio.get_running_loop().create_task(coro, name=name, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def ended(self, seconds: float) -> int:
        """Waits for all tasks to end, at most this many seconds. Returns how many go on."""
        return len((await asyncio.wait(self._tasks, timeout=seconds))[1]) if self._tasks else 0
