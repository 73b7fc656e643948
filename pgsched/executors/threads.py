"""Threads for synchronous functions; they never delay the end of the process."""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable
from concurrent import futures
from typing import Any


class DaemonThreads(futures.Executor):
    """A pool of at most `most` threads. At its end the interpreter joins a ThreadPoolExecutor's threads, and one that
    hangs would keep the process for ever: these are daemon threads, and end with the process."""

    def __init__(self, most: int, name: str = "pgsched-run") -> None:
        self._most = most
        self._name = name
        self._lock = threading.Lock()
        self._count = 0
        self._closed = False
        self._idle = threading.Semaphore(0)
        self._work: queue.SimpleQueue[tuple[futures.Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> futures.Future[Any]:
        """Calls the function in a thread, as soon as one is free."""
        future: futures.Future[Any] = futures.Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("The worker has ended, and calls no more functions.")
            self._work.put((future, functools.partial(fn, *args, **kwargs)))
            if not self._idle.acquire(blocking=False) and self._count < self._most:
                self._count += 1
                name = f"{self._name}_{self._count}"
                threading.Thread(target=self._serve, name=name, daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the threads that are idle now, and the others as soon as they are. Waits for none."""
        with self._lock:
            self._closed = True
        while cancel_futures:
            try:
                item = self._work.get_nowait()
            except queue.Empty:
                break
            if item is not None:
                item[0].cancel()
        self._work.put(None)

    def _serve(self) -> None:
        while (item := self._work.get()) is not None:
            future, call = item
            if future.set_running_or_notify_cancel():
                try:
                    result = call()
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result(result)
                    del result
            del item, future, call  # the function's objects are freed before the next call comes
            self._idle.release()
        self._work.put(None)  # for the next thread
