"""When a worker looks next: a table of what a look saw, and what follows from it. Seconds on the monotonic clock."""

from datetime import UTC, datetime, timedelta

import pytest

from pgsched.rules.agenda import ASIDE, NextLook, Outlook, next_look

ZERO = datetime(2027, 1, 4, 9, tzinfo=UTC)  # the database's time at 0 on the monotonic clock
NOW, LOOKAHEAD = 100.0, 1.0


def at(seconds: float | None) -> datetime | None:
    return None if seconds is None else ZERO + timedelta(seconds=seconds)


def look(ahead=None, near=None, resume=None, *, gated=False, claimed=0, cut=False, room=(True,), others=()):
    outlook = Outlook(at(NOW), at(ahead), at(near), gated, at(resume), False, False, False)
    return next_look(
        outlook, claimed=claimed, cut=cut, room=room, now=NOW, lookahead=LOOKAHEAD,
        moment=lambda instant: (instant - ZERO).total_seconds(), others=others,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("seen", "expected", "taken"),
    [
        ({}, None, False),
        ({"ahead": 160}, 159 + ASIDE, False),
        ({"ahead": 100.5}, NOW, False),  # it has come within the lookahead since
        ({"near": 100.4}, 100.4, False),  # its overlap blocks it until then
        ({"near": 100.4, "cut": True}, NOW, False),  # more than one pass takes
        ({"near": 99}, None, True),  # another worker holds it
        ({"near": 99, "claimed": 3}, NOW, False),
        ({"near": 99, "room": (False,)}, None, False),  # a place that becomes free is the reason to look
        ({"near": 99, "room": (False, True)}, None, True),
        ({"resume": 130}, 130, False),
        ({"resume": 99}, None, True),  # somebody has the paused schedule locked
        ({"ahead": 160, "resume": 130, "near": 105}, 105, False),
        ({"ahead": 160, "others": (120.0, float("inf"))}, 120, False),
        ({"others": (50.0,)}, NOW, False),
        ({"others": (float("inf"),)}, None, False),
    ],
)  # fmt: skip
def test_when_it_looks_next(seen, expected, taken):
    found = look(**seen)
    assert (found.at, found.taken) == (pytest.approx(expected) if expected is not None else None, taken)


@pytest.mark.parametrize(
    ("seen", "gate", "passing", "expected"),
    [
        ({}, True, False, False),  # nothing waits
        ({}, True, True, True),  # the pass that is under way may have seen it live
        ({}, False, True, False),
        ({"near": 99}, False, False, False),  # it waits for no place of ours
        ({"near": 99}, True, False, True),
        ({"near": 99, "gated": True}, False, False, True),
        ({"near": 99, "room": (False, True)}, False, False, True),
        ({"ahead": 160, "room": (False,)}, False, False, False),  # nothing near waits for the place
    ],
)
def test_whether_a_run_that_has_ended_is_a_reason_to_look(seen, gate, passing, expected):
    assert look(**seen).is_freed(gate=gate, passing=passing) is expected


def test_when_a_pause_ends():
    assert look(resume=130).resume_at == 130
    assert look().resume_at == NextLook().resume_at == float("inf")
