"""Expressions made together with their meaning, the zones' changes, and walks that watch the clock.

Nothing here reads an expression or asks pgsched for anything: the tests compare the two. The walks decide second
by second (or minute by minute) what a person who watches the clock would run.
"""

import calendar
import hashlib
import os
import zoneinfo
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

from hypothesis import settings
from hypothesis import strategies as st

SCALE = int(os.environ.get("PGSCHED_EXAMPLES", "1"))  # times as many cases, for a campaign
SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
PARIS = "Europe/Paris"
ZONES = sorted(zoneinfo.available_timezones() - {"localtime", "Factory"})


def cases(count: int) -> Any:
    return settings(max_examples=count * SCALE, deadline=None, database=None)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


# -- The zones' changes -----------------------------------------------------------------------------------


class Change(NamedTuple):
    """An instant at which a zone's clock jumps, its offsets from UTC before and after, and whether it is summer."""

    instant: datetime
    before: timedelta
    after: timedelta
    seasonal: bool  # the change is one of daylight saving

    @property
    def size(self) -> timedelta:
        return self.after - self.before


@cache
def changes(zone: str) -> tuple[Change, ...]:
    """Those from 1970 to 2037: the clock is looked at every sixth day, and between two looks that differ."""
    tz = zoneinfo.ZoneInfo(zone)
    found = []
    low = utc("1970-01-01T00:00Z").astimezone(tz)
    while low.year < 2038:
        high = (low.astimezone(UTC) + 6 * DAY).astimezone(tz)
        if low.utcoffset() != high.utcoffset():
            left, right = low.astimezone(UTC), high.astimezone(UTC)
            while right - left > SECOND:
                middle = left + (right - left) // 2
                same = middle.astimezone(tz).utcoffset() == low.utcoffset()
                left, right = (middle, right) if same else (left, middle)
            instant = right.replace(microsecond=0)
            found.append(Change(instant, low.utcoffset(), high.utcoffset(), low.dst() != high.dst()))  # type: ignore[arg-type]
        low = high
    return tuple(found)


@cache
def changing_zones() -> dict[str, list[str]]:
    """One zone of each history that has any change, and all the zones that share it: links, as a rule."""
    groups: dict[tuple[Change, ...], list[str]] = {}
    for zone in ZONES:
        if changes(zone):
            groups.setdefault(changes(zone), []).append(zone)
    return {zones[0]: zones for zones in groups.values()}


@cache
def odd_changes() -> list[tuple[str, Change]]:
    """Those that are not an hour of daylight saving: half hours, whole days, moves to another offset.

    In whole minutes, which leaves out one: Liberia's, in 1972.
    """
    return [
        (zone, change)
        for zone in changing_zones()
        for change in changes(zone)
        if (abs(change.size) != HOUR or not change.seasonal) and not change.before % MINUTE
    ]


@st.composite
def zone_and_change(draw: st.DrawFn) -> tuple[str, Change]:
    """A change since 2000 of any zone; or an odd one, a zone as likely as another."""
    if draw(st.integers(0, 3)) == 0:
        zone = draw(st.sampled_from(sorted({zone for zone, _ in odd_changes()})))
        return zone, draw(st.sampled_from([change for where, change in odd_changes() if where == zone]))
    zone = draw(st.sampled_from([zone for zone in changing_zones() if changes(zone)[-1].instant.year >= 2000]))
    return zone, draw(st.sampled_from([each for each in changes(zone) if each.instant.year >= 2000]))


# -- Expressions with their meaning -----------------------------------------------------------------------

NAMES = {
    "month": ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"],
    "day of week": ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN"],
}
BOUNDS = {
    "second": (0, 59),
    "minute": (0, 59),
    "hour": (0, 23),
    "day of month": (1, 31),
    "month": (1, 12),
    "day of week": (0, 6),
    "year": (1970, 2099),
}
Field = tuple[str, frozenset[int]]


@dataclass(frozen=True)
class Meaning:
    """What an expression stands for, made together with its text and without reading it."""

    text: str
    name: str
    fixed: bool
    seconds: frozenset[int]
    minutes: frozenset[int]
    hours: frozenset[int]
    months: frozenset[int]
    years: frozenset[int]
    date_fits: Callable[[date], bool]
    weekday_fits: Callable[[date], bool]
    both: bool

    def on(self, day: date) -> bool:
        if day.month not in self.months or day.year not in self.years:
            return False
        fits = [self.date_fits(day), self.weekday_fits(day)]
        return all(fits) if self.both else any(fits)

    def ever(self) -> bool:
        """Whether any day fits. Years are alike every 28 years, from 1970 to 2099."""
        span = range(1996, 2024) if self.years == ALL_YEARS else sorted(self.years)
        return any(
            self.on(date(year, month, day))
            for year in span
            for month in sorted(self.months)
            for day in range(1, calendar.monthrange(year, month)[1] + 1)
        )

    def at(self, clock: datetime) -> bool:
        return (
            clock.minute in self.minutes
            and clock.hour in self.hours
            and clock.second in self.seconds
            and self.on(clock.date())
        )


ALL_YEARS = frozenset(range(1970, 2100))


def everyday(day: date) -> bool:
    return True


def spelled(draw: st.DrawFn, value: int, low: int, names: list[str]) -> str:
    if names and draw(st.booleans()):
        name = names[value - low]
        return draw(st.sampled_from([name, name.lower(), name.title()]))
    return draw(st.sampled_from([str(value), f"{value:02}"]))


def hashed(field: str, schedule: str) -> int:
    """The first 64 bits of the SHA-256 of the field's name, a NUL and the schedule's name."""
    return int(hashlib.sha256(f"{field}\0{schedule}".encode()).hexdigest()[:16], 16)


@st.composite
def hashed_item(draw: st.DrawFn, field: str, schedule: str) -> tuple[str, set[int]]:
    """`H`, `H/n`, `H(a-b)` or `H(a-b)/n`: one of the range, or the start of the steps through it."""
    low, high = BOUNDS[field]
    top = 28 if field == "day of month" else high  # what every month has
    number = hashed(field, schedule)
    letter = draw(st.sampled_from(["H", "h"]))
    step = draw(st.integers(1, 40))
    first = draw(st.integers(low, high))
    last = draw(st.integers(first, high))
    ranged = f"{letter}({first}-{last})"
    shape = draw(st.sampled_from(["H", "H/", "H()", "H()/"]))
    if shape == "H":
        return letter, {low + number % (top - low + 1)}
    if shape == "H/":
        return f"{letter}/{step}", set(range(low + number % min(step, top - low + 1), high + 1, step))
    if shape == "H()":
        return ranged, {first + number % (last - first + 1)}
    return f"{ranged}/{step}", set(range(first + number % min(step, last - first + 1), last + 1, step))


@st.composite
def item(draw: st.DrawFn, field: str, star: bool, schedule: str | None) -> tuple[str, set[int]]:
    """One item of a list: its text and its numbers (7 for a Sunday at the end of a range)."""
    low, high = BOUNDS[field]
    names = NAMES.get(field, [])
    if schedule is not None and not star and field != "year" and draw(st.integers(0, 7)) == 0:
        return draw(hashed_item(field, schedule))
    top = 7 if field == "day of week" else high
    shapes = ["*", "*/"] if star else ["a", "a", "a-b", "a-b", "a-b/", "a/"]
    shape = draw(st.sampled_from(shapes))
    step = draw(st.one_of(st.integers(1, 7), st.integers(1, 70)))
    first = draw(st.integers(low, high))
    last = draw(st.integers(first, top))
    start, end = spelled(draw, first, low, names), spelled(draw, last, low, names)
    if last == 7 and top == 7:
        end = draw(st.sampled_from(["7", "0", "sun"])) if first else "7"  # 0-0 would be Sunday alone
    return {
        "*": ("*", set(range(low, high + 1))),
        "*/": (f"*/{step}", set(range(low, high + 1, step))),
        "a": (start, {first}),
        "a-b": (f"{start}-{end}", set(range(first, last + 1))),
        "a-b/": (f"{start}-{end}/{step}", set(range(first, last + 1, step))),
        "a/": (f"{start}/{step}", set(range(first, high + 1, step))),
    }[shape]


@st.composite
def plain_field(draw: st.DrawFn, field: str, schedule: str | None, star: bool | None = None) -> Field:
    """A list of items; `star` says whether it begins with one."""
    low, high = BOUNDS[field]
    star = draw(st.booleans()) if star is None else star
    if star and draw(st.booleans()):
        return "*", frozenset(range(low, high + 1))
    items = [draw(item(field, star, schedule))]
    items += draw(st.lists(st.booleans().flatmap(lambda s: item(field, s, schedule)), max_size=2))
    return ",".join(text for text, _ in items), frozenset().union(*(values for _, values in items))


def weekday_of(day: date) -> int:
    return day.isoweekday() % 7


def nearest_weekday(day: date, number: int) -> bool:
    length = calendar.monthrange(day.year, day.month)[1]
    wanted = day.replace(day=min(number, length))
    workdays = [w for w in (day.replace(day=d) for d in range(1, length + 1)) if w.isoweekday() <= 5]
    return day == min(workdays, key=lambda each: abs(each - wanted))


def of_weekday(day: date, number: int, nth: int) -> bool:
    month = [week[(number - 1) % 7] for week in calendar.monthcalendar(day.year, day.month)]
    column = [each for each in month if each]
    return day.day == column[-1] if nth == 0 else len(column) >= nth and day.day == column[nth - 1]


@st.composite
def date_field(draw: st.DrawFn, schedule: str | None) -> tuple[str, Callable[[date], bool]]:
    shape = draw(st.sampled_from(["plain", "plain", "plain", "?", "L", "list", "LW", "W"]))
    text, values = draw(plain_field("day of month", schedule))
    number = draw(st.integers(1, 31))

    def is_last(day: date) -> bool:
        return (day + DAY).day == 1

    return {
        "plain": (text, lambda day: day.day in values),
        "?": ("?", everyday),
        "L": (draw(st.sampled_from(["L", "l"])), is_last),
        "list": (f"{text},L", lambda day: day.day in values or is_last(day)),
        "LW": ("LW", lambda day: nearest_weekday(day, 31)),
        "W": (f"{number}W", lambda day: nearest_weekday(day, number)),
    }[shape]


@st.composite
def weekday_field(draw: st.DrawFn, schedule: str | None) -> tuple[str, Callable[[date], bool]]:
    shape = draw(st.sampled_from(["plain", "plain", "plain", "?", "nth"]))
    text, values = draw(plain_field("day of week", schedule))
    if shape == "nth":
        chosen = draw(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 5)), min_size=1, max_size=3))
        names = NAMES["day of week"]
        texts = [f"{spelled(draw, d, 0, names)}{f'#{n}' if n else 'L'}" for d, n in chosen]
        return ",".join(texts), lambda day: any(of_weekday(day, d % 7, n) for d, n in chosen)
    if shape == "?":
        return "?", everyday
    return text, lambda day: weekday_of(day) in {value % 7 for value in values}


@st.composite
def year_field(draw: st.DrawFn, year: int) -> Field:
    """Mostly one that has `year`."""
    year = max(1972, year)
    return draw(
        st.one_of(
            st.just(("*", ALL_YEARS)),
            st.just((str(year), frozenset({year}))),
            st.just((f"{year - 1}-{year + 1}", frozenset({year - 1, year, year + 1}))),
            st.just((f"{year - 2}-{year}/2", frozenset({year - 2, year}))),
            plain_field("year", None),
        )
    )


@st.composite
def meanings(
    draw: st.DrawFn,
    *,
    any_day: bool = False,
    seconds: bool = False,
    hour: int | None = None,
    year: int | None = None,
    drawn: bool = True,
) -> Meaning:
    """`hour` and `year` are some to hit more often than chance would; a year makes seven fields. `drawn`: with H."""
    schedule = draw(st.sampled_from(["", "a", "morning-report", "été"])) if drawn else None
    star = [False] * 3 if draw(st.booleans()) else [draw(st.booleans()) for _ in range(3)]
    minute, minutes = draw(plain_field("minute", schedule, star[0]))
    hour_text, hours = draw(plain_field("hour", schedule, star[1]))
    if hour is not None and draw(st.booleans()):
        hour_text, hours = f"{hour},{(hour + 1) % 24}", frozenset({hour, (hour + 1) % 24})
    second, second_values = draw(plain_field("second", schedule, star[2])) if seconds else ("0", frozenset({0}))
    if seconds and draw(st.booleans()):
        every_7th = frozenset(range(0, 60, 7))
        minute, minutes = draw(st.sampled_from([("0-59", frozenset(range(60))), ("0/7", every_7th)]))
    month, months = draw(plain_field("month", schedule))
    date_text, date_fits = draw(date_field(schedule))
    weekday, weekday_fits = draw(weekday_field(schedule))
    if any_day:
        month, date_text, weekday = "*", "*", "*"
        months, date_fits, weekday_fits = frozenset(range(1, 13)), everyday, everyday
    texts = [minute, hour_text, date_text, month, weekday]
    years = ALL_YEARS
    if year is not None:
        year_text, years = draw(year_field(year))
        texts += [second, year_text]
    elif seconds:
        texts += [second]
    return Meaning(
        text=draw(st.sampled_from([" ", "  ", "\t"])).join(texts),
        name=schedule or "",
        fixed=not any(each.startswith("*") for each in (minute, hour_text, second)),
        seconds=second_values,
        minutes=minutes,
        hours=hours,
        months=months,
        years=years,
        date_fits=date_fits,
        weekday_fits=weekday_fits,
        both=any(each[0] in "*?" for each in (date_text, weekday)),
    )


# -- Watching the clock -----------------------------------------------------------------------------------


def watch(meaning: Meaning, zone: str, after: datetime, until: datetime, step: timedelta) -> list[datetime]:
    """The fire times in (after, until], by looking at the clock at each step."""
    tz = zoneinfo.ZoneInfo(zone)
    instant = after.replace(microsecond=0, second=0) - (25 * HOUR if step == MINUTE else 4 * HOUR)
    shown = (instant - step).astimezone(tz).replace(tzinfo=None)
    found = []
    while instant <= until:
        clock = instant.astimezone(tz).replace(tzinfo=None)
        if instant > after:
            if not meaning.fixed:
                fires = meaning.at(clock)
            else:
                fires = False
                missed = shown + step
                while missed <= clock and not fires:  # usually the one look at `clock` itself
                    fires = meaning.at(missed)
                    missed += step
            if fires:
                found.append(instant)
        shown = max(shown, clock)
        instant += step
    return found
