"""Prints data to a terminal or a pipe: tables, JSON, instants. Messages go to standard error."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TextIO
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import click

from pgsched.expression.duration import format_duration

_NARROWEST = 8
_GAP = "  "


class OutputLostError(Exception):
    """Standard output cannot be written. `reason` is the operating system's, or None if the reader went away."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error)
        gone = error.errno in (errno.EPIPE, errno.EINVAL)  # EINVAL on Windows
        self.reason = None if gone else error.strerror


def write(text: str = "", *, err: bool = False) -> None:
    """Writes one or more lines of data to standard output and flushes, so that a failure shows here.

    err: write to standard error instead, for data that belongs to a question.
    """
    try:
        click.echo(text, err=err)
    except OSError as error:
        raise OutputLostError(error) from None


def complain(message: str) -> None:
    """Reports an error on standard error, one line per problem."""
    for line in message.splitlines() or [""]:
        click.echo(f"Error: {visible(line)}", err=True)


def say(message: str) -> None:
    """A message for people, on standard error."""
    click.echo(visible(message), err=True)


def warn(message: str) -> None:
    """A warning about something that people may not expect, on standard error."""
    click.echo(f"Warning: {visible(message)}", err=True)


def visible(value: Any) -> str:
    """Text in one line: characters that a terminal would obey instead of show are escaped."""
    text = str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def instant(value: datetime | None, *, exact: bool = False) -> str:
    """2027-01-01 09:00:00Z, with milliseconds if `exact` and they are not 0; "-" for None."""
    if value is None:
        return "-"
    value = value.astimezone(UTC)
    millis = f".{value.microsecond // 1000:03}" if exact and value.microsecond >= 1000 else ""
    return f"{value:%Y-%m-%d %H:%M:%S}{millis}Z"


def local(value: datetime, timezone: str) -> str:
    """An instant on the wall clock of a zone: 2027-01-01 10:00:00 +01:00 (Fri)."""
    try:
        there = value.astimezone(ZoneInfo(timezone))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return f"(no time zone {timezone})"
    millis = f".{there.microsecond // 1000:03}" if there.microsecond >= 1000 else ""
    offset = f"{there:%z}"
    return f"{there:%Y-%m-%d %H:%M:%S}{millis} {offset[:3]}:{offset[3:5]} ({there:%a})"


def plain(value: Any) -> str:
    """A value of a row, for people."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return instant(value, exact=True)
    if isinstance(value, timedelta):
        return format_duration(value) if value >= timedelta(0) else str(value)
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def print_json(value: Any) -> None:
    """JSON in pure ASCII: instants as ISO 8601 in UTC, durations as `30s`."""
    write(json.dumps(value, indent=2, default=_as_json))


def print_json_line(value: Any) -> None:
    """Like print_json(), in one line."""
    write(json.dumps(value, default=_as_json))


def _as_json(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, timedelta):
        return plain(value)
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"no JSON for {type(value).__name__}")


def print_table(heads: Sequence[str], rows: Sequence[Sequence[Any]], *, err: bool = False) -> None:
    """Aligned columns, numbers to the right. On a terminal the widest columns are cut so that a row fits one line."""
    cells = [[visible(plain(value)) for value in row] for row in rows]
    right = [bool(rows) and all(_is_number(row[n]) for row in rows) for n in range(len(heads))]
    widths = [max(map(_width, column)) for column in zip(heads, *cells, strict=True)]
    if _is_terminal():
        _shrink(widths, shutil.get_terminal_size().columns - len(_GAP) * (len(heads) - 1))
    write("\n".join([_bold(_line(heads, widths, right)), *(_line(row, widths, right) for row in cells)]), err=err)


def print_fields(fields: Mapping[str, Any]) -> None:
    """Fields, one a line."""
    width = max(map(len, fields))
    for name, value in fields.items():
        write(f"{name.ljust(width)}  {visible(plain(value))}")


def heading(text: str) -> None:
    """A heading, after a blank line."""
    write()
    write(_bold(text))


def _stdout() -> TextIO | None:
    return sys.stdout  # None if the shell closed it


def _is_terminal() -> bool:
    stream = _stdout()
    return stream is not None and stream.isatty()


def _bold(text: str) -> str:
    styled = _is_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return click.style(text, bold=True) if styled else text


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


def _width(text: str) -> int:
    """Columns that a text takes: East Asian letters take two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum((unicodedata.east_asian_width(c) in "WF") + (not unicodedata.combining(c)) for c in text)


def _shrink(widths: list[int], room: int) -> None:
    while sum(widths) > room and max(widths) > _NARROWEST:
        widths[widths.index(max(widths))] -= 1


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    shown = []
    for cell, width, is_right in zip(cells, widths, right, strict=True):
        text = cell if _width(cell) <= width else _cut(cell, width)
        padding = " " * (width - _width(text))
        shown.append(padding + text if is_right else text + padding)
    return _GAP.join(shown).rstrip()


def _cut(text: str, width: int) -> str:
    while _width(text) > width - 1:
        text = text[:-1]
    return text + "…"
