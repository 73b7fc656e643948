"""When a schedule fires: expression and time zone in, fire times out. Pure.

plan and dispatcher decide which fire times run and which are missed; daylight puts an expression into words and
finds its traps.

A cron expression passes three layers, and each knows nothing of the next:
1. grammar, a strict reader, turns the text into sets of numbers;
2. croniter, in cron alone, iterates those over naive wall-clock time, and sees neither raw text nor a zone;
3. zones cuts a zone's time into stretches of constant UTC offset, and cron decides at the cuts how daylight
   saving affects fire times.
"""

import zoneinfo
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Literal

from pgsched.errors import InvalidExpression, exact, quote
from pgsched.expression.cron import Cron
from pgsched.expression.duration import format_duration
from pgsched.expression.grammar import Fields, is_rate, read
from pgsched.expression.instants import END, EPOCH, FIRST_YEAR, LAST_YEAR, TICK, as_utc
from pgsched.expression.zones import check_timezone

LONGEST = 256  # characters of an expression


@dataclass(frozen=True, slots=True)
class Every:
    """A fixed rate from `anchor` on, in elapsed time: daylight saving does not touch it."""

    anchor: datetime
    interval: timedelta

    def next(self, after: datetime) -> datetime | None:
        if after >= END:
            return None  # also keeps the sum below within the range of datetime
        found = self.anchor + max((after - self.anchor) // self.interval + 1, 0) * self.interval
        return found if found < END else None

    def latest(self, after: datetime, until: datetime) -> datetime | None:
        if not (passed := self._passed(until)):
            return None
        found = self.anchor + (passed - 1) * self.interval
        return found if found > after else None

    def count(self, after: datetime, until: datetime) -> int:
        return self._passed(until) - self._passed(after)

    def _passed(self, until: datetime) -> int:
        """The number of fire times at or before `until`."""
        until = min(until, END - TICK)
        return max((until - self.anchor) // self.interval + 1, 0)


@dataclass(frozen=True, slots=True)
class At:
    """One instant, the same in every zone."""

    instant: datetime

    def next(self, after: datetime) -> datetime | None:
        return self.instant if self.instant > after else None

    def latest(self, after: datetime, until: datetime) -> datetime | None:
        return self.instant if after < self.instant <= until else None

    def count(self, after: datetime, until: datetime) -> int:
        return int(after < self.instant <= until)


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed expression, in its time zone. Immutable, and safe to share between threads.

    text: the source as given, stripped.
    timezone: the zone's name.
    kind: the expression's family; macros are "cron".
    times: the parsed times, for modules that describe them.

    Nothing fires after the year 2099, and cron not before 1970, by its zone's clock. All methods take aware datetimes
    of any zone (InvalidExpression for others) and return them in UTC.
    """

    text: str
    timezone: str
    kind: Literal["cron", "every", "at"]
    times: Cron | Every | At = field(repr=False)

    def next(self, after: datetime) -> datetime | None:
        """The first fire time strictly after `after`, or None if none is left."""
        after = as_utc(after, "after")
        found = self.times.next(after)
        if found is not None and found <= after:  # a scheduler that is handed the past would spin
            raise AssertionError(f"{self.text!r} in {self.timezone} has no progress from {after}: {found}")
        return found

    def passed(self, wall: datetime) -> datetime | None:
        """Fire times come after this instant if those through `wall` (naive, by the zone's clock) have already come, by
        any rules. None if the expression goes by instants, not by the clock's readings."""
        return self.times.passed(wall) if isinstance(self.times, Cron) else None

    def latest(self, after: datetime, until: datetime) -> datetime | None:
        """The last fire time in (after, until], or None. Takes O(log span) even if the schedule is dense."""
        after, until = as_utc(after, "after"), as_utc(until, "until")
        return self.times.latest(after, until) if after < until else None

    def count(self, after: datetime, until: datetime) -> int:
        """The number of fire times in (after, until]: exact, and without walking them."""
        after, until = as_utc(after, "after"), as_utc(until, "until")
        return self.times.count(after, until) if after < until else 0


def parse(expression: str, timezone: str = "UTC", *, name: str = "", anchor: datetime | None = None) -> Expression:
    """Read an expression: five to seven cron fields, a macro like `@daily`, `@every 90s`, `@at` an instant.

    name: the schedule's name, which decides the values of `H`.
    anchor: the instant that `@every` counts from, aware; it is itself the first fire time. Default: the Unix epoch.

    Cached, so parsing again costs a look-up. Raises InvalidExpression, and nothing else, for a text that cannot be
    read or can never fire.
    """
    text = exact(expression, "an expression must be text such as '0 9 * * *'")
    name = exact(name, "a schedule's name must be text")
    zone = check_timezone(timezone)
    anchor = EPOCH if anchor is None else as_utc(anchor, "anchor")
    if len(text) > LONGEST:
        raise InvalidExpression(f"the expression {quote(text)} has {len(text)} characters: write at most {LONGEST}")
    text = text.strip(" \t")
    upper = text.upper()
    # Values that do not affect the answer are kept out of the cache's key.
    return _parse(
        text,
        zone,
        name=name if "H" in upper else "",
        anchor=anchor if upper.startswith("@EVERY") else EPOCH,
    )


def every(interval: timedelta) -> str:
    """The expression for a fixed rate: `every(timedelta(seconds=30))` is "@every 30s".

    `interval` is 1 ms to 100 years, in whole milliseconds; anything else raises InvalidExpression.
    """
    if not isinstance(interval, timedelta):
        raise InvalidExpression(f"every() takes a timedelta, not {type(interval).__name__}")
    if not is_rate(interval):
        raise InvalidExpression(f"every() takes 1ms to 100 years in whole milliseconds, not {interval}")
    return f"@every {format_duration(interval)}"


def at(instant: datetime) -> str:
    """The expression for one instant: "@at 2027-01-01T00:00:00Z". It may be past; a naive one raises
    InvalidExpression, and so does one outside the years 1970 to 2099 (UTC)."""
    instant = as_utc(instant, "the instant of at()")
    if not EPOCH <= instant < END:
        raise InvalidExpression(f"at() takes an instant in the years {FIRST_YEAR} to {LAST_YEAR}, not {instant}")
    return f"@at {instant.replace(tzinfo=None).isoformat()}Z"


def upcoming(expression: str, timezone: str = "UTC", after: datetime | None = None, count: int = 5) -> list[datetime]:
    """The next `count` fire times strictly after `after` (None: the current time), in UTC; fewer at the end.

    `@every` is anchored at `after`. Raises InvalidExpression also for a naive `after` or a negative `count`.
    """
    if not isinstance(count, int) or count < 0:
        raise InvalidExpression(
            "count must be a whole number of 0 or more, "
            f"not {count if isinstance(count, int) else type(count).__name__}"
        )
    found: datetime | None = datetime.now(UTC) if after is None else as_utc(after, "after")
    parsed = parse(expression, timezone, anchor=found)
    times: list[datetime] = []
    while len(times) < count and found is not None and (found := parsed.next(found)) is not None:
        times.append(found)
    return times


@lru_cache(maxsize=2048)
def _parse(text: str, zone: zoneinfo.ZoneInfo, *, name: str, anchor: datetime) -> Expression:
    found = read(text, name)
    if isinstance(found, timedelta):
        return Expression(text, zone.key, "every", Every(anchor, found))
    if isinstance(found, datetime):
        return Expression(text, zone.key, "at", At(found))
    return Expression(text, zone.key, "cron", _cron(text, zone, found))


def _cron(text: str, zone: zoneinfo.ZoneInfo, fields: Fields) -> Cron:
    cron = Cron(zone, fields)
    assert cron.engines  # made here, so that croniter has no complaints left for later
    # With some years only, the clock may skip all the times of an interval.
    begin = datetime(fields.years[0], 1, 1, tzinfo=UTC) - timedelta(days=2)
    if fields.written.year != "*" and not fields.fixed and cron.next(begin) is None:
        raise InvalidExpression(
            f"the expression {quote(text)} never fires: the clock of {zone.key} skips all its times; write "
            "the hour, minute and second without a star to run right after the skip"
        )
    return cron
