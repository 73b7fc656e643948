"""What an expression may say: refusals in a sentence, `H`, and that nothing but a refusal ever comes."""

import contextlib
import re
import sys
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.skew import DAY, MINUTE, PARIS, cases, utc

from pgsched.errors import InvalidExpression
from pgsched.expression import days
from pgsched.expression.expression import parse, upcoming

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
    ("H-5 * * * *", "write H, H/15"),
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
        {"anchor": datetime.max.replace(tzinfo=ZoneInfo("America/New_York"))},
    ],
)
def test_parse_refuses_bad_arguments(argument: dict[str, Any]) -> None:
    with pytest.raises(InvalidExpression):
        parse("@every 5s", **argument)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("0 0 9 * * MON-FRI", "0 9 * * MON-FRI 0"),
        ("0 */5 * * * ?", "*/5 * * * ? 0"),
        ("0 30 2 * * *", "30 2 * * * 0"),
        ("0 0 12 1/5 * ? 2027", "0 12 1/5 * ? 0 2027"),
        ("0 15 10 ? * 6L", "15 10 ? * 6L 0"),
    ],
)
def test_seconds_in_front_are_told_by_their_refusal(text: str, meant: str) -> None:
    with pytest.raises(InvalidExpression) as raised:
        parse(text)
    assert f"if the first field means the seconds, write {meant!r}" in str(raised.value)
    assert ("Quartz counts Sunday as 1" in str(raised.value)) == (" 6L" in text)
    parse(meant)


@pytest.mark.parametrize("text", ["* * * * * 60", "0 99 * * * 60", "0 99 * * *", "0 0 30 2 * 0", "0 30 2 30 2 *"])
def test_seconds_in_front_are_not_guessed_where_that_makes_no_sense(text: str) -> None:
    with pytest.raises(InvalidExpression) as raised:
        parse(text)
    assert "first field" not in str(raised.value)


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


def listed(low: int, high: int) -> str:
    return ",".join(map(str, range(low, high + 1)))


SLOWEST = [
    # Lists as long as they may be.
    (f"{listed(0, 26)} {listed(0, 22)} {listed(1, 27)} 1-12 0-6 0,1,2 2000,2099", PARIS),
    (f"{listed(20, 59)} {listed(1, 23)} * * * {listed(0, 9)} 1971-2099/2", "America/St_Johns"),
    ("*/1," * 60 + "1 * * * *", "UTC"),
    ("H," * 120 + "1 * * * *", "UTC"),
    ("0 0 * * " + ",".join(f"{day}#{nth}" for day in range(7) for nth in range(1, 6)), "UTC"),
    ("0 0 * * 5-1" + ",1" * 110, "UTC"),
    # Dates that are rare, and years that are far.
    ("0 0 29 2 */9", "UTC"),
    ("0 0 29 2 */9 0 2088", "UTC"),
    ("0 0 29 2 */9 0 2096", "UTC"),
    ("0 0 31 2,4,6,9,11 *", "UTC"),
    ("0 0 31 2 MON#5", "UTC"),
    ("58 22 31 12 5#5 59 2099", "UTC"),
    ("59 23 31 12 * 59 1970,2099", "Africa/Casablanca"),
    # Times of an interval that the clock skips every year; whether it ever comes is only known at the end.
    ("*/30 2 * 3 0L", PARIS),
    ("*/30 2 * 3 0L 0 1981-2099", PARIS),
    ("* 2 * 3 0L * 1981-2099", PARIS),
    ("*/30 0,1 * 3 0L 0 2006-2099", "Antarctica/Troll"),
    # What cannot be read.
    ("9" * 248 + " * * * *", "UTC"),
    ("*/" + "9" * 240 + " * * * *", "UTC"),
    ("A-" * 124 + " * * * *", "UTC"),
    ("(" * 256, "UTC"),
    ("0 " * 128, "UTC"),
    ("@every " + "9" * 249, "UTC"),
    ("@at " + "9" * 252, "UTC"),
    ("0" * 1_000_000, "UTC"),
]


@pytest.mark.parametrize("after", ["1969-12-31T00:00Z", "2027-01-01T00:00Z"])
@pytest.mark.parametrize(("text", "zone"), SLOWEST, ids=lambda value: value[:30])
def test_the_slowest_take_few_steps(text: str, zone: str, after: str) -> None:
    """Reading it and finding the next fire time, with nothing remembered. A step is a call, of a function in Python or
    in C: some milliseconds at most, but a number that no other process can change."""
    ZoneInfo.clear_cache()  # what is remembered of a zone, and of expressions in it, is found by its object
    days.calendar_of.cache_clear()
    steps = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal steps
        steps += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        with contextlib.suppress(InvalidExpression):
            parse(text, zone, name="slow").next(utc(after))
    finally:
        sys.setprofile(before)
    assert steps < 200_000


# -- what other schedulers write ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("hourly", "is a word of systemd's: write '@hourly'"),
        ("Daily", "write '@daily'"),
        ("30 2 * * * Europe/Berlin", "write '30 2 * * *', and 'Europe/Berlin' as the time zone"),
        ("0 9 * * * UTC", "and 'UTC' as the time zone"),
        ("CRON_TZ=Asia/Tokyo 0 9 * * *", "write '0 9 * * *', and 'Asia/Tokyo' as the time zone"),
        ("TZ=Asia/Tokyo 0 9 * * *", "and 'Asia/Tokyo' as the time zone"),
        ("Mon..Fri *-*-* 09:00", "looks like an OnCalendar text of systemd's"),
        ("*-*-01 00:00:00", "looks like an OnCalendar text of systemd's"),
        ("0 24 * * *", "write 0 to 23 (midnight is 0, of the day that begins)"),
    ],
)
def test_says_what_the_words_of_other_schedulers_are_here(text: str, told: str) -> None:
    with pytest.raises(InvalidExpression, match=re.escape(told)):
        parse(text)


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
