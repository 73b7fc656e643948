"""What daylight saving does to a schedule, as people are told it, against the clock itself."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
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
from pgsched.expression import zones
from pgsched.expression.daylight import at_local, in_words, mark, warnings
from pgsched.expression.expression import parse

NEW_YEAR = utc("2027-01-01T00:00Z")


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
    monkeypatch.setattr(zones, "WINDOW_BITS", 10)
    ZoneInfo.clear_cache()  # what is remembered of a zone is found by its object
    try:
        for text, zone, fire_time, told in MARKS:
            assert mark(parse(text, zone), utc(fire_time)) == told
    finally:
        ZoneInfo.clear_cache()


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

        def took(text: str = text) -> float:
            ZoneInfo.clear_cache()  # what is remembered of a zone is found by its object
            parsed = parse(text, "Africa/Casablanca")
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
