"""Lengths of time as text: "500ms", "1h30m", "2d". Pure; settings and `@every` both read them."""

import re
from datetime import timedelta

from pgsched.errors import InvalidExpression, exact, quote

FINEST = timedelta(milliseconds=1)

_UNITS = {
    "d": timedelta(days=1),
    "h": timedelta(hours=1),
    "m": timedelta(minutes=1),
    "s": timedelta(seconds=1),
    "ms": FINEST,
}
_DURATION = re.compile("".join(rf"(?:(\d{{1,14}}){unit})?" for unit in _UNITS), re.ASCII | re.IGNORECASE)
_NUMBER = re.compile(r"(\d{1,14})(?:\.(\d{1,6}))?", re.ASCII)


def parse_duration(text: str) -> timedelta:
    """Read "500ms", "30s", "1h30m", "2d" (units in this order: d h m s ms), or a plain number of seconds.

    Zero is a duration. Raises InvalidExpression (a ValueError) for anything else.
    """
    text = exact(text, "a duration must be text such as '30s'")
    stripped = text.strip(" \t")
    try:
        if number := _NUMBER.fullmatch(stripped):
            micros = int((number[2] or "").ljust(6, "0"))
            return timedelta(seconds=int(number[1]), microseconds=micros)
        if stripped and (units := _DURATION.fullmatch(stripped)):
            parts = zip(units.groups(), _UNITS.values(), strict=True)
            return sum((int(amount) * unit for amount, unit in parts if amount), timedelta())
    except OverflowError:
        raise InvalidExpression(f"the duration {quote(text)} is too long: write a shorter one") from None
    raise InvalidExpression(
        f"{quote(text)} is not a duration: write it like 500ms, 30s, 5m, 2h, 1h30m or 1d, or as seconds"
    )


def format_duration(duration: timedelta) -> str:
    """The text that `parse_duration` reads back as `duration`: "1h30m", "0s".

    It is a plain number of seconds if milliseconds are too coarse. A negative duration raises InvalidExpression.
    """
    if not isinstance(duration, timedelta):
        raise InvalidExpression(f"a duration must be a timedelta, not {type(duration).__name__}")
    if duration < timedelta():
        raise InvalidExpression(f"a duration must not be negative, as {duration} is")
    if duration % FINEST:
        return f"{duration // timedelta(seconds=1)}.{duration.microseconds:06}".rstrip("0")
    text = ""
    for name, unit in _UNITS.items():
        amount, duration = divmod(duration, unit)
        text += f"{amount}{name}" if amount else ""
    return text or "0s"
