"""What may be claimed at an entrypoint's limits, as tables; and rates, against every window of their period."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pgsched import Limits
from pgsched.rules.fairness import SLOT, choose
from pgsched.rules.limits import NOTES, Candidate, Gate, contest, noted, opens_at, rate_room

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def gate(name: str = "e", **values: Any) -> Gate:
    empty: dict[str, Any] = {
        "concurrency": None, "concurrency_key": None, "per_key": None, "starts": None, "period": None,
        "started_at": [], "started": [], "now": NOW,
    }  # fmt: skip
    return Gate(**{**empty, "gate": name, **values})


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


@pytest.mark.parametrize(
    ("started_at", "started", "room", "opens"),
    [
        ([], [], 3, None),
        ([-0.5], [2], 1, None),
        ([-0.5], [3], 0, 0.5),
        ([-0.9, -0.5], [1, 2], 0, 0.1),
        ([-0.9, -0.5], [1, 5], 0, 0.5),  # the limit was higher then: both have to pass
        ([-1.0], [3], 3, None),  # a period ago to the microsecond: that one is over
        ([-30, -0.5], [9, 1], 2, None),
        ([3600], [3], 0, 1.0),  # the clock was set back: shut for a period, not for an hour
    ],
)
def test_a_rate(started_at, started, room, opens) -> None:
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


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"concurrency": 0}, "whole number of 1 or more"),
        ({"concurrency": True}, "whole number of 1 or more"),
        ({"per_worker": 1.5}, "whole number of 1 or more"),
        ({"per_key": 2}, "needs concurrency_key"),
        ({"concurrency_key": ()}, "a tuple of up to 8"),
        ({"concurrency_key": ["a"]}, "a tuple of up to 8"),
        ({"starts": 3}, "need each other"),
        ({"period": SECOND}, "need each other"),
        ({"shared": "smtp"}, "needs limits to share"),
        ({"shared": "", "concurrency": 1}, "name of 1 to 200"),
        ({"shared": 3, "concurrency": 1}, "name of 1 to 200"),
        ({"starts": 3, "period": 60}, "must be a timedelta"),
        ({"starts": 3, "period": timedelta(0)}, "more than 0 s"),
    ],
)
def test_refuses(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Limits(**wrong)
