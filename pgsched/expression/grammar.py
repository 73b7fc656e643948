"""Reads expressions: text in, sets of numbers out. Strict and pure; knows no time zone and no clock."""

import hashlib
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, NoReturn

from pgsched.errors import InvalidExpression, quote
from pgsched.expression.days import Days
from pgsched.expression.duration import FINEST, parse_duration
from pgsched.expression.instants import END, EPOCH, FIRST_YEAR, LAST_YEAR


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    low: int
    high: int
    top: int  # the highest number that may be written; a number above `high` means 0
    drawn: int  # the highest number that `H` draws
    names: tuple[str, ...] = ()  # of low, low + 1, ...


_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_MINUTE = _Field("minute", 0, 59, top=59, drawn=59)
_HOUR = _Field("hour", 0, 23, top=23, drawn=23)
_DATE = _Field("day of month", 1, 31, top=31, drawn=28)  # `H` comes in every month
_MONTH = _Field("month", 1, 12, top=12, drawn=12, names=_MONTHS)
_WEEKDAY = _Field("day of week", 0, 6, top=7, drawn=6, names=("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"))
_SECOND = _Field("second", 0, 59, top=59, drawn=59)
_YEAR = _Field("year", FIRST_YEAR, LAST_YEAR, top=LAST_YEAR, drawn=LAST_YEAR)

_ORDER = (_MINUTE, _HOUR, _DATE, _MONTH, _WEEKDAY, _SECOND, _YEAR)

_MACROS = {
    "@YEARLY": "0 0 1 1 *",
    "@ANNUALLY": "0 0 1 1 *",
    "@MONTHLY": "0 0 1 * *",
    "@WEEKLY": "0 0 * * 0",
    "@DAILY": "0 0 * * *",
    "@MIDNIGHT": "0 0 * * *",
    "@HOURLY": "0 * * * *",
}
_WIDEST = timedelta(days=36_525)  # 100 years
_ITEM = re.compile(r"(?:\*|([0-9A-Z]+)(?:-([0-9A-Z]+))?)(?:/([0-9]+))?")
_ZONE_BEFORE = re.compile(r"(?:CRON_)?TZ=(\S+)")
_ZONE_BEHIND = re.compile(r"[A-Za-z]+/[A-Za-z_/+-]+|UTC|GMT")
_CALENDAR = re.compile(r"\.\.|^\*-\*|^\d{1,2}:\d\d")
_HASHED = re.compile(r"H(?:\(([0-9A-Z]+)-([0-9A-Z]+)\))?(?:/([0-9]+))?")
# Not left to fromisoformat alone, which reads more with every release of Python.
_ISO = re.compile(
    r"\d{4}-\d\d-\d\d[T ]([01]\d|2[0-3]):\d\d(:\d\d(\.\d{1,6})?)?(?P<zone>Z|[+-]\d\d(:?[0-5]\d)?)?", re.ASCII
)


class Written(NamedTuple):
    """The seven fields as they are written, in capitals; `*` for a `?`, and defaults for omitted fields."""

    minute: str
    hour: str
    date: str
    month: str
    weekday: str
    second: str
    year: str


@dataclass(frozen=True, slots=True)
class Fields:
    """A cron expression as numbers, in rising order."""

    seconds: tuple[int, ...]
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    months: tuple[int, ...]
    years: tuple[int, ...]
    sides: tuple[Days, ...]  # a date fits if it fits any one; two sides if either day field is enough
    days: tuple[Days, ...]  # the sides that ever come: croniter would search all years for one that does not
    written: Written
    drawn: tuple[tuple[str, tuple[int, ...]], ...]  # the values that `H` drew, by the name of its field

    @property
    def fixed(self) -> bool:
        """Whether each listed time runs exactly once, even if the clock skips or repeats it. See Cron."""
        return not any(text.startswith("*") for text in (self.written.second, self.written.minute, self.written.hour))


def read(text: str, name: str) -> Fields | timedelta | datetime:
    """The meaning of an expression: cron fields, the interval of `@every`, or the instant of `@at`.

    text: the expression, without blanks around it.
    name: the schedule's name, which decides the values of `H`.
    """
    # isascii() comes before upper(), which would turn some other letters into ASCII ones.
    if not text.isascii() or not text.replace("\t", " ").isprintable():
        bad = next(c for c in text if c != "\t" and not (c.isascii() and c.isprintable()))
        raise InvalidExpression(f"the expression {quote(text)} contains {quote(bad)}: write plain ASCII in one line")
    word, _, rest = text.replace("\t", " ").partition(" ")
    word, rest = word.upper(), rest.strip()
    if word == "@EVERY":
        return _interval(rest)
    if word == "@AT":
        return _instant(rest)
    if word == "@REBOOT":
        raise InvalidExpression("@reboot is not a time: start the job from a boot service, or write @at an instant")
    if word.startswith("@") and (word not in _MACROS or rest):
        raise InvalidExpression(
            f"{quote(text)} is not known: write one of {', '.join(_MACROS).lower()}, @every 90s, "
            "or @at 2027-01-01T00:00:00Z"
        )
    texts = _MACROS.get(word, text).split()
    if hint := _elsewhere(texts):
        raise InvalidExpression(f"the expression {quote(text)} {hint}")
    if not 5 <= len(texts) <= 7:
        raise InvalidExpression(
            f"the expression {quote(text)} has {len(texts)} fields: write 5 (minute, hour, day of month, "
            "month, day of week), 6 (second last) or 7 (then year)"
        )
    try:
        fields = _fields(texts, name)
    except InvalidExpression as error:
        raise InvalidExpression(f"{error}{_seconds_first(texts, name)}") from None
    if not fields.days:
        raise InvalidExpression(
            f"the expression {quote(text)} never fires: no date from {FIRST_YEAR} to {LAST_YEAR} fits its "
            "day, month and year; change one of them"
        )
    return fields


def _elsewhere(texts: list[str]) -> str:
    """Advice for the syntax of other schedulers; empty if the text has none."""
    if not texts:
        return ""
    first, last = texts[0], texts[-1]
    if len(texts) == 1 and f"@{first.upper()}" in _MACROS:
        return f"is a word of systemd's: write {'@' + first.lower()!r}"
    if (zone := _ZONE_BEFORE.fullmatch(first)) is not None:
        return f"has a time zone in it: write {' '.join(texts[1:])!r}, and {zone[1]!r} as the time zone"
    if len(texts) > 5 and _ZONE_BEHIND.fullmatch(last):
        return f"has a time zone in it: write {' '.join(texts[:-1])!r}, and {last!r} as the time zone"
    if any(_CALENDAR.search(each) for each in texts):
        return "looks like an OnCalendar text of systemd's: write cron fields, such as '0 9 * * mon-fri'"
    return ""


def _seconds_first(texts: list[str], name: str) -> str:
    """The text to write instead, if the fields make sense with the seconds in front, as in Quartz and Spring."""
    meant = [*texts[1:6], texts[0], *texts[6:]]
    written = " ".join(meant)
    if len(texts) < 6 or len(written) > 60:
        return ""
    try:
        if not _fields(meant, name).days:
            return ""
    except InvalidExpression:
        return ""
    day = texts[5]
    sunday = " (Quartz counts Sunday as 1, but here it is 0)" if "?" in texts and day[0].isdigit() else ""
    return f". Seconds come last: if the first field means the seconds, write {written!r}{sunday}"


def is_rate(interval: timedelta) -> bool:
    """Whether `@every` takes that interval."""
    return FINEST <= interval <= _WIDEST and not interval % FINEST


def _interval(text: str) -> timedelta:
    interval = parse_duration(text) if text else timedelta()
    if not is_rate(interval):
        raise InvalidExpression(
            f"@every {quote(text)}: write 1ms to 100 years in whole milliseconds, such as @every 90s"
        )
    return interval


def _instant(text: str) -> datetime:
    shape = _ISO.fullmatch(text.upper())
    if shape and not shape["zone"]:
        raise InvalidExpression(f"@at {quote(text)} has no UTC offset: add Z, or an offset such as +02:00")
    try:
        instant = datetime.fromisoformat(text.upper()).astimezone(UTC) if shape else None
    except (ValueError, OverflowError):
        instant = None
    if instant is None or not EPOCH <= instant < END:
        raise InvalidExpression(
            f"@at {quote(text)} is not an instant in the years {FIRST_YEAR} to {LAST_YEAR}: "
            "write it like @at 2027-01-01T00:00:00Z"
        )
    return instant


def _fields(texts: list[str], name: str) -> Fields:
    minute, hour, date, month, weekday, second, year = [*texts, *["0", "*"][len(texts) - 5 :]]
    date, weekday = ("*" if day == "?" else day for day in (date, weekday))

    def read(of: _Field, source: str) -> tuple[int, ...]:
        return tuple(sorted(_values(of, source.upper().split(","), source, name)))

    years, months = read(_YEAR, year), read(_MONTH, month)
    sides = _read_days(date, weekday, months, name)
    written = Written(*(text.upper() for text in (minute, hour, date, month, weekday, second, year)))
    return Fields(
        years=years,
        months=months,
        sides=sides,
        days=tuple(side for side in sides if side.ever(years)),
        hours=read(_HOUR, hour),
        minutes=read(_MINUTE, minute),
        seconds=read(_SECOND, second),
        written=written,
        drawn=tuple(
            (of.name, drawn) for of, text in zip(_ORDER, written, strict=True) if (drawn := _drawn(of, text, name))
        ),
    )


def _drawn(of: _Field, text: str, name: str) -> tuple[int, ...]:
    """The values of a field's items that begin with `H`."""
    return tuple(sorted(_values(of, [item for item in text.split(",") if item.startswith("H")], text, name)))


def _read_days(date: str, weekday: str, months: tuple[int, ...], name: str) -> tuple[Days, ...]:
    """The conditions for a day of the schedule; a date needs to meet only one of them.

    Both day fields must fit if one of them begins with a star, else either: crontab(5) of Debian and of cronie.
    """
    days = _read_dates(Days(months), date, name)
    if date.startswith("*") or weekday.startswith("*"):
        return (_read_weekdays(days, weekday, name),)
    return days, _read_weekdays(Days(months), weekday, name)


def _read_dates(days: Days, text: str, name: str) -> Days:
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


def _read_weekdays(days: Days, text: str, name: str) -> Days:
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
            _refuse(_WEEKDAY, text, f"{quote(item)} should read like MON#1 (to MON#5) or MONL for the last")
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
    """The ends of a range. Sunday is 0 at the front and 7 at the back of a week."""
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
        _refuse(of, text, f"the range {quote(f'{first}-{last}')} runs backwards: write {ranges}")
    return start, end


def _hashed(of: _Field, item: str, text: str, name: str) -> set[int]:
    """`H`, `H/n`, `H(a-b)`, `H(a-b)/n`: drawn from the schedule's name, each field on its own.

    The draw is part of the meaning of every stored schedule: it must not change on any platform, in any release.
    """
    match = _HASHED.fullmatch(item)
    if not match or of is _YEAR:
        _refuse(of, text, "write H, H/15, H(0-29) or H(0-29)/10, and no H in the year")
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
        midnight = " (midnight is 0, of the day that begins)" if of.name == "hour" and int(token) == 24 else ""
        _refuse(of, text, f"{quote(token)} is out of range: write {of.low} to {of.top}{midnight}")
    return int(token)


def _within(of: _Field, value: int) -> int:
    return value if value <= of.high else 0


def _name(of: _Field, value: int, like: str) -> str:
    return str(value) if like.isdigit() else of.names[value - of.low]


def _advice(of: _Field, token: str) -> str:
    """Why a token is not understood, with advice for the syntax of other crons."""
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
    return f"{quote(token)} is not understood: write *, {of.low} to {of.high}{names}, with , - or /"


def _refuse(of: _Field, text: str, reason: str) -> NoReturn:
    raise InvalidExpression(f"{of.name} field {quote(text)}: {reason}")
