"""All claimed runs of this worker, their slots and places, and the threads that outlive them.

It changes nothing about a run. Heartbeat, guard, reaper and dispatcher look at it; runner adds and removes runs.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime

from pgsched import log
from pgsched.config import Settings
from pgsched.executors.executor import Place
from pgsched.rules.outcome import Stop
from pgsched.worker.run.attempt import Attempt, function_fields
from pgsched.worker.run.surroundings import Key, State

_UNLANDED = 10_000  # how many claims without a recorded end are remembered


class Roster:
    """The attempts of a worker. Only the event loop's thread changes it.

    Any thread may call claims() and in_threads().
    """

    def __init__(self, settings: Settings) -> None:
        # By (run id, token): a lost run may be claimed here again before its old attempt has ended.
        self.attempts: dict[Key, Attempt] = {}
        # The last claims that started here and whose end did not land: the reaper counts their attempts.
        self.unlanded: dict[Key, None] = {}
        # Attempts that have ended while their function goes on in its thread.
        self.left_behind: dict[Key, Attempt] = {}
        self.leftovers_changed = asyncio.Event()  # set when left_behind or outliving() changes
        self.slots_used = 0
        self.used: Counter[Place] = Counter()
        self._settings = settings
        self._in_thread: dict[int, Attempt] = {}  # by run id, including those left behind
        self._most = {
            Place.THREAD: settings.max_threads,
            Place.PROCESS: settings.max_processes or os.cpu_count() or 1,
            Place.COMMAND: settings.max_commands,
        }
        self._filled: list[Callable[[], None]] = []
        self._added: list[Callable[[Attempt], None]] = []
        self._freed: list[Callable[[Attempt], None]] = []
        self._log = log.get()

    def watch(
        self,
        *,
        filled: Callable[[], None] | None = None,
        added: Callable[[Attempt], None] | None = None,
        freed: Callable[[Attempt], None] | None = None,
    ) -> None:
        """Subscribes to changes.

        filled: called when there are claims again.
        added: called with each new attempt.
        freed: called with an attempt when a slot or place becomes free, or when an overlap or a limit may have room.
        """
        self._filled += [filled] if filled is not None else []
        self._added += [added] if added is not None else []
        self._freed += [freed] if freed is not None else []

    # --- coming and going -------------------------------------------------------------------------------

    def add(self, attempt: Attempt) -> None:
        """Adds a claim, which takes its slot and its place."""
        if not self.attempts:
            for callback in self._filled:
                callback()
        self.attempts[attempt.key] = attempt
        self.slots_used += 1
        if attempt.place is not None:
            self.used[attempt.place] += 1
        if attempt.threaded:
            self._in_thread[attempt.claimed.id] = attempt
        for each in self._added:
            each(attempt)

    def free(self, attempt: Attempt) -> None:
        """Frees the slot of a run that has ended, and its place unless its thread goes on."""
        self.slots_used -= 1
        if attempt.thread_call.future is not None and attempt.thread_call.busy:
            self._leave_behind(attempt)
        else:
            self._free_place(attempt)
        self.changed(attempt)

    def changed(self, attempt: Attempt) -> None:
        """Calls the `freed` callbacks: something may start now that could not before."""
        for callback in self._freed:
            callback(attempt)

    def forget(self, attempt: Attempt, *, landed: bool) -> None:
        """Removes a run: the database has answered about its end, or its claim is lost."""
        self.attempts.pop(attempt.key, None)
        if self._in_thread.get(attempt.claimed.id) is attempt and not attempt.thread_call.busy:
            del self._in_thread[attempt.claimed.id]
        if not landed and attempt.started_at is not None:
            self.unlanded[attempt.key] = None
            if len(self.unlanded) > _UNLANDED:
                del self.unlanded[next(iter(self.unlanded))]

    def _leave_behind(self, attempt: Attempt) -> None:
        assert attempt.thread_call.future is not None
        self.left_behind[attempt.key] = attempt
        attempt.thread_call.future.add_done_callback(lambda _: self._thread_ended(attempt))
        self.leftovers_changed.set()
        self._log.warning("thread_left_behind", run=attempt.claimed.id, **function_fields(attempt))
        if len(self.left_behind) == self._settings.max_threads:
            self._log.error(
                "threads_exhausted",
                max_threads=self._settings.max_threads,
                advice="functions that hang have taken all threads, and this worker starts no synchronous run any "
                "more: give their blocking calls a timeout, and restart the worker",
            )

    def _thread_ended(self, attempt: Attempt) -> None:
        if len(self.left_behind) == self._settings.max_threads:
            self._log.warning("threads_free_again")
        self.left_behind.pop(attempt.key, None)
        if self._in_thread.get(attempt.claimed.id) is attempt:
            del self._in_thread[attempt.claimed.id]
        self.leftovers_changed.set()
        self._log.info("thread_ended", run=attempt.claimed.id, **function_fields(attempt))
        self._free_place(attempt)

    def _free_place(self, attempt: Attempt) -> None:
        if attempt.place is not None:
            self.used[attempt.place] -= 1
            self.changed(attempt)

    # --- looks ------------------------------------------------------------------------------------------

    def running(self) -> list[Attempt]:
        """The runs that have begun and not ended."""
        return [each for each in self.attempts.values() if each.state is State.RUNNING]

    def held(self) -> list[Attempt]:
        """The runs that wait for their instant."""
        return [each for each in self.attempts.values() if each.state is State.HELD]

    def claims(self) -> list[tuple[int, int, datetime | None]]:
        """All claims as a beat sends them: run id, token, when it started. For any thread."""
        return [(each.claim.run_id, each.claim.token, each.started_at) for each in list(self.attempts.values())]

    def count(self, entrypoint: str) -> int:
        """How many runs of an entrypoint have a slot."""
        return sum(x.state is not State.ENDED for x in self.attempts.values() if x.claimed.entrypoint == entrypoint)

    def places(self) -> dict[Place, int]:
        """How many more runs each kind of place has room for."""
        return {place: max(0, number - self.used[place]) for place, number in self._most.items()}

    @property
    def threads_used(self) -> int:
        """Threads in use, including those whose run has already ended."""
        return self.used[Place.THREAD]

    def busy_with(self, run_id: int) -> Attempt | None:
        """An earlier attempt of this run whose function still goes on in a thread here, or None."""
        earlier = self._in_thread.get(run_id)
        return earlier if earlier is not None and earlier.thread_call.busy else None

    def outliving(self) -> list[Key]:
        """The attempts that have ended or lost their claim while their functions go on in threads. Attempts that a
        drain gives back are left out: their runs belong to other workers, and their threads end with the process."""
        lost = [key for key, each in self._busy() if each.stop is Stop.LOST and key not in self.left_behind]
        return [*(key for key, each in self.left_behind.items() if each.stop is not Stop.DRAIN), *lost]

    def in_threads(self) -> list[Key]:
        """The attempts whose function is in a thread, even if the run has ended. For any thread."""
        return list(dict.fromkeys([*list(self.left_behind), *(key for key, _ in self._busy())]))

    def _busy(self) -> list[tuple[Key, Attempt]]:
        return [(key, each) for key, each in list(self.attempts.items()) if each.thread_call.busy]

    async def until_empty(self, of: Callable[[], Iterable[Attempt]], seconds: float) -> bool:
        """Waits until `of` returns no attempts, at most this many seconds. Returns whether it does."""
        deadline = time.monotonic() + seconds
        while any(True for _ in of()):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            tasks = [each.task for each in of() if each.task is not None]
            if tasks:
                await asyncio.wait(tasks, timeout=left)
        return True
