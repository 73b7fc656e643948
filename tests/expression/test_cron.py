"""Fire times against walks that know nothing of croniter or of this parser, near the zones' changes above all."""

import re
import threading
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter
from cronsim import CronSim
from hypothesis import assume, given
from hypothesis import strategies as st
from support.skew import (
    ALL_YEARS,
    DAY,
    HOUR,
    MINUTE,
    SCALE,
    SECOND,
    ZONES,
    Meaning,
    cases,
    changes,
    changing_zones,
    everyday,
    meanings,
    utc,
    watch,
    zone_and_change,
)
from support.walks import agrees

from pgsched.errors import InvalidExpression
from pgsched.expression.expression import Expression, parse, upcoming


def read(meaning: Meaning, zone: str) -> Expression | None:
    """None where it never fires, which is checked, or where the clock skips all its times."""
    try:
        return parse(meaning.text, zone, name=meaning.name)
    except InvalidExpression as refusal:
        if "skips all" in str(refusal):
            assert not meaning.fixed
        else:
            assert "never fires: no date" in str(refusal)
            assert not meaning.ever()
        return None


@cases(300)
@given(st.data())
def test_agrees_with_watching_minutes(data: st.DataObject) -> None:
    zone, change = data.draw(zone_and_change())
    local = change.instant.astimezone(ZoneInfo(zone))
    meaning = data.draw(
        meanings(
            hour=(local.hour - data.draw(st.integers(0, 2))) % 24,
            any_day=data.draw(st.integers(0, 3)) > 0,
            year=data.draw(st.sampled_from([None, None, local.year])),
        )
    )
    offset = data.draw(st.one_of(st.integers(-26 * 60, 26 * 60), st.integers(-70, 70)))
    after = change.instant + offset * MINUTE + timedelta(microseconds=data.draw(st.sampled_from([0, 1, 59_999_999])))
    until = after + data.draw(st.integers(0, 30 * 60)) * MINUTE
    expected = watch(meaning, zone, after, until, MINUTE)
    if parsed := read(meaning, zone):
        agrees(parsed, after, until, expected)
    else:
        assert not expected


@cases(120)
@given(st.data())
def test_agrees_with_watching_seconds(data: st.DataObject) -> None:
    zone, change = data.draw(zone_and_change())
    local = change.instant.astimezone(ZoneInfo(zone))
    hour = (local.hour - data.draw(st.integers(0, 2))) % 24
    year = data.draw(st.sampled_from([None, local.year]))
    meaning = data.draw(meanings(any_day=True, seconds=True, hour=hour, year=year))
    after = change.instant + timedelta(seconds=data.draw(st.integers(-4000, 4000)))
    until = after + timedelta(seconds=data.draw(st.integers(0, 1500)))
    expected = watch(meaning, zone, after, until, SECOND)
    if parsed := read(meaning, zone):
        agrees(parsed, after, until, expected)
    else:
        assert not expected


def daily(text: str, fixed: bool, minutes: set[int], hours: set[int], seconds: set[int]) -> Meaning:
    """An expression of every day."""
    return Meaning(
        text,
        name="",
        fixed=fixed,
        seconds=frozenset(seconds),
        minutes=frozenset(minutes),
        hours=frozenset(hours),
        months=frozenset(range(1, 13)),
        years=ALL_YEARS,
        date_fits=everyday,
        weekday_fits=everyday,
        both=True,
    )


@pytest.mark.parametrize(
    "meaning",
    [
        daily("30 2 * * *", True, {30}, {2}, {0}),
        daily("*/15 * * * *", False, {0, 15, 30, 45}, set(range(24)), {0}),
        daily("0 0 * * *", True, {0}, {0}, {0}),
        daily("0,20,59 0-3,23 * * *", True, {0, 20, 59}, {0, 1, 2, 3, 23}, {0}),
        daily("*/20 1,2 * * *", False, {0, 20, 40}, {1, 2}, {0}),
    ],
    ids=lambda meaning: meaning.text,
)
def test_every_zone_over_its_last_changes(meaning: Meaning) -> None:
    """Over the last two changes before 2038 of every zone: one is a skip and one a repetition, as a rule."""
    for zone in changing_zones():
        for change in changes(zone)[-2 * SCALE :]:
            after, until = change.instant - 200 * MINUTE, change.instant + 200 * MINUTE
            if not change.before % MINUTE:
                agrees(parse(meaning.text, zone), after, until, watch(meaning, zone, after, until, MINUTE))


def test_an_offset_of_odd_seconds() -> None:
    """The only one since 1970: Liberia's clock went from -00:44:30 to UTC."""
    (change,) = changes("Africa/Monrovia")
    assert change.size == timedelta(minutes=44, seconds=30)
    after, until = change.instant - 50 * MINUTE, change.instant + 50 * MINUTE
    for meaning in (
        daily("*/15 * * * * */20", False, {0, 15, 30, 45}, set(range(24)), {0, 20, 40}),
        daily("10,50 0 * * * 0", True, {10, 50}, {0}, {0}),
    ):
        expected = watch(meaning, "Africa/Monrovia", after, until, SECOND)
        agrees(parse(meaning.text, "Africa/Monrovia"), after, until, expected)


def test_links_are_as_good_as_the_zones_they_name() -> None:
    texts = ("30 2 * * *", "*/30 0-3 * * *", "0 0 * * *")
    for zone, links in changing_zones().items():
        for change in changes(zone)[-2:]:
            after = change.instant - 3 * HOUR
            expected = [upcoming(text, zone, after, 8) for text in texts]
            for link in links[1:]:
                assert [upcoming(text, link, after, 8) for text in texts] == expected, link


@cases(200)
@given(st.data(), st.integers(1970, 2096), st.integers(0, 365))
def test_the_dates_of_years_agree_with_the_calendar(data: st.DataObject, year: int, day: int) -> None:
    meaning = data.draw(meanings(year=year + data.draw(st.integers(0, 3))))
    start = date(year, 1, 1) + day * DAY
    expected = [each for n in range(1200) if meaning.on(each := start + n * DAY)]
    texts = meaning.text.split()
    meaning = replace(meaning, text=" ".join(["0", "0", *texts[2:5], "0", *texts[6:]]))
    after = datetime(start.year, start.month, start.day, tzinfo=UTC) - SECOND
    if parsed := read(meaning, "UTC"):
        agrees(parsed, after, after + 1200 * DAY, [datetime(d.year, d.month, d.day, tzinfo=UTC) for d in expected])
    else:
        assert not expected


@cases(150)
@given(meanings(seconds=True), st.sampled_from(ZONES), st.integers(0, 4_000_000_000), st.integers(1, 40))
def test_count_and_latest_agree_with_enumeration(meaning: Meaning, zone: str, start: int, wanted: int) -> None:
    after = datetime.fromtimestamp(start, UTC)
    parsed = read(meaning, zone)
    assume(parsed)
    assert parsed
    times: list[datetime] = []
    now: datetime | None = after
    while now and len(times) < wanted and (now := parsed.next(now)):
        times.append(now)
    assume(times)
    for until, expected in ((times[-1], times), (times[-1] - timedelta(microseconds=1), times[:-1])):
        assert parsed.count(after, until) == len(expected)
        assert parsed.latest(after, until) == (expected[-1] if expected else None)


@cache
def cronsim_zones() -> list[str]:
    """Those whose clocks change by whole hours, at whole hours, while they change."""
    return ["UTC"] + [
        zone
        for zone in changing_zones()
        if all(
            abs(each.size) == HOUR and not each.before % HOUR and not each.instant.minute
            for each in changes(zone)
            if each.instant.year >= 2000
        )
        and changes(zone)[-1].instant.year >= 2000
    ]


def skips_midnight(zone: str, start: date, end: date) -> bool:
    """Whether there is a day from start to end on which the clock shows no midnight."""
    tz = ZoneInfo(zone)
    midnights = (datetime.combine(start + n * DAY, time(), tz) for n in range((end - start).days + 1))
    return any(each.astimezone(UTC).astimezone(tz).hour for each in midnights)


@cases(250)
@given(st.data())
def test_agrees_with_cronsim(data: st.DataObject) -> None:
    """A second opinion. It errs inside a second pass, and on changes at odd minutes it can search for ever.

    Where minutes or hours begin with a star, it enters a day at 00:00 even if the clock skips that hour: it then fires
    at 00:00, which the clock never shows, or goes on an hour from there, past 01:00.
    """
    zone = data.draw(st.sampled_from(cronsim_zones()))
    recent = [each.instant for each in changes(zone) if each.instant.year >= 2000]
    near = data.draw(st.sampled_from(recent or [utc("2027-01-01T00:00Z")]))
    after = near + data.draw(st.integers(-3000, 3000)) * MINUTE
    local = after.astimezone(ZoneInfo(zone))
    assume(not local.fold)
    meaning = data.draw(meanings(hour=data.draw(st.integers(0, 3)), any_day=data.draw(st.booleans()), drawn=False))
    text = meaning.text.upper().replace("?", "*")
    minute, hour, day, _, weekday = text.split()
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
    if "*" in (minute[0], hour[0]):
        assume(not skips_midnight(zone, local.date(), expected[-1].astimezone(ZoneInfo(zone)).date()))
    assert upcoming(text, zone, after, 5) == [each for each in expected if each.year <= 2099]


def test_thirty_years_of_seconds() -> None:
    parsed = parse("* * * * * *", "Europe/Paris")
    start, end = utc("2000-01-01T00:00Z"), utc("2030-01-01T00:00Z")
    assert parsed.count(start, end) == (end - start).total_seconds()
    assert parsed.latest(start, end) == end
    # Each spring skips an hour, and each autumn's second pass is left out.
    listed = parse("0-59 0-23 * * * 0-59", "Europe/Paris")
    assert listed.count(start, end) == (end - start).total_seconds() - 30 * 3600


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


@given(st.lists(st.integers(0, 4 * 86_400), min_size=2, max_size=20))
def test_what_was_asked_before_changes_no_answer(minutes: list[int]) -> None:
    start = datetime(2026, 3, 27, tzinfo=UTC)
    moments = [start + timedelta(seconds=each) for each in minutes]
    asked = parse("17 */5 * * *", "Europe/Berlin")
    for moment_ in moments:
        fresh = replace(asked, times=replace(asked.times, _known=[(0, -1)]))
        assert asked.next(moment_) == fresh.next(moment_)
