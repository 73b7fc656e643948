"""The dates that a schedule runs on, and their number in a year. Pure, and knows no time of day."""

import calendar
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from pgsched.expression.instants import FIRST_YEAR, LAST_YEAR


@dataclass(frozen=True, slots=True)
class Days:
    """The dates of one schedule, or of one of its two day fields: month, date and weekday must all fit."""

    months: tuple[int, ...]
    dates: frozenset[int] = frozenset(range(1, 32))
    last: bool = False  # L, in addition to `dates`
    nearest: int | None = None  # nW, instead of `dates`; 31 is LW, as a short month counts from its end
    weekdays: frozenset[int] = frozenset(range(7))  # 0 is Sunday
    nth: frozenset[tuple[int, int]] = frozenset()  # d#n as (d, n), dL as (d, 0); instead of `weekdays`

    def of(self, year: int, month: int) -> Iterator[int]:
        """The fitting days of that month."""
        first, length = calendar.monthrange(year, month)  # first: 0 is Monday
        nearest = self._nearest(first, length)
        for day in range(1, length + 1) if month in self.months else ():
            weekday = (first + day) % 7
            date_fits = day == nearest if nearest else day in self.dates or (self.last and day == length)
            if date_fits and (
                weekday in self.weekdays
                or (weekday, (day + 6) // 7) in self.nth
                or (day + 7 > length and (weekday, 0) in self.nth)
            ):
                yield day

    def _nearest(self, first: int, length: int) -> int | None:
        """The weekday (Monday to Friday) nearest to the date, without leaving the month."""
        if self.nearest is None:
            return None
        day = min(self.nearest, length)
        weekday = (first + day) % 7
        if weekday == 6:
            return day - 1 if day > 1 else day + 2
        if weekday == 0:
            return day + 1 if day < length else day - 2
        return day

    def ever(self, years: tuple[int, ...]) -> bool:
        """Whether any date in `years` fits. There are only 14 different years, so this ends at once."""
        seen = set()
        for year in years:
            shape = calendar.isleap(year), calendar.weekday(year, 1, 1)
            if shape not in seen and any(day for month in self.months for day in self.of(year, month)):
                return True
            seen.add(shape)
        return False


@lru_cache(maxsize=512)  # schedules share it: most run on all days, or on weekdays
def calendar_of(sides: tuple[Days, ...], years: tuple[int, ...]) -> list[tuple[int, int]]:
    """For each year from 1970 on, and one more: the number of fitting days before it; its own days as bits 1 to 366."""
    shapes: dict[tuple[bool, int], int] = {}
    found: list[tuple[int, int]] = []
    passed = 0
    for year in range(FIRST_YEAR, LAST_YEAR + 2):
        shape = calendar.isleap(year), calendar.weekday(year, 1, 1)
        if shape not in shapes:
            shapes[shape] = _bits(sides, year)
        days = shapes[shape] if year in years else 0
        found.append((passed, days))
        passed += days.bit_count()
    return found


def _bits(sides: tuple[Days, ...], year: int) -> int:
    bits = start = 0
    for month in range(1, 13):
        for days in sides:
            for day in days.of(year, month):
                bits |= 1 << (start + day)
        start += calendar.monthrange(year, month)[1]
    return bits
