"""Hears the signals that end this process, for all workers in it, and leaves the handlers of others alone.

`pgsched run` owns its process: it takes SIGTERM, SIGINT and SIGHUP. The first one drains, and the second one ends the
process at once. A worker in somebody else's process is a guest: it takes only signals that would end the process
because nobody handles them. A web server handles its own, so a guest there touches none. asyncio.run() handles Ctrl-C
by cancelling its main task, and a cancelled worker drains.

A guest puts the old handlers back with the first signal, so that a second one does what it would do without us. Once
the drain is over, the first one does so too: see pass_on().
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

_NAMES = ("SIGTERM", "SIGINT", "SIGHUP")  # Windows has no SIGHUP
_NOBODYS = (signal.SIG_DFL, signal.default_int_handler)


@dataclass(frozen=True, slots=True, eq=False)
class _Ear:
    """One worker that hears.

    received: called with the signal, and with whether the process ends at once because it is the second one.
    owner: whether it owns the process.
    main: whether it runs in the main thread, the only one that can set handlers.
    """

    loop: asyncio.AbstractEventLoop
    received: Callable[[signal.Signals, bool], None]
    owner: bool
    main: bool


class Signals:
    """The handlers that this process has because of us, and the workers that hear."""

    def __init__(self) -> None:
        self._ears: list[_Ear] = []
        self._before: dict[signal.Signals, Any] = {}  # the handlers that ours replaced
        self._ours = self._handle  # one object, so that it can be compared
        self._heard = False  # an owner's second signal ends the process
        self._forks = threading.local()  # the signal mask of a thread that is just forking
        self._withheld: signal.Signals | None = None  # a guest has kept it from ending the process

    @contextlib.contextmanager
    def heard(self, received: Callable[[signal.Signals, bool], None], *, owner: bool) -> Iterator[None]:
        """Calls `received` with each signal, in this event loop, until the block ends. Then it puts the old handlers
        back."""
        main = threading.current_thread() is threading.main_thread()
        ear = _Ear(asyncio.get_running_loop(), received, owner, main)
        self._ears.append(ear)
        if main:
            self._take(owner)
        try:
            yield
        finally:
            self._ears.remove(ear)
            if main and not any(each.main for each in self._ears):
                self._put_back()
                self._heard = False

    def _take(self, owner: bool) -> None:
        for number in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
            present = signal.getsignal(number)
            ignored = present is signal.SIG_IGN and number not in (signal.SIGTERM, signal.SIGINT)  # as by nohup
            if present is not self._ours and not ignored and (owner or present in _NOBODYS):
                self._before[number] = present
                signal.signal(number, self._ours)

    def _put_back(self) -> None:
        for number, before in self._before.items():
            if signal.getsignal(number) is self._ours:  # else somebody has replaced it since
                # None: it was not set from Python, and cannot be set again from here.
                signal.signal(number, before if before is not None else signal.SIG_DFL)
        self._before.clear()

    # A job's forked child must end by SIGTERM, as under multiprocessing: nobody in it hears our signals. One that comes
    # before the child has its own handlers waits for them: Python forgets signals that come in the middle of a fork.

    def before_fork(self) -> None:
        self._forks.mask = signal.pthread_sigmask(signal.SIG_BLOCK, list(self._before))

    def after_fork(self, *, child: bool) -> None:
        if child:
            self._put_back()
            self._ears.clear()
        signal.pthread_sigmask(signal.SIG_SETMASK, self._forks.mask)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        """The handler. It interrupts any code of the main thread, so it only passes the signal on."""
        received = signal.Signals(number)
        owned = any(ear.owner for ear in self._ears)
        if owned and self._heard:
            try:
                next(ear for ear in self._ears if ear.owner).received(received, True)
            finally:  # it may have interrupted the very writing of a line
                os._exit(128 + number)
        self._heard = True
        if not owned:
            self._withheld = received
            self._put_back()
        for ear in self._ears:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                ear.loop.call_soon_threadsafe(ear.received, received, False)

    def forgive(self) -> None:
        """Somebody has asked a guest to stop, so the host is ending by itself: no signal needs to be passed on."""
        self._withheld = None

    def pass_on(self, task: asyncio.Task[Any] | None) -> None:
        """Lets a signal that guests have kept from ending the process do so, once all of them have drained.

        If `task` is the program's main coroutine, its worker's end is reported to it, and it can end the program in its
        own way. Any other task is one among several, and the program would go on as if there had been no signal.
        """
        if self._ears or self._withheld is None:
            return
        number, self._withheld = self._withheld, None
        if not _is_main(task) and signal.getsignal(number) in _NOBODYS:
            signal.raise_signal(number)


def _is_main(task: asyncio.Task[Any] | None) -> bool:
    """Whether asyncio.run() has made the task. Its handler for Ctrl-C is the one place that shows this."""
    handler = signal.getsignal(signal.SIGINT)
    return isinstance(handler, functools.partial) and task is not None and handler.keywords.get("main_task") is task


SIGNALS = Signals()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(
        before=SIGNALS.before_fork,
        after_in_parent=functools.partial(SIGNALS.after_fork, child=False),
        after_in_child=functools.partial(SIGNALS.after_fork, child=True),
    )
