"""Checks the options of schedules and runs before the database sees them; writes and reads their JSON.

plan applies the policies; scheduler collects the code's declarations.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from pgsched.errors import InvalidArguments, NotFound
from pgsched.expression.expression import parse
from pgsched.expression.instants import TICK
from pgsched.expression.zones import check_timezone
from pgsched.model import RunStatus, ScheduleStatus
from pgsched.rules.nesting import TOO_DEEP, read, too_deep
from pgsched.rules.retry import Retry

_LONGEST = timedelta(days=36500)
_GREATEST_ID = 2**63 - 1
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def columns(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a schedule as its columns, in JSON values.

    Raises InvalidArguments for an unknown option or a wrong value, InvalidExpression for a wrong expression or
    time zone.
    """
    unknown = [name for name in given if name not in _OPTIONS]
    if unknown:
        raise InvalidArguments(
            f"A schedule has no option {', '.join(map(repr, unknown))}: the options are {', '.join(_OPTIONS)}."
        )
    found: dict[str, Any] = {}
    for name, value in given.items():
        found.update(_OPTIONS[name](name, value))
    return found


def check_stored(given: Mapping[str, Any]) -> None:
    """Raises InvalidArguments if a retry has options that only code can keep: the database names no code."""
    retry = given.get("retry")
    if isinstance(retry, Retry) and (lost := retry.only_in_code):
        raise InvalidArguments(
            f"Retry({lost[0]}=…) cannot be stored with a schedule: set it when you register the function."
        )


def name_of(what: str, value: Any) -> str:
    """A name: 1 to 200 printable characters. Raises InvalidArguments."""
    if not isinstance(value, str) or not value.strip():
        raise InvalidArguments(f"{what} must be a non-empty text, not {value!r}.")
    if len(value) > 200 or not value.isprintable():
        raise InvalidArguments(
            f"{what} must have at most 200 characters and no control characters, unlike {value[:60]!r}."
        )
    return value


def json_object(what: str, value: Any) -> str:
    """A JSON object as text; None is the empty one. Raises InvalidArguments."""
    if value is None:
        return "{}"
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InvalidArguments(f"{what} must be a dict whose keys are parameter names, not {type(value).__name__}.")
    try:
        text = json.dumps(dict(value), allow_nan=False, ensure_ascii=False)
        text.encode()
    except RecursionError:
        raise InvalidArguments(f"{what} must not have {TOO_DEEP}.") from None
    except (TypeError, ValueError) as error:
        raise InvalidArguments(f"{what} cannot be written as JSON: {error}.") from None
    if too_deep(text):
        raise InvalidArguments(f"{what} must not have {TOO_DEEP}.")
    if _NUL.search(text):
        raise InvalidArguments(f"{what} holds a NUL character, which PostgreSQL cannot store.")
    return text


def instant(what: str, value: Any) -> datetime | None:
    """An aware instant in the years 1900 to 2199, or None. Raises InvalidArguments."""
    if value is None:
        return None
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise InvalidArguments(f"{what} must be a datetime with a time zone, not {value!r}.")
    try:
        in_utc = value.astimezone(UTC)
    except OverflowError:
        in_utc = datetime.min.replace(tzinfo=UTC)
    if not 1900 <= in_utc.year < 2200:
        raise InvalidArguments(f"{what} must be in the years 1900 to 2199, not {value}.")
    return in_utc


def whole(what: str, value: Any, least: int, most: int) -> int:
    """A whole number in a range. Raises InvalidArguments."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidArguments(f"{what} must be a whole number from {least} to {most}, not {value!r}.")
    return value


def job(
    entrypoint: str, due_at: datetime | None, priority: int, app: str | None = None, unique: str = "live"
) -> dict[str, Any]:
    """The options that jobs have in common. Raises InvalidArguments."""
    if unique not in ("live", "waiting"):
        raise InvalidArguments(f"unique must be 'live' or 'waiting', not {unique!r}.")
    return {
        "entrypoint": name_of("entrypoint", entrypoint),
        "due_at": instant("due_at", due_at),
        "priority": whole("priority", priority, -100, 100),
        "app": None if app is None else name_of("app", app),
        "unique": unique,
    }


def keys(what: str, value: Any, count: int) -> list[str | None] | None:
    """Unique keys, `count` texts or Nones, or None for no keys at all. Raises InvalidArguments."""
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InvalidArguments(f"{what} must be a sequence of texts, not {type(value).__name__}.")
    if len(value) != count:
        raise InvalidArguments(f"{what} must be as many as the jobs' arguments, {count}, not {len(value)}.")
    for n, key in enumerate(value):
        if key is not None and not isinstance(key, str):
            raise InvalidArguments(f"{what} number {n} must be a text or None, not {key!r}.")
    return list(value)


def run_id(value: Any) -> int:
    """The id of a run. Raises InvalidArguments, and NotFound for a number that no run can have."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidArguments(f"A run's id must be a whole number, not {value!r}.")
    if not 1 <= value <= _GREATEST_ID:
        raise NotFound(f"There is no run {value}.")
    return int(value)  # enqueue() returns a subclass of int


def one_of(kind: type[ScheduleStatus] | type[RunStatus], value: str | None) -> str | None:
    """A status to look for, or None for any. Raises InvalidArguments."""
    if value is not None and value not in list(kind):
        raise InvalidArguments(f"status must be one of {', '.join(kind)}, not {value!r}.")
    return value


def parsed(text: str | None) -> Any:
    """A stored JSON value, or its text if it nests too deep, or Python cannot hold it: a number with many digits."""
    if text is None:
        return None
    try:
        return read(text, parse_float=_number)
    except ValueError:
        return text


def _number(text: str) -> float | str:
    number = float(text)
    return number if math.isfinite(number) else text


def _name(what: str, value: Any) -> dict[str, Any]:
    return {what: name_of(what, value)}


def _expression(what: str, value: Any) -> dict[str, Any]:
    return {what: parse(value).text}


def _timezone(what: str, value: Any) -> dict[str, Any]:
    check_timezone(value)
    return {what: value}


def _args(what: str, value: Any) -> dict[str, Any]:
    return {what: json.loads(json_object(what, value))}


def _overlap(what: str, value: Any) -> dict[str, Any]:
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        value = int(value[:9])
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 100_000:
        return {what: str(value)}
    if value not in ("skip", "queue", "allow", "cancel"):
        raise InvalidArguments(
            f"overlap must be 'skip', 'queue', 'allow', 'cancel' or a number from 1 to 100000, not {value!r}."
        )
    return {what: value}


def _catch_up(what: str, value: Any) -> dict[str, Any]:
    if value not in ("latest", "all", "none"):
        raise InvalidArguments(f"catch_up must be 'latest', 'all' or 'none', not {value!r}.")
    return {what: value}


def _catch_up_limit(what: str, value: Any) -> dict[str, Any]:
    return {what: whole(what, value, 1, 1_000_000)}


def _interval(what: str, value: Any, least: timedelta = timedelta(0)) -> str:
    if not isinstance(value, timedelta):
        raise InvalidArguments(f"{what} must be a timedelta, not {value!r}.")
    if not least <= value <= _LONGEST:
        shortest = "more than 0 s" if least else "0 s or more"
        raise InvalidArguments(
            f"{what} must be {shortest} and at most a hundred years, not {value.total_seconds():g} s."
        )
    # Hours, minutes, seconds: PostgreSQL 14 takes no more than 2**31 of any unit, and a day is not a constant.
    minutes, seconds = divmod(value.seconds, 60)
    return f"{value.days * 24 + minutes // 60}:{minutes % 60:02}:{seconds:02}.{value.microseconds:06}"


def _duration(what: str, value: Any) -> dict[str, Any]:
    return {what: None if value is None else _interval(what, value)}


def _jitter(what: str, value: Any) -> dict[str, Any]:
    return {what: _interval(what, timedelta(0) if value is None else value)}


def _timeout(what: str, value: Any) -> dict[str, Any]:
    return {what: None if value is None else _interval(what, value, TICK)}


def _retry(what: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {"max_attempts": None, "backoff": None, "max_backoff": None}
    if not isinstance(value, Retry):
        raise InvalidArguments(f"{what} must be a Retry(...), not {value!r}.")
    return {
        "max_attempts": value.attempts,
        "backoff": _interval("backoff", value.backoff),
        "max_backoff": _interval("max_backoff", value.max_backoff),
    }


def _bound(what: str, value: Any) -> dict[str, Any]:
    found = instant(what, value)
    return {what: None if found is None else found.isoformat()}


def _max_runs(what: str, value: Any) -> dict[str, Any]:
    return {what: None if value is None else whole(what, value, 1, 2**31 - 1)}


def _app(what: str, value: Any) -> dict[str, Any]:
    return {what: None if value is None else name_of(what, value)}


def _priority(what: str, value: Any) -> dict[str, Any]:
    return {what: whole(what, value, -100, 100)}


_OPTIONS: dict[str, Callable[[str, Any], dict[str, Any]]] = {
    "entrypoint": _name,
    "expression": _expression,
    "timezone": _timezone,
    "args": _args,
    "overlap": _overlap,
    "catch_up": _catch_up,
    "catch_up_limit": _catch_up_limit,
    "grace": _duration,
    "jitter": _jitter,
    "timeout": _timeout,
    "retry": _retry,
    "starts_at": _bound,
    "ends_at": _bound,
    "max_runs": _max_runs,
    "priority": _priority,
    "app": _app,
}
