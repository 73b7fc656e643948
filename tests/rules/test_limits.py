"""What may be claimed at an entrypoint's limits, as tables; and rates, against every window of their period."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pgsched.rules.fairness import SLOT, choose, overlap
from pgsched.rules.limits import NOTES, Candidate, Limits, LockedLimits, contest, noted, opens_at, rate_room, within

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def gate(name: str = "e", **values: Any) -> LockedLimits:
    empty: dict[str, Any] = {
        "concurrency": None, "concurrency_key": None, "per_key": None, "starts": None, "period": None,
        "started_at": [], "started": [], "now": NOW,
    }  # fmt: skip
    return LockedLimits(**{**empty, "gate": name, **values})


def run(id: int, key: str = "", *, at: str = "e", priority: int = 0, running: int = 0, of_key: int = 0, schedule=None):
    return Candidate(id, schedule, "job", at, key, priority, NOW + timedelta(microseconds=id), running, of_key)


ADMITTED = {
    "all, where there is no limit": ([gate()], [run(1), run(2)], {}, 9, [1, 2]),
    "no more than there is room for here": ([gate()], [run(1), run(2), run(3)], {}, 2, [1, 2]),
    "the highest priority first": ([gate()], [run(1), run(2, priority=5)], {}, 1, [2]),
    "then what is due longest": ([gate()], [run(9), run(2)], {}, 1, [2]),
    "as many as the concurrency leaves": (
        [gate(concurrency=3)], [run(n, running=1) for n in (1, 2, 3)], {}, 9, [1, 2],
    ),
    "none above the concurrency": ([gate(concurrency=3)], [run(1, running=4)], {}, 9, []),
    "one of each key": (
        [gate(concurrency_key=["k"], per_key=1)], [run(1, "a"), run(2, "a"), run(3, "b")], {}, 9, [1, 3],
    ),
    "none of a busy key": (
        [gate(concurrency_key=["k"], per_key=1)], [run(1, "a", of_key=1), run(3, "b")], {}, 9, [3],
    ),
    "keys and concurrency together": (
        [gate(concurrency=2, concurrency_key=["k"], per_key=1)],
        [run(1, "a"), run(2, "b"), run(3, "c")], {}, 9, [1, 2],
    ),
    "each entrypoint by its own limits": (
        [gate(concurrency=1), gate("f", concurrency=1)], [run(1), run(2), run(3, at="f")], {}, 9, [1, 3],
    ),
    "what the rate leaves": (
        [gate(starts=3, period=SECOND, started_at=[NOW - SECOND / 2], started=[1])],
        [run(1), run(2), run(3)], {}, 9, [1, 2],
    ),
    "one of a schedule that lets one run": ([gate()], [run(1, schedule=7), run(2, schedule=7)], {7: 1}, 9, [1]),
    "none of a schedule that is locked or busy": ([gate()], [run(1, schedule=7), run(2)], {7: 0}, 9, [2]),
    "any number of a schedule that allows overlap": ([gate()], [run(1, schedule=7), run(2, schedule=7)], {}, 9, [1, 2]),
}  # fmt: skip


@pytest.mark.parametrize("case", ADMITTED)
def test_admits(case: str) -> None:
    gates, candidates, rooms, limit, expected = ADMITTED[case]
    contesting, left = contest(candidates, gates, rooms)
    contesting = [replace(c, needs=(*c.needs, SLOT)) for c in contesting]
    assert [c.id for c in choose(contesting, left | {SLOT: limit})] == expected


ROOMS = {
    "rate, concurrency and key": (
        gate(concurrency=3, concurrency_key=["k"], per_key=2, starts=5, period=SECOND),
        run(1, "a", running=1, of_key=1), {("rate", "e"): 5, ("limit", "e"): 2, ("key", "e", "a"): 1},
    ),
    "no limit, no room": (gate(), run(1, "a", running=9, of_key=9), {}),
    "more than the limit: it was lowered": (gate(concurrency=1), run(1, running=4), {("limit", "e"): -3}),
    "the overlap of its schedule": (gate(), run(1, schedule=7), {overlap(7): 2}),
}  # fmt: skip


@pytest.mark.parametrize("case", ROOMS)
def test_how_much_room_limits_leave(case: str) -> None:
    limits, candidate, expected = ROOMS[case]
    (contesting,), rooms = contest([candidate], [limits], {7: 2} if candidate.schedule_id else {})
    assert rooms == expected
    assert set(expected) <= set(contesting.needs), "it needs one of each"


WITHIN = {
    "none": ([], 10, []),
    "all that are small": ([1, 2, 3], 10, [1, 2, 3]),
    "up to the one that reaches the most": ([4, 6, 1], 10, [4, 6]),
    "up to the one that goes beyond": ([4, 60, 1], 10, [4, 60]),
    "the first, however large": ([99, 1], 10, [99]),
}


@pytest.mark.parametrize("case", WITHIN)
def test_how_many_fit_by_the_size_of_their_arguments(case: str) -> None:
    sizes, most, expected = WITHIN[case]
    found = within([replace(run(n), size=size) for n, size in enumerate(sizes)], most)
    assert [each.size for each in found] == expected


# --- rates ------------------------------------------------------------------------------------------------

# Past starts, in seconds from now, and how many -> the room now, and in how many seconds there is room again.
RATES = {
    "none has started": ([], [], 3, None),
    "some have": ([-0.5], [2], 1, None),
    "all have: until the first is over": ([-0.5], [3], 0, 0.5),
    "one after the other": ([-0.9, -0.5], [1, 2], 0, 0.1),
    "the limit was higher then: both have to pass": ([-0.9, -0.5], [1, 5], 0, 0.5),
    "a period ago to the microsecond: over": ([-1.0], [3], 3, None),
    "long ago": ([-30, -0.5], [9, 1], 2, None),
    "the clock was set back: shut for a period, not for an hour": ([3600], [3], 0, 1.0),
}


@pytest.mark.parametrize("case", RATES)
def test_a_rate(case: str) -> None:
    started_at, started, room, opens = RATES[case]
    found = gate(starts=3, period=SECOND, started_at=[NOW + SECOND * at for at in started_at], started=started)
    assert rate_room(found) == room
    assert opens_at(found) == (None if opens is None else NOW + SECOND * opens)


def test_without_a_rate_there_is_no_end_of_room() -> None:
    assert (rate_room(gate()), opens_at(gate()), noted(gate(), 5)) == (None, None, [])


@given(
    starts=st.integers(1, 200),
    asks=st.lists(st.tuples(st.integers(0, 400_000), st.integers(1, 60)), min_size=1, max_size=200),
)
@example(starts=100, asks=[(10_000, 1)] * 300)  # as many as the rate allows, evenly
def test_no_window_of_the_period_ever_sees_more_starts(starts: int, asks: list[tuple[int, int]]) -> None:
    """Asks come at some times (microseconds apart), each for so many. What was let through is checked against every
    window; what was held back, against the same rule with a memory of every start and a sixty-fourth more."""
    now, notes, all_starts = NOW, [], []
    for gap, wanted in asks:
        now += timedelta(microseconds=gap)
        found = gate(
            starts=starts, period=SECOND, started_at=[at for at, _ in notes], started=[n for _, n in notes], now=now
        )
        room = rate_room(found)
        assert room is not None
        exact = starts - sum(at > now - SECOND for at in all_starts)
        careful = starts - sum(at > now - SECOND - SECOND / NOTES for at in all_starts)
        assert careful <= room <= exact or careful < 0 <= room
        count = min(room, wanted)
        notes = noted(found, count)
        assert len(notes) <= NOTES + 1
        all_starts += [now] * count


# --- the limits as declared -------------------------------------------------------------------------------

REFUSED = {
    "none at once": ({"concurrency": 0}, "whole number of 1 or more"),
    "a bool": ({"concurrency": True}, "whole number of 1 or more"),
    "a fraction": ({"per_worker": 1.5}, "whole number of 1 or more"),
    "more than a column holds": ({"starts": 2**31, "period": SECOND}, "whole number of 1 or more"),
    "a limit for each key without a key": ({"per_key": 2}, "needs concurrency_key"),
    "a key of no argument": ({"concurrency_key": ()}, "a tuple of up to 8"),
    "a key of too many arguments": ({"concurrency_key": tuple("abcdefghi")}, "a tuple of up to 8"),
    "a key that is a list": ({"concurrency_key": ["a"]}, "a tuple of up to 8"),
    "starts in no period": ({"starts": 3}, "need each other"),
    "a period without starts": ({"period": SECOND}, "need each other"),
    "nothing to share": ({"shared": "smtp"}, "needs limits to share"),
    "nothing to share but a limit of each worker": ({"shared": "smtp", "per_worker": 1}, "needs limits to share"),
    "shared without a name": ({"shared": "", "concurrency": 1}, "name of 1 to 200"),
    "shared by a number": ({"shared": 3, "concurrency": 1}, "name of 1 to 200"),
    "a period that is a number": ({"starts": 3, "period": 60}, "must be a timedelta"),
    "a period of nothing": ({"starts": 3, "period": timedelta(0)}, "more than 0 s"),
    "a period of more than a year": ({"starts": 3, "period": timedelta(days=367)}, "at most 366 days"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    wrong, sentence = REFUSED[case]
    with pytest.raises(ValueError, match=sentence):
        Limits(**wrong)


NO_LIMITS: dict[str, Any] = {
    "concurrency": None, "concurrency_key": None, "per_key": None, "starts": None, "period": None,
}  # fmt: skip
ROWS = {
    "none": (Limits(), {}),
    "a worker keeps its own limit": (Limits(per_worker=2), {}),
    "concurrency": (Limits(concurrency=3, per_worker=2), {**NO_LIMITS, "concurrency": 3}),
    "a key lets one run": (Limits(concurrency_key="k"), {**NO_LIMITS, "concurrency_key": ["k"], "per_key": 1}),
    "a key of two arguments": (
        Limits(concurrency_key=("k", "l"), per_key=2), {**NO_LIMITS, "concurrency_key": ["k", "l"], "per_key": 2},
    ),
    "a rate": (
        Limits(starts=9, period=timedelta(minutes=1, microseconds=5)),
        {**NO_LIMITS, "starts": 9, "period": "60.000005 seconds"},
    ),
    "shared": (Limits(concurrency=1, shared="smtp"), {**NO_LIMITS, "concurrency": 1, "shared": "smtp"}),
}  # fmt: skip


@pytest.mark.parametrize("case", ROWS)
def test_the_columns_of_limits(case: str) -> None:
    limits, expected = ROWS[case]
    assert limits.row() == expected
    assert limits.together is bool(expected)
