"""Expressions in English, one sentence each. Pure; traps and daylight warn about surprises."""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

from pgsched.expression.days import Days
from pgsched.expression.duration import format_duration
from pgsched.expression.expression import At, Every, Expression
from pgsched.expression.grammar import Fields

MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
WEEKDAYS = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
_NTH = ("last", "first", "second", "third", "fourth", "fifth")
_MOST = 6  # up to this many times of day are listed, more are described
_SHORTEST = 4  # from this many on, numbers at even distances are described by their distance


def in_words(expression: Expression) -> str:
    """An accepted expression in words: "At 02:30 on every day, Europe/Paris". Without a full stop.

    `H` is shown with the values that it drew. Skips and repeats by daylight saving are not mentioned: see daylight.
    """
    times = expression.times
    if isinstance(times, Every):
        return f"Every {format_duration(times.interval)}, counted from {_instant(times.anchor)} UTC"
    if isinstance(times, At):
        there = times.instant.astimezone(ZoneInfo(expression.timezone))
        local = f", which is {_instant(there)} in {expression.timezone}" if there.utcoffset() else ""
        return f"Once, at {_instant(times.instant)} UTC{local}"
    fields = times.fields
    when, listed = _times(fields)
    parts = [when, _dates(fields) or ("on every day" if listed else "")]
    if len(fields.months) < len(MONTHS):
        parts.append(f"in {runs(fields.months, month)}")
    if fields.written.year != "*":
        parts.append(f"in {_numbers(fields.years, 'year')}")
    text = " ".join(part for part in parts if part)
    return f"{text[0].upper()}{text[1:]}, {expression.timezone}{_drawn(fields)}"


def _instant(value: datetime) -> str:
    return str(value.replace(tzinfo=None))


def _drawn(fields: Fields) -> str:
    """The values that `H` drew."""
    names: dict[str, Callable[[int], str]] = {"month": month, "day of week": weekday}
    drawn = [
        join([names[name](value) for value in values]) if name in names else _which(values, name.split()[0])
        for name, values in fields.drawn
    ]
    return f" (H drew {join(drawn)})" if drawn else ""


# -- Times of day -------------------------------------------------------------------------------------------


def _times(fields: Fields) -> tuple[str, bool]:
    """The times of day, and whether they are listed one by one."""
    seconds, minutes, hours = fields.seconds, fields.minutes, fields.hours
    if len(hours) * len(minutes) * len(seconds) <= _MOST:
        style = "{:02}:{:02}" if seconds == (0,) else "{:02}:{:02}:{:02}"
        return f"at {join(style.format(h, m, s) for h in hours for m in minutes for s in seconds)}", True
    on_the_minute = seconds == (0,)
    if on_the_minute and minutes == (0,) and (pace := _pace(hours, "hour", 24)):
        return pace, False
    levels = [(minutes, "minute", 60), (hours, "hour", 24)]
    if not on_the_minute:
        levels.insert(0, (seconds, "second", 60))
    (values, unit, size), *coarser = levels
    paced = _pace(values, unit, size)
    text = paced or f"at {_which(values, unit)}"
    for values, unit, size in coarser:
        if paced and len(values) == size:
            continue  # every minute of every hour is every minute
        all_of_them = f"every {unit}" if len(values) == size else ""
        text += f" {'in' if paced else 'of'} {all_of_them or _which(values, unit)}"
        paced = all_of_them
    return text, False


def _pace(values: Sequence[int], unit: str, size: int) -> str:
    """ "every 15 minutes" if they follow each other at that pace without end, else empty."""
    step = _step([*values, values[0] + size])
    if values[0] or len(values) == 1 or step is None:
        return ""
    return f"every {unit}" if step == 1 else f"every {step} {unit}s"


def _which(values: Sequence[int], unit: str) -> str:
    """ "minute 5", "minutes 0 to 10 and 30", "every 7th minute from 0 to 56"."""
    if len(values) == 1:
        return f"{unit} {values[0]}"
    numbers = _numbers(values, unit)
    return numbers if numbers.startswith("every") else f"{unit}s {numbers}"


def _numbers(values: Sequence[int], unit: str) -> str:
    step = _step(values)
    if len(values) >= _SHORTEST and step and step > 1:
        return f"every {ordinal(step)} {unit} from {values[0]} to {values[-1]}"
    return runs(values, str)


def _step(values: Sequence[int]) -> int | None:
    """The distance between neighbours, if it is the same everywhere."""
    steps = {high - low for low, high in pairwise(values)}
    return steps.pop() if len(steps) == 1 else None


# -- Dates --------------------------------------------------------------------------------------------------


def _dates(fields: Fields) -> str:
    """ "on day 13 of the month or on Friday"; empty if it is every day."""
    sides = fields.sides
    if len(sides) == 2:
        date, weekday_ = date_words(sides[0]), weekday_words(sides[1])
        return f"on {date} or on {weekday_}" if date and weekday_ else "on every day"
    date, weekday_ = date_words(sides[0]), weekday_words(sides[0])
    if date and weekday_:
        names = weekday_ if sides[0].nth else f"a {join(map(weekday, _week(sides[0].weekdays)), 'or')}"
        return f"on {date} {'that is' if date.startswith('every') else 'if it is'} {names}"
    return f"on {date or weekday_}" if date or weekday_ else ""


def date_words(days: Days) -> str:
    """The day of month in words; empty if it is any day."""
    if days.nearest:
        which = "last working day" if days.nearest == 31 else "working day"
        near = "" if days.nearest == 31 else f" nearest to day {days.nearest}"
        return f"the {which} (Monday to Friday){near} of the month"
    dates = sorted(days.dates)
    if len(dates) == 31:
        return ""
    last = " and the last day" if days.last else ""
    if not dates:
        return "the last day of the month"
    step = _step(dates)
    if step and step > 1 and len(dates) >= _SHORTEST and not last:
        # From the first to the month's end, as in `*/2`, the ends add nothing.
        ends = "" if dates[0] == 1 and dates[-1] + step > 31 else f" from {dates[0]} to {dates[-1]}"
        return f"every {ordinal(step)} day of the month{ends}"
    return f"{'day' if len(dates) == 1 else 'days'} {runs(dates, str)}{last} of the month"


def weekday_words(days: Days) -> str:
    """The day of week in words; empty if it is any day."""
    if days.nth:
        ranked = sorted(days.nth, key=lambda each: (each[1] or len(_NTH), (each[0] - 1) % 7))
        return f"the {join(f'{_NTH[nth]} {weekday(day)}' for day, nth in ranked)} of the month"
    return "" if len(days.weekdays) == 7 else runs([day or 7 for day in _week(days.weekdays)], weekday)


def _week(weekdays: Iterable[int]) -> list[int]:
    """From Monday to Sunday, which is 0."""
    return sorted(weekdays, key=lambda day: (day - 1) % 7)


# -- Lists --------------------------------------------------------------------------------------------------


def month(number: int) -> str:
    """The name of a month, from 1."""
    return MONTHS[number - 1]


def weekday(number: int) -> str:
    """The name of a day of the week; 0 and 7 are Sunday."""
    return WEEKDAYS[number % 7]


def runs(values: Sequence[int], name: Callable[[int], str]) -> str:
    """ "1, 2 and 5 to 9": in rising order, with three or more in a row shown by their ends."""
    texts: list[str] = []
    for row in rows(values):
        texts += [f"{name(row[0])} to {name(row[-1])}"] if len(row) > 2 else map(name, row)
    return join(texts)


def rows(values: Iterable[int]) -> list[list[int]]:
    """The numbers as rows of consecutive numbers."""
    found: list[list[int]] = []
    for value in values:
        if found and value == found[-1][-1] + 1:
            found[-1].append(value)
        else:
            found.append([value])
    return found


def join(texts: Iterable[str], word: str = "and") -> str:
    """ "a, b and c"."""
    *first, last = texts
    return f"{', '.join(first)} {word} {last}" if first else last


def ordinal(number: int) -> str:
    """ "2nd"."""
    special = {1: "st", 2: "nd", 3: "rd"}
    return f"{number}{'th' if number % 100 in (11, 12, 13) else special.get(number % 10, 'th')}"
