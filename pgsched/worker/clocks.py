"""The database's clock, as seen from here, and this machine's own clocks, which only measure sleeps and give hints.

DatabaseClock maps the database's instants to this process's monotonic clock. It decides nothing but how long to sleep,
and it errs towards late: a run never starts early.

The monotonic clock stands still while the machine is suspended. So a sleep until an instant is a series of short turns
in Watch.wait(), and at each turn Watch compares the clocks. A jump is a hint to look at once, never a decision. Limits
on how long something may take (a statement, a drain, a function) may count only the time that this machine is awake.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol, TypeAlias

TURN = 10.0  # seconds; the longest sleep before the clocks are compared
JUMP = 0.05  # seconds; less is noise from reading two clocks, or a clock being slewed
STEP = 0.1  # seconds; a larger gap between bounds, beyond drift, means that the database's clock was set
_DRIFT = 500e-6  # seconds per second by which two disciplined clocks may drift apart
_Bounds: TypeAlias = tuple[float, float]


class ServerClock(Protocol):
    """A worker's knowledge of the database's clock. pgsched.testing has one that stands still."""

    @property
    def known(self) -> bool:
        """Whether anything is known of it."""

    def subscribe(self, stepped: Callable[[float], None]) -> None:
        """Has `stepped` called with the seconds whenever the clock was set."""

    def forget(self) -> None:
        """Forgets what is known: this machine slept."""

    def observe(self, stamp: datetime, before: float, after: float) -> None:
        """Takes in an answer. before, after: the monotonic clock around the round trip."""

    def monotonic(self, instant: datetime) -> float:
        """When, on the monotonic clock, the instant has certainly come."""

    def at(self, monotonic: float) -> datetime | None:
        """Its time at a monotonic moment."""

    def now(self) -> datetime | None:
        """Its time now."""


class DatabaseClock:
    """Keeps bounds on (database time - monotonic time), from answers that carried the database's clock.

    An answer asked for at `before` and received at `after` was stamped in between, so the offset lies in
    [stamp - after, stamp - before]. Overlapping bounds are intersected; bounds that do not overlap mean that
    a clock was stepped, and the newest answer wins.
    """

    def __init__(self) -> None:
        self._stepped: list[Callable[[float], None]] = []
        self._low = 0.0
        self._high = 0.0
        self._at: float | None = None
        self._forgotten = float("-inf")

    def subscribe(self, stepped: Callable[[float], None]) -> None:
        """Calls `stepped` with the size of the step, in seconds, whenever the database's clock was set."""
        self._stepped.append(stepped)

    @property
    def known(self) -> bool:
        """Whether an answer has come since the start, or since the last forget()."""
        return self._at is not None

    def forget(self) -> None:
        """Forgets the bounds, which are stale if this machine slept. Answers to earlier questions are ignored too."""
        self._at = None
        self._forgotten = time.monotonic()

    def observe(self, stamp: datetime, before: float, after: float) -> None:
        """Accepts one answer.

        stamp: the database's clock in it.
        before, after: time.monotonic() before and after the round trip, in seconds.
        """
        if before < self._forgotten:
            return
        seconds = stamp.timestamp()
        low, high = seconds - after, seconds + 1e-6 - before  # the stamp is truncated to a microsecond
        step = 0.0
        if self._at is not None:
            drift = (after - self._at) * _DRIFT
            if low <= self._high + drift and high >= self._low - drift:
                low, high = max(low, self._low - drift), min(high, self._high + drift)
            else:
                step = _apart((self._low - drift, self._high + drift), (low, high))
        self._low, self._high, self._at = low, max(low, high), after
        if abs(step) > STEP:
            for callback in self._stepped:
                callback(step)

    def monotonic(self, instant: datetime) -> float:
        """The moment on the monotonic clock when the database's clock has certainly reached the instant.

        Infinity if the database's clock is not known.
        """
        if not self.known:
            return float("inf")
        return instant.timestamp() - self._low + 1e-6  # more than the rounding error of a float here

    def at(self, monotonic: float) -> datetime | None:
        """The database's time at a monotonic moment, by the middle of the bounds; None if it is not known."""
        return datetime.fromtimestamp(monotonic + (self._low + self._high) / 2, UTC) if self.known else None

    def now(self) -> datetime | None:
        """The database's time now, by the middle of the bounds; None if it is not known."""
        return self.at(time.monotonic())


class Clocks:
    """This machine's own clocks, in seconds. Tests pass others; monotonic must be the event loop's clock."""

    def monotonic(self) -> float:
        """Stands still while the machine is suspended, and is never set."""
        return time.monotonic()

    def wall(self) -> float:
        """May be wrong, and may be set at any time."""
        return time.time()

    def boottime(self) -> float | None:
        """Goes on while the machine is suspended, and is never set. None if the system has no such clock."""
        try:
            return time.clock_gettime(time.CLOCK_BOOTTIME)
        except (AttributeError, OSError):
            return None


@dataclass(frozen=True, slots=True)
class Jump:
    """How far clocks have moved against the monotonic clock since the last look, in seconds.

    slept: the clock that counts suspension; 0 if the system has none.
    wall: the wall clock, which also moves by a suspension, and when somebody sets it.
    """

    slept: float
    wall: float


class Watch:
    """Notices that this machine slept, or that its wall clock was set. Only for the event loop's thread."""

    def __init__(self, clocks: Clocks | None = None, turn: float = TURN) -> None:
        self._jumped: list[Callable[[Jump], None]] = []
        self._clocks = clocks or Clocks()
        self._turn = turn
        self.looked = 0.0  # the last look, on the monotonic clock: no earlier jump has gone unseen
        self._boot, self._wall = self._read()

    def subscribe(self, jumped: Callable[[Jump], None]) -> None:
        """Calls `jumped` whenever a look finds that the clocks have jumped."""
        self._jumped.append(jumped)

    def look(self) -> bool:
        """Compares the clocks with the last look. Returns whether they jumped, after subscribers were called."""
        before, (self._boot, self._wall) = (self._boot, self._wall), self._read()
        jump = Jump(_apart(before[0], self._boot), _apart(before[1], self._wall))
        if max(abs(jump.slept), abs(jump.wall)) <= JUMP:
            return False
        for callback in self._jumped:
            callback(jump)
        return True

    async def wait(self, event: asyncio.Event, until: float | None = None) -> bool:
        """Waits for the event, until a monotonic moment at most, or until a look finds that the clocks have jumped.

        Returns whether the event is set.
        """
        while not event.is_set() and not self.look():
            left = self._turn if until is None else min(self._turn, until - time.monotonic())
            if left <= 0:
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await event.wait()
        return event.is_set()

    async def sleep(self, seconds: float) -> None:
        """Sleeps for this long, or until a look finds that the clocks have jumped."""
        await self.wait(asyncio.Event(), time.monotonic() + seconds)

    def _read(self) -> tuple[_Bounds, _Bounds]:
        """Bounds on the other clocks' distance from the monotonic one: the process may be interrupted between reads."""
        first = self._clocks.monotonic()
        boot = self._clocks.boottime()
        second = self._clocks.monotonic()
        wall = self._clocks.wall()
        third = self._clocks.monotonic()
        self.looked = first
        return (0.0, 0.0) if boot is None else (boot - second, boot - first), (wall - third, wall - second)


def _apart(old: _Bounds, new: _Bounds) -> float:
    """How much a distance has certainly grown (below 0: shrunk); 0 if the bounds overlap."""
    return max(0.0, new[0] - old[1]) + min(0.0, new[1] - old[0])
