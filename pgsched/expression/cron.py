"""The fire times of a cron expression in a time zone. Pure, and the only import of croniter.

croniter iterates over naive wall-clock time, and over sets of numbers that grammar has read: it never sees a
time zone or raw text.
"""

import threading
import zoneinfo
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property

from croniter import CroniterBadDateError, croniter

from pgsched.expression.days import Days, calendar_of
from pgsched.expression.grammar import Fields
from pgsched.expression.instants import DAY, EPOCH, FIRST_YEAR, LAST_YEAR, NEVER, moment, seconds
from pgsched.expression.zones import changes, stretch


@dataclass(frozen=True)
class Cron:
    """A cron expression as sets of numbers, croniter over them, and the rules for daylight saving.

    An expression whose second, minute or hour field begins with a star is an interval: it runs whenever the
    clock shows a matching time. Any other is fixed-time: each listed time runs once, at the first instant
    after the skip if the clock skips it, and the first time only if the clock shows it twice. That is the
    rule of Debian's cron (cron(8), NOTES), kept for a change of any size; unlike there, several skipped times
    of one schedule make one run.
    """

    zone: zoneinfo.ZoneInfo
    fields: Fields
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    # The last question and its answer, in one object: threads exchange it whole.
    _known: list[tuple[int, int]] = field(default_factory=lambda: [(0, -1)], repr=False, compare=False)

    def next(self, after: datetime) -> datetime | None:
        found = self._after(seconds(after))
        return None if found is None else moment(found)

    def passed(self, wall: datetime) -> datetime | None:
        """Fire times come after this instant if those through `wall`, by the zone's clock, have already come.

        None for an interval, which goes by instants.
        """
        if not self.fields.fixed:
            return None
        first = wall.replace(tzinfo=self.zone, fold=0).astimezone(UTC)
        if first.astimezone(self.zone).replace(tzinfo=None) == wall:
            return first
        # The clock skips it: all skipped times have come at the first instant after the skip.
        before = wall.replace(tzinfo=self.zone, fold=1).astimezone(UTC)
        return next((moment(cut.start) for cut in changes(self.zone, seconds(before), seconds(first))), first)

    def latest(self, after: datetime, until: datetime) -> datetime | None:
        low, high = seconds(after), seconds(until)
        limit, latest = high, None
        while low < high:  # the last fire time is in (low, high], if there is one
            middle = (low + high) // 2
            found = self._after(middle)
            if found is not None and found <= limit:
                low = latest = found
            else:
                high = middle
        return None if latest is None else moment(latest)

    def count(self, after: datetime, until: datetime) -> int:
        instant, stop = seconds(after) + 1, seconds(until) + 1
        total = 0
        while instant < stop:
            start, end, offset, shown = stretch(self.zone, instant)
            end = min(end, stop)
            wall = instant + offset
            if self.fields.fixed:
                wall = max(wall, shown)  # skip the times that the clock shows for the second time
                # If it jumped from `shown` to `wall`, the skipped times make one run, unless `wall` has one.
                if instant == start and self.before(shown) < self.before(wall) == self.before(wall + 1):
                    total += 1
            total += max(self.before(end + offset) - self.before(wall), 0)
            instant = end
        return total

    def _after(self, instant: int) -> int | None:
        """The first fire time strictly after `instant`."""
        _, end, offset, shown = stretch(self.zone, instant)
        wall = instant + offset
        if self.fields.fixed:
            wall = max(wall, shown - 1)  # pass over the times that the clock had shown before
        match = self.match(wall)
        while match - offset >= end:
            # Nothing matches between `wall` and `match`, and nothing runs until the clock changes at `end`.
            if match == NEVER and (self.fields.fixed or end > instant + 2 * DAY):
                return None
            _, next_end, next_offset, _ = stretch(self.zone, end)
            changed = end + next_offset  # the clock's reading at the change
            if self.fields.fixed:
                if match < changed:
                    return end
            elif match < changed or changed <= wall:  # skipped, or shown once more
                wall = changed - 1
                match = self.match(wall)
            end, offset = next_end, next_offset
        return match - offset if match < NEVER else None

    def match(self, wall: int) -> int:
        """The first match of the wall clock strictly after `wall`; NEVER if there is none."""
        wall = asked = max(wall, -1)
        if wall >= NEVER - 1:
            return NEVER
        # Between a moment and its next match there is no other: a herd with one expression asks the same again.
        low, found = self._known[0]
        if low <= wall < found:
            return found
        if self.fields.written.year != "*":  # croniter would walk to a far year month by month
            years = self.fields.years
            coming = bisect_left(years, moment(wall + 1).year)
            if coming == len(years):
                return NEVER
            wall = max(wall, seconds(datetime(years[coming], 1, 1, tzinfo=UTC)) - 1)
        first = NEVER
        with self._lock:  # get_next() sets the start and then reads it; parse() shares us between threads
            for engine in self.engines:
                try:
                    found = int(engine.get_next(float, float(wall)))
                except CroniterBadDateError:
                    continue
                if found <= wall:  # never seen; the loops above rely on it
                    raise AssertionError(f"croniter went from {wall} to {found} on {engine.expressions}")
                first = min(first, found)
        self._known[0] = asked, first
        return first

    @cached_property
    def engines(self) -> tuple["croniter[float]", ...]:
        """One croniter per side: its own way of joining two day fields has faults."""
        span = LAST_YEAR - FIRST_YEAR + 1
        return tuple(
            croniter(self._text(days), 0.0, day_or=False, max_years_between_matches=span) for days in self.fields.days
        )

    def _text(self, days: Days) -> str:
        """In the part of croniter's dialect that it reads correctly: numbers, lists, plain stars."""
        dates = f"{days.nearest}W" if days.nearest else _listed(days.dates, 31, *["L"] * days.last)
        nth = ",".join(f"{weekday}#{n}" if n else f"L{weekday}" for weekday, n in sorted(days.nth))
        fields = [
            _listed(self.fields.minutes, 60),
            _listed(self.fields.hours, 24),
            dates,
            _listed(days.months, 12),
            nth or _listed(days.weekdays, 7),
        ]
        years = _listed(self.fields.years, LAST_YEAR - FIRST_YEAR + 1)
        if self.fields.seconds != (0,) or years != "*":
            fields.append(_listed(self.fields.seconds, 60))
        return " ".join(fields if years == "*" else [*fields, years])

    def before(self, wall: int) -> int:
        """The number of the wall clock's matches from the beginning of 1970 to `wall`, without `wall` itself."""
        day, second = divmod(min(max(wall, 0), NEVER), DAY)
        date = EPOCH.date() + timedelta(days=day)
        passed, days = self._calendar[date.year - FIRST_YEAR]
        today = date.timetuple().tm_yday
        rank = passed + (days & ((1 << today) - 1)).bit_count()
        fields = self.fields
        total = rank * len(fields.hours) * len(fields.minutes) * len(fields.seconds)
        return total + (self._before_in_day(second) if days >> today & 1 else 0)

    def _before_in_day(self, second: int) -> int:
        hours, minutes, seconds = self.fields.hours, self.fields.minutes, self.fields.seconds
        total = 0
        # As in a number of three digits: the smaller values of this digit, times all values that may follow it.
        for values, value, weight in (
            (hours, second // 3600, len(minutes) * len(seconds)),
            (minutes, second // 60 % 60, len(seconds)),
            (seconds, second % 60, 1),
        ):
            smaller = bisect_left(values, value)
            total += smaller * weight
            if value not in values[smaller : smaller + 1]:
                break
        return total

    @cached_property
    def _calendar(self) -> list[tuple[int, int]]:
        return calendar_of(self.fields.days, self.fields.years)


def _listed(values: Iterable[int], full: int, *more: str) -> str:
    numbers = sorted(values)
    return "*" if len(numbers) == full else ",".join([*map(str, numbers), *more])
