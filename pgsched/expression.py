"""When a schedule fires: expression and time zone in, fire times out. Pure, and the only import of croniter.

What runs at a fire time, and what becomes of a missed one, belongs to policy and dispatcher.

A cron expression passes three layers, and each knows nothing of the next:
1. a strict reader turns the text into sets of numbers, so that croniter never sees raw text;
2. croniter iterates those over naive wall-clock time, so that it never sees a time zone either;
3. `_stretches` cuts a zone's time into pieces of constant UTC offset. What daylight saving means is decided
   at the cuts alone: inside a piece, wall clock and UTC differ by a constant.

Times inside are whole seconds since 1970-01-01, of UTC (`instant`) or of the wall clock (`wall`).
"""

import calendar
import difflib
import hashlib
import importlib.resources
import re
import threading
import zoneinfo
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property, lru_cache
from typing import Literal, NoReturn, Protocol

from croniter import CroniterBadDateError, croniter

from pgsched.errors import InvalidExpression

LONGEST = 256  # characters of an expression
FINEST = timedelta(milliseconds=1)
WIDEST = timedelta(days=36_525)  # 100 years

_FIRST_YEAR, _LAST_YEAR = 1970, 2099
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_END = datetime(_LAST_YEAR + 1, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)
_DAY = 86_400
_NEVER = (_END - _EPOCH) // _SECOND  # no fire time is this late on the wall clock
_WINDOW_BITS = 25  # zones are cut up in windows of 2**25 s, some 388 days


class _Times(Protocol):
    """A kind of expression. Instants are aware; `until` is inclusive, `after` is not."""

    def next(self, after: datetime) -> datetime | None: ...
    def latest(self, after: datetime, until: datetime) -> datetime | None: ...
    def count(self, after: datetime, until: datetime) -> int: ...


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression that was read, in its time zone. Immutable, and safe to share between threads.

    `text` is the source as given, stripped; `timezone` the zone's name; `kind` tells the three families apart
    (macros are "cron"). Nothing fires after the year 2099, and cron not before 1970, by its zone's clock.
    All methods take aware datetimes of any zone (InvalidExpression for others) and return them in UTC.
    """

    text: str
    timezone: str
    kind: Literal["cron", "every", "at"]
    _times: _Times = field(repr=False)

    def next(self, after: datetime) -> datetime | None:
        """The first fire time strictly after `after`, or None when there is none any more."""
        after = _utc(after, "after")
        found = self._times.next(after)
        if found is not None and found <= after:  # a scheduler that is handed the past would spin
            raise AssertionError(f"{self.text!r} in {self.timezone} has no progress from {after}: {found}")
        return found

    def latest(self, after: datetime, until: datetime) -> datetime | None:
        """The last fire time in (after, until], or None. Takes O(log span) however dense the schedule is."""
        after, until = _utc(after, "after"), _utc(until, "until")
        return self._times.latest(after, until) if after < until else None

    def count(self, after: datetime, until: datetime) -> int:
        """How many fire times lie in (after, until]: exact, and without walking them."""
        after, until = _utc(after, "after"), _utc(until, "until")
        return self._times.count(after, until) if after < until else 0


# -- What others call ---------------------------------------------------------------------------------------


def parse(expression: str, timezone: str = "UTC", *, name: str = "", anchor: datetime | None = None) -> Expression:
    """Read an expression: five to seven cron fields, a macro like `@daily`, `@every 90s`, `@at` an instant.

    `name` is the schedule's, from which `H` draws. `anchor` (aware; the Unix epoch by default) is the instant
    from which `@every` counts: it is itself the first fire time. Cached, so parsing again costs a look-up.
    Raises InvalidExpression, and nothing else, for whatever cannot be read or can never fire.
    """
    text = _exact(expression, "an expression is text such as '0 9 * * *'")
    name = _exact(name, "a schedule's name is text")
    zone = check_timezone(timezone)
    anchor = _EPOCH if anchor is None else _utc(anchor, "anchor")
    if len(text) > LONGEST:
        raise InvalidExpression(f"the expression {_quote(text)} has {len(text)} characters: write at most {LONGEST}")
    text = text.strip(" \t")
    upper = text.upper()
    # What the answer does not depend on is kept out of the cache's key.
    return _parse(
        text,
        zone,
        name=name if "H" in upper else "",
        anchor=anchor if upper.startswith("@EVERY") else _EPOCH,
    )


def every(interval: timedelta) -> str:
    """The expression for a fixed rate: `every(timedelta(seconds=30))` is "@every 30s".

    `interval` is 1 ms to 100 years, in whole milliseconds; anything else raises InvalidExpression.
    """
    if not isinstance(interval, timedelta):
        raise InvalidExpression(f"every() takes a timedelta, not {type(interval).__name__}")
    if not _is_rate(interval):
        raise InvalidExpression(f"every() takes 1ms to 100 years in whole milliseconds, not {interval}")
    return f"@every {format_duration(interval)}"


def at(instant: datetime) -> str:
    """The expression for one instant: "@at 2027-01-01T00:00:00Z". It may be past; a naive one raises
    InvalidExpression, and so does one outside the years 1970 to 2099 (UTC)."""
    instant = _utc(instant, "the instant of at()")
    if not _EPOCH <= instant < _END:
        raise InvalidExpression(f"at() takes an instant in the years {_FIRST_YEAR} to {_LAST_YEAR}, not {instant}")
    return f"@at {instant.replace(tzinfo=None).isoformat()}Z"


def upcoming(expression: str, timezone: str = "UTC", after: datetime | None = None, count: int = 5) -> list[datetime]:
    """The next `count` fire times strictly after `after` (None: the current time), in UTC; fewer at the end.

    `@every` is anchored at `after`. Raises InvalidExpression also for a naive `after` or a negative `count`.
    """
    if not isinstance(count, int) or count < 0:
        raise InvalidExpression(
            f"count is a whole number from 0, not {count if isinstance(count, int) else type(count).__name__}"
        )
    found: datetime | None = datetime.now(UTC) if after is None else _utc(after, "after")
    parsed = parse(expression, timezone, anchor=found)
    times: list[datetime] = []
    while len(times) < count and found is not None and (found := parsed.next(found)) is not None:
        times.append(found)
    return times


def check_timezone(name: str) -> zoneinfo.ZoneInfo:
    """The IANA zone of that exact name. Raises InvalidExpression, with the nearest name where there is one.

    The names are those of the tzdata package: what a host keeps beside them (`localtime`, `right/…`), or a
    file system that ignores case, would make the same schedule mean different times on different machines.
    """
    name = _exact(name, "a time zone is a name such as 'Europe/Berlin'")
    if name not in _zone_names():
        by_lower = {known.lower(): known for known in sorted(_zone_names())}
        near = difflib.get_close_matches(name.lower(), by_lower, n=1) if len(name) <= 64 else []
        hint = f"did you mean {by_lower[near[0]]}?" if near else "write an IANA name such as Europe/Berlin"
        raise InvalidExpression(f"there is no time zone {_quote(name)}: {hint}")
    try:
        return zoneinfo.ZoneInfo(name)
    except (OSError, ValueError, LookupError) as error:
        raise InvalidExpression(f"the time zone {_quote(name)} cannot be loaded: reinstall tzdata") from error


_UNITS = {
    "d": timedelta(days=1),
    "h": timedelta(hours=1),
    "m": timedelta(minutes=1),
    "s": _SECOND,
    "ms": FINEST,
}
_DURATION = re.compile("".join(rf"(?:(\d{{1,14}}){unit})?" for unit in _UNITS), re.ASCII | re.IGNORECASE)
_NUMBER = re.compile(r"(\d{1,14})(?:\.(\d{1,6}))?", re.ASCII)


def parse_duration(text: str) -> timedelta:
    """Read "500ms", "30s", "1h30m", "2d" (units in this order: d h m s ms), or a plain number of seconds.

    Zero is a duration. Raises InvalidExpression (a ValueError) for anything else.
    """
    text = _exact(text, "a duration is text such as '30s'")
    stripped = text.strip(" \t")
    try:
        if number := _NUMBER.fullmatch(stripped):
            micros = int((number[2] or "").ljust(6, "0"))
            return timedelta(seconds=int(number[1]), microseconds=micros)
        if stripped and (units := _DURATION.fullmatch(stripped)):
            parts = zip(units.groups(), _UNITS.values(), strict=True)
            return sum((int(amount) * unit for amount, unit in parts if amount), timedelta())
    except OverflowError:
        raise InvalidExpression(f"the duration {_quote(text)} is too long: write a shorter one") from None
    raise InvalidExpression(
        f"{_quote(text)} is not a duration: write it like 500ms, 30s, 5m, 2h, 1h30m or 1d, or as seconds"
    )


def format_duration(duration: timedelta) -> str:
    """The text that `parse_duration` reads back as `duration`: "1h30m", "0s"; a plain number of seconds where
    milliseconds are too coarse. A negative duration raises InvalidExpression."""
    if not isinstance(duration, timedelta):
        raise InvalidExpression(f"a duration is a timedelta, not {type(duration).__name__}")
    if duration < timedelta():
        raise InvalidExpression(f"a duration is not negative, as {duration} is")
    if duration % FINEST:
        return f"{duration // _SECOND}.{duration.microseconds:06}".rstrip("0")
    text = ""
    for name, unit in _UNITS.items():
        amount, duration = divmod(duration, unit)
        text += f"{amount}{name}" if amount else ""
    return text or "0s"


# -- Reading ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    low: int
    high: int
    top: int  # the highest number that may be written; what is above `high` means 0
    drawn: int  # the highest number that `H` draws
    names: tuple[str, ...] = ()  # of low, low + 1, ...


_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_MINUTE = _Field("minute", 0, 59, top=59, drawn=59)
_HOUR = _Field("hour", 0, 23, top=23, drawn=23)
_DATE = _Field("day of month", 1, 31, top=31, drawn=28)  # `H` comes in every month
_MONTH = _Field("month", 1, 12, top=12, drawn=12, names=_MONTHS)
_WEEKDAY = _Field("day of week", 0, 6, top=7, drawn=6, names=("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"))
_SECONDS = _Field("second", 0, 59, top=59, drawn=59)
_YEAR = _Field("year", _FIRST_YEAR, _LAST_YEAR, top=_LAST_YEAR, drawn=_LAST_YEAR)

_MACROS = {
    "@YEARLY": "0 0 1 1 *",
    "@ANNUALLY": "0 0 1 1 *",
    "@MONTHLY": "0 0 1 * *",
    "@WEEKLY": "0 0 * * 0",
    "@DAILY": "0 0 * * *",
    "@MIDNIGHT": "0 0 * * *",
    "@HOURLY": "0 * * * *",
}
_ITEM = re.compile(r"(?:\*|([0-9A-Z]+)(?:-([0-9A-Z]+))?)(?:/([0-9]+))?")
_HASHED = re.compile(r"H(?:\(([0-9A-Z]+)-([0-9A-Z]+)\))?(?:/([0-9]+))?")
# Not left to fromisoformat alone, which reads more with every release of Python.
_ISO = re.compile(
    r"\d{4}-\d\d-\d\d[T ]([01]\d|2[0-3]):\d\d(:\d\d(\.\d{1,6})?)?(?P<zone>Z|[+-]\d\d(:?[0-5]\d)?)?", re.ASCII
)


@lru_cache(maxsize=2048)
def _parse(text: str, zone: zoneinfo.ZoneInfo, *, name: str, anchor: datetime) -> Expression:
    # isascii() comes before upper(), which would turn some other letters into ASCII ones.
    if not text.isascii() or not text.replace("\t", " ").isprintable():
        bad = next(c for c in text if c != "\t" and not (c.isascii() and c.isprintable()))
        raise InvalidExpression(f"the expression {_quote(text)} contains {_quote(bad)}: write plain ASCII in one line")
    word, _, rest = text.replace("\t", " ").partition(" ")
    word, rest = word.upper(), rest.strip()
    if word == "@EVERY":
        return Expression(text, zone.key, "every", _Every(anchor, _interval(rest)))
    if word == "@AT":
        return Expression(text, zone.key, "at", _At(_instant(rest)))
    if word == "@REBOOT":
        raise InvalidExpression("@reboot is not a time: run it from the service that boots, or write @at an instant")
    if word.startswith("@") and (word not in _MACROS or rest):
        raise InvalidExpression(
            f"{_quote(text)} is not known: write one of {', '.join(_MACROS).lower()}, @every 90s, "
            "or @at 2027-01-01T00:00:00Z"
        )
    return Expression(text, zone.key, "cron", _read_cron(_MACROS.get(word, text), text, zone, name))


def _is_rate(interval: timedelta) -> bool:
    return FINEST <= interval <= WIDEST and not interval % FINEST


def _interval(text: str) -> timedelta:
    interval = parse_duration(text) if text else timedelta()
    if not _is_rate(interval):
        raise InvalidExpression(
            f"@every {_quote(text)}: write 1ms to 100 years in whole milliseconds, such as @every 90s"
        )
    return interval


def _instant(text: str) -> datetime:
    shape = _ISO.fullmatch(text.upper())
    if shape and not shape["zone"]:
        raise InvalidExpression(f"@at {_quote(text)} has no UTC offset: add Z, or an offset such as +02:00")
    try:
        instant = datetime.fromisoformat(text.upper()).astimezone(UTC) if shape else None
    except (ValueError, OverflowError):
        instant = None
    if instant is None or not _EPOCH <= instant < _END:
        raise InvalidExpression(
            f"@at {_quote(text)} is not an instant in the years {_FIRST_YEAR} to {_LAST_YEAR}: "
            "write it like @at 2027-01-01T00:00:00Z"
        )
    return instant


def _read_cron(fields_text: str, text: str, zone: zoneinfo.ZoneInfo, name: str) -> "_Cron":
    texts = fields_text.split()
    if not 5 <= len(texts) <= 7:
        raise InvalidExpression(
            f"the expression {_quote(text)} has {len(texts)} fields: write 5 (minute, hour, day of month, "
            "month, day of week), 6 (second last) or 7 (then year)"
        )
    texts += ["0", "*"][len(texts) - 5 :]
    minute, hour, date, month, weekday, second, year = texts
    date, weekday = ("*" if day == "?" else day for day in (date, weekday))

    def read(of: _Field, source: str) -> tuple[int, ...]:
        return tuple(sorted(_values(of, source.upper().split(","), source, name)))

    years = read(_YEAR, year)
    sides = _read_days(date, weekday, read(_MONTH, month), name)
    cron = _Cron(
        zone,
        fixed=not any(part.startswith("*") for part in (second, minute, hour)),
        hours=read(_HOUR, hour),
        minutes=read(_MINUTE, minute),
        seconds=read(_SECONDS, second),
        years=years,
        # croniter would search all years for a side that never comes.
        days=tuple(side for side in sides if side.ever(years)),
    )
    if not cron.engines:  # made here, so that croniter has no complaints left for later
        raise InvalidExpression(
            f"the expression {_quote(text)} never fires: no date from {_FIRST_YEAR} to {_LAST_YEAR} fits its "
            "day, month and year; change one of them"
        )
    # In single years the clock may skip all the times of an interval.
    begin = datetime(years[0], 1, 1, tzinfo=UTC) - timedelta(days=2)
    if year != "*" and not cron.fixed and cron.next(begin) is None:
        raise InvalidExpression(
            f"the expression {_quote(text)} never fires: the clock of {zone.key} skips all its times; write "
            "the hour, minute and second without a star to run right after the skip"
        )
    return cron


def _read_days(date: str, weekday: str, months: tuple[int, ...], name: str) -> list["_Days"]:
    """What a date must fulfil to be a day of the schedule: any one of the answers.

    Both day fields if one of them begins with a star, else either: crontab(5) of Debian and of cronie.
    """
    days = _read_dates(_Days(months), date, name)
    if date.startswith("*") or weekday.startswith("*"):
        return [_read_weekdays(days, weekday, name)]
    return [days, _read_weekdays(_Days(months), weekday, name)]


def _read_dates(days: "_Days", text: str, name: str) -> "_Days":
    upper = text.upper()
    if upper == "LW":
        return replace(days, nearest=31)
    if "W" in upper:
        if not re.fullmatch(r"[0-9]+W", upper):
            _refuse(_DATE, text, "W follows one day and stands alone, as in 15W or LW")
        return replace(days, nearest=_number(_DATE, upper[:-1], text))
    items = upper.split(",")
    plain = [item for item in items if item != "L"]
    return replace(days, dates=frozenset(_values(_DATE, plain, text, name)), last=len(plain) < len(items))


def _read_weekdays(days: "_Days", text: str, name: str) -> "_Days":
    items = text.upper().split(",")
    special = [item for item in items if "#" in item or item.endswith("L")]
    if not special:
        return replace(days, weekdays=frozenset(_values(_WEEKDAY, items, text, name)))
    if len(special) < len(items):
        _refuse(_WEEKDAY, text, "d#n and dL cannot be mixed with plain days: make two schedules")
    nth = set()
    for item in items:
        found = re.fullmatch(r"([0-9A-Z]+)(?:#([1-5])|L)", item)
        if not found:
            _refuse(_WEEKDAY, text, f"{_quote(item)} should read like MON#1 (to MON#5) or MONL for the last")
        nth.add((_within(_WEEKDAY, _number(_WEEKDAY, found[1], text)), int(found[2] or 0)))
    return replace(days, weekdays=frozenset(), nth=frozenset(nth))


def _values(of: _Field, items: list[str], text: str, name: str) -> set[int]:
    values: set[int] = set()
    for item in items:
        values.update(_hashed(of, item, text, name) if item.startswith("H") else _range(of, item, text))
    return values


def _range(of: _Field, item: str, text: str) -> set[int]:
    """`*`, `a`, `a-b`, `a/n`, `a-b/n`, `*/n`: the values of one item of a list."""
    match = _ITEM.fullmatch(item)
    if not match:
        _refuse(of, text, _advice(of, item))
    first, last, step_text = match.groups()
    step = _step(of, step_text, text)
    if first is None:
        return set(range(of.low, of.high + 1, step))
    if last is None:
        start = _within(of, _number(of, first, text))
        return set(range(start, of.high + 1, step)) if step_text else {start}
    start, end = _bounds(of, first, last, step_text, text)
    return {_within(of, value) for value in range(start, end + 1, step)}


def _bounds(of: _Field, first: str, last: str, step_text: str | None, text: str) -> tuple[int, int]:
    """The ends of a range, where Sunday is 0 at the front and 7 at the back of a week."""
    start, end = _number(of, first, text), _number(of, last, text)
    if end == 0 < start and of is _WEEKDAY:
        end = 7
    if start > end:
        # Two ranges to write instead: up to the field's end, and on from its beginning in the same step.
        step = _step(of, step_text, text)
        again = start + -(-(of.high + 1 - start) // step) * step - (of.high + 1 - of.low)
        pieces = [(a, b) for a, b in ((start, of.high), (again, end)) if a <= b]
        suffix = f"/{step_text}" if step_text else ""
        ranges = ",".join(f"{_name(of, a, first)}-{_name(of, b, first)}{suffix}" for a, b in pieces)
        _refuse(of, text, f"the range {_quote(f'{first}-{last}')} runs backwards: write {ranges}")
    return start, end


def _hashed(of: _Field, item: str, text: str, name: str) -> set[int]:
    """`H`, `H/n`, `H(a-b)`, `H(a-b)/n`: drawn from the schedule's name, each field on its own.

    The draw is part of what every stored schedule means: it must not change on any platform, in any release.
    """
    match = _HASHED.fullmatch(item)
    if not match or of is _YEAR:
        _refuse(of, text, "H reads like H, H/15, H(0-29) or H(0-29)/10, and not in the year")
    first, last, step_text = match.groups()
    start, end, drawn = of.low, of.high, of.drawn
    if first:
        start, end = _bounds(of, first, last, None, text)
        drawn = end
    digest = hashlib.sha256(f"{of.name}\0{name}".encode("utf-8", "surrogatepass")).digest()
    draw = int.from_bytes(digest[:8], "big")
    if not step_text:
        return {_within(of, start + draw % (drawn - start + 1))}
    step = _step(of, step_text, text)
    start += draw % min(step, drawn - start + 1)
    return {_within(of, value) for value in range(start, end + 1, step)}


def _step(of: _Field, step_text: str | None, text: str) -> int:
    step = int(step_text or 1)
    if step == 0:
        _refuse(of, text, "the step after '/' must be at least 1")
    return step


def _number(of: _Field, token: str, text: str) -> int:
    if token in of.names:
        return of.low + of.names.index(token)
    if not token.isdigit():
        _refuse(of, text, _advice(of, token))
    if not of.low <= int(token) <= of.top:
        _refuse(of, text, f"{_quote(token)} is out of range: write {of.low} to {of.top}")
    return int(token)


def _within(of: _Field, value: int) -> int:
    return value if value <= of.high else 0


def _name(of: _Field, value: int, like: str) -> str:
    return str(value) if like.isdigit() else of.names[value - of.low]


def _advice(of: _Field, token: str) -> str:
    """Why a token is not understood, for what people bring along from other crons."""
    if not token:
        return "an item of the list is empty: remove the spare comma"
    if token.startswith("R") or "~" in token:
        return "a random time would differ on every worker: write H, which is drawn from the schedule's name"
    if "?" in token:
        return "'?' stands alone, in the two day fields: write '*'"
    if of is _WEEKDAY and "L" in token:
        return "L follows its weekday: write 5L or FRIL for the last Friday"
    if "L" in token and of is _DATE:
        return "L stands for the last day of the month and takes neither range nor offset"
    names = f", or {of.names[0]} to {of.names[-1]}" if of.names else ""
    return f"{_quote(token)} is not understood: write *, {of.low} to {of.high}{names}, with , - or /"


def _refuse(of: _Field, text: str, reason: str) -> NoReturn:
    raise InvalidExpression(f"{of.name} field {_quote(text)}: {reason}")


def _quote(text: str) -> str:
    """Foreign text, safe and short enough for one line of a log."""
    return ascii(text) if len(text) <= 60 else f"{text[:40]!a}..."


def _exact(value: str, what: str) -> str:
    if not isinstance(value, str):
        raise InvalidExpression(f"{what}, not {type(value).__name__}")
    return str.__str__(value)  # whatever a subclass does with comparison and hash


def _utc(value: datetime, what: str) -> datetime:
    if not isinstance(value, datetime):
        raise InvalidExpression(f"{what} must be a datetime with a time zone, not {type(value).__name__}")
    try:
        if value.utcoffset() is not None:
            return value.astimezone(UTC)
    except OverflowError:
        raise InvalidExpression(f"{what} is out of range in UTC: {value}") from None
    raise InvalidExpression(f"{what} must carry a time zone, as {value} does not: add tzinfo=UTC or another")


@lru_cache(maxsize=1)
def _zone_names() -> frozenset[str]:
    try:
        return frozenset(importlib.resources.files("tzdata").joinpath("zones").read_text("ascii").split())
    except (OSError, ModuleNotFoundError):  # a distribution that leaves the package's data out
        return frozenset(zoneinfo.available_timezones())


# -- @every and @at -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Every:
    """A fixed rate from `anchor` on, in elapsed time: daylight saving does not touch it."""

    anchor: datetime
    interval: timedelta

    def next(self, after: datetime) -> datetime | None:
        if after >= _END:
            return None  # also keeps the sum below from leaving what datetime can hold
        found = self.anchor + max((after - self.anchor) // self.interval + 1, 0) * self.interval
        return found if found < _END else None

    def latest(self, after: datetime, until: datetime) -> datetime | None:
        if not (passed := self._passed(until)):
            return None
        found = self.anchor + (passed - 1) * self.interval
        return found if found > after else None

    def count(self, after: datetime, until: datetime) -> int:
        return self._passed(until) - self._passed(after)

    def _passed(self, until: datetime) -> int:
        """How many fire times lie at or before `until`."""
        until = min(until, _END - timedelta.resolution)
        return max((until - self.anchor) // self.interval + 1, 0)


@dataclass(frozen=True, slots=True)
class _At:
    instant: datetime

    def next(self, after: datetime) -> datetime | None:
        return self.instant if self.instant > after else None

    def latest(self, after: datetime, until: datetime) -> datetime | None:
        return self.instant if after < self.instant <= until else None

    def count(self, after: datetime, until: datetime) -> int:
        return int(after < self.instant <= until)


# -- cron ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Days:
    """The dates of one schedule, or of one of its two day fields: month, date and weekday must all fit."""

    months: tuple[int, ...]
    dates: frozenset[int] = frozenset(range(1, 32))
    last: bool = False  # L, beside `dates`
    nearest: int | None = None  # nW, instead of `dates`; 31 is LW, as a short month counts from its end
    weekdays: frozenset[int] = frozenset(range(7))  # 0 is Sunday
    nth: frozenset[tuple[int, int]] = frozenset()  # d#n as (d, n), dL as (d, 0); instead of `weekdays`

    def of(self, year: int, month: int) -> Iterator[int]:
        """The days of that month that fit."""
        first, length = calendar.monthrange(year, month)  # first: 0 is Monday
        nearest = self._nearest(first, length)
        for day in range(1, length + 1) if month in self.months else ():
            weekday = (first + day) % 7
            date_fits = day == nearest if nearest else day in self.dates or (self.last and day == length)
            if date_fits and (
                weekday in self.weekdays
                or (weekday, (day + 6) // 7) in self.nth
                or (day + 7 > length and (weekday, 0) in self.nth)
            ):
                yield day

    def _nearest(self, first: int, length: int) -> int | None:
        """The weekday (Monday to Friday) nearest to the date, without leaving the month."""
        if self.nearest is None:
            return None
        day = min(self.nearest, length)
        weekday = (first + day) % 7
        if weekday == 6:
            return day - 1 if day > 1 else day + 2
        if weekday == 0:
            return day + 1 if day < length else day - 2
        return day

    def ever(self, years: tuple[int, ...]) -> bool:
        """Whether any date in `years` fits. There are only 14 different years, so this ends at once."""
        seen = set()
        for year in years:
            shape = calendar.isleap(year), calendar.weekday(year, 1, 1)
            if shape not in seen and any(day for month in self.months for day in self.of(year, month)):
                return True
            seen.add(shape)
        return False


@dataclass(frozen=True)
class _Cron:
    """A cron expression as sets of numbers, croniter over them, and what daylight saving makes of it.

    An expression whose second, minute or hour field begins with a star is an interval: it runs whenever the
    clock shows a matching time. Any other is fixed-time: each listed time runs once, at the first instant
    after the skip if the clock skips it, and the first time only if the clock shows it twice. That is the
    rule of Debian's cron (cron(8), NOTES), kept for a change of any size; unlike there, several skipped times
    of one schedule make one run.
    """

    zone: zoneinfo.ZoneInfo
    fixed: bool
    hours: tuple[int, ...]
    minutes: tuple[int, ...]
    seconds: tuple[int, ...]
    years: tuple[int, ...]
    days: tuple[_Days, ...]  # a date fits if it fits any one
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def next(self, after: datetime) -> datetime | None:
        found = self._after(_seconds(after))
        return None if found is None else _EPOCH + timedelta(seconds=found)

    def latest(self, after: datetime, until: datetime) -> datetime | None:
        low, high = _seconds(after), _seconds(until)
        limit, latest = high, None
        while low < high:  # what is wanted lies in (low, high], if it exists
            middle = (low + high) // 2
            found = self._after(middle)
            if found is not None and found <= limit:
                low = latest = found
            else:
                high = middle
        return None if latest is None else _EPOCH + timedelta(seconds=latest)

    def count(self, after: datetime, until: datetime) -> int:
        instant, stop = _seconds(after) + 1, _seconds(until) + 1
        total = 0
        while instant < stop:
            start, end, offset, shown = _stretch(self.zone, instant)
            end = min(end, stop)
            wall = instant + offset
            if self.fixed:
                wall = max(wall, shown)  # what the clock had shown before, it shows again
                # Where it jumped from `shown` to `wall`, one run for what lies between, unless `wall` has one.
                if instant == start and self._before(shown) < self._before(wall) == self._before(wall + 1):
                    total += 1
            total += max(self._before(end + offset) - self._before(wall), 0)
            instant = end
        return total

    def _after(self, instant: int) -> int | None:
        """The first fire time strictly after `instant`."""
        _, end, offset, shown = _stretch(self.zone, instant)
        wall = instant + offset
        if self.fixed:
            wall = max(wall, shown - 1)  # pass over what the clock had shown before
        match = self._match(wall)
        while match - offset >= end:
            # Nothing matches between `wall` and `match`, and nothing runs until the clock changes at `end`.
            if match == _NEVER and (self.fixed or end > instant + 2 * _DAY):
                return None
            _, next_end, next_offset, _ = _stretch(self.zone, end)
            changed = end + next_offset  # what the clock shows at the change
            if self.fixed:
                if match < changed:
                    return end
            elif match < changed or changed <= wall:  # skipped, or shown once more
                wall = changed - 1
                match = self._match(wall)
            end, offset = next_end, next_offset
        return match - offset if match < _NEVER else None

    def _match(self, wall: int) -> int:
        """The first match of the wall clock strictly after `wall`; _NEVER when there is none."""
        wall = max(wall, -1)
        if wall >= _NEVER - 1:
            return _NEVER
        first = _NEVER
        with self._lock:  # get_next() sets the start and then reads it; parse() shares us between threads
            for engine in self.engines:
                try:
                    found = int(engine.get_next(float, float(wall)))
                except CroniterBadDateError:
                    continue
                if found <= wall:  # never seen; the loops above rely on it
                    raise AssertionError(f"croniter went from {wall} to {found} on {engine.expressions}")
                first = min(first, found)
        return first

    @cached_property
    def engines(self) -> tuple["croniter[float]", ...]:
        """One croniter a side: its own way of joining two day fields has faults."""
        span = _LAST_YEAR - _FIRST_YEAR + 1
        return tuple(
            croniter(self._text(days), 0.0, day_or=False, max_years_between_matches=span) for days in self.days
        )

    def _text(self, days: _Days) -> str:
        """In croniter's dialect, and only in as much of it as it reads right: numbers, lists, plain stars."""
        dates = f"{days.nearest}W" if days.nearest else _listed(days.dates, 31, *["L"] * days.last)
        nth = ",".join(f"{weekday}#{n}" if n else f"L{weekday}" for weekday, n in sorted(days.nth))
        fields = [
            _listed(self.minutes, 60),
            _listed(self.hours, 24),
            dates,
            _listed(days.months, 12),
            nth or _listed(days.weekdays, 7),
        ]
        years = _listed(self.years, _LAST_YEAR - _FIRST_YEAR + 1)
        if self.seconds != (0,) or years != "*":
            fields.append(_listed(self.seconds, 60))
        return " ".join(fields if years == "*" else [*fields, years])

    def _before(self, wall: int) -> int:
        """How many matches the wall clock has from the beginning of 1970 to `wall`, without `wall` itself."""
        day, second = divmod(min(max(wall, 0), _NEVER), _DAY)
        date = _EPOCH.date() + timedelta(days=day)
        passed, days = self._calendar[date.year - _FIRST_YEAR]
        today = date.timetuple().tm_yday
        rank = passed + (days & ((1 << today) - 1)).bit_count()
        total = rank * len(self.hours) * len(self.minutes) * len(self.seconds)
        return total + (self._before_in_day(second) if days >> today & 1 else 0)

    def _before_in_day(self, second: int) -> int:
        total = 0
        # As in a number of three digits: what is smaller in this digit, times all that may follow it.
        for values, value, weight in (
            (self.hours, second // 3600, len(self.minutes) * len(self.seconds)),
            (self.minutes, second // 60 % 60, len(self.seconds)),
            (self.seconds, second % 60, 1),
        ):
            smaller = bisect_left(values, value)
            total += smaller * weight
            if value not in values[smaller : smaller + 1]:
                break
        return total

    @cached_property
    def _calendar(self) -> list[tuple[int, int]]:
        return _calendar(self.days, self.years)


@lru_cache(maxsize=512)  # schedules share it: most run on all days, or on weekdays
def _calendar(sides: tuple[_Days, ...], years: tuple[int, ...]) -> list[tuple[int, int]]:
    """For each year from 1970 on, and one more: how many days fit before it; its own days as bits 1 to 366."""
    shapes: dict[tuple[bool, int], int] = {}
    found: list[tuple[int, int]] = []
    passed = 0
    for year in range(_FIRST_YEAR, _LAST_YEAR + 2):
        shape = calendar.isleap(year), calendar.weekday(year, 1, 1)
        if shape not in shapes:
            shapes[shape] = _bits(sides, year)
        days = shapes[shape] if year in years else 0
        found.append((passed, days))
        passed += days.bit_count()
    return found


def _bits(sides: tuple[_Days, ...], year: int) -> int:
    bits = start = 0
    for month in range(1, 13):
        for days in sides:
            for day in days.of(year, month):
                bits |= 1 << (start + day)
        start += calendar.monthrange(year, month)[1]
    return bits


def _listed(values: Iterable[int], full: int, *more: str) -> str:
    numbers = sorted(values)
    return "*" if len(numbers) == full else ",".join([*map(str, numbers), *more])


def _seconds(instant: datetime) -> int:
    """Whole seconds since the epoch, rounded down; clipped to where any zone may still have a fire time."""
    return min(max((instant - _EPOCH) // _SECOND, -2 * _DAY), _NEVER + 2 * _DAY)


# -- Zones --------------------------------------------------------------------------------------------------


def _stretch(zone: zoneinfo.ZoneInfo, instant: int) -> tuple[int, int, int, int]:
    """The stretch of constant UTC offset around `instant`: start, end (exclusive), offset, shown.

    In it, wall = instant + offset. `shown` is what the clock would have shown at `start` without the change:
    more than start + offset if the clock was set back there, less if it was set forward. A stretch may be cut
    where nothing changes.
    """
    return next(cut for cut in _stretches(zone, instant >> _WINDOW_BITS) if instant < cut[1])


@lru_cache(maxsize=8192)
def _stretches(zone: zoneinfo.ZoneInfo, window: int) -> tuple[tuple[int, int, int, int], ...]:
    """The stretches of one window: zoneinfo is asked every third day, and bisected where its answer changes.

    In the zones' history since 1970 no two changes lie less than a week apart.
    """
    # Two days more than the window, so that `shown` is known for as long after a change as it matters.
    start = (window << _WINDOW_BITS) - 2 * _DAY
    stop = (window + 1) << _WINDOW_BITS
    apart = 3 * _DAY
    offset = _offset(zone, start)
    shown = start + offset
    cuts = []
    for probe in [*range(start + apart, stop, apart), stop - 1]:
        while _offset(zone, probe) != offset:
            low, high = max(start, probe - apart), probe
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if _offset(zone, middle) == offset else (low, middle)
            cuts.append((start, high, offset, shown))
            start, shown, offset = high, high + offset, _offset(zone, high)
    return (*cuts, (start, stop, offset, shown))


def _offset(zone: zoneinfo.ZoneInfo, instant: int) -> int:
    offset = (_EPOCH + timedelta(seconds=instant)).astimezone(zone).utcoffset()
    assert offset is not None
    return offset // _SECOND
