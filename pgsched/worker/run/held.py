"""Starts claimed runs at their instant, if their claims certainly still hold then.

One timer serves all runs of one instant. A claim is sure for a while after the statement that made or renewed it was
sent. If a claim is not sure, a beat asks about it first, and the answer brings its run back to arrange().
"""

from __future__ import annotations

import asyncio
import time

from pgsched.worker.clocks import DatabaseClock, Watch
from pgsched.worker.run.attempt import Attempt
from pgsched.worker.run.roster import Roster
from pgsched.worker.run.surroundings import State
from pgsched.worker.wakeups import Wakeup

# A claim is sure for this many heartbeat intervals after the statement that made or renewed it was sent: nobody takes
# it away within three. A run starts without asking only while its claim is sure.
SURE = 2


class Held:
    """The runs that wait for their instant."""

    def __init__(self, clock: DatabaseClock, watch: Watch, roster: Roster, beat: Wakeup, interval: float) -> None:
        """interval: seconds between heartbeats."""
        self._clock = clock
        self._watch = watch
        self._roster = roster
        self._beat = beat
        self._sure_for = SURE * interval
        # By their instant on the monotonic clock.
        self.instants: dict[float, tuple[asyncio.TimerHandle, list[Attempt]]] = {}

    def arrange(self, attempt: Attempt) -> None:
        """Starts a run, or has it wait for its instant, together with all others of that instant. Has a beat ask first
        if its claim is not sure, or if the database's clock is not known."""
        instant, now = self._clock.monotonic(attempt.claimed.due_at), time.monotonic()
        if instant <= now:
            if now - attempt.asked_at < self._sure_for:
                attempt.start()
            else:
                self.ask(attempt)
        elif self._clock.known:
            if (due := self.instants.get(instant)) is None:
                timer = asyncio.get_running_loop().call_at(instant, self.start, instant)
                due = self.instants[instant] = (timer, [])
            due[1].append(attempt)
            attempt.held_by = due[0]
            attempt.hold()
        else:
            self.ask(attempt)

    def start(self, instant: float) -> None:
        """Starts the held runs of an instant that has come. If a claim is not sure any more, because the loop was
        blocked or the machine slept, another worker may have it by now: a beat asks first. A change of its schedule
        takes no claim away."""
        timer, held = self.instants.pop(instant)
        jumped = self._watch.look()
        now = time.monotonic()
        for attempt in held:
            if attempt.state is not State.HELD or attempt.held_by is not timer:
                continue  # it was dropped meanwhile, or a beat asks about it
            attempt.held_by = None
            if jumped or now - attempt.asked_at >= self._sure_for:
                self.ask(attempt)
            elif self._clock.monotonic(attempt.claimed.due_at) <= now:
                attempt.start()
            else:
                self.arrange(attempt)  # the database's clock was set back meanwhile

    def ask(self, attempt: Attempt) -> None:
        """Has a beat ask about a claim before its run starts."""
        attempt.unsure = True
        attempt.held_by = None  # the timer serves other runs too
        self._beat.ask()

    def ask_all(self) -> None:
        """Asks about all held claims because time went by unseen, or the database's clock was set. No held run starts
        before its claim is confirmed, and its instant is computed again."""
        for attempt in self._roster.held():
            self.ask(attempt)
