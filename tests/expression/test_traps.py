"""The traps in the text of an expression, and what to write instead."""

from datetime import datetime
from functools import cache
from itertools import product

import pytest
from support.skew import utc

from pgsched.expression.daylight import warnings
from pgsched.expression.expression import parse

NEW_YEAR = utc("2027-01-01T00:00Z")
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
