"""Instants as expressions know them: aware, in UTC, from 1970 to 2099, and as whole seconds since 1970.

Seconds count UTC (`instant`) or a wall clock (`wall`). zones knows the difference between the two.
"""

from datetime import UTC, datetime, timedelta

from pgsched.errors import InvalidExpression

FIRST_YEAR, LAST_YEAR = 1970, 2099
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
END = datetime(LAST_YEAR + 1, 1, 1, tzinfo=UTC)
BEGINNING = datetime(1900, 1, 1, tzinfo=UTC)  # before every fire time, also of executors that compute their own
SECOND = timedelta(seconds=1)
TICK = timedelta(microseconds=1)  # between two neighbouring instants, in Python and in PostgreSQL
DAY = 86_400
NEVER = (END - EPOCH) // SECOND  # no fire time is this late on the wall clock


def as_utc(value: datetime, what: str) -> datetime:
    if not isinstance(value, datetime):
        raise InvalidExpression(f"{what} must be a datetime with a time zone, not {type(value).__name__}")
    try:
        if value.utcoffset() is not None:
            return value.astimezone(UTC)
    except OverflowError:
        raise InvalidExpression(f"{what} is out of range in UTC: {value}") from None
    raise InvalidExpression(f"{what} must carry a time zone, as {value} does not: add tzinfo=UTC or another")


def seconds(instant: datetime) -> int:
    """Whole seconds since the epoch, rounded down; clipped to the years that have fire times in any zone."""
    return min(max((instant - EPOCH) // SECOND, -2 * DAY), NEVER + 2 * DAY)


def moment(seconds: int) -> datetime:
    """The instant that is this many seconds after the epoch."""
    return EPOCH + timedelta(seconds=seconds)
