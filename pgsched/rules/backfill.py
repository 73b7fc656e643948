"""Which past fire times a backfill runs. Pure: the client reads and writes.

A backfill runs the fire times of a range as runs of their own, each for the window from the fire time before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pgsched.errors import InvalidArguments
from pgsched.expression.expression import parse
from pgsched.rules.ledger import TICK

MOST = 1_000_000
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Backfill:
    """What a backfill did, or would do.

    queued: the fire times that get a run, in order, with its id (None in a dry run). left_alone: those that have one
    already, with the id of the newest.
    """

    queued: dict[datetime, int | None] = field(default_factory=dict)
    left_alone: dict[datetime, int] = field(default_factory=dict)


def fire_times(
    row: Mapping[str, Any], start: datetime, end: datetime, now: datetime, limit: int
) -> list[tuple[datetime, datetime | None]]:
    """The fire times of a schedule's row from `start` through `end`, each with the one before it.

    now: the database's clock. Raises InvalidArguments where the range is empty, not past, or holds more than `limit`
    fire times; InvalidExpression where the schedule's own cannot be read.
    """
    if end < start:
        raise InvalidArguments(f"A backfill runs from an earlier instant to a later one, not from {start} to {end}.")
    if end > now:
        raise InvalidArguments(f"A backfill is of the past, and {end} is still to come: it is {now:%Y-%m-%d %H:%M}Z.")
    times = parse(row["expression"], row["timezone"], name=row["name"], anchor=row["starts_at"] or row["created_at"])
    count = times.count(start - TICK, end)
    if count > limit:
        raise InvalidArguments(
            f"There are {count} fire times from {start} to {end}, more than the limit of {limit}: "
            "take a shorter range, or raise the limit."
        )
    found: list[tuple[datetime, datetime | None]] = []
    before = times.latest(_BEGINNING, start - TICK)
    coming = times.next(start - TICK)
    while coming is not None and coming <= end:
        found.append((coming, before))
        before, coming = coming, times.next(coming)
    return found
