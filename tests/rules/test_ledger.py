"""How far a schedule's fire times are decided, and which were skipped on the way, as tables. Fires every minute."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from support.schedules import BASE, MINUTE, NINE, OTHER_TIMING, at, interrupted, paused

from pgsched.expression.expression import parse
from pgsched.expression.instants import TICK
from pgsched.model import SkipReason
from pgsched.rules.ledger import Interruption, Ledger, Skip, interruptions_of, open_ledger, undecided_since

MISSED, PAUSED, RETIRED, BOUNDS, OVERLAP = (
    SkipReason.MISSED, SkipReason.PAUSED, SkipReason.RETIRED, SkipReason.BOUNDS, SkipReason.OVERLAP,
)  # fmt: skip
NEVER_PLANNED = {"next_run": None, "accounted_through": None}
ONCE = {**NEVER_PLANNED, "expression": "@at 2027-01-04T08:00:00Z"}  # an hour before nine


def minutes(instant: datetime | None) -> float | None:
    return None if instant is None else (instant - NINE) / MINUTE


def short(skips: list[Skip]) -> list[tuple]:
    return [(skip.reason, minutes(skip.fire_time), minutes(skip.through), skip.count) for skip in skips]


# --- the stretches to settle ------------------------------------------------------------------------------

READ = {
    "none": ([], []),
    "a pause with a note": (
        [{"kind": "paused", "since": "2027-01-04T09:00:00Z", "through": "2027-01-04T09:03:00+00:00", "note": "audit"}],
        [Interruption("paused", at(0), at(3), "audit")],
    ),
    "instants of another zone are read in UTC": (
        [{"kind": "retired", "since": "2027-01-04T10:00:00+01:00", "through": "2027-01-04T14:33:00+05:30"}],
        [Interruption("retired", at(0), at(3))],
    ),
    "a change describes the timing that has ended": (
        [interrupted("changed", -60, 3, **{**OTHER_TIMING, "ends_at": at(9)})],
        [Interruption("changed", at(-60), at(3), next_run=at(0), expression="*/2 * * * *", ends_at=at(9))],
    ),
    "the order stays": (
        [paused(0, 1), interrupted("retired", 1, 2)],
        [Interruption("paused", at(0), at(1)), Interruption("retired", at(1), at(2))],
    ),
}


@pytest.mark.parametrize("case", READ)
def test_reads_interruptions(case):
    entries, expected = READ[case]
    found = interruptions_of(entries)
    assert found == expected
    assert all(each.since.tzinfo is UTC and each.through.tzinfo is UTC for each in found)


TICK_MINUTES = TICK / MINUTE
UNDECIDED = {
    "never planned: since its timing was written": (NEVER_PLANNED, (), -0.5),
    "planned, and nothing to settle": ({"accounted_through": at(0), "next_run": at(1)}, (), None),
    "a pause to settle: since it began": ({"accounted_through": at(0), "next_run": at(5)}, (paused(1.5, 3),), 1.5),
    "a change to settle: since the old timing is decided": (
        NEVER_PLANNED, (interrupted("changed", -60, 3, **{**OTHER_TIMING, "accounted_through": at(2)}),), 2,
    ),
    "several: since the oldest": (
        {"accounted_through": at(0), "next_run": at(5)}, (paused(1.5, 2), paused(3.5, 4)), 1.5,
    ),
    "a client has set next_run back": (
        {"accounted_through": at(5), "next_run": at(3)}, (), 3 - TICK_MINUTES,
    ),
    "back to the last decided fire time": (
        {"accounted_through": at(5), "next_run": at(5)}, (), 5 - TICK_MINUTES,
    ),
    "set back to after a pause began": (
        {"accounted_through": at(5), "next_run": at(3)}, (paused(1.5, 4),), 1.5,
    ),
    "set back to before a pause began": (
        {"accounted_through": at(5), "next_run": at(1)}, (paused(1.5, 4),), 1 - TICK_MINUTES,
    ),
    "nothing that can be read": ({"interruptions_json": "[{"}, None, None),
    "no stretch at all": ({"interruptions_json": "[]"}, None, None),
    "an unknown field": ({"interruptions_json": '[{"since": "2027-01-04T09:00:00Z", "x": 1}]'}, None, None),
    "an instant before there were time zones": (
        {}, ({"kind": "paused", "since": "1800-01-01T00:00:00Z", "through": "2027-01-04T09:00:00Z"},), None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNDECIDED)
def test_since_when_a_run_may_have_ended_that_the_plan_does_not_know(case):
    changes, past, expected = UNDECIDED[case]
    schedule = replace(BASE, **changes)
    if past:
        schedule = replace(schedule, interruptions_json=json.dumps(past))
    found = undecided_since(schedule)
    assert (found and round(minutes(found), 9)) == (expected and round(expected, 9))


# --- one ledger ------------------------------------------------------------------------------------------

# The fire times with a run, the end, what is skipped -> the rows for it, and the next fire time.
SKIPPED = {
    "nothing": ((), None, [], [], 0),
    "through a fire time": ((), None, [(MISSED, 2)], [(MISSED, 0, 2, 3)], 3),
    "through an instant between two": ((), None, [(MISSED, 2.5)], [(MISSED, 0, 2, 3)], 3),
    "through an instant before the first": ((), None, [(MISSED, -0.1)], [], 0),
    "the same twice": ((), None, [(MISSED, 2), (MISSED, 2)], [(MISSED, 0, 2, 3)], 3),
    "further, for the same reason: one row": ((), None, [(MISSED, 2), (MISSED, 4)], [(MISSED, 0, 4, 5)], 5),
    "further, for another reason": ((), None, [(MISSED, 2), (PAUSED, 4)], [(MISSED, 0, 2, 3), (PAUSED, 3, 4, 2)], 5),
    "back and forth": (
        (), None, [(MISSED, 0), (PAUSED, 1), (MISSED, 2)], [(MISSED, 0, 0, 1), (PAUSED, 1, 1, 1), (MISSED, 2, 2, 1)], 3,
    ),
    "the next has a run": ((0, 1), None, [], [], 2),
    "one between has a run: it is no skip": ((1,), None, [(MISSED, 3)], [(MISSED, 0, 3, 3)], 4),
    "the last has a run": ((3,), None, [(MISSED, 3)], [(MISSED, 0, 2, 3)], 4),
    "all have runs": ((0, 1), None, [(MISSED, 1)], [], 2),
    "nothing after the end": ((), 2, [(MISSED, 9)], [(MISSED, 0, 2, 3)], None),
    "the end comes with the next": ((), 0, [], [], 0),
    "the end is past": ((), -0.5, [], [], None),
}  # fmt: skip


@pytest.mark.parametrize("case", SKIPPED)
def test_skips(case):
    taken, end, steps, skips, coming = SKIPPED[case]
    ledger = Ledger([at(minute) for minute in taken])
    ledger.follow(
        parse("* * * * *"), at(-0.5), at(9), starts_at=None, ends_at=None if end is None else at(end), next_run=None
    )
    for reason, through in steps:
        ledger.skip(reason, at(through))
    assert (short(ledger.skips), minutes(ledger.next())) == (skips, coming)


def test_the_same_reason_with_another_detail_is_another_row():
    ledger = Ledger()
    ledger.follow(parse("* * * * *"), at(-0.5), at(9), starts_at=None, ends_at=None, next_run=None)
    ledger.skip(PAUSED, at(1), "audit")
    ledger.skip(PAUSED, at(2), "holidays")
    assert [(skip.detail, skip.count) for skip in ledger.skips] == [("audit", 2), ("holidays", 1)]


@pytest.mark.parametrize(("minute", "has_run"), [(1, True), (2, False)], ids=["it has a run", "it has none"])
def test_a_fire_time_with_a_run_is_decided_and_so_are_those_before_it(minute, has_run):
    ledger = Ledger([at(1)])
    ledger.follow(parse("* * * * *"), at(-0.5), at(9), starts_at=None, ends_at=None, next_run=None)
    assert ledger.pass_taken(at(minute)) is ledger.passed is has_run
    assert ledger.reached == (at(1) if has_run else at(-0.5))


# The timing: start, end, next_run -> rows, the next fire time, and the one after it.
FOLLOWED = {
    "as its expression says": (None, None, None, [], 0, 1),
    "next_run comes first, whatever the expression says": (None, None, 2.25, [], 2.25, 3),
    "next_run in the past": (None, None, -3, [], -3, -2),
    "its start is to come": (12, None, None, [], 12, 13),
    "its start has come": (2.5, None, None, [(BOUNDS, 0, 2, 3)], 3, 4),
    "its start comes with a fire time": (2, None, None, [(BOUNDS, 0, 1, 2)], 2, 3),
    "it ends after the next": (None, 0.5, None, [], 0, None),
    "next_run is after its end": (None, 1, 2, [], None, None),
}


@pytest.mark.parametrize("case", FOLLOWED)
def test_follows_a_timing(case):
    start, end, next_run, skips, first, second = FOLLOWED[case]
    start, end, next_run = (None if value is None else at(value) for value in (start, end, next_run))
    ledger = Ledger()
    ledger.follow(parse("* * * * *"), at(-0.5), at(9), starts_at=start, ends_at=end, next_run=next_run)
    coming = ledger.next()
    assert (short(ledger.skips), minutes(coming)) == (skips, first)
    if coming is not None:
        ledger.reached = coming
        assert minutes(ledger.next()) == second


# --- opened, with everything settled ----------------------------------------------------------------------


def changed(through: float, **rest) -> dict:
    return interrupted("changed", -60, through, **{**OTHER_TIMING, **rest})


RETIMED = {**NEVER_PLANNED, "timed_at": at(4.5)}
DAILY = {**NEVER_PLANNED, "accounted_through": at(-1), "expression": "0 9 * * *"}
SAME_ONCE = {"expression": "@at 2027-01-04T09:00:00Z"}
DAY = timedelta(days=1) / MINUTE

# The schedule, its interruptions -> the skips, and the next fire time that is not decided. It is 9:05:30.
OPENED = {
    "as planned": ({}, (), [], 0),
    "next_run set by hand, off the expression": ({"next_run": at(0.25)}, (), [], 0.25),
    "never planned: after its timing was written": (NEVER_PLANNED, (), [], 0),
    "planned before: after the last decided one": ({"next_run": None, "accounted_through": at(3)}, (), [], 4),
    "once, in the past": (ONCE, (), [], -60),
    "once, and decided": ({**ONCE, "accounted_through": at(-60)}, (), [], None),
    "once, before its start": ({**ONCE, "starts_at": at(-30)}, (), [(BOUNDS, -60, -60, 1)], None),
    "its start has come": ({**NEVER_PLANNED, "starts_at": at(3)}, (), [(BOUNDS, 0, 2, 3)], 3),
    "its start is to come": ({**NEVER_PLANNED, "starts_at": at(7)}, (), [], 7),
    "its end is past": ({"ends_at": at(-1)}, (), [], None),
    # --- pauses and retirements
    "paused": ({}, (paused(-1, 4.2),), [(PAUSED, 0, 4, 5)], 5),
    "missed before it was paused": ({}, (paused(1.5, 4.2),), [(MISSED, 0, 1, 2), (PAUSED, 2, 4, 3)], 5),
    "paused between two fire times": ({}, (paused(0.2, 0.8),), [(MISSED, 0, 0, 1)], 1),
    "paused before the first": ({}, (paused(-9, -5),), [], 0),
    "retired": ({}, (interrupted("retired", -1, 2),), [(RETIRED, 0, 2, 3)], 3),
    "paused, then retired": (
        {}, (paused(-1, 1), interrupted("retired", 1, 2)), [(PAUSED, 0, 1, 2), (RETIRED, 2, 2, 1)], 3,
    ),
    # --- changes
    "changed: the old fire times were missed": (RETIMED, (changed(4.5),), [(MISSED, 0, 4, 3)], 5),
    "changed: the old timing was decided": (
        RETIMED, (changed(4.5, next_run=None, accounted_through=at(2)),), [(MISSED, 4, 4, 1)], 5,
    ),
    "changed: the old timing had ended": (RETIMED, (changed(4.5, ends_at=at(1)),), [(MISSED, 0, 0, 1)], 5),
    "changed: the old timing had not begun": (RETIMED, (changed(4.5, next_run=None, starts_at=at(9)),), [], 5),
    "changed: the old expression cannot be read": (RETIMED, (changed(4.5, expression="61 * * * *"),), [], 5),
    "changed twice: each timing for its time": (
        RETIMED,
        (changed(1.5), {**changed(4.5, expression="*/3 * * * *", next_run=at(3)), "since": at(1.5).isoformat()}),
        [(MISSED, 0, 3, 2)],
        5,
    ),
    "paused in the old timing, then changed": (
        RETIMED, (paused(1, 3), changed(4.5)), [(MISSED, 0, 0, 1), (PAUSED, 2, 2, 1), (MISSED, 4, 4, 1)], 5,
    ),
    "changed, then paused in the new one": (
        {**NEVER_PLANNED, "timed_at": at(2.5)},
        (changed(2.5), paused(3, 4.2)),
        [(MISSED, 0, 2, 2), (MISSED, 3, 3, 1), (PAUSED, 4, 4, 1)],
        5,
    ),
    # --- a single instant, with a change of something else around it
    "the same instant again: still undecided": (
        {**RETIMED, **SAME_ONCE}, (changed(4.5, **SAME_ONCE),), [], 0,
    ),
    "the same instant again, that a pause has skipped": (
        {**RETIMED, **SAME_ONCE}, (paused(-1, 3), changed(4.5, **SAME_ONCE)), [(PAUSED, 0, 0, 1)], None,
    ),
    "another instant: the old one was missed": (
        {**RETIMED, "expression": "@at 2027-01-04T09:02:00Z"}, (changed(4.5, **SAME_ONCE),), [(MISSED, 0, 0, 1)], 2,
    ),
    "the same instant in an end that has passed: it may count again": (
        {**RETIMED, **SAME_ONCE}, (changed(4.5, **{**SAME_ONCE, "ends_at": at(-1)}),), [], 0,
    ),
    # --- a removed schedule of its name
    "a removed one had begun fire times": ({"inherited_through": at(2)}, (), [(OVERLAP, 0, 2, 3)], 3),
    "a removed one ended before this was made": ({"inherited_through": at(0.5), "created_at": at(0.7)}, (), [], 0),
    "except the instant that both name": (
        {"inherited_through": at(0), "created_at": at(0.7)}, (), [(OVERLAP, 0, 0, 1)], 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OPENED)
def test_opens(case):
    changes, past, skips, coming = OPENED[case]
    schedule = replace(BASE, **changes, interruptions_json=json.dumps(past) if past else None)
    ledger = open_ledger(schedule, times_of(schedule), at(5.5))
    assert (short(ledger.skips), minutes(ledger.next())) == (skips, coming)


def times_of(schedule):
    return parse(schedule.expression, schedule.timezone, name=schedule.name, anchor=schedule.created_at)


def test_fire_times_with_a_run_are_neither_skipped_nor_next():
    past = json.dumps([paused(-1, 2.5)])
    schedule = replace(BASE, interruptions_json=past)
    ledger = open_ledger(schedule, times_of(schedule), at(5.5), [at(1), at(3)])
    assert (short(ledger.skips), minutes(ledger.next())) == ([(PAUSED, 0, 2, 2)], 4)
    assert ledger.passed


def test_each_skip_says_how_it_came():
    past = json.dumps([paused(0.5, 1.5, "audit"), interrupted("retired", 2.5, 3.5), changed(9)])
    schedule = replace(BASE, **NEVER_PLANNED, timed_at=at(9), interruptions_json=past)
    ledger = open_ledger(schedule, times_of(schedule), at(9))
    assert [skip.detail for skip in ledger.skips] == [
        "no worker claimed it before the schedule was paused",
        "no worker claimed it before the schedule was retired",
        "its timing was changed before a worker claimed it",
    ]


# Whether the zone's rules have changed, and what the clock showed at the last decided fire time -> what comes next.
SHIFTED = {
    "by the rules of the plan": (DAILY, False, datetime(2027, 1, 4, 9), 0),  # noqa: DTZ001
    "by other rules: the clock has shown it": (DAILY, True, datetime(2027, 1, 4, 9), DAY),  # noqa: DTZ001
    "by other rules: the clock has not": (DAILY, True, datetime(2027, 1, 4, 8, 59), 0),  # noqa: DTZ001
    "by other rules: nothing was shown": (DAILY, True, None, 0),
    "an interval goes by no clock": ({**DAILY, "expression": "@every 1m"}, True, datetime(2027, 1, 4, 9), 0),  # noqa: DTZ001
}


@pytest.mark.parametrize("case", SHIFTED)
def test_readings_that_the_clock_has_shown_come_once(case):
    changes, shifted, wall, coming = SHIFTED[case]
    schedule = replace(BASE, **changes, accounted_wall=wall)
    ledger = open_ledger(schedule, times_of(schedule), at(5.5), shifted=shifted)
    assert minutes(ledger.next()) == coming
