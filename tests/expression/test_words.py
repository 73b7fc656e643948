"""The sentences that put expressions into words."""

from itertools import product
from typing import Any

import pytest
from hypothesis import given
from support.skew import PARIS, Meaning, cases, meanings, utc

from pgsched.errors import InvalidExpression
from pgsched.expression.daylight import warnings
from pgsched.expression.expression import parse
from pgsched.expression.words import in_words

NEW_YEAR = utc("2027-01-01T00:00Z")
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
