"""Expressions against their specification: worked examples, `@every`, `@at`, and what the methods take and give.

What may be written is tested with grammar; fire times against independent walks, with cron.
"""

import zoneinfo
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.skew import DAY, MINUTE, PARIS, cases, utc
from support.walks import agrees

from pgsched.errors import InvalidExpression
from pgsched.expression.expression import at, every, parse, upcoming

# -- The specification's table ----------------------------------------------------------------------------

AZORES, CHICAGO, ADELAIDE = "Atlantic/Azores", "America/Chicago", "Australia/Adelaide"
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
    ("0 0 29 2 *", "UTC", "2027-01-01T00:00+00:00", "2028-02-29T00:00 2032-02-29T00:00 2036-02-29T00:00"),
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
    times = [utc(f"{after[:5] if each[4] != '-' else ''}{each}+00:00") for each in expected.split()]
    start = datetime.fromisoformat(after)
    assert upcoming(text, zone, start, 3) == times
    parsed = parse(text, zone)
    assert parsed.latest(start, times[-1]) == times[-1]
    for passed, each in enumerate(times):
        assert parsed.count(start, each - timedelta(seconds=1)) == passed
        assert parsed.count(start, each) == passed + 1


def test_leap_days_are_years_apart() -> None:
    times = upcoming("0 0 29 2 *", "UTC", utc("2027-01-01T00:00Z"), 3)
    assert [str(each.date()) for each in times] == ["2028-02-29", "2032-02-29", "2036-02-29"]
    # The rarest date: a 29 February on one day of the week. From 1972 to 2000, and so on every 28 years.
    assert upcoming("0 0 1 1 * 0 2090", "UTC", utc("1971-01-01T00:00Z")) == [utc("2090-01-01T00:00Z")]
    times = upcoming("0 0 29 2 */9", "UTC", utc("1970-01-01T00:00Z"), 9)  # */9 is Sunday
    assert [each.year for each in times] == [1976, 2004, 2032, 2060, 2088]


# -- @every, @at, upcoming --------------------------------------------------------------------------------


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


def test_expressions_are_immutable_cached_and_equal_by_meaning() -> None:
    parsed = parse("0 9 * * *", "Europe/Paris")
    assert parse("  0 9 * * * ", "Europe/Paris", name="any", anchor=utc("2027-01-01T00:00Z")) is parsed
    assert parsed != parse("0 9 * * *", "UTC")
    assert parse("H 9 * * *", name="a") != parse("H 9 * * *", name="b")
    assert len({parsed, parse("0 9 * * *", "Europe/Paris")}) == 1
    assert (parsed.text, parsed.timezone, parsed.kind) == ("0 9 * * *", "Europe/Paris", "cron")
    with pytest.raises(AttributeError):
        parsed.text = "other"  # type: ignore[misc]
