"""What people are told: sentences, traps, and what daylight saving does, against the clock itself."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from itertools import pairwise, product
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.skew import (
    DAY,
    HOUR,
    MINUTE,
    PARIS,
    SECOND,
    Change,
    Meaning,
    cases,
    changes,
    meanings,
    utc,
    watch,
    zone_and_change,
)

from pgsched.errors import InvalidExpression
from pgsched.expression import expression, zones
from pgsched.expression.daylight import at_local, in_words, mark, warnings
from pgsched.expression.expression import parse

NEW_YEAR = utc("2027-01-01T00:00Z")

# -- Sentences --------------------------------------------------------------------------------------------

SENTENCES = [
    ("30 2 * * *", "At 02:30 on every day"),
    ("0 9,17 * * MON-FRI", "At 09:00 and 17:00 on Monday to Friday"),
    ("0 9 * * * 30", "At 09:00:30 on every day"),
    ("*/20 2 * * *", "At 02:00, 02:20 and 02:40 on every day"),
    ("* * * * *", "Every minute"),
    ("* * * * * *", "Every second"),
    ("*/15 * * * *", "Every 15 minutes"),
    ("0-59/15 9-17 * * *", "Every 15 minutes in hours 9 to 17"),
    ("*/7 * * * *", "At every 7th minute from 0 to 56 of every hour"),
    ("5 * * * *", "At minute 5 of every hour"),
    ("5,35 8-18/2 * * *", "At minutes 5 and 35 of every 2nd hour from 8 to 18"),
    ("* 9 * * *", "Every minute in hour 9"),
    ("0 */2 * * *", "Every 2 hours"),
    ("0 */5 * * *", "At 00:00, 05:00, 10:00, 15:00 and 20:00 on every day"),
    ("0 0-12,18-23 * * *", "At minute 0 of hours 0 to 12 and 18 to 23"),
    ("* * * * * */10", "Every 10 seconds"),
    ("* * * * * 30", "At second 30 of every minute"),
    ("* 9 * * * 30", "At second 30 of every minute in hour 9"),
    ("*/10 * * * * *", "Every second in every 10th minute from 0 to 50 of every hour"),
    ("0 0 13 * FRI", "At 00:00 on day 13 of the month or on Friday"),
    ("0 0 */2 * MON", "At 00:00 on every 2nd day of the month that is a Monday"),
    ("0 0 13 * */2", "At 00:00 on day 13 of the month if it is a Tuesday, Thursday, Saturday or Sunday"),
    ("0 0 */31,2-7 * MON", "At 00:00 on days 1 to 7 of the month if it is a Monday"),
    ("0 0 1-31 * MON", "At 00:00 on every day"),
    ("0 0 5-25/5 * *", "At 00:00 on every 5th day of the month from 5 to 25"),
    ("0 0 1,15,L * *", "At 00:00 on days 1 and 15 and the last day of the month"),
    ("0 0 L FEB *", "At 00:00 on the last day of the month in February"),
    ("0 0 LW * *", "At 00:00 on the last working day (Monday to Friday) of the month"),
    ("0 0 15W * *", "At 00:00 on the working day (Monday to Friday) nearest to day 15 of the month"),
    ("0 0 * * MON#1,friL", "At 00:00 on the first Monday and last Friday of the month"),
    ("0 6 15 * 5L", "At 06:00 on day 15 of the month or on the last Friday of the month"),
    ("0 0 */10 * MON#1", "At 00:00 on every 10th day of the month that is the first Monday of the month"),
    ("0 0 * * 6,0,1", "At 00:00 on Monday, Saturday and Sunday"),
    ("0 0 * * FRI-SUN", "At 00:00 on Friday to Sunday"),
    ("0 0 1 JAN-MAR,JUL *", "At 00:00 on day 1 of the month in January to March and July"),
    ("0 0 1 1 * 0 2027-2029,2035", "At 00:00 on day 1 of the month in January in 2027 to 2029 and 2035"),
    ("0 0 29 2 * 0 2028/4", "At 00:00 on day 29 of the month in February in every 4th year from 2028 to 2096"),
    ("@daily", "At 00:00 on every day"),
    ("@hourly", "Every hour"),
    ("@weekly", "At 00:00 on Sunday"),
    ("@yearly", "At 00:00 on day 1 of the month in January"),
]


@pytest.mark.parametrize(("text", "sentence"), SENTENCES)
def test_in_words(text: str, sentence: str) -> None:
    assert in_words(parse(text, PARIS)) == f"{sentence}, Europe/Paris"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("H H * * *", "At 19:19 on every day, UTC (H drew minute 19 and hour 19)"),
        (
            "H/15 2 H H H",
            "At 02:04, 02:19, 02:34 and 02:49 on day 8 of the month or on Thursday in January, UTC "
            "(H drew every 15th minute from 4 to 49, day 8, January and Thursday)",
        ),
        ("H(0-9),30 2 * * * H", "At 02:09:26 and 02:30:26 on every day, UTC (H drew minute 9 and second 26)"),
    ],
)
def test_h_is_told_by_what_it_drew(text: str, sentence: str) -> None:
    assert in_words(parse(text, name="morning-report")) == sentence


def test_rates_and_instants_in_words() -> None:
    assert in_words(parse("@every 90m", PARIS, anchor=utc("2027-01-01T00:00:07Z"))) == (
        "Every 1h30m, counted from 2027-01-01 00:00:07 UTC"
    )
    assert in_words(parse("@at 2027-01-01T00:00:00Z")) == "Once, at 2027-01-01 00:00:00 UTC"
    assert in_words(parse("@at 2027-01-01T00:00:00Z", PARIS)) == (
        "Once, at 2027-01-01 00:00:00 UTC, which is 2027-01-01 01:00:00 in Europe/Paris"
    )


def test_no_two_meanings_have_one_sentence() -> None:
    times = product(
        ["*", "0", "5", "*/15", "*/7", "0-10", "1,2,3", "3-59/14", "0,30", "*/30", "7/11"],
        ["*", "0", "9", "*/2", "*/5", "9-17", "0-12,18-23", "1/2", "0-22/2"],
        ["* * *"],
        ["0", "*", "*/10", "30", "*/7", "0,1"],
    )
    dates = product(
        ["0 0"],
        ["*", "13", "*/2", "1-31/2", "1-7", "L", "LW", "15W", "1,L", "30,31", "2-31/2", "1-31"],
        ["*", "1", "1-3", "*/3"],
        ["*", "MON", "MON-FRI", "*/2", "MON#1", "5L", "SAT,SUN", "0-6", "MON,WED"],
    )
    seen: dict[str, Any] = {}
    for texts in [*times, *dates]:
        parsed = parse(" ".join(texts))
        fields = parsed.times.fields  # type: ignore[union-attr]
        every_day = any(len(side.dates) == 31 and len(side.weekdays) == 7 and not side.nearest for side in fields.days)
        days = (fields.months, None if every_day else fields.days)
        meaning = (fields.seconds, fields.minutes, fields.hours, days)
        assert seen.setdefault(in_words(parsed), meaning) == meaning, (parsed.text, in_words(parsed))
    assert len(seen) > 500


@cases(150)
@given(meanings(seconds=True, year=2027))
def test_whatever_parses_has_a_sentence_and_its_traps(meaning: Meaning) -> None:
    try:
        parsed = parse(meaning.text, PARIS, name=meaning.name)
    except InvalidExpression:
        return
    sentence = in_words(parsed)
    assert sentence.isprintable()
    assert sentence[0].isupper()
    assert ", Europe/Paris" in sentence
    for told in warnings(parsed, NEW_YEAR):
        assert told.isprintable()
        assert not told.endswith(".")


# -- Traps in the text ------------------------------------------------------------------------------------

EITHER = "Both day fields are set, and either one is enough: this runs on "
TRAPS = [
    ("0 0 13 * FRI", EITHER + "day 13 of the month or on Friday; to run only if both fit, write '0 0 13 * *' and let"
     " the job check the day of the week"),
    ("0 0 1-7 * MON", EITHER + "days 1 to 7 of the month or on Monday; to run only if both fit, write"
     " '0 0 * * MON#1'"),
    ("0 0 15-28 * MON,TUE", "write '0 0 * * MON#3,TUE#3,MON#4,TUE#4'"),
    ("0 0 1 * FRI", "write '0 0 */31 * FRI'"),
    ("0 0 1,5-7,L * FRI", "write '0 0 */31,5-7,L * FRI'"),
    ("0 0 13 * SUN,MON", "write '0 0 13 * */7,MON'"),
    ("0 0 L * SUN", "write '0 0 L * */7'"),
    ("0 0 15W * SUN", "both together never fit"),
    ("0 0 1-31 * MON", "write '0 0 * * MON'"),
    ("0 0 13 * 0-6", "write '0 0 13 * *'"),
    ("0 0 31 2 MON", "No date fits day of month 31 in February: only the day of week counts"),
    ("0 0 15 2 MON#5 0 2035", "No date fits day of week MON#5 in February: only the day of month counts"),
    ("*/7 * * * *", "*/7 in the minute field starts again with every hour: at the end of an hour, from minute 56 to"
     " minute 0, it is 4 minutes and not 7; for an even pace write @every 7m"),
    ("*/7 9 * * *", "it is 4 minutes and not 7"),
    ("5/7 * * * *", "from minute 54 to minute 5, it is 11 minutes and not 7"),
    ("H/7 * * * *", ""),
    ("*/90 * * * *", "*/90 in the minute field is longer than an hour: it comes once an hour, at minute 0; for an even"
     " pace write @every 90m"),
    ("0 */5 * * *", "from hour 20 to hour 0, it is 4 hours and not 5; for an even pace write @every 5h"),
    ("0 */48 * * *", "it comes once a day, at hour 0; for an even pace write @every 48h"),
    ("* * * * * */7", "from second 56 to second 0, it is 4 seconds and not 7; for an even pace write @every 7s"),
    ("0 0 */2 * *", "at the end of a month of 31 days, from day 31 to day 1, it is 1 day and not 2"),
    ("0 0 2/2 * *", "at the end of a month of 31 days, from day 30 to day 2, it is 3 days and not 2"),
    ("0 0 */16 * *", "at the end of a month of 31 days, from day 17 to day 1, it is 15 days and not 16"),
    ("0 0 1 */5 *", "at the end of a year, from November to January, it is 2 months and not 5"),
    ("0 0 * * */2", "at the end of a week, from Saturday to Sunday, it is 1 day and not 2"),
    ("0 0 31 * *", "Day of month 31 comes in 7 of 12 months; for the last day of every month write L"),
    ("0 0 30,31 * *", "Day of month 30,31 comes in 11 of 12 months; for the last day"),
    ("0 0 29 * *", "Day of month 29 comes in 11 of 12 months, and in February of leap years; for the last day"),
    ("0 0 29 2 *", "Day of month 29 comes in leap years only; for the last day of February write L"),
    ("0 0 30W * *", "Day 30W also comes in shorter months: there it is the last working day"),
    ("0 0 30W 1,3 *", ""),
    ("0 0 * * MON#5", "MON#5 comes in some months only, because most have no fifth one; for the last one of every month"
     " write MONL"),
    ("*/3 * * * * *", "The seconds come last here, so this means: every second in every 3rd minute from 0 to 57 of"
     " every hour; if the first field means the seconds, write '* * * * * */3', every 3 seconds"),
    ("0 * * * * *", "write '* * * * * 0', every minute"),
    ("0 0 9 * * *", "write '0 9 * * * 0', at 09:00 on every day"),
    ("0 0 9 * * 1-5", "write '0 9 * * 1-5 0', at 09:00 on Monday to Friday"),
    ("0 0 9 * * 1", "write '0 9 * * 1 0', at 09:00 on Monday"),
    ("0 15 9 * * * 2035", "write '15 9 * * * 0 2035', at 09:15 on every day in 2035"),
    ("H 0 9 * * *", "write '0 9 * * * H'"),
    ("0 0 1 1 * 0 2028", "It never fires after 2028-01-01 00:00:00 UTC: its year field ends with 2028"),
    ("0 0 1 1 * 0 2026", "It never fires again: its year field ends with 2026"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "told"), TRAPS)
def test_a_trap(text: str, told: str) -> None:
    """One sentence, of which this is the part that matters."""
    found = warnings(parse(text, name="morning-report"), NEW_YEAR)
    assert (len(found), told in "".join(found)) == (1 if told else 0, True), found


@pytest.mark.parametrize(
    "text",
    [
        "30 2 * * *", "*/15 9-17 * * MON-FRI", "*/60 * * * *", "0 */24 * * *", "30/10 * * * *", "0-30/7 * * * *",
        "0 9/5 * * *", "0 0 * * 1/2", "0 0 1 */3 *", "0 0 1 */12 *", "0 0 31 1,3,5 *", "0 0 L * *", "0 0 31,L * *",
        "0 0 31W * *", "0 0 28-31 * *", "0 0 */31 * MON", "0 0 */2 * MON", "0 0 13 * */7",
        "0 0 * * MON#1,MON#5", "0 0 ? * MON",
        "* * * * * *", "* * * * * */10", "* * * * * 30", "0 9 * * * 0", "0 9 * * MON-FRI 30", "*/5 * * * * 0",
        "0 0 9 * * 0", "0 9 * * * 5", "0 0 9 * * 12", "* * * * * 1-5", "30 9 * * 1 15,45", "* * * * * * 2027-2099",
        "0 0 1 1 * 0 2035", "@yearly", "@weekly", "@every 7m", "@every 25h", "@at 2020-01-01T00:00:00Z",
    ],
)  # fmt: skip
def test_no_trap(text: str) -> None:
    assert warnings(parse(text), NEW_YEAR) == []


def test_what_is_written_instead_means_both_day_fields() -> None:
    fields = ["1", "1-7", "8-21", "29-31", "1,13,L", "L", "15W", "LW", "13", "1-31"]
    for date, weekday in product(fields, ["MON", "SUN", "SUN,WED", "MON-FRI", "0-6", "MON#2", "0#1", "FRIL"]):
        either = parse(f"0 0 {date} * {weekday}")
        (told,) = [each for each in warnings(either, NEW_YEAR) if each.startswith(EITHER)]
        expected = walk(f"0 0 {date} * *") & walk(f"0 0 * * {weekday}")
        if told.endswith("both together never fit"):
            assert not expected, either.text
        elif "let the job" not in told:
            written = told.split("write '")[1].split("'")[0]
            assert walk(written) == expected, written


@cache
def walk(text: str) -> set[datetime]:
    """The fire times of twelve years, in which every kind of month comes."""
    parsed, found = parse(text), set()
    now: datetime | None = utc("2015-12-31T00:00Z")
    while now and (now := parsed.next(now)) and now.year < 2028:
        found.add(now)
    return found


# -- Daylight saving --------------------------------------------------------------------------------------

TOUCHED = [
    ("30 2 * * *", PARIS, [
        "02:30 does not exist on 2027-03-28 and 2028-03-26 in Europe/Paris: runs at 03:00 instead",
        "02:30 comes twice on 2027-10-31 and 2028-10-29 in Europe/Paris: runs the first time only",
    ]),
    ("0,30 2,3 28 3 *", PARIS, [
        "02:00 and 02:30 do not exist on 2027-03-28 in Europe/Paris: fall together with the run at 03:00",
    ]),
    ("0-30/10 2 28 3 *", PARIS, [
        "4 times from 02:00 to 02:30 do not exist on 2027-03-28 in Europe/Paris: run once, at 03:00",
    ]),
    ("15,45 2 31 10 * 20", PARIS, [
        "02:15:20 and 02:45:20 come twice on 2027-10-31 in Europe/Paris: run the first time only",
    ]),
    ("*/30 2 * * *", PARIS, [
        "The clock skips 02:00 to 03:00 on 2027-03-28 and 2028-03-26 in Europe/Paris: 2 times are not run",
        "02:00 and 02:30 come twice on 2027-10-31 and 2028-10-29 in Europe/Paris: run both times",
    ]),
    ("0 */2 28 3 *", PARIS, [
        "The clock skips 02:00 to 03:00 on 2027-03-28 in Europe/Paris: 1 time is not run",
    ]),
    ("*/15 * * * *", PARIS, []),  # the pace stays
    ("* * * * * *", PARIS, []),
    ("*/20 * * * *", "Australia/Lord_Howe", [
        "01:40 comes twice on 2027-04-04 and 2028-04-02 in Australia/Lord_Howe: runs both times",
        "The clock skips 02:00 to 02:30 on 2027-10-03 and 2028-10-01 in Australia/Lord_Howe: 2 times are not run",
    ]),
    ("*/30 * * * *", "Australia/Lord_Howe", [
        "01:30 comes twice on 2027-04-04 and 2028-04-02 in Australia/Lord_Howe: runs both times",
        "The clock skips 02:00 to 02:30 on 2027-10-03 and 2028-10-01 in Australia/Lord_Howe: 1 time is not run",
    ]),
    ("*/15 * 28 3 *", PARIS, []),
    ("* * * * *", "Australia/Lord_Howe", []),
    ("0 * 28 3 *", "Atlantic/Azores", [
        "The clock skips 00:00 to 01:00 on 2027-03-28 in Atlantic/Azores: 1 time is not run",
    ]),
    ("0 * * * *", "Atlantic/Azores", []),
    ("0 12 * * *", PARIS, []),
    ("30 2 * * *", "UTC", []),
    ("@daily", "Atlantic/Azores", [
        "00:00 does not exist on 2027-03-28 and 2028-03-26 in Atlantic/Azores: runs at 01:00 instead",
        "00:00 comes twice on 2027-10-31 and 2028-10-29 in Atlantic/Azores: runs the first time only",
    ]),
    ("30 2 28 3 * 0 2027", PARIS, [
        "It never fires after 2027-03-28 01:00:00 UTC: its year field ends with 2027",
        "02:30 does not exist on 2027-03-28 in Europe/Paris: runs at 03:00 instead",
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "zone", "told"), TOUCHED)
def test_what_daylight_saving_will_do(text: str, zone: str, told: list[str]) -> None:
    assert warnings(parse(text, zone), NEW_YEAR) == told


def test_the_warnings_end_after_the_years_that_are_asked_for() -> None:
    parsed = parse("30 2 * * *", PARIS)
    assert "2027-03-28 in Europe/Paris" in warnings(parsed, NEW_YEAR, years=1)[0]
    assert "2029-03-25 and 2030-03-31 in" in warnings(parsed, NEW_YEAR, years=4)[0]
    assert warnings(parsed, utc("2099-12-01T00:00Z"), years=500) == []
    assert warnings(parsed, NEW_YEAR, years=0) == []
    with pytest.raises(InvalidExpression):
        warnings(parsed, datetime(2027, 1, 1))  # noqa: DTZ001


MARKS = [
    ("30 2 * * *", PARIS, "2027-03-28T01:00Z", "02:30 does not exist on 2027-03-28, runs at 03:00"),
    ("30 2 * * *", PARIS, "2027-03-29T00:30Z", None),
    ("0,30 2 * * *", PARIS, "2027-03-28T01:00Z", "02:00 and 02:30 do not exist on 2027-03-28, run once, at 03:00"),
    ("30 2,3 * * *", PARIS, "2027-03-28T01:30Z", None),
    ("0,30 2,3 * * *", PARIS, "2027-03-28T01:00Z",
     "02:00 and 02:30 do not exist on 2027-03-28, fall together with the run at 03:00"),
    ("30 2 * * *", PARIS, "2027-10-31T00:30Z", "02:30 comes twice on 2027-10-31, runs the first time only"),
    ("30 2 * * *", PARIS, "2027-10-31T01:30Z", None),  # not a fire time
    ("*/30 2 * * *", PARIS, "2027-10-31T00:30Z", "02:30 comes for the first of two times"),
    ("*/30 2 * * *", PARIS, "2027-10-31T01:30Z", "02:30 comes for the second time"),
    ("*/15 * * * *", PARIS, "2027-10-31T02:00Z", None),
    ("*/15 * * * *", PARIS, "2027-03-28T01:00Z", "the clock skipped 02:00 to 03:00: 4 times were not run"),
    ("*/15 * * * *", PARIS, "2027-03-28T01:15Z", None),
    ("*/30 2 * * *", PARIS, "2027-03-29T00:00Z",
     "the clock skipped 02:00 to 03:00 on 2027-03-28: 2 times were not run"),
    ("*/30 2 28 3 *", PARIS, "2028-03-28T00:00Z",
     "the clock skipped 02:00 to 03:00 on 2027-03-28: 2 times were not run"),
    ("*/30 2 28 3 *", PARIS, "2028-03-28T00:30Z", None),
    ("0 6 * * *", "Pacific/Apia", "2011-12-30T10:00Z", "06:00 does not exist on 2011-12-30, runs at 2011-12-31 00:00"),
    ("0 */6 * * *", "Pacific/Apia", "2011-12-30T10:00Z",
     "the clock skipped 2011-12-30 00:00 to 2011-12-31 00:00: 4 times were not run"),
    ("15 2 * * *", "Australia/Lord_Howe", "2027-10-02T15:30Z", "02:15 does not exist on 2027-10-03, runs at 02:30"),
    ("30 2 * * *", "UTC", "2027-03-28T02:30Z", None),
    ("@every 1h", PARIS, "2027-03-28T01:00Z", None),
    ("@at 2027-03-28T01:00:00Z", PARIS, "2027-03-28T01:00Z", None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "zone", "fire_time", "told"), MARKS)
def test_mark(text: str, zone: str, fire_time: str, told: str | None) -> None:
    assert mark(parse(text, zone), utc(fire_time)) == told


def test_where_a_zone_is_cut_does_not_matter_to_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zones, "_WINDOW_BITS", 10)
    zones._stretches.cache_clear()
    try:
        for text, zone, fire_time, told in MARKS:
            assert mark(parse(text, zone), utc(fire_time)) == told
    finally:
        zones._stretches.cache_clear()


def skipped_times(meaning: Meaning, change: Change) -> int:
    wall, skipped = (change.instant + change.before).replace(tzinfo=None), 0
    while wall < (change.instant + change.after).replace(tzinfo=None):
        skipped += meaning.at(wall)
        wall += MINUTE
    return skipped


def expected_mark(fixed: bool, skipped: int, change: datetime, local: datetime, previous: datetime) -> str | None:
    """The beginning of what is to be said, from the clock itself."""
    fire_time = local.astimezone(UTC)
    twice = local.replace(fold=0).utcoffset() > local.replace(fold=1).utcoffset()  # type: ignore[operator]
    shown = f"{local:%H:%M}"
    if fixed:
        if skipped and fire_time == change:
            return f"{skipped} times from " if skipped > 3 else ""
        return f"{shown} comes twice on {local:%Y-%m-%d}" if twice else None
    if twice:
        return f"{shown} comes for the {'second time' if local.fold else 'first of two times'}"
    return "the clock skipped " if skipped and previous < change <= fire_time else None


@cases(120)
@given(st.data())
def test_marks_agree_with_the_clock(data: st.DataObject) -> None:
    zone, change = data.draw(zone_and_change())
    assume(all(abs(each.instant - change.instant) > 4 * DAY for each in changes(zone) if each != change))
    hour = (change.instant.astimezone(ZoneInfo(zone)).hour - data.draw(st.integers(0, 2))) % 24
    meaning = data.draw(meanings(hour=hour, any_day=True))
    after, until = change.instant - 26 * HOUR, change.instant + 28 * HOUR
    parsed = parse(meaning.text, zone, name=meaning.name)
    times = watch(meaning, zone, after, until, MINUTE)
    skipped = skipped_times(meaning, change)
    for previous, fire_time in pairwise(times):
        expected = expected_mark(meaning.fixed, skipped, change.instant, fire_time.astimezone(ZoneInfo(zone)), previous)
        told = mark(parsed, fire_time)
        assert (told is None) == (expected is None), (fire_time, told)
        assert (told or "").startswith(expected or "")


@cases(150)
@given(st.data())
def test_warnings_name_every_change_that_touches_a_fixed_time(data: st.DataObject) -> None:
    zone, change = data.draw(zone_and_change())
    hour = (change.instant.astimezone(ZoneInfo(zone)).hour - data.draw(st.integers(0, 2))) % 24
    meaning = data.draw(meanings(hour=hour, any_day=True))
    assume(meaning.fixed)
    low, high = sorted([change.instant + change.before, change.instant + change.after])
    span = [low + n * MINUTE for n in range((high - low) // MINUTE)]
    touched = [wall for wall in span if meaning.at(wall.replace(tzinfo=None))]
    told = " ".join(warnings(parse(meaning.text, zone, name=meaning.name), change.instant - DAY, years=1))
    assert (f"{low:%Y-%m-%d}" in told or f"{high:%Y-%m-%d}" in told) == bool(touched)
    assert not touched or f"{touched[0]:%H:%M}" in told


def test_dense_and_rare_schedules_are_explained_in_milliseconds() -> None:
    """By the thread's own processor time, with nothing remembered."""
    for text in ("* * * * * *", "*/7 * * * * *", "0-59 0-3 * * * 0-59", "*/30 2 * 3 0L", "0 0 29 2 */9 0 2088"):
        parsed = parse(text, "Africa/Casablanca")

        def took(parsed: expression.Expression = parsed) -> float:
            zones._stretches.cache_clear()
            start = time.thread_time()
            in_words(parsed)
            warnings(parsed, NEW_YEAR)
            mark(parsed, utc("2027-03-28T01:00Z"))
            return time.thread_time() - start

        assert min(took() for _ in range(3)) < 0.05, text


# -- Wall-clock times -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("naive", "zone", "instant", "remark"),
    [
        ("2027-03-28T03:00", PARIS, "2027-03-28T01:00Z", None),
        ("2027-03-28T02:30", PARIS, "2027-03-28T01:00Z",
         "02:30 does not exist on 2027-03-28 in Europe/Paris: the clock goes from 02:00 to 03:00"),
        ("2027-10-31T02:30", PARIS, "2027-10-31T00:30Z", "02:30 comes twice on 2027-10-31 in Europe/Paris: "
         "the first is meant, the second is 2027-10-31 01:30:00 UTC"),
        ("2027-10-31T03:00", PARIS, "2027-10-31T02:00Z", None),
        ("2011-12-30T12:00", "Pacific/Apia", "2011-12-30T10:00Z",
         "12:00 does not exist on 2011-12-30 in Pacific/Apia: "
         "the clock goes from 2011-12-30 00:00 to 2011-12-31 00:00"),
        ("2027-06-01T00:00:00.25", "UTC", "2027-06-01T00:00:00.25Z", None),
        ("2100-01-01T00:00", PARIS, "2099-12-31T23:00Z", None),
    ],
)  # fmt: skip
def test_at_local(naive: str, zone: str, instant: str, remark: str | None) -> None:
    assert at_local(datetime.fromisoformat(naive), zone) == (utc(instant), remark)


@cases(200)
@given(zone_and_change(), st.integers(-1600, 1600), st.sampled_from([0, 1, 59]))
def test_at_local_agrees_with_the_clock(where: tuple[str, Change], minutes: int, seconds: int) -> None:
    zone, change = where
    naive = (change.instant + change.before).replace(tzinfo=None) + minutes * MINUTE + seconds * SECOND
    # Whatever shows it there, shows it by one of the two offsets; no other change is as near.
    assume(all(abs(each.instant - change.instant) > 4 * DAY for each in changes(zone) if each != change))
    candidates = {naive.replace(tzinfo=UTC) - offset for offset in (change.before, change.after)}
    shows = sorted(each for each in candidates if each.astimezone(ZoneInfo(zone)).replace(tzinfo=None) == naive)
    instant, remark = at_local(naive, zone)
    assert instant == (shows[0] if shows else change.instant)
    assert instant.tzinfo is UTC
    if len(shows) == 1:
        assert remark is None
    elif shows:
        assert f"comes twice on {naive.date()} in {zone}" in str(remark)
        assert f"the second is {shows[1]:%Y-%m-%d %H:%M:%S} UTC" in str(remark)
    else:
        assert f"does not exist on {naive.date()} in {zone}" in str(remark)


@pytest.mark.parametrize(
    "call",
    [
        lambda: at_local(NEW_YEAR, PARIS),
        lambda: at_local("2027-01-01", PARIS),  # type: ignore[arg-type]
        lambda: at_local(datetime(2027, 1, 1), "Mars/Base"),  # noqa: DTZ001
        lambda: at_local(datetime.max, PARIS),  # noqa: DTZ901
        lambda: at_local(datetime.min, PARIS),  # noqa: DTZ901
        lambda: mark(parse("@daily"), datetime(2027, 1, 1)),  # noqa: DTZ001
    ],
)
def test_bad_instants_are_refused(call: Callable[[], object]) -> None:
    with pytest.raises(InvalidExpression):
        call()
