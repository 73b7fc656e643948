"""The decisions, as tables: they read as the specification."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from support.schedules import BASE, MINUTE, NINE, OTHER_TIMING, at, interrupted, paused

from pgsched.expression.expression import parse
from pgsched.model import ScheduleStatus
from pgsched.rules.plan import Occupancy, jitter, plan, retire

SECOND = timedelta(seconds=1)


def decide(now: datetime, live: Occupancy | int = 0, ahead: timedelta = SECOND, past: tuple[dict, ...] = (), **changes):
    """The plan in short: runs, skips, next_run in minutes after nine, status."""
    schedule = replace(BASE, **changes, interruptions_json=json.dumps(past) if past else None)
    anchor = schedule.starts_at or schedule.created_at
    times = parse(schedule.expression, schedule.timezone, name=schedule.name, anchor=anchor)
    live = Occupancy(live) if isinstance(live, int) else live
    result = plan(schedule, times, live, now, now + ahead)
    how = " replaces" if result.replaces else ""
    runs = [f"{n:g} waits{how}" if r.waits else n for r in result.runs for n in [(r.fire_time - NINE) / MINUTE]]
    skips = [(str(s.reason), (s.fire_time - NINE) / MINUTE, (s.through - NINE) / MINUTE, s.count) for s in result.skips]
    coming = None if result.next_run is None else (result.next_run - NINE) / MINUTE
    return runs, skips, coming, result.status


ACTIVE, FINISHED = ScheduleStatus.ACTIVE, ScheduleStatus.FINISHED
ALL = {"catch_up": "all"}


@pytest.mark.parametrize(
    ("what", "now", "changes", "expected"),
    [
        # Every minute; minutes are told relative to nine o'clock, where next_run stands.
        ("not due yet", -1.0, {}, ([], [], 0, ACTIVE)),
        ("due", 0.0, {}, ([0], [], 1, ACTIVE)),
        ("a little late", 0.5, {}, ([0], [], 1, ACTIVE)),
        ("ahead, within the lookahead", -0.01, {}, ([0], [], 1, ACTIVE)),
        # --- overlap: ahead of its instant nothing is judged that may have changed by then
        *[
            (f"ahead, one is live: {o} is judged at the instant", -0.01, {"live": 1, "overlap": o}, ([], [], 0, ACTIVE))
            for o in ("skip", "queue", "cancel")
        ],
        ("ahead, one is live and overlap allowed", -0.01, {"live": 1, "overlap": "allow"}, ([0], [], 1, ACTIVE)),
        ("ahead, one is live, two allowed", -0.01, {"live": 1, "overlap": "2"}, ([0], [], 1, ACTIVE)),
        ("skip: due while one is live", 0.0, {"live": 1}, ([], [("overlap", 0, 0, 1)], 1, ACTIVE)),
        ("skip: due while one waits for its next attempt", 0.0, {"live": Occupancy(0, 1)},
         ([], [("overlap", 0, 0, 1)], 1, ACTIVE)),
        ("skip: due while a triggered one runs: waits for it", 0.0, {"live": Occupancy(0, 0, 1)},
         (["0 waits"], [], 1, ACTIVE)),
        ("skip: one runs, and a backfilled one too", 0.0, {"live": Occupancy(1, 0, 1)},
         ([], [("overlap", 0, 0, 1)], 1, ACTIVE)),
        ("N: due while one is live, two allowed", 0.0, {"live": 1, "overlap": "2"}, ([0], [], 1, ACTIVE)),
        ("N: due while two are live, two allowed", 0.0, {"live": 2, "overlap": "2"},
         ([], [("overlap", 0, 0, 1)], 1, ACTIVE)),
        ("N: one runs and a triggered one, two allowed: waits", 0.0, {"live": Occupancy(1, 0, 1), "overlap": "2"},
         (["0 waits"], [], 1, ACTIVE)),
        ("queue: nothing is live", 0.0, {"overlap": "queue"}, ([0], [], 1, ACTIVE)),
        ("queue: one is live", 0.0, {"live": 1, "overlap": "queue"}, (["0 waits"], [], 1, ACTIVE)),
        ("queue: one is between two attempts", 0.0, {"live": Occupancy(0, 1), "overlap": "queue"},
         (["0 waits"], [], 1, ACTIVE)),
        ("queue: one runs, one waits", 0.0, {"live": Occupancy(1, 1), "overlap": "queue"},
         ([], [("overlap", 0, 0, 1)], 1, ACTIVE)),
        ("queue: five were missed while one ran", 5.5, {"live": 1, "overlap": "queue"},
         (["5 waits"], [("missed", 0, 4, 5)], 6, ACTIVE)),
        ("cancel: nothing is live", 0.0, {"overlap": "cancel"}, ([0], [], 1, ACTIVE)),
        ("cancel: one is live", 0.0, {"live": 1, "overlap": "cancel"}, (["0 waits replaces"], [], 1, ACTIVE)),
        ("cancel: one runs, one waits", 0.0, {"live": Occupancy(1, 1), "overlap": "cancel"},
         (["0 waits replaces"], [], 1, ACTIVE)),
        ("cancel: a triggered one runs: waits for it", 0.0, {"live": Occupancy(0, 0, 1), "overlap": "cancel"},
         (["0 waits"], [], 1, ACTIVE)),
        ("allow: any number is live", 0.0, {"live": 999, "overlap": "allow"}, ([0], [], 1, ACTIVE)),
        # --- catch-up
        ("five missed: the latest runs", 5.5, {}, ([5], [("missed", 0, 4, 5)], 6, ACTIVE)),
        ("five missed, and one live", 5.5, {"live": 1}, ([], [("missed", 0, 4, 5), ("overlap", 5, 5, 1)], 6, ACTIVE)),
        ("five missed, all", 5.5, {**ALL, "overlap": "allow"}, ([0, 1, 2, 3, 4, 5], [], 6, ACTIVE)),
        ("five missed, all, two at a time", 5.5, {**ALL, "overlap": "2"}, ([0, 1], [], 2, ACTIVE)),
        ("five missed, all, one at a time", 5.5, ALL, ([0], [], 1, ACTIVE)),
        ("all, one at a time, the first still live", 5.5, {**ALL, "live": 1}, ([], [], 0, ACTIVE)),
        ("all, queue: the backlog does not queue up", 5.5, {**ALL, "live": 1, "overlap": "queue"}, ([], [], 0, ACTIVE)),
        ("all, cancel: the backlog cancels nobody", 5.5, {**ALL, "live": 1, "overlap": "cancel"}, ([], [], 0, ACTIVE)),
        ("all, only one left, and late: it was missed, and waits", 0.5, {**ALL, "live": 1}, ([], [], 0, ACTIVE)),
        ("all, on time, one live: that is an overlap", 0.1, {**ALL, "live": 1},
         ([], [("overlap", 0, 0, 1)], 1, ACTIVE)),
        ("all, at most three", 5.5, {**ALL, "overlap": "allow", "catch_up_limit": 3},
         ([3, 4, 5], [("missed", 0, 2, 3)], 6, ACTIVE)),
        ("all, at most three, one live", 5.5, {**ALL, "live": 1, "catch_up_limit": 3},
         ([], [("missed", 0, 2, 3)], 3, ACTIVE)),
        ("five missed, none", 5.5, {"catch_up": "none"}, ([], [("missed", 0, 5, 6)], 6, ACTIVE)),
        ("none, but only seconds late", 0.1, {"catch_up": "none"}, ([0], [], 1, ACTIVE)),
        ("none, the last only seconds late", 5.1, {"catch_up": "none"}, ([5], [("missed", 0, 4, 5)], 6, ACTIVE)),
        ("none, with a grace that says how late", 5.5, {"catch_up": "none", "grace": MINUTE},
         ([5], [("missed", 0, 4, 5)], 6, ACTIVE)),
        # --- grace
        ("within grace", 5.5, {"grace": MINUTE}, ([5], [("missed", 0, 4, 5)], 6, ACTIVE)),
        ("beyond grace", 5.5, {"grace": MINUTE / 4}, ([], [("missed", 0, 5, 6)], 6, ACTIVE)),
        ("all within grace", 5.5, {"grace": 2 * MINUTE, **ALL, "overlap": "allow"},
         ([4, 5], [("missed", 0, 3, 4)], 6, ACTIVE)),
        ("no grace at all: only the very instant", 0.0, {"grace": timedelta(0)}, ([0], [], 1, ACTIVE)),
        # --- pauses: a resume begins afresh
        ("paused meanwhile", 5.5, {"past": (paused(-1, 5.2),)}, ([], [("paused", 0, 5, 6)], 6, ACTIVE)),
        ("missed, then paused, then due", 5.5, {"past": (paused(1.5, 4.2),)},
         ([5], [("missed", 0, 1, 2), ("paused", 2, 4, 3)], 6, ACTIVE)),
        ("missed, then paused, all", 5.5, {"past": (paused(1.5, 4.2),), **ALL},
         ([5], [("missed", 0, 1, 2), ("paused", 2, 4, 3)], 6, ACTIVE)),
        ("paused twice", 9.5, {"past": (paused(1.5, 3.5), paused(5.5, 7.5))},
         ([9], [("missed", 0, 1, 2), ("paused", 2, 3, 2), ("missed", 4, 5, 2), ("paused", 6, 7, 2),
                ("missed", 8, 8, 1)], 10, ACTIVE)),
        ("resumed before the first", 0.0, {"past": (paused(-9, -5),)}, ([0], [], 1, ACTIVE)),
        ("resumed at the very instant: that still fell into the pause", 0.0, {"past": (paused(-9, 0),)},
         ([], [("paused", 0, 0, 1)], 1, ACTIVE)),
        ("resumed by itself, then a downtime", 5.5, {"past": (paused(-1, 2.5),)},
         ([5], [("paused", 0, 2, 3), ("missed", 3, 4, 2)], 6, ACTIVE)),
        ("paused beyond its end", 5.5, {"past": (paused(0.5, 4.5),), "ends_at": at(2.5)},
         ([], [("missed", 0, 0, 1), ("paused", 1, 2, 2)], None, FINISHED)),
        ("not declared meanwhile", 5.5, {"next_run": None, "accounted_through": at(0),
                                         "past": (interrupted("retired", 1.5, 4.5),)},
         ([5], [("missed", 1, 1, 1), ("retired", 2, 4, 3)], 6, ACTIVE)),
        # --- a new timing counts from the change on; the old one's due fire times are told
        ("changed before anybody claimed", 5.5,
         {"next_run": None, "timed_at": at(4.5), "past": (interrupted("changed", -60, 4.5, **OTHER_TIMING),)},
         ([5], [("missed", 0, 4, 3)], 6, ACTIVE)),
        ("paused, then changed", 5.5,
         {"next_run": None, "timed_at": at(4.5),
          "past": (paused(1, 3), interrupted("changed", -60, 4.5, **OTHER_TIMING))},
         ([5], [("missed", 0, 0, 1), ("paused", 2, 2, 1), ("missed", 4, 4, 1)], 6, ACTIVE)),
        ("changed twice, planned never", 5.5,
         {"next_run": None, "timed_at": at(4.5), "past": (
             interrupted("changed", -0.5, 1.5, **{**OTHER_TIMING, "next_run": None}),
             interrupted("changed", 1.5, 4.5, **{**OTHER_TIMING, "next_run": None, "expression": "* * * * *"}))},
         ([5], [("missed", 0, 4, 4)], 6, ACTIVE)),
        ("what was changed could not be read", 5.5,
         {"next_run": None, "timed_at": at(4.5),
          "past": (interrupted("changed", -60, 4.5, **{**OTHER_TIMING, "expression": "61 * * * *"}),)},
         ([5], [], 6, ACTIVE)),
        ("what was changed had ended", 5.5,
         {"next_run": None, "timed_at": at(4.5),
          "past": (interrupted("changed", -60, 4.5, **{**OTHER_TIMING, "ends_at": at(3)}),)},
         ([5], [("missed", 0, 2, 2)], 6, ACTIVE)),
        # --- bounds
        ("new: strictly after it was written", 0.0, {"next_run": None}, ([0], [], 1, ACTIVE)),
        ("new, and nobody was there for a while", 5.5, {"next_run": None}, ([5], [("missed", 0, 4, 5)], 6, ACTIVE)),
        ("new, starts later", 0.0, {"next_run": None, "starts_at": at(3)}, ([], [], 3, ACTIVE)),
        ("its start has come: what lay before is told", 3.0, {"next_run": at(3), "starts_at": at(3)},
         ([3], [("bounds", 0, 2, 3)], 4, ACTIVE)),
        ("its start is told once", 4.0, {"next_run": at(4), "starts_at": at(3), "accounted_through": at(3)},
         ([4], [], 5, ACTIVE)),
        ("started during a downtime", 5.5, {"next_run": None, "starts_at": at(2.5)},
         ([5], [("bounds", 0, 2, 3), ("missed", 3, 4, 2)], 6, ACTIVE)),
        ("new, once, in the past: missed like any other",
         0.0, {"next_run": None, "expression": "@at 2027-01-04T08:00:00Z"}, ([-60], [], None, FINISHED)),
        ("once, in the past, beyond its grace",
         0.0, {"next_run": None, "expression": "@at 2027-01-04T08:00:00Z", "grace": MINUTE},
         ([], [("missed", -60, -60, 1)], None, FINISHED)),
        ("once, in the past, decided already: not again",
         0.0, {"next_run": None, "expression": "@at 2027-01-04T08:00:00Z", "accounted_through": at(-60)},
         ([], [], None, FINISHED)),
        ("once, before its start",
         0.0, {"next_run": None, "expression": "@at 2027-01-04T08:00:00Z", "starts_at": at(-30)},
         ([], [("bounds", -60, -60, 1)], None, FINISHED)),
        ("once", 0.0, {"expression": "@at 2027-01-04T09:00:00Z"}, ([0], [], None, FINISHED)),
        ("ends before the next", 0.0, {"ends_at": at(0.5)}, ([0], [], None, FINISHED)),
        ("ends with this one", 0.0, {"ends_at": at(0)}, ([0], [], None, FINISHED)),
        ("ended before this one", 0.0, {"ends_at": NINE - SECOND}, ([], [], None, FINISHED)),
        ("ended during a downtime", 5.5, {"ends_at": at(2.5)}, ([2], [("missed", 0, 1, 2)], None, FINISHED)),
        ("last of max_runs", 0.0, {"max_runs": 3, "run_count": 2}, ([0], [], None, FINISHED)),
        ("all, more were missed than max_runs leaves", 5.5,
         {**ALL, "overlap": "allow", "max_runs": 5, "run_count": 2}, ([0, 1, 2], [], None, FINISHED)),
        ("next_run set by hand, off the expression", 0.0, {"expression": "@yearly", "next_run": NINE},
         ([0], [], (datetime(2028, 1, 1, tzinfo=UTC) - NINE) / MINUTE, ACTIVE)),
        ("skips cost no run of max_runs", 0.0, {"live": 1, "max_runs": 1}, ([], [("overlap", 0, 0, 1)], 1, ACTIVE)),
    ],
)  # fmt: skip
def test_plan(what, now, changes, expected):
    changes = dict(changes)
    live = changes.pop("live", 0)
    assert decide(at(now), live, **changes) == expected, what


def reasons_of(now: float, live: Occupancy | int = 0, **changes) -> list[str | None]:
    changes = {"past": (), **changes}
    past = changes.pop("past")
    schedule = replace(BASE, **changes, interruptions_json=json.dumps(past) if past else None)
    live = Occupancy(live) if isinstance(live, int) else live
    return [s.detail for s in plan(schedule, parse(schedule.expression), live, at(now), at(now)).skips]


def test_each_skip_says_how_it_came():
    assert reasons_of(0, Occupancy(1, ids=(17,))) == ["run 17 was live"]
    assert reasons_of(0, Occupancy(5, ids=(17, 18, 19)), overlap="5") == ["runs 17, 18, 19, … were live"]
    assert reasons_of(5.5) == ["no worker claimed it in time; catch_up is latest"]
    assert reasons_of(5.5, catch_up="none") == ["no worker claimed it in time; catch_up is none"]
    assert reasons_of(5.5, grace=timedelta(seconds=90)) == [
        "older than its grace of 1m30s", "no worker claimed it in time; catch_up is latest",
    ]  # fmt: skip
    assert reasons_of(5.5, catch_up="all", catch_up_limit=2) == ["more than its catch_up_limit of 2 were missed"]
    assert reasons_of(5.5, past=(paused(1.5, 9, "until the audit is over"),)) == [
        "no worker claimed it before the schedule was paused", "until the audit is over",
    ]  # fmt: skip
    assert reasons_of(3, next_run=at(3), starts_at=at(3)) == ["before its starts_at"]


@pytest.mark.parametrize("overlap", ["skip", "queue", "allow", "cancel", "2"])
@pytest.mark.parametrize("catch_up", ["latest", "all", "none"])
def test_a_fire_time_that_has_a_live_run_is_no_meeting_with_itself(overlap, catch_up):
    """Retimed as it was about to start: the new timing comes by the same instant."""

    def planned(now: float, *taken: float, ids: tuple[int, ...] = (7,)):
        schedule = replace(
            BASE, next_run=None, timed_at=at(-0.5), accounted_through=None, overlap=overlap, catch_up=catch_up
        )
        live = Occupancy(len(taken), ids=ids, fire_times=tuple(at(minute) for minute in taken))
        return plan(schedule, parse(schedule.expression), live, at(now), at(now))

    made = planned(0, 0)
    assert (made.runs, made.skips, made.replaces) == ((), (), False)
    assert (made.next_run, made.accounted_through) == (at(1), at(0))
    behind = planned(0.1, 0)
    assert (behind.runs, behind.skips, behind.next_run) == ((), (), at(1))
    missed = planned(2.05, 1)
    told = [(skip.fire_time, skip.through) for skip in missed.skips]
    assert all(through < at(1) or first > at(1) for first, through in told), "it ran: no skip stands for it"
    assert at(1) not in {run.fire_time for run in missed.runs}


def test_how_far_a_plan_accounts():
    """What is decided is written down with it; what only waits is not."""
    for now, changes, expected in (
        (-1, {}, None), (0, {}, 0), (5.5, {}, 5), (5.5, {"catch_up": "none"}, 5), (5.5, ALL, 0),
        (5.5, {**ALL, "live": 1}, None), (-1, {"next_run": None}, None),
        (0, {"next_run": None, "starts_at": at(9)}, None),
    ):  # fmt: skip
        live = Occupancy(changes.pop("live", 0)) if "live" in changes else Occupancy()
        schedule = replace(BASE, **changes)
        accounted = plan(schedule, parse("* * * * *"), live, at(now), at(now)).accounted_through
        assert accounted == (None if expected is None else at(expected)), (now, changes)


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"catch_up": "none"}, ALL, {**ALL, "overlap": "allow"}, {"overlap": "3"}, {"overlap": "queue"},
        {"grace": 20 * MINUTE}, {**ALL, "grace": 20 * MINUTE, "catch_up_limit": 7},
    ],
)  # fmt: skip
@pytest.mark.parametrize("past", [(), (paused(3.5, 11.5),), (paused(-1, 2), paused(20, 31))])
def test_pass_after_pass_every_fire_time_is_accounted_for_once(changes, past):
    """Plans with one run live now and then, until nothing is due: runs and skips together are the fire times."""
    schedule = replace(BASE, **changes, interruptions_json=json.dumps(past))
    times, seen = parse("* * * * *"), []
    for n in range(200):
        now = at(40 + n / 7)
        result = plan(schedule, times, Occupancy(n % 3 == 1), now, now)
        seen += [r.fire_time for r in result.runs]
        for skip in result.skips:
            span = [skip.fire_time + k * MINUTE for k in range(skip.count)]
            assert span[-1] == skip.through
            seen += span
        schedule = replace(
            schedule, next_run=result.next_run, interruptions_json=None,
            accounted_through=result.accounted_through or schedule.accounted_through,
        )  # fmt: skip
    seen.sort()
    assert seen == [at(k) for k in range(len(seen))] and len(seen) > 40


def test_retirement_accounts_for_what_was_due():
    schedule = replace(BASE, status="paused", paused_at=at(2.5), note="audit")
    result = retire(schedule, parse("* * * * *"), at(5.5))
    assert [(str(s.reason), s.count, s.detail) for s in result.skips] == [
        ("missed", 3, "no worker claimed it before the schedule was paused"), ("paused", 3, "audit"),
    ]  # fmt: skip
    assert (result.next_run, result.status, result.accounted_through) == (None, FINISHED, at(5.5))


def test_a_downtime_of_years_is_planned_at_once():
    runs, skips, coming, _ = decide(NINE + timedelta(days=3650), expression="* * * * * *")
    assert len(runs) == 1 and skips[0][3] == 3650 * 86400
    assert coming is not None


def test_previous_fire_time_is_that_of_the_run_before():
    schedule = replace(BASE, last_run=NINE - 7 * MINUTE, catch_up="all", overlap="allow")
    times = parse("* * * * *")
    result = plan(schedule, times, Occupancy(), NINE + MINUTE, NINE + MINUTE)
    assert [r.previous for r in result.runs] == [NINE - 7 * MINUTE, NINE]


def test_jitter_is_the_same_everywhere_and_stays_before_the_next_fire_time():
    schedule = replace(BASE, jitter=timedelta(minutes=10))
    times = parse("* * * * *")
    values = {jitter(schedule, times, NINE + n * MINUTE) for n in range(200)}
    assert len(values) > 150 and all(timedelta(0) <= v < MINUTE for v in values)
    assert jitter(schedule, times, NINE) == jitter(schedule, times, NINE)
    assert jitter(BASE, times, NINE) == timedelta(0)


@pytest.mark.parametrize(
    ("used", "runs", "accounted"), [(0, [0, 1], 1), (1, [0], 0), (2, [], -1)], ids=["fits", "one fits", "none fits"]
)
def test_fire_times_that_max_runs_leaves_no_run_for_stay_open(used, runs, accounted):
    """Should it be raised, they run or are recorded."""
    schedule = replace(BASE, catch_up="all", overlap="allow", max_runs=2, run_count=used, ends_at=at(1))
    times = parse(schedule.expression, schedule.timezone, name="s", anchor=schedule.created_at)
    made = plan(schedule, times, Occupancy(), at(1.5), at(1.5))
    assert [(run.fire_time - NINE) / MINUTE for run in made.runs] == runs
    assert made.accounted_through is not None and at(accounted) <= made.accounted_through < at(accounted + 1)
