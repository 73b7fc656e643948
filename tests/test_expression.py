"""Expressions against their specification: worked examples, refusals, walks that know nothing of croniter.

The walks decide second by second (or minute by minute) what a person who watches the clock would run. Their
expressions are generated together with their meaning, so no parser is shared either.
"""

import calendar
import os
import re
import threading
import zoneinfo
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache
from typing import Any

import pytest
from croniter import croniter
from cronsim import CronSim
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pgsched import zones
from pgsched.duration import format_duration, parse_duration
from pgsched.errors import InvalidExpression
from pgsched.expression import Expression, at, every, parse, upcoming
from pgsched.zones import check_timezone

SCALE = int(os.environ.get("PGSCHED_EXAMPLES", "1"))  # times as many cases, for a campaign
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
ZONES = sorted(zoneinfo.available_timezones() - {"localtime", "Factory"})


def cases(count: int) -> Any:
    return settings(max_examples=count * SCALE, deadline=None, database=None)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


# -- The specification's table ----------------------------------------------------------------------------

PARIS, AZORES, CHICAGO, ADELAIDE = "Europe/Paris", "Atlantic/Azores", "America/Chicago", "Australia/Adelaide"
EXAMPLES = [
    ("30 2 * * *", PARIS, "2027-03-27T12:00+01:00", "03-28T01:00 03-29T00:30 03-30T00:30"),
    ("0,30 1-3 * * *", PARIS, "2027-03-28T00:00+01:00", "03-28T00:00 03-28T00:30 03-28T01:00"),
    ("*/30 2 * * *", PARIS, "2027-03-28T00:00+01:00", "03-29T00:00 03-29T00:30 03-30T00:00"),
    ("0 */2 * * *", PARIS, "2027-03-28T00:30+01:00", "03-28T02:00 03-28T04:00 03-28T06:00"),
    ("30 2 * * *", PARIS, "2027-10-30T12:00+02:00", "10-31T00:30 11-01T01:30 11-02T01:30"),
    ("*/30 2 * * *", PARIS, "2027-10-31T01:00+02:00", "10-31T00:00 10-31T00:30 10-31T01:00"),
    ("*/20 2 31 10 *", PARIS, "2027-10-31T02:40+02:00", "10-31T01:00 10-31T01:20 10-31T01:40"),
    ("0 0 * * *", AZORES, "2027-03-27T12:00-01:00", "03-28T01:00 03-29T00:00 03-30T00:00"),
    ("0 0 * * *", AZORES, "2027-10-30T12:00+00:00", "10-31T00:00 11-01T01:00 11-02T01:00"),
    ("15 1 * * 0", CHICAGO, "2027-11-06T00:00-05:00", "11-07T06:15 11-14T07:15 11-21T07:15"),
    ("45 2 * * *", ADELAIDE, "2027-10-02T12:00+09:30", "10-02T16:30 10-03T16:15 10-04T16:15"),
    ("0 9-9 * * *", "UTC", "2027-01-01T00:00+00:00", "01-01T09:00 01-02T09:00 01-03T09:00"),
    ("0 0 1 * MON#1", "UTC", "2027-01-01T00:00+00:00", "01-04T00:00 02-01T00:00 03-01T00:00"),
    ("0 0 */2 * MON", "UTC", "2027-01-01T00:00+00:00", "01-11T00:00 01-25T00:00 02-01T00:00"),
    ("0 0 13 * FRI", "UTC", "2027-01-01T00:00+00:00", "01-08T00:00 01-13T00:00 01-15T00:00"),
    ("0 0 31 2 MON", "UTC", "2027-01-20T00:00+00:00", "02-01T00:00 02-08T00:00 02-15T00:00"),
    ("0 0 LW * *", "UTC", "2027-01-01T00:00+00:00", "01-29T00:00 02-26T00:00 03-31T00:00"),
    ("0 0 * * 5L", "UTC", "2027-01-01T00:00+00:00", "01-29T00:00 02-26T00:00 03-26T00:00"),
    # Beyond the specification's own table.
    ("*/20 2 31 10 * 0 2027", PARIS, "2027-10-31T02:40+02:00", "10-31T01:00 10-31T01:20 10-31T01:40"),
    ("@hourly", PARIS, "2027-03-28T00:30+01:00", "03-28T00:00 03-28T01:00 03-28T02:00"),
    ("@hourly", PARIS, "2027-10-31T01:30+02:00", "10-31T00:00 10-31T01:00 10-31T02:00"),
    ("@daily", "America/Sao_Paulo", "2018-11-03T12:00-03:00", "11-04T03:00 11-05T02:00 11-06T02:00"),
    ("@Midnight", "UTC", "2027-01-01T00:00+00:00", "01-02T00:00 01-03T00:00 01-04T00:00"),
    ("@weekly", "UTC", "2027-01-01T00:00+00:00", "01-03T00:00 01-10T00:00 01-17T00:00"),
    ("@monthly", "UTC", "2027-01-01T00:00+00:00", "02-01T00:00 03-01T00:00 04-01T00:00"),
    ("\t 0  12\t* * fri-Sun ", "UTC", "2027-01-01T12:00+00:00", "01-02T12:00 01-03T12:00 01-08T12:00"),
    ("0 12 * * 6-0", "UTC", "2027-01-01T00:00+00:00", "01-02T12:00 01-03T12:00 01-09T12:00"),
    ("0 12 * * 5-7/2", "UTC", "2027-01-01T00:00+00:00", "01-01T12:00 01-03T12:00 01-08T12:00"),
    ("0 12 * * 7", "UTC", "2027-01-01T00:00+00:00", "01-03T12:00 01-10T12:00 01-17T12:00"),
    ("0 12 * * 7/3", "UTC", "2027-01-01T00:00+00:00", "01-02T12:00 01-03T12:00 01-06T12:00"),
    ("30 2 * * * */40", PARIS, "2027-03-27T12:00+01:00", "03-29T00:30 03-29T00:30:40 03-30T00:30"),
    ("30 2 * * * 0/40", PARIS, "2027-03-27T12:00+01:00", "03-28T01:00 03-29T00:30 03-29T00:30:40"),
    ("0 12 ? jan,MAR ?", "UTC", "2027-01-31T00:00+00:00", "01-31T12:00 03-01T12:00 03-02T12:00"),
    ("0 0 L * *", "UTC", "2028-01-01T00:00+00:00", "01-31T00:00 02-29T00:00 03-31T00:00"),
    ("0 0 15W * *", "UTC", "2027-04-01T00:00+00:00", "04-15T00:00 05-14T00:00 06-15T00:00"),
    ("0 0 1W * *", "UTC", "2027-04-30T00:00+00:00", "05-03T00:00 06-01T00:00 07-01T00:00"),
    ("0 0 31W * *", "UTC", "2027-01-01T00:00+00:00", "01-29T00:00 02-26T00:00 03-31T00:00"),
    ("0 0 * * MON#2,friL", "UTC", "2027-01-01T00:00+00:00", "01-11T00:00 01-29T00:00 02-08T00:00"),
    ("0 0 * * 0#5", "UTC", "2027-01-01T00:00+00:00", "01-31T00:00 05-30T00:00 08-29T00:00"),
    ("0 6 15 * 5L", "UTC", "2027-01-01T00:00+00:00", "01-15T06:00 01-29T06:00 02-15T06:00"),
    ("* * * * * 30/15", "UTC", "2027-01-01T00:00+00:00", "01-01T00:00:30 01-01T00:00:45 01-01T00:01:30"),
    ("58/1 23 31 12 * 59 2026-2027", "UTC", "2027-01-01T00:00+00:00", "12-31T23:58:59 12-31T23:59:59"),
]


@pytest.mark.parametrize(("text", "zone", "after", "expected"), EXAMPLES)
def test_worked_example(text: str, zone: str, after: str, expected: str) -> None:
    times = [utc(f"{after[:4]}-{each}+00:00") for each in expected.split()]
    start = datetime.fromisoformat(after)
    assert upcoming(text, zone, start, 3) == times
    parsed = parse(text, zone)
    assert parsed.latest(start, times[-1]) == times[-1]
    for passed, each in enumerate(times):
        assert parsed.count(start, each - timedelta(seconds=1)) == passed
        assert parsed.count(start, each) == passed + 1


def test_where_a_zone_is_cut_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zones are looked at in windows; with small ones, windows begin in the middle of a repeated hour."""
    monkeypatch.setattr(zones, "_WINDOW_BITS", 10)
    zones._stretches.cache_clear()
    try:
        for text in ("30 2 * * *", "0-59 0-3 * * *", "*/20 1-3 * * *"):
            parsed = parse(text, PARIS)
            for change in (utc("2027-03-28T01:00Z"), utc("2027-10-31T01:00Z")):
                for after in (change - 70 * MINUTE, change + 40 * MINUTE):
                    found = []
                    now: datetime | None = after
                    while now and (now := parsed.next(now)) and now < change + 2 * HOUR:
                        found.append(now)
                    assert len(found) == len(set(found)) == parsed.count(after, change + 2 * HOUR - MINUTE)
                    if not text.startswith("*"):
                        # By its rule, nothing of this runs in the second pass, from 01:00Z to 02:00Z.
                        assert not any(0 <= (each - change) / HOUR < 1 for each in found if each.month == 10)
    finally:
        zones._stretches.cache_clear()


def test_leap_days_are_years_apart() -> None:
    times = upcoming("0 0 29 2 *", "UTC", utc("2027-01-01T00:00Z"), 3)
    assert [str(each.date()) for each in times] == ["2028-02-29", "2032-02-29", "2036-02-29"]
    # The rarest date: a 29 February on one day of the week. From 1972 to 2000, and so on every 28 years.
    assert upcoming("0 0 1 1 * 0 2090", "UTC", utc("1971-01-01T00:00Z")) == [utc("2090-01-01T00:00Z")]
    times = upcoming("0 0 29 2 */9", "UTC", utc("1970-01-01T00:00Z"), 9)  # */9 is Sunday
    assert [each.year for each in times] == [1976, 2004, 2032, 2060, 2088]


# -- Refusals ---------------------------------------------------------------------------------------------

REFUSALS = [
    ("", "0 fields"),
    ("* * * *", "4 fields"),
    ("* * * * * * * *", "8 fields"),
    ("60 * * * *", "minute field '60': '60' is out of range: write 0 to 59"),
    ("* 24 * * *", "hour field"),
    ("* * 0 * *", "day of month field '0': '0' is out of range: write 1 to 31"),
    ("* * * 13 *", "month field '13'"),
    ("* * * * 8", "day of week field '8': '8' is out of range: write 0 to 7"),
    ("* * * * * 60", "second field '60'"),
    ("* * * * * * 1969", "write 1970 to 2099"),
    ("* * * * * * 2100", "write 1970 to 2099"),
    ("22-6 * * * *", "runs backwards: write 22-59,0-6"),
    ("0 22-6 * * *", "hour field '22-6': the range '22-6' runs backwards: write 22-23,0-6"),
    ("0 22-6/3 * * *", "write 22-23/3,1-6/3"),
    ("0 0 * nov-feb *", "month field 'nov-feb'"),
    ("0 0 * nov-feb *", "write NOV-DEC,JAN-FEB"),
    ("0 0 * * fri-mon", "write FRI-SAT,SUN-MON"),
    ("0 0 * * 7-5", "write 0-5"),
    ("0 0 * * * 0 2030-2027", "write 2030-2099,1970-2027"),
    ("H(30-10) * * * *", "write 30-59,0-10"),
    ("*/0 * * * *", "minute field '*/0': the step"),
    ("0-9/0 * * * *", "the step"),
    ("H/0 * * * *", "the step"),
    ("1,,2 * * * *", "empty"),
    ("1, * * * *", "empty"),
    ("-1 * * * *", "minute field '-1'"),
    ("1-2-3 * * * *", "minute field '1-2-3'"),
    ("1.5 * * * *", "minute field '1.5'"),
    ("5/5/5 * * * *", "minute field"),
    ("*5 * * * *", "minute field"),
    ("*-5 * * * *", "minute field"),
    ("MON * * * *", "minute field 'MON'"),
    ("* * * MON *", "month field 'MON'"),
    ("* * * * JAN", "day of week field 'JAN'"),
    ("? * * * *", "'?' stands alone"),
    ("* * ?/2 * *", "'?' stands alone"),
    ("R * * * *", "write H"),
    ("R(0-5) * * * *", "write H"),
    ("0~9 * * * *", "write H"),
    ("H-5 * * * *", "H reads like"),
    ("H(0-60) * * * *", "out of range"),
    ("0 0 1 1 * 0 H", "year field 'H'"),
    ("0 0 L-3 * *", "day of month field 'L-3'"),
    ("0 0 15W,3 * *", "stands alone"),
    ("0 0 1-15W * *", "stands alone"),
    ("0 0 32W * *", "out of range"),
    ("0 0 0W * *", "out of range"),
    ("0 0 * * L", "day of week field 'L'"),
    ("0 0 * * L5", "write 5L"),
    ("0 0 * * MON#0", "MON#1"),
    ("0 0 * * MON#6", "MON#1"),
    ("0 0 * * MON-WED#1", "MON#1"),
    ("0 0 * * MON#1,2", "cannot be mixed"),
    ("0 0 * * 8#1", "out of range"),
    ("0 0 * * 15W", "day of week field"),
    ("0 0 30 2 *", "never fires"),
    ("0 0 31 2,4,6,9,11 *", "never fires"),
    ("0 0 29 2 * 0 2027", "never fires"),
    ("0 0 29 2 * 0 2027-2031/2", "never fires"),
    ("0 0 31 2 MON#5 0 2027", "never fires"),  # neither side ever comes
    ("@reboot", "@reboot is not a time"),
    ("@fortnightly", "write one of @yearly"),
    ("@daily 5", "is not known"),
    ("@", "is not known"),
    ("@every", "@every 90s"),
    ("@every 0s", "1ms to 100 years"),
    ("@every -5s", "not a duration"),
    ("@every 0.0001", "1ms to 100 years"),
    ("@every 36526d", "1ms to 100 years"),
    ("@every 1 h", "not a duration"),
    ("@at", "is not an instant"),
    ("@at tomorrow", "is not an instant"),
    ("@at 2027-01-01", "is not an instant"),
    ("@at 2027-01-01T00:00:00", "has no UTC offset"),
    ("@at 2027-02-30T00:00:00Z", "is not an instant"),
    ("@at 2027-01-01T24:00:00Z", "is not an instant"),
    ("@at 2027-01-01T00:00:00+25:00", "is not an instant"),
    ("@at 2100-01-01T00:00:00Z", "1970 to 2099"),
    ("@at 0001-01-01T00:00:00+12:00", "1970 to 2099"),
    ("* * * * *\n", "one line"),
    ("* * * * *\x00", "one line"),
    ("* * * *\u00a0*", "plain ASCII"),
    ("* * * * \u017fun", "plain ASCII"),  # upper() would make it SUN
    ("\u0661 * * * *", "plain ASCII"),
    ("\ud800", "plain ASCII"),
    ("0" * 251 + " * * * *", "at most 256"),
    (",".join(["1"] * 100_000) + " * * * *", "at most 256"),
    (None, "not NoneType"),
    (b"* * * * *", "not bytes"),
    (5, "not int"),
    (["* * * * *"], "not list"),
]


@pytest.mark.parametrize(("text", "sentence"), REFUSALS)
def test_refused(text: Any, sentence: str) -> None:
    with pytest.raises(InvalidExpression) as raised:
        parse(text)
    message = str(raised.value)
    assert sentence in message
    assert "\n" not in message
    assert message.isprintable()
    assert len(message) < 300


def test_one_day_field_that_never_comes_leaves_the_other() -> None:
    assert parse("0 0 31 4 MON#1 0 2027").next(utc("2027-01-01T00:00Z")) == utc("2027-04-05T00:00Z")
    assert parse("0 0 31 2 MON#5").next(utc("2027-01-01T00:00Z")) == utc("2044-02-29T00:00Z")


def test_refused_when_the_clock_skips_every_time() -> None:
    with pytest.raises(InvalidExpression, match="Europe/Paris skips all"):
        parse("*/30 2 28 3 * 0 2027", "Europe/Paris")
    assert parse("*/30 2 28 3 * 0 2027", "UTC").next(utc("2027-01-01T00:00Z"))
    assert upcoming("30 2 28 3 * 0 2027", "Europe/Paris", utc("2027-01-01T00:00Z")) == [utc("2027-03-28T01:00Z")]


@pytest.mark.parametrize(
    "argument",
    [
        {"timezone": "Mars/Phobos"},
        {"timezone": None},
        {"name": None},
        {"anchor": datetime(2027, 1, 1)},  # noqa: DTZ001
        {"anchor": "2027-01-01"},
        {"anchor": datetime.max.replace(tzinfo=zoneinfo.ZoneInfo("America/New_York"))},
    ],
)
def test_parse_refuses_bad_arguments(argument: dict[str, Any]) -> None:
    with pytest.raises(InvalidExpression):
        parse("@every 5s", **argument)


@cases(1500)
@given(
    st.one_of(
        st.text(max_size=30),
        st.text(st.sampled_from(list("0123456789*/-,LWHRMONSUFRIJAN#?@~() \t")), max_size=300),
        st.lists(
            st.text(st.sampled_from(list("0123456789*/-,LWH#?()")), min_size=1, max_size=6),
            min_size=5,
            max_size=7,
        ).map(" ".join),
        st.tuples(st.sampled_from(["@every ", "@at ", "@"]), st.text(max_size=20)).map("".join),
        st.one_of(st.none(), st.integers(), st.binary(), st.lists(st.text())),
    ),
    st.one_of(st.sampled_from(["UTC", "Europe/Paris"]), st.text(max_size=10)),
)
def test_whatever_is_written_parses_or_is_refused(text: Any, zone: str) -> None:
    try:
        parsed = parse(text, zone, name="fuzz")
    except InvalidExpression as refusal:
        assert str(refusal).isprintable()
    else:
        after = utc("2027-01-01T00:00Z")
        following = parsed.next(after)
        assert following is None or following > after


# -- Expressions with their meaning -----------------------------------------------------------------------

NAMES = {
    "month": ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"],
    "weekday": ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN"],
}


NUMBERS = {
    "0": frozenset({0}),
    "2": frozenset({2}),
    "30": frozenset({30}),
    "1,2": frozenset({1, 2}),
    "0,20,59": frozenset({0, 20, 59}),
    "0-3,23": frozenset({0, 1, 2, 3, 23}),
    "0-59": frozenset(range(60)),
    "*": frozenset(range(60)),
    "*/7": frozenset(range(0, 60, 7)),
    "*/15": frozenset({0, 15, 30, 45}),
    "*/20": frozenset({0, 20, 40}),
}


@dataclass(frozen=True)
class Meaning:
    """What an expression stands for, made together with its text and without reading it."""

    text: str
    fixed: bool
    seconds: frozenset[int]
    minutes: frozenset[int]
    hours: frozenset[int]
    months: frozenset[int]
    date_fits: Callable[[date], bool]
    weekday_fits: Callable[[date], bool]
    both: bool

    def on(self, day: date) -> bool:
        if day.month not in self.months:
            return False
        fits = [self.date_fits(day), self.weekday_fits(day)]
        return all(fits) if self.both else any(fits)

    def at(self, clock: datetime) -> bool:
        return (
            clock.minute in self.minutes
            and clock.hour in self.hours
            and clock.second in self.seconds
            and self.on(clock.date())
        )


def spelled(draw: st.DrawFn, value: int, low: int, names: list[str]) -> str:
    if names and draw(st.booleans()):
        name = names[value - low]
        return draw(st.sampled_from([name, name.lower(), name.title()]))
    return draw(st.sampled_from([str(value), f"{value:02}"]))


@st.composite
def item(draw: st.DrawFn, low: int, high: int, names: list[str], star: bool) -> tuple[str, set[int]]:
    """One item of a list: its text and its numbers (7 for a Sunday at the end of a range)."""
    top = 7 if names == NAMES["weekday"] else high
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


Field = tuple[str, frozenset[int]]


@st.composite
def plain_field(
    draw: st.DrawFn, low: int, high: int, names: list[str] | None = None, star: bool | None = None
) -> Field:
    """A list of items; `star` says whether it begins with one."""
    star = draw(st.booleans()) if star is None else star
    if star and draw(st.booleans()):
        return "*", frozenset(range(low, high + 1))
    items = [draw(item(low, high, names or [], star))]
    items += draw(st.lists(st.booleans().flatmap(lambda s: item(low, high, names or [], s)), max_size=2))
    return ",".join(text for text, _ in items), frozenset().union(*(values for _, values in items))


def everyday(day: date) -> bool:
    return True


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
def date_field(draw: st.DrawFn) -> tuple[str, Callable[[date], bool]]:
    shape = draw(st.sampled_from(["plain", "plain", "plain", "?", "L", "list", "LW", "W"]))
    text, values = draw(plain_field(1, 31))
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
def weekday_field(draw: st.DrawFn) -> tuple[str, Callable[[date], bool]]:
    shape = draw(st.sampled_from(["plain", "plain", "plain", "?", "nth"]))
    text, values = draw(plain_field(0, 6, NAMES["weekday"]))
    if shape == "nth":
        chosen = draw(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 5)), min_size=1, max_size=3))
        texts = [f"{spelled(draw, d, 0, NAMES['weekday'])}{f'#{n}' if n else 'L'}" for d, n in chosen]
        return ",".join(texts), lambda day: any(of_weekday(day, d % 7, n) for d, n in chosen)
    if shape == "?":
        return "?", everyday
    return text, lambda day: weekday_of(day) in {value % 7 for value in values}


@st.composite
def meanings(draw: st.DrawFn, any_day: bool = False, seconds: bool = False, hour: int | None = None) -> Meaning:
    """`hour` is one to hit more often than chance would."""
    star = [False] * 3 if draw(st.booleans()) else [draw(st.booleans()) for _ in range(3)]
    minute, minutes = draw(plain_field(0, 59, star=star[0]))
    hour_text, hours = draw(plain_field(0, 23, star=star[1]))
    if hour is not None and draw(st.booleans()):
        hour_text, hours = f"{hour},{(hour + 1) % 24}", frozenset({hour, (hour + 1) % 24})
    second, values = draw(plain_field(0, 59, star=star[2])) if seconds else ("0", frozenset({0}))
    if seconds and draw(st.booleans()):
        minute, minutes = draw(st.sampled_from([("0-59", NUMBERS["0-59"]), ("0/7", NUMBERS["*/7"])]))
    month, months = draw(plain_field(1, 12, NAMES["month"]))
    date_text, date_fits = draw(date_field())
    weekday, weekday_fits = draw(weekday_field())
    if any_day:
        month, date_text, weekday = "*", "*", "*"
        months, date_fits, weekday_fits = frozenset(range(1, 13)), everyday, everyday
    return Meaning(
        text=f"{minute} {hour_text} {date_text} {month} {weekday}" + (f" {second}" if seconds else ""),
        fixed=not any(each.startswith("*") for each in (minute, hour_text, second)),
        seconds=values,
        minutes=minutes,
        hours=hours,
        months=months,
        date_fits=date_fits,
        weekday_fits=weekday_fits,
        both=any(each[0] in "*?" for each in (date_text, weekday)),
    )


# -- Watching the clock -----------------------------------------------------------------------------------


@cache
def changes(zone: str) -> tuple[datetime, ...]:
    """The instants from 2000 to 2037 at which the zone's clock jumps."""
    tz = zoneinfo.ZoneInfo(zone)
    found = []
    low = utc("2000-01-01T00:00Z")
    while low.year < 2038:
        high = low + 6 * DAY
        left, right = low, high
        if left.astimezone(tz).utcoffset() != right.astimezone(tz).utcoffset():
            while right - left > timedelta(seconds=1):
                middle = left + (right - left) // 2
                same = middle.astimezone(tz).utcoffset() == low.astimezone(tz).utcoffset()
                left, right = (middle, right) if same else (left, middle)
            found.append(right.replace(microsecond=0))
        low = high
    return tuple(found)


@cache
def changing_zones() -> list[str]:
    """One zone of each history that has any change, links to it left out."""
    return sorted({changes(zone): zone for zone in ZONES if changes(zone)}.values())


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


def agrees(parsed: Expression, after: datetime, until: datetime, expected: list[datetime]) -> None:
    found = []
    now: datetime | None = after
    while now is not None and (now := parsed.next(now)) is not None and now <= until:
        assert not found or now > found[-1]
        found.append(now)
    assert found == expected
    assert parsed.count(after, until) == len(expected)
    assert parsed.latest(after, until) == (expected[-1] if expected else None)


@cases(250)
@given(st.data())
def test_next_latest_and_count_agree_with_watching_minutes(data: st.DataObject) -> None:
    zone = data.draw(st.sampled_from(changing_zones()))
    change = data.draw(st.sampled_from(changes(zone)))
    local = change.astimezone(zoneinfo.ZoneInfo(zone)).hour
    meaning = data.draw(
        meanings(hour=(local - data.draw(st.integers(0, 2))) % 24, any_day=data.draw(st.integers(0, 3)) > 0)
    )
    offset = data.draw(st.one_of(st.integers(-26 * 60, 26 * 60), st.integers(-70, 70)))
    after = change + offset * MINUTE + timedelta(microseconds=data.draw(st.sampled_from([0, 1, 59_999_999])))
    until = after + data.draw(st.integers(0, 30 * 60)) * MINUTE
    try:
        parsed = parse(meaning.text, zone)
    except InvalidExpression as refusal:
        assert "never fires" in str(refusal)
        assert not any(meaning.on(date(2024, 1, 1) + n * DAY) for n in range(366))
        return
    agrees(parsed, after, until, watch(meaning, zone, after, until, MINUTE))


@cases(100)
@given(st.data())
def test_next_latest_and_count_agree_with_watching_seconds(data: st.DataObject) -> None:
    zone = data.draw(st.sampled_from(changing_zones()))
    change = data.draw(st.sampled_from(changes(zone)))
    local = change.astimezone(zoneinfo.ZoneInfo(zone)).hour
    meaning = data.draw(meanings(any_day=True, seconds=True, hour=(local - data.draw(st.integers(0, 2))) % 24))
    after = change + timedelta(seconds=data.draw(st.integers(-4000, 4000)))
    until = after + timedelta(seconds=data.draw(st.integers(0, 1500)))
    agrees(parse(meaning.text, zone), after, until, watch(meaning, zone, after, until, timedelta(seconds=1)))


@pytest.mark.parametrize("text", ["30 2 * * *", "*/15 * * * *", "0 0 * * *", "0,20,59 0-3,23 * * *", "*/20 1,2 * * *"])
def test_every_zone_over_its_last_changes(text: str) -> None:
    """Over the last two changes before 2038 of every zone: one is a skip and one a repetition, as a rule."""
    minute, hour, *_ = text.split()
    meaning = Meaning(
        text,
        fixed=not text.startswith("*"),
        seconds=frozenset({0}),
        minutes=NUMBERS[minute],
        hours=NUMBERS[hour],
        months=frozenset(range(1, 13)),
        date_fits=everyday,
        weekday_fits=everyday,
        both=True,
    )
    for zone in changing_zones():
        for change in changes(zone)[-2:]:
            after, until = change - 200 * MINUTE, change + 200 * MINUTE
            agrees(parse(text, zone), after, until, watch(meaning, zone, after, until, MINUTE))


@cases(150)
@given(meanings(), st.integers(1970, 2096), st.integers(0, 365))
def test_the_dates_of_years_agree_with_the_calendar(meaning: Meaning, year: int, day: int) -> None:
    start = date(year, 1, 1) + day * DAY
    days = [each for n in range(1200) if meaning.on(each := start + n * DAY) and each.year <= 2099]
    text = " ".join(["0", "0", *meaning.text.split()[2:]])
    after = datetime(start.year, start.month, start.day, tzinfo=UTC) - timedelta(seconds=1)
    try:
        parsed = parse(text)
    except InvalidExpression as refusal:
        assert "never fires" in str(refusal)
        assert not days
        return
    until = after + 1200 * DAY
    agrees(parsed, after, until, [datetime(d.year, d.month, d.day, tzinfo=UTC) for d in days])


@cases(150)
@given(meanings(seconds=True), st.sampled_from(ZONES), st.integers(0, 4_000_000_000), st.integers(1, 40))
def test_count_and_latest_agree_with_enumeration(meaning: Meaning, zone: str, start: int, wanted: int) -> None:
    after = datetime.fromtimestamp(start, UTC)
    try:
        times = upcoming(meaning.text, zone, after, wanted)
    except InvalidExpression:
        return
    assume(times)
    parsed = parse(meaning.text, zone)
    for until, expected in ((times[-1], times), (times[-1] - timedelta(microseconds=1), times[:-1])):
        assert parsed.count(after, until) == len(expected)
        assert parsed.latest(after, until) == (expected[-1] if expected else None)


@cases(250)
@given(st.data())
def test_agrees_with_cronsim(data: st.DataObject) -> None:
    """A second opinion. It errs inside a second pass, and on changes at odd minutes it can search for ever."""
    zone = data.draw(st.sampled_from(["UTC", PARIS, "America/New_York", "Australia/Sydney"]))
    near = data.draw(st.sampled_from(changes(zone) or (utc("2027-01-01T00:00Z"),)))
    after = near + data.draw(st.integers(-3000, 3000)) * MINUTE
    local = after.astimezone(zoneinfo.ZoneInfo(zone))
    assume(not local.fold)
    meaning = data.draw(meanings(hour=data.draw(st.integers(0, 3)), any_day=data.draw(st.booleans())))
    text = meaning.text.upper().replace("?", "*")
    _, _, day, _, weekday = text.split()
    assume("W" not in day or day == "LW")  # it knows no nW
    # It ends a weekday's a/n at 7 instead of 6, knows a range to Sunday only as 7, and reads a-a/n as a/n.
    assume("-" not in weekday and not any("/" in each and each[0] != "*" for each in weekday.split(",")))
    assume(not re.search(r"-\w+/", text))
    assume(not any(mark in weekday for mark in "#L") or not any(letter in weekday for letter in "SMTWF"))
    try:
        parse(text, zone)
    except InvalidExpression:
        return
    theirs = CronSim(text, local)
    try:
        expected = [next(theirs).astimezone(UTC) for _ in range(5)]
    except StopIteration:  # it gives up after fifty years
        return
    assert upcoming(text, zone, after, 5) == [each for each in expected if each.year <= 2099]


# -- H ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("H H * * *", "morning-report", "2027-01-01T19:19"),
        ("h h H H *", "morning-report", "2027-01-08T19:19"),
        ("H H * * H", "morning-report", "2027-01-07T19:19"),
        ("0 0 * * * H", "morning-report", "2027-01-01T00:00:26"),
        ("H H * * *", "a", "2027-01-01T08:24"),
        ("H H * * *", "", "2027-01-01T23:48"),
        ("H H * * *", "Ünïcode \udc80", "2027-01-01T16:06"),
    ],
)
def test_h_is_drawn_from_the_name_and_never_changes(text: str, name: str, expected: str) -> None:
    """Stored schedules rely on these very values: if this fails, the code is wrong, not the test."""
    assert parse(text, name=name).next(utc("2027-01-01T00:00Z") - MINUTE) == utc(f"{expected}Z")


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("H/15 2 * * *", [4, 19, 34, 49]),
        ("H(10-19) 2 * * *", [19]),
        ("H(0-29)/10 2 * * *", [9, 19, 29]),
        ("H(5-5) 2 * * *", [5]),
        ("H/99 2 * * *", [19]),
        ("H(0-9),30 2 * * *", [9, 30]),
    ],
)
def test_h_with_a_range_or_a_step(text: str, minutes: list[int]) -> None:
    parsed = parse(text, name="morning-report")
    times = []
    now = utc("2027-01-01T00:00Z")
    while (now := parsed.next(now) or now).day == 1:
        times.append(now.minute)
    assert times == minutes


def test_h_spreads_and_comes_every_month() -> None:
    start = utc("2027-01-01T00:00Z") - MINUTE
    minutes = {parse("H 2 * * *", name=f"job {n}").next(start).minute for n in range(600)}  # type: ignore[union-attr]
    assert len(minutes) > 50
    for n in range(60):
        assert parse("0 0 H * *", name=str(n)).count(start, start + 365 * DAY) == 12


def test_h_is_fixed_time() -> None:
    # 02:30 or so is skipped in Paris on 28 March 2027: once, right after the skip.
    times = upcoming("H(20-40) 2 * * *", "Europe/Paris", utc("2027-03-28T00:00Z"), 1)
    assert times == [utc("2027-03-28T01:00Z")]


# -- @every, @at, upcoming, durations, zones --------------------------------------------------------------


@cases(200)
@given(
    st.datetimes(datetime(1960, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    st.timedeltas(timedelta(milliseconds=1), timedelta(days=5000)),
    st.datetimes(datetime(1960, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    st.integers(0, 30),
)
def test_every_is_a_grid_from_its_anchor_on(
    anchor: datetime, interval: timedelta, after: datetime, wanted: int
) -> None:
    interval -= interval % timedelta(milliseconds=1)
    parsed = parse(every(interval), "America/New_York", anchor=anchor)
    assert parsed.kind == "every"
    end = utc("2100-01-01T00:00Z")
    # Go near the place first; from there, add up.
    instant = anchor + max((after - anchor) // interval - 2, 0) * interval
    grid = []
    while len(grid) < wanted and instant < end:
        if instant > after:
            grid.append(instant)
        instant += interval
    until = grid[-1] if grid else after
    agrees(parsed, after, until, grid)
    assert parsed.next(until) == (None if instant >= end else instant if instant > after else parsed.next(until))


def test_every_ignores_daylight_saving_and_restarts() -> None:
    parsed = parse("@every 1h30m", "Europe/Paris", anchor=utc("2027-03-27T23:10Z"))
    times = [utc("2027-03-28T00:40Z"), utc("2027-03-28T02:10Z"), utc("2027-03-28T03:40Z")]
    assert [parsed.next(each - MINUTE) for each in times] == times
    assert parsed.next(utc("2020-01-01T00:00Z")) == utc("2027-03-27T23:10Z")
    assert parsed.count(utc("2020-01-01T00:00Z"), utc("2027-03-27T23:10Z")) == 1
    assert parsed.latest(utc("2020-01-01T00:00Z"), utc("2027-03-27T23:09Z")) is None


def test_every_counts_from_the_epoch_without_an_anchor() -> None:
    assert parse("@every 7d").next(utc("2027-01-01T00:00Z")) == utc("2027-01-07T00:00Z")
    assert parse("@EVERY\t 1D").next(utc("2027-01-01T00:00Z")) == utc("2027-01-02T00:00Z")
    assert parse("@every 36525d").next(utc("2070-01-01T00:00Z")) is None


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (timedelta(seconds=30), "@every 30s"),
        (timedelta(minutes=90), "@every 1h30m"),
        (timedelta(milliseconds=500), "@every 500ms"),
        (timedelta(milliseconds=1), "@every 1ms"),
        (timedelta(days=2), "@every 2d"),
        (timedelta(days=36525), "@every 36525d"),
    ],
)
def test_every_writes(interval: timedelta, text: str) -> None:
    assert every(interval) == text
    assert parse(text).text == text


@pytest.mark.parametrize(
    "interval",
    [
        timedelta(),
        timedelta(seconds=-1),
        timedelta(microseconds=999),
        timedelta(microseconds=1500),
        timedelta(days=36526),
        timedelta.max,
        30,
        "30s",
        None,
    ],
)
def test_every_refuses(interval: Any) -> None:
    with pytest.raises(InvalidExpression, match=r"every\(\)"):
        every(interval)


@pytest.mark.parametrize(
    ("instant", "text"),
    [
        ("2027-01-01T00:00:00+00:00", "@at 2027-01-01T00:00:00Z"),
        ("2027-01-01T00:00:00.25+02:00", "@at 2026-12-31T22:00:00.250000Z"),
        ("1970-01-01T00:00:00+00:00", "@at 1970-01-01T00:00:00Z"),
    ],
)
def test_at_writes(instant: str, text: str) -> None:
    moment = datetime.fromisoformat(instant)
    assert at(moment) == text
    assert upcoming(text, "Asia/Tokyo", moment - MINUTE) == [moment.astimezone(UTC)]


@pytest.mark.parametrize("instant", [datetime(2027, 1, 1), None, "2027-01-01T00:00:00Z", date(2027, 1, 1), 0])  # noqa: DTZ001
def test_at_refuses(instant: Any) -> None:
    with pytest.raises(InvalidExpression, match=r"at\(\)"):
        at(instant)


def test_at_refuses_what_could_not_be_read_back() -> None:
    for far in (datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)):
        with pytest.raises(InvalidExpression):
            at(far)


@pytest.mark.parametrize(
    "text",
    [
        "@at 2027-01-01T12:00:00Z",
        "@AT 2027-01-01t12:00z",
        "@at 2027-01-01 13:00:00.000+01:00",
        "@at\t2027-01-01T07:00-0500",
        "@at 2027-01-01T14:00:00+02",
    ],
)
def test_at_fires_once(text: str) -> None:
    noon = utc("2027-01-01T12:00Z")
    parsed = parse(text)
    assert (parsed.kind, parsed.text) == ("at", text)
    assert parsed.next(noon - MINUTE) == noon
    assert parsed.next(noon) is None
    assert parsed.latest(noon - DAY, noon + DAY) == parsed.latest(noon - DAY, noon) == noon
    assert parsed.latest(noon, noon + DAY) is None
    assert [parsed.count(noon - DAY, noon), parsed.count(noon, noon + DAY)] == [1, 0]


def test_upcoming_ends_when_nothing_more_comes() -> None:
    assert upcoming("0 0 31 12 * 0 2026-2028", after=utc("2027-01-01T00:00Z")) == [
        utc("2027-12-31T00:00Z"),
        utc("2028-12-31T00:00Z"),
    ]
    assert upcoming("* * * * *", after=utc("2099-12-31T23:58Z")) == [utc("2099-12-31T23:59Z")]
    assert upcoming("0 0 1 1 * 0 2020", after=utc("2027-01-01T00:00Z")) == []


def test_upcoming_starts_every_at_after() -> None:
    start = utc("2027-01-01T00:00:07Z")
    assert upcoming("@every 10s", after=start, count=2) == [start + timedelta(seconds=n) for n in (10, 20)]


def test_upcoming_from_now() -> None:
    before = datetime.now(UTC)
    times = upcoming("* * * * * *", count=3)
    assert before < times[0] <= datetime.now(UTC) + timedelta(seconds=1)
    assert upcoming("* * * * *", count=0) == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"after": datetime(2027, 1, 1)},  # noqa: DTZ001
        {"after": "2027-01-01"},
        {"count": -1},
        {"count": 2.5},
        {"timezone": "Nowhere"},
    ],
)
def test_upcoming_refuses(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidExpression):
        upcoming("* * * * *", **arguments)


def test_methods_take_any_zone_answer_in_utc_and_refuse_naive_ones() -> None:
    parsed = parse("0 9 * * *", "Asia/Kolkata")
    found = parsed.next(datetime(2027, 1, 1, tzinfo=zoneinfo.ZoneInfo("America/New_York")))
    assert found == utc("2027-01-02T03:30Z")
    assert found.tzinfo is UTC
    naive = datetime(2027, 1, 1)  # noqa: DTZ001
    aware = utc("2027-01-01T00:00Z")
    for call in (
        lambda: parsed.next(naive),
        lambda: parsed.count(naive, aware),
        lambda: parsed.latest(aware, naive),
        lambda: parsed.next("now"),  # type: ignore[arg-type]
    ):
        with pytest.raises(InvalidExpression):
            call()


@pytest.mark.parametrize("text", ["* * * * *", "0 0 * * * 0 1970-2099", "@every 1s", "@at 2027-01-01T00:00:00Z"])
def test_the_ends_of_time(text: str) -> None:
    parsed = parse(text)
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    assert parsed.next(last) is None
    assert parsed.latest(last - DAY, last) is None
    assert parsed.latest(first, last) is not None
    assert parsed.count(first, last) > 0
    beginning = parsed.next(first)
    assert beginning is not None
    assert beginning >= utc("1970-01-01T00:00Z")
    assert parsed.latest(last, first) is None
    assert parsed.count(last, first) == 0


def test_thirty_years_of_seconds() -> None:
    parsed = parse("* * * * * *", "Europe/Paris")
    start, end = utc("2000-01-01T00:00Z"), utc("2030-01-01T00:00Z")
    assert parsed.count(start, end) == (end - start).total_seconds()
    assert parsed.latest(start, end) == end
    # Each spring skips an hour, and each autumn's second pass is left out.
    listed = parse("0-59 0-23 * * * 0-59", "Europe/Paris")
    assert listed.count(start, end) == (end - start).total_seconds() - 30 * 3600


def test_expressions_are_immutable_cached_and_equal_by_meaning() -> None:
    parsed = parse("0 9 * * *", "Europe/Paris")
    assert parse("  0 9 * * * ", "Europe/Paris", name="any", anchor=utc("2027-01-01T00:00Z")) is parsed
    assert parsed != parse("0 9 * * *", "UTC")
    assert parse("H 9 * * *", name="a") != parse("H 9 * * *", name="b")
    assert len({parsed, parse("0 9 * * *", "Europe/Paris")}) == 1
    assert (parsed.text, parsed.timezone, parsed.kind) == ("0 9 * * *", "Europe/Paris", "cron")
    with pytest.raises(AttributeError):
        parsed.text = "other"  # type: ignore[misc]


def test_a_second_thread_does_not_move_the_start_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """croniter sets the start in one step and counts from it in another; here a thread comes in between."""
    parsed = parse("*/7 * * * *")
    start = utc("2027-01-01T00:00Z")
    other = threading.Thread(target=lambda: parsed.next(start + DAY))
    set_current = croniter.set_current

    def interrupted(engine: Any, *arguments: Any, **named: Any) -> Any:
        result = set_current(engine, *arguments, **named)
        if threading.current_thread() is threading.main_thread():
            other.start()
            other.join(0.2)  # it gets through if nothing holds it back
        return result

    monkeypatch.setattr(croniter, "set_current", interrupted)
    assert parsed.next(start) == start + 7 * MINUTE
    other.join()


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("500ms", timedelta(milliseconds=500)),
        ("30s", timedelta(seconds=30)),
        ("5m", timedelta(minutes=5)),
        ("2h", timedelta(hours=2)),
        ("1d", timedelta(days=1)),
        ("1h30m", timedelta(minutes=90)),
        ("1d2h3m4s5ms", timedelta(days=1, hours=2, minutes=3, seconds=4, milliseconds=5)),
        ("90", timedelta(seconds=90)),
        ("0.25", timedelta(milliseconds=250)),
        ("0", timedelta()),
        ("0s", timedelta()),
        (" 30S ", timedelta(seconds=30)),
    ],
)
def test_durations(text: str, duration: timedelta) -> None:
    assert parse_duration(text) == duration
    assert parse_duration(format_duration(duration)) == duration


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "-5s",
        "-1",
        "+5",
        "5x",
        "30m1h",
        "1h1h",
        "1h 30m",
        "1.5h",
        ".5",
        "5.",
        "1e3",
        "9" * 5000,
        "٣s",
        "nan",
    ],
)
def test_durations_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["999999999999d", "999999999999h"])
def test_durations_that_overflow(text: str) -> None:
    with pytest.raises(InvalidExpression, match="too long"):
        parse_duration(text)


@pytest.mark.parametrize("value", [5, None, b"5s", 1.5])
def test_durations_that_are_not_text(value: Any) -> None:
    with pytest.raises(InvalidExpression):
        parse_duration(value)


@cases(200)
@given(st.timedeltas(timedelta(), timedelta.max))
def test_format_duration_is_the_inverse(duration: timedelta) -> None:
    assert parse_duration(format_duration(duration)) == duration


@pytest.mark.parametrize("value", [timedelta(seconds=-1), 5, None])
def test_format_duration_refuses(value: Any) -> None:
    with pytest.raises(InvalidExpression):
        format_duration(value)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("europe/paris", "did you mean Europe/Paris"),
        ("EUROPE/PARIS", "did you mean Europe/Paris"),
        ("utc", "did you mean UTC"),
        ("Berlin", "did you mean Europe/Berlin"),
        ("Europe/Pari", "did you mean Europe/Paris"),
        ("UTC\n", "did you mean UTC"),
        ("Europe/Paris ", "did you mean Europe/Paris"),
        ("", "there is no time zone ''"),
        ("..", "there is no time zone"),
        ("../../etc/passwd", "there is no time zone"),
        ("/etc/localtime", "there is no time zone"),
        ("Europe", "there is no time zone"),
        ("localtime", "there is no time zone"),
        ("UTC\0", "there is no time zone"),
        ("\ud800", "there is no time zone"),
        ("x" * 1_000_000, "there is no time zone"),
        (None, "not NoneType"),
        (b"UTC", "not bytes"),
        (["UTC"], "not list"),
    ],
)
def test_time_zones_refused(name: Any, sentence: str) -> None:
    with pytest.raises(InvalidExpression) as raised:
        check_timezone(name)
    assert sentence in str(raised.value)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 200


def test_time_zones() -> None:
    assert check_timezone("Europe/Paris") is zoneinfo.ZoneInfo("Europe/Paris")
    for zone in ZONES:
        assert check_timezone(zone).key == zone
