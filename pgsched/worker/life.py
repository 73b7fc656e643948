"""The task of a worker, apart from the task that waits for it, so that a cancellation of the latter drains."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class Life:
    """Runs a coroutine in a task of its own.

    asked: called with the first cancellation, so that the coroutine comes to its end by itself.
    aborted: whether there was a second one.
    """

    def __init__(self, asked: Callable[[], None]) -> None:
        self._asked = asked
        self._task: asyncio.Task[None] | None = None
        self.aborted = False

    async def lead(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs it to its end. A cancellation is raised after that."""
        task = self._task = asyncio.create_task(work, name="pgsched")
        cancelled: asyncio.CancelledError | None = None
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                if cancelled is not None and not self.loop_ends:
                    self.aborted = True
                    task.cancel()
                cancelled = cancelled or error
                self._asked()
        if cancelled is not None:
            _ = task.cancelled() or task.exception()  # marks it as retrieved: it is logged, and the caller has left
            raise cancelled
        task.result()

    @property
    def loop_ends(self) -> bool:
        """Whether the event loop ends: asyncio.run() then cancels all tasks at once, those of runs and services too."""
        return not self.aborted and self._task is not None and self._task.cancelling() > 0
