"""Moments as people write them: an instant with its offset, or a date or time on a schedule's own wall clock."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import click

from pgsched.expression.daylight import at_local
from pgsched.expression.instants import TICK


@dataclass(frozen=True, slots=True)
class Moment:
    """A written moment, and the width of time that it names: a day, a minute, a second."""

    written: datetime
    width: timedelta

    def start(self, timezone: str) -> datetime:
        """Its beginning, in UTC; without an offset it is read on the zone's wall clock."""
        return _instant(self.written, timezone)

    def through(self, timezone: str) -> datetime:
        """Its last instant."""
        if self.written.tzinfo is None and self.whole_day:  # a day may have 23 hours, or 25
            return _instant(self.written + _DAY, timezone) - TICK
        return self.start(timezone) + self.width - TICK

    @property
    def whole_day(self) -> bool:
        """Whether it is a date without a time."""
        return self.width == _DAY

    def remark(self, timezone: str) -> str | None:
        """The effect of daylight saving on it in that zone."""
        return at_local(self.written, timezone)[1] if self.written.tzinfo is None and not self.whole_day else None


_DAY = timedelta(days=1)
_WIDTHS = ((r"\d{4}-?\d\d-?\d\d", _DAY), (r".*[T ]\d\d:?\d\d", timedelta(minutes=1)), (r".*", timedelta(seconds=1)))


def a_moment(text: str) -> Moment:
    """For click: a date, a local time, or an instant with its offset."""
    try:
        written = datetime.fromisoformat(text)
        if not 1900 < written.year < 2200:
            raise ValueError
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is neither a date (2027-03-28), nor a time on the schedule's clock (2027-03-28T02:30), nor an "
            "instant (2027-03-28T00:30:00Z)."
        ) from None
    bare = re.sub(r"(Z|[+-]\d\d:?\d\d)$", "", text) if written.tzinfo else text
    width = next(width for pattern, width in _WIDTHS if re.fullmatch(pattern, bare))
    return Moment(written.replace(fold=0), width)


def _instant(written: datetime, timezone: str) -> datetime:
    return written.astimezone(UTC) if written.tzinfo is not None else at_local(written, timezone)[0]
