"""The harness for synchronous tests: an event loop behind the same methods, not a second copy of them."""

from __future__ import annotations

import asyncio
import functools
import inspect
from types import TracebackType
from typing import Any

from pgsched.client.runs import Runs
from pgsched.testing.clock import Clock
from pgsched.testing.harness import Harness


class _SyncProxy:
    """An object whose coroutine methods block until they end."""

    def __init__(self, behind: Any, loop: asyncio.Runner) -> None:
        self._behind, self._loop = behind, loop

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._behind, name)
        if inspect.iscoroutinefunction(value):

            @functools.wraps(value)
            def blocking(*args: Any, **kwargs: Any) -> Any:
                return self._loop.run(value(*args, **kwargs))

            return blocking
        return _SyncProxy(value, self._loop) if isinstance(value, Runs) else value


class SyncHarness:
    """A Harness for `with`, in tests that are not coroutines. Its methods, and those of its clock and its client, are
    the same but need no await. Between two calls nothing goes on."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._harness = Harness(*args, **kwargs)
        self._loop = asyncio.Runner()

    def __enter__(self) -> SyncHarness:
        try:
            self._loop.run(self._harness.__aenter__())
        except BaseException:
            self._loop.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._loop.run(self._harness.__aexit__(kind, error, trace))
        finally:
            self._loop.close()

    def __getattr__(self, name: str) -> Any:
        value = getattr(_SyncProxy(self._harness, self._loop), name)
        return _SyncProxy(value, self._loop) if name == "client" or isinstance(value, Clock) else value
