"""How long claims have been silent while they could be renewed, as one reaper has seen it. rules/retry.py decides.

A silence means nothing while nobody can beat: in an outage, on a server that can only be read, and after a failover
until the owners have found the new primary. Each look proves that a beat could be written (find_silent_runs.sql), so
the time between two looks counts, and a gap between them does not.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from pgsched.rules.retry import Seen, Silent

Key = tuple[int, int]  # run id, token
_VOUCHED = 2  # intervals that a look vouches for at most: the server may have stood still for a part of a longer time


class Silences:
    """The silences that a reaper watches, on its own monotonic clock.

    interval: seconds between looks.
    """

    def __init__(self, interval: float, elapsed: Callable[[], float]) -> None:
        self._interval = interval
        self._elapsed = elapsed
        # A worker that starts during a failover must not take silence for death: the owners may not be back yet.
        self._steady_since: float | None = elapsed()
        self._served = 0.0  # the time between looks, all in all
        self._looked: tuple[float, datetime] | None = None
        self._server: tuple[datetime, int] | None = None
        # The last sign of life, when it was first seen, and for how long it counted as silent before that.
        self._watched: dict[Key, tuple[datetime, float, float]] = {}
        self._fresh: dict[Key, tuple[datetime, float, float]] = {}

    def disrupted(self) -> None:
        """Others may have had no chance to beat. They get time from the next look on."""
        self._steady_since = None
        self._looked = None

    def rest(self) -> None:
        """No looks follow for a while, because there is nothing to watch."""
        self._looked = None

    def begin(self, now: datetime, server_started: datetime, session: int) -> None:
        """The first statement of a look was answered.

        now: the database's clock.
        server_started, session: when the server has started, and the number of our session. If one of them has changed,
            there was an outage, a restart or a failover that no look has met.
        """
        at, server = self._elapsed(), (server_started, session)
        if self._server not in (None, server):
            self.disrupted()
        if self._looked is not None:
            before, then = self._looked
            if (now - then).total_seconds() > 5 * self._interval + 5:  # the server, or this machine, stood still
                self.disrupted()
            else:
                self._served += min(at - before, _VOUCHED * self._interval)
        if self._steady_since is None:
            self._steady_since = at
        self._looked, self._server = (at, now), server
        self._fresh = {}

    def of(self, run: Silent, now: datetime) -> Seen:
        """What is known of a run's silence."""
        assert self._steady_since is not None
        at, key = self._elapsed(), (run.id, run.token)
        steady = at - self._steady_since
        found = self._watched.get(key)
        if found is None or found[0] != run.alive_at:
            before = min((now - run.alive_at).total_seconds(), steady)
            found = (run.alive_at, at, before - self._served)
        self._fresh[key] = found
        _, first, counted = found
        return Seen(timedelta(seconds=at - first), timedelta(seconds=steady), timedelta(seconds=counted + self._served))

    def end(self) -> None:
        """The look is over: forgets the silences that it has not met."""
        self._watched, self._fresh = self._fresh, {}
