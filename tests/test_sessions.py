"""The interface in SQL means the same in every session, and does the same for every role that may call it."""

import itertools
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

STYLES = [
    {"DateStyle": dates, "TimeZone": zone, "IntervalStyle": intervals}
    for dates, zone, intervals in itertools.zip_longest(
        ("ISO, DMY", "SQL, MDY", "German", "Postgres, YMD"),
        ("Asia/Kolkata", "America/New_York", "Pacific/Apia", "UTC"),
        ("postgres", "sql_standard", "iso_8601", "postgres_verbose"),
    )
]
NOON = datetime(2027, 2, 1, 12, tzinfo=UTC)
WITHOUT_OFFSET = [
    "tomorrow", "now", "epoch", "01/02/2027 03:00", "2027-02-01", "2027-02-01 12:00", "2027-02-01T12:00:00",
    "2027-02-01 12:00 IST", "2027-02-01 12:00 Asia/Kolkata", "2027-02-01 12:00 America/New_York-05",
    "20270201T120000Z", "2027-02-01 12:00Z ", "1.2.2027 12:00Z", "Mon Feb 01 12:00:00 2027 UTC", "",
]  # fmt: skip
DURATIONS = {
    "300": 300, "5 minutes": 300, "PT5M": 300, "0:05": 300, "1 2:03": 93_780, "P1DT2H": 93_600, "1 day 2 hours": 93_600,
    "1.5 h": 5400,
}  # fmt: skip
SIGNED = ["-1 26:00", "-1 day +26:00", "1 -2:00", "1 day -2 hours", "-0:05", "-5", "P1DT-2H", "-1 day ago"]


@pytest.mark.parametrize("styles", STYLES, ids=lambda styles: styles["DateStyle"])
async def test_options_mean_the_same_in_every_session(db, styles):
    for name, value in styles.items():
        await db.all("select set_config(%s, %s, false)", name, value)
    for text in ("2027-02-01T12:00:00Z", "2027-02-01 17:30+05:30", "2027-02-01T04:00:00.000-08", "2027-02-01t12:00z"):
        for call in ("create_schedule('s', 'job', '@daily', options => %s)", "alter('s', %s)"):
            await db.all(f"select pgsched.{call}", f'{{"starts_at": "{text}", "ends_at": "{text}"}}')
            assert await db.value("select starts_at = %s and ends_at = starts_at from pgsched.schedules", NOON)
        await db.all("select pgsched.remove('s')")
    await db.all("select pgsched.create_schedule('s', 'job', '@daily')")
    for text in WITHOUT_OFFSET:
        with pytest.raises(psycopg.Error, match="with its UTC offset, such as 2027-01-01T09:00:00Z") as refused:
            await db.all("select pgsched.alter('s', jsonb_build_object('ends_at', %s::text))", text)
        assert refused.value.sqlstate == "PS422"
    for text, seconds in DURATIONS.items():
        await db.all("select pgsched.alter('s', jsonb_build_object('timeout', %s::text))", text)
        read = "select timeout = %s from pgsched.schedules"
        assert await db.value(read, timedelta(seconds=seconds)), text
    for text in SIGNED:
        with pytest.raises(psycopg.Error, match="grace is an interval from 0") as refused:
            await db.all("select pgsched.alter('s', jsonb_build_object('grace', %s::text))", text)
        assert refused.value.sqlstate == "PS422"
