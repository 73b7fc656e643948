"""The order that candidates start in, as tables."""

from datetime import UTC, datetime, timedelta

import pytest

from pgsched.rules.fairness import SLOT, Candidate, Kind, choose, on_worker, order, overlap, place, take

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


def one(number: int, *needs: str, kind: Kind = Kind.QUEUED, priority: int = 0, due: int = 0, ahead: bool = False):
    at = NOW + timedelta(seconds=due)
    return Candidate(kind, number, None, "e", priority, at, ahead, (SLOT, *needs))


@pytest.mark.parametrize(
    ("candidates", "rooms", "expected"),
    [
        ([one(1), one(2, priority=1)], {SLOT: 1}, [2]),
        ([one(1, due=-1), one(2, due=-2)], {SLOT: 1}, [2]),
        ([one(2), one(1)], {SLOT: 1}, [1]),
        ([one(1, ahead=True, priority=9, due=1), one(2)], {SLOT: 1}, [2]),
        ([one(1, kind=Kind.FIRE_TIME), one(2)], {SLOT: 1}, [2]),
        ([one(1, kind=Kind.FIRE_TIME, due=-1), one(2)], {SLOT: 1}, [1]),
        ([one(1, "thread", priority=9), one(2)], {SLOT: 1, "thread": 0}, [2]),
        ([one(1, "thread"), one(2, "thread"), one(3)], {SLOT: 2, "thread": 1}, [1, 3]),
        ([one(1), one(2)], {}, [1, 2]),
        ([one(1)], {SLOT: 0}, []),
    ],
    ids=[
        "priority", "due time", "id", "what is due before what will be", "runs before fire times",
        "due time before kind", "what lacks something holds up nobody", "until it is used up", "without limits all",
        "without a slot none",
    ],
)  # fmt: skip
def test_chooses(candidates, rooms, expected):
    assert [each.id for each in choose(candidates, rooms)] == expected


def test_one_kind_after_the_other_if_all_else_is_equal():
    fire_time, queued, line, waiting = (
        one(1, kind=kind) for kind in (Kind.FIRE_TIME, Kind.QUEUED, Kind.LINE, Kind.WAITING)
    )
    assert sorted([fire_time, queued, line, waiting], key=order) == [waiting, line, queued, fire_time]


@pytest.mark.parametrize(
    ("rooms", "needs", "left"),
    [
        ({SLOT: 2, "thread": 1}, (SLOT, "thread"), {SLOT: 1, "thread": 0}),
        ({SLOT: 2}, (SLOT, "thread"), {SLOT: 1}),
        ({SLOT: 2, "thread": 1}, (), {SLOT: 2, "thread": 1}),
        ({"thread": 0}, ("thread",), {"thread": -1}),
    ],
    ids=["one of each", "unlimited needs stay unlimited", "no needs", "a claim may take more than there is"],
)
def test_takes_one_of_each_need(rooms, needs, left):
    take(rooms, needs)
    assert rooms == left


def test_choosing_leaves_the_rooms_as_they_were():
    rooms = {SLOT: 1}
    assert choose([one(1)], rooms) and rooms == {SLOT: 1}


def test_needs_of_different_kinds_never_meet():
    assert len({SLOT, place("7"), on_worker("7"), overlap(7), place("8"), on_worker("8"), overlap(8)}) == 7
