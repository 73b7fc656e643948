"""Which past fire times a backfill runs, and which ranges it refuses, as tables."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgsched.errors import InvalidArguments, InvalidExpression
from pgsched.rules.backfill import Backfill, past_fire_times

HOUR = timedelta(hours=1)
NIGHT = datetime(2026, 3, 28, 23, tzinfo=UTC)  # before the clocks of Paris jump from 02:00 to 03:00
NOW = NIGHT + 1000 * HOUR
HOURLY: dict[str, Any] = {
    "name": "s", "expression": "0 * * * *", "timezone": "UTC", "starts_at": None, "created_at": NIGHT - 9 * HOUR,
}  # fmt: skip
PARIS = {"expression": "30 2 * * *", "timezone": "Europe/Paris"}
EVERY = {"expression": "@every 90m"}
ONCE = {"expression": "@at 2026-03-28T23:00:00Z"}

# The schedule, and the range in hours after NIGHT -> each fire time with the one before it.
FOUND = {
    "both ends belong to it": ({}, 0, 2, [(0, -1), (1, 0), (2, 1)]),
    "a single instant": ({}, 1, 1, [(1, 0)]),
    "between two fire times there is none": ({}, 0.25, 0.75, []),
    "an end between two": ({}, 0.5, 2.5, [(1, 0), (2, 1)]),
    "the clock is that of its zone, and jumps": (PARIS, -24, 48, [(-21.5, -45.5), (2, -21.5), (25.5, 2)]),
    "an interval counts from its start": ({**EVERY, "starts_at": NIGHT}, 0, 3, [(0, None), (1.5, 0), (3, 1.5)]),
    "an interval without a start, from when it was made": (EVERY, 0, 2, [(0, -1.5), (1.5, 0)]),
    "once: nothing came before": (ONCE, -1, 1, [(0, None)]),
    "once, outside": (ONCE, 1, 2, []),
    "a range before it was made": ({}, -20, -19, [(-20, -21), (-19, -20)]),
}


@pytest.mark.parametrize("case", FOUND)
def test_finds(case):
    changes, start, end, expected = FOUND[case]
    found = past_fire_times({**HOURLY, **changes}, NIGHT + start * HOUR, NIGHT + end * HOUR, NOW, 100)
    assert [tuple(each and (each - NIGHT) / HOUR for each in pair) for pair in found] == expected


REFUSED = {
    "it ends before it starts": (
        {}, 1, 0, 100, InvalidArguments, "^A backfill must end after it starts: 2026-03-28 23.* is before 2026-03-29",
    ),
    "it ends in the future": (
        {}, 0, 1000.5, 9999, InvalidArguments, "^A backfill must end in the past: it is 2026-05-09 15:00Z, before",
    ),
    "one more than the limit": (
        {}, 0, 3, 3, InvalidArguments, "^There are 4 fire times .*, more than the limit of 3: take a shorter range",
    ),
    "an expression that cannot be read": ({"expression": "61 * * * *"}, 0, 1, 100, InvalidExpression, "61"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case):
    changes, start, end, limit, error, sentence = REFUSED[case]
    with pytest.raises(error, match=sentence):
        past_fire_times({**HOURLY, **changes}, NIGHT + start * HOUR, NIGHT + end * HOUR, NOW, limit)


@pytest.mark.parametrize(("end", "limit"), [(3, 4), (1000, 1001)], ids=["the limit itself", "up to now"])
def test_accepts_a_range_up_to_its_bounds(end, limit):
    assert len(past_fire_times(HOURLY, NIGHT, NIGHT + end * HOUR, NOW, limit)) == limit


def test_results_share_nothing():
    first = Backfill()
    first.queued[NIGHT] = 1
    assert Backfill().queued == {} and first.left_alone == {}
