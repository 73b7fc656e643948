"""Time zones: their names, and where their clocks change."""

import zoneinfo
from datetime import datetime
from typing import Any
from zoneinfo import _zoneinfo  # type: ignore[attr-defined]

import pytest
from support.skew import HOUR, MINUTE, PARIS, SECOND, ZONES, changes, changing_zones, odd_changes, utc

from pgsched.errors import InvalidExpression
from pgsched.expression import zones
from pgsched.expression.expression import parse
from pgsched.expression.instants import moment, seconds
from pgsched.expression.zones import check_timezone


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


def test_every_change_of_every_zone_is_found() -> None:
    """Those of the files themselves, which neither `changes` here nor the module's own walk looks at."""
    start, stop = utc("1970-01-02T00:00Z"), utc("2037-12-31T00:00Z")
    for name in changing_zones():
        zone = zoneinfo.ZoneInfo(name)
        listed = [moment(each) for each in _zoneinfo.ZoneInfo.no_cache(name)._trans_utc]
        real = [
            each
            for each in listed
            if start < each < stop and (each - SECOND).astimezone(zone).utcoffset() != each.astimezone(zone).utcoffset()
        ]
        last = max(listed)  # the rest, if any, is a rule in the file
        walked = [each for each in changes(name) if start < each.instant < stop]
        assert [each.instant for each in walked if each.instant <= last] == real, name
        found = list(zones.changes(zone, seconds(start), seconds(stop)))
        assert [(each.start, each.offset, each.shown - each.start) for each in found] == [
            (seconds(each.instant), each.after // SECOND, each.before // SECOND) for each in walked
        ], name


def test_the_walks_start_from_every_kind_of_change() -> None:
    """What the tests of fire times draw from: no history of a zone is left out, and no odd size."""
    grouped = {zone for links in changing_zones().values() for zone in links}
    for zone in sorted(set(ZONES) - grouped):
        tz = zoneinfo.ZoneInfo(zone)
        days = [utc(f"{year}-{month}-15T00:00Z") for year in range(1970, 2038) for month in ("01", "04", "07", "10")]
        assert len({day.astimezone(tz).utcoffset() for day in days}) == 1, zone
    odd = {(zone, round(change.size / MINUTE)) for zone, change in odd_changes()}
    for zone, minutes in (
        ("Australia/Lord_Howe", 30),
        ("Antarctica/Troll", 120),
        ("Pacific/Apia", 1440),
        ("Pacific/Kwajalein", 1440),
        ("America/Caracas", -30),
        ("Asia/Pyongyang", 30),
        ("Europe/Moscow", -60),
        ("Asia/Kathmandu", 15),
    ):
        assert any((links[0], minutes) in odd for links in changing_zones().values() if zone in links), zone


def test_where_a_zone_is_cut_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zones are looked at in windows; with small ones, windows begin in the middle of a repeated hour."""
    monkeypatch.setattr(zones, "WINDOW_BITS", 10)
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
