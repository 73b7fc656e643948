"""Decides which past fire times a backfill runs. Pure: the client reads and writes.

A backfill makes one run for each fire time in a range. Each run stands for the window since the fire time before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pgsched.errors import InvalidArguments
from pgsched.expression.expression import parse
from pgsched.expression.instants import EPOCH, TICK

MOST = 1_000_000


@dataclass(frozen=True, slots=True)
class Backfill:
    """The result of a backfill, or of a dry run.

    queued: the fire times that get a run, in order, with the run's id (None in a dry run).
    left_alone: the fire times that already have a run, with the id of the newest.
    """

    queued: dict[datetime, int | None] = field(default_factory=dict)
    left_alone: dict[datetime, int] = field(default_factory=dict)


def past_fire_times(
    row: Mapping[str, Any], start: datetime, end: datetime, now: datetime, limit: int
) -> list[tuple[datetime, datetime | None]]:
    """The fire times of a schedule's row from `start` through `end`, each with the one before it.

    now: the database's clock.

    Raises InvalidArguments if the range is reversed, not past, or holds more than `limit` fire times;
    InvalidExpression if the schedule's expression cannot be read.
    """
    if end < start:
        raise InvalidArguments(f"A backfill must end after it starts: {end} is before {start}.")
    if end > now:
        raise InvalidArguments(f"A backfill must end in the past: it is {now:%Y-%m-%d %H:%M}Z, before {end}.")
    times = parse(row["expression"], row["timezone"], name=row["name"], anchor=row["starts_at"] or row["created_at"])
    count = times.count(start - TICK, end)
    if count > limit:
        raise InvalidArguments(
            f"There are {count} fire times from {start} to {end}, more than the limit of {limit}: "
            "take a shorter range, or raise the limit."
        )
    found: list[tuple[datetime, datetime | None]] = []
    before = times.latest(EPOCH, start - TICK)
    coming = times.next(start - TICK)
    while coming is not None and coming <= end:
        found.append((coming, before))
        before, coming = coming, times.next(coming)
    return found
