"""The database's clock, as seen from here: how its instants lie on this process's monotonic clock.

Nothing is decided by it but for how long to sleep, and it errs towards late: a run never starts early.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DRIFT = 500e-6  # by how much two disciplined clocks may part, in seconds a second


class DatabaseClock:
    """Keeps bounds on (database time - monotonic time), from answers that carried the database's clock.

    An answer asked for at `before` and received at `after` was stamped in between, so the offset lies in
    [stamp - after, stamp - before]. Overlapping bounds are intersected; bounds that do not overlap mean that
    a clock was stepped, and the newest answer wins.
    """

    def __init__(self) -> None:
        self._low = 0.0
        self._high = 0.0
        self._at: float | None = None

    def observe(self, stamp: datetime, before: float, after: float) -> None:
        """Takes in one answer. before, after: time.monotonic() around the round trip, in seconds."""
        seconds = (stamp - _EPOCH) / timedelta(seconds=1)
        low, high = seconds - after, seconds + 1e-6 - before  # the stamp is cut to a microsecond
        if self._at is not None:
            drift = (after - self._at) * _DRIFT
            if low <= self._high + drift and high >= self._low - drift:
                low, high = max(low, self._low - drift), min(high, self._high + drift)
        self._low, self._high, self._at = low, max(low, high), after

    def monotonic(self, instant: datetime) -> float:
        """When, on the monotonic clock, the database's clock has certainly reached the instant."""
        return (instant - _EPOCH) / timedelta(seconds=1) - self._low + 1e-6  # more than a float loses here

    def at(self, monotonic: float) -> datetime:
        """The database's time at a monotonic moment, by the middle of the bounds."""
        return _EPOCH + timedelta(seconds=monotonic + (self._low + self._high) / 2)

    def now(self) -> datetime:
        """The database's time now, by the middle of the bounds."""
        return self.at(time.monotonic())
