"""Time zones as pieces of constant UTC offset. Pure.

Inside a piece, wall clock and UTC differ by a constant, so daylight saving matters only at the cuts. cron decides how a
cut affects a schedule.
"""

import difflib
import hashlib
import importlib.resources
import zoneinfo
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from pgsched.errors import InvalidExpression, exact, quote
from pgsched.expression.instants import DAY, SECOND, moment

_FROM, _UNTIL = 1_577_836_800, 2_524_608_000  # 2020 and 2050: the range of digest()
WINDOW_BITS = 25  # zones are cut up in windows of 2**25 s, some 388 days


def check_timezone(name: str) -> zoneinfo.ZoneInfo:
    """The IANA zone of that exact name. Raises InvalidExpression, with the nearest name if there is one.

    The names are those of the tzdata package: with other names of a host (`localtime`, `right/…`), or with a file
    system that ignores case, the same schedule would mean different times on different machines.
    """
    name = exact(name, "a time zone must be a name such as 'Europe/Berlin'")
    if name not in _zone_names():
        by_lower = {known.lower(): known for known in sorted(_zone_names())}
        near = difflib.get_close_matches(name.lower(), by_lower, n=1) if len(name) <= 64 else []
        hint = f"did you mean {by_lower[near[0]]}?" if near else "write an IANA name such as Europe/Berlin"
        raise InvalidExpression(f"there is no time zone {quote(name)}: {hint}")
    try:
        return zoneinfo.ZoneInfo(name)
    except (OSError, ValueError, LookupError) as error:
        raise InvalidExpression(f"the time zone {quote(name)} cannot be loaded: reinstall tzdata") from error


@lru_cache(maxsize=1)
def _zone_names() -> frozenset[str]:
    try:
        return frozenset(importlib.resources.files("tzdata").joinpath("zones").read_text("ascii").split())
    except (OSError, ModuleNotFoundError):  # a distribution that leaves the package's data out
        return frozenset(zoneinfo.available_timezones())


class Stretch(NamedTuple):
    """A stretch of constant UTC offset: in it, wall = instant + offset.

    `shown` is the clock's reading at `start` as it would be without the change: more than `clock` if the clock was set
    back there, less if it was set forward. A stretch may be cut without a change; then they are equal.
    """

    start: int
    end: int  # exclusive
    offset: int
    shown: int

    @property
    def clock(self) -> int:
        """The clock's reading at `start`."""
        return self.start + self.offset


def stretch(zone: zoneinfo.ZoneInfo, instant: int) -> Stretch:
    """The stretch around `instant`."""
    return next(cut for cut in _stretches(zone, instant >> WINDOW_BITS) if instant < cut.end)


def changes(zone: zoneinfo.ZoneInfo, after: int, until: int) -> Iterator[Stretch]:
    """The stretches that a change in (after, until] begins, in order."""
    end = stretch(zone, after).end
    while end <= until:
        found = stretch(zone, end)
        if found.start == end and found.shown != found.clock:
            yield found
        end = found.end


class Rules(NamedTuple):
    """The rules of one zone: the tzdata release that they come from (None: unknown), and their digest()."""

    release: str | None
    digest: str

    @classmethod
    def read(cls, text: str) -> "Rules":
        """The rules out of their text."""
        release, _, digest = text.rpartition(":")
        return cls(release or None, digest)

    def __str__(self) -> str:
        return f"{self.release or ''}:{self.digest}"


def newer(release: str | None, other: str | None) -> bool:
    """Whether a release is known to be newer than another one, which is known too."""
    return release is not None and other is not None and _age(release) > _age(other)


def _age(release: str) -> tuple[str, int, str]:
    return release[:4], len(release), release  # 2026z is followed by 2026aa


def digest(name: str) -> str:
    """A hash over the zone's changes of UTC offset from 2020 to 2050, the same for the same rules from any file and
    Python. Raises InvalidExpression for an unknown zone."""
    return digest_of(check_timezone(name))


def digest_of(zone: zoneinfo.ZoneInfo) -> str:
    """The digest() of a zone that was loaded from somewhere else."""
    rules = [(_offset(zone, _FROM)), *((cut.start, cut.offset) for cut in changes(zone, _FROM, _UNTIL))]
    return hashlib.blake2b(repr(rules).encode(), digest_size=16).hexdigest()


@lru_cache(maxsize=8192)
def _stretches(zone: zoneinfo.ZoneInfo, window: int) -> tuple[Stretch, ...]:
    """The stretches of one window: zoneinfo is asked every sixth day, and bisected if its answer has changed.

    From 1970 on no two changes of any zone are that near to each other; tests keep watch.
    """
    # Two days more than the window, so that `shown` is known for as long as it matters after a change.
    start = (window << WINDOW_BITS) - 2 * DAY
    stop = (window + 1) << WINDOW_BITS
    apart = 6 * DAY
    offset = _offset(zone, start)
    shown = start + offset
    cuts = []
    for probe in [*range(start + apart, stop, apart), stop - 1]:
        while _offset(zone, probe) != offset:
            low, high = max(start, probe - apart), probe
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if _offset(zone, middle) == offset else (low, middle)
            cuts.append(Stretch(start, high, offset, shown))
            start, shown, offset = high, high + offset, _offset(zone, high)
    return (*cuts, Stretch(start, stop, offset, shown))


def _offset(zone: zoneinfo.ZoneInfo, instant: int) -> int:
    offset = moment(instant).astimezone(zone).utcoffset()
    assert offset is not None
    return offset // SECOND
