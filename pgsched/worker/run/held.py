"""Starts claimed runs at their instant, if their claims certainly still hold then.

One timer serves all runs of one instant. A claim is sure for a while after the statement that made or renewed it was
sent. If a claim is not sure, a beat asks about it first, and the answer brings its run back to arrange().
"""

from __future__ import annotations

import asyncio
import time

from pgsched.worker.clocks import ServerClock, Watch
from pgsched.worker.run.attempt import Attempt
from pgsched.worker.run.roster import Roster
from pgsched.worker.run.surroundings import Key, State
from pgsched.worker.wakeups import Wakeup

# A claim is sure for this many heartbeat intervals after the statement that made or renewed it was sent: nobody takes
# it away within three. A run starts without asking only while its claim is sure.
SURE = 2


class Held:
    """The runs that wait for their instant."""

    def __init__(self, clock: ServerClock, watch: Watch, roster: Roster, beat: Wakeup, interval: float) -> None:
        """interval: seconds between heartbeats."""
        self._clock = clock
        self._watch = watch
        self._roster = roster
        self._beat = beat
        self._sure_for = SURE * interval
        # By their instant on the monotonic clock.
        self.instants: dict[float, tuple[asyncio.TimerHandle, list[Attempt]]] = {}
        self._waits_for: dict[Key, asyncio.TimerHandle] = {}  # the timer of each, which others share
        self._unsure: set[Key] = set()  # a beat must confirm their claims before they start

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
            self._waits_for[attempt.key] = due[0]
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
            if self._waits_for.get(attempt.key) is not timer:
                continue  # a beat asks about it
            del self._waits_for[attempt.key]
            if attempt.state is not State.HELD:
                continue  # it was dropped meanwhile
            if jumped or now - attempt.asked_at >= self._sure_for:
                self.ask(attempt)
            elif self._clock.monotonic(attempt.claimed.due_at) <= now:
                attempt.start()
            else:
                self.arrange(attempt)  # the database's clock was set back meanwhile

    def ask(self, attempt: Attempt) -> None:
        """Has a beat ask about a claim before its run starts."""
        self._unsure.add(attempt.key)
        self._waits_for.pop(attempt.key, None)  # the timer serves other runs too
        self._beat.ask()

    def confirm(self, attempt: Attempt) -> bool | None:
        """A beat has confirmed a held claim: arranges its run if it was asked about. Returns whether the claim is sure
        now, or None if nobody had asked."""
        if attempt.key not in self._unsure:
            return None
        self._unsure.discard(attempt.key)
        self.arrange(attempt)
        return attempt.key not in self._unsure

    def forget(self, attempt: Attempt) -> None:
        """The run has ended, or was dropped."""
        self._unsure.discard(attempt.key)

    def ask_all(self) -> None:
        """Asks about all held claims because time went by unseen, or the database's clock was set. No held run starts
        before its claim is confirmed, and its instant is computed again."""
        for attempt in self._roster.held():
            self.ask(attempt)
