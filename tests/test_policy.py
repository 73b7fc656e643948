"""The decisions, as tables: they read as the specification."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from pgsched.expression import parse
from pgsched.model import Retry, RunStatus, Schedule, ScheduleStatus, Silent
from pgsched.policy import after_loss, is_stalled, jitter, plan, retry_delay, unsupported

NINE = datetime(2027, 1, 4, 9, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)
BASE = Schedule(
    id=1, name="s", entrypoint="e", expression="* * * * *", timezone="UTC", args_json="{}", overlap="skip",
    catch_up="latest", grace=None, jitter=timedelta(0), timeout=None, max_attempts=None, backoff=None,
    max_backoff=None, starts_at=None, ends_at=None, max_runs=None, run_count=0, priority=0, status="active",
    note=None, paused_at=None, resumed_at=None, paused_until=None, owner="api", next_run=NINE, last_run=None,
    last_status=None, created_at=NINE - timedelta(days=1), updated_at=NINE - MINUTE / 2,
)  # fmt: skip


def decide(now: datetime, live: int = 0, ahead: timedelta = SECOND, **changes):
    schedule = replace(BASE, **changes)
    times = parse(schedule.expression, schedule.timezone, name=schedule.name, anchor=schedule.created_at)
    result = plan(schedule, times, live, now, now + ahead)
    runs = [int((r.fire_time - NINE) / MINUTE) for r in result.runs]
    skips = [
        (str(s.reason), int((s.fire_time - NINE) / MINUTE), int((s.through - NINE) / MINUTE), s.count)
        for s in result.skips
    ]
    coming = None if result.next_run is None else (result.next_run - NINE) / MINUTE
    return runs, skips, coming, result.status


ACTIVE, FINISHED = ScheduleStatus.ACTIVE, ScheduleStatus.FINISHED


@pytest.mark.parametrize(
    ("what", "now", "changes", "expected"),
    [
        # minutes are told relative to nine o'clock, where next_run stands
        ("not due yet", -1.0, {}, ([], [], 0, ACTIVE)),
        ("due", 0.0, {}, ([0], [], 1, ACTIVE)),
        ("a little late", 0.5, {}, ([0], [], 1, ACTIVE)),
        ("ahead, within the lookahead", -0.01, {}, ([0], [], 1, ACTIVE)),
        ("ahead, but one is live: it is judged at the instant", -0.01, {"live": 1}, ([], [], 0, ACTIVE)),
        ("ahead, one is live and overlap allowed", -0.01, {"live": 1, "overlap": "allow"}, ([0], [], 1, ACTIVE)),
        ("due while one is live", 0.0, {"live": 1}, ([], [("overlap", 0, 0, 1)], 1, ACTIVE)),
        ("due while one is live, two allowed", 0.0, {"live": 1, "overlap": "2"}, ([0], [], 1, ACTIVE)),
        ("due while two are live, two allowed", 0.0, {"live": 2, "overlap": "2"},
         ([], [("overlap", 0, 0, 1)], 1, ACTIVE)),
        ("five missed: the latest runs", 5.5, {}, ([5], [("missed", 0, 4, 5)], 6, ACTIVE)),
        ("five missed, all", 5.5, {"catch_up": "all", "overlap": "allow"}, ([0, 1, 2, 3, 4, 5], [], 6, ACTIVE)),
        ("five missed, all, one at a time", 5.5, {"catch_up": "all"}, ([0], [], 1, ACTIVE)),
        ("all, one at a time, the first still live", 5.5, {"catch_up": "all", "live": 1}, ([], [], 0, ACTIVE)),
        ("all, only the newest left, still live", 0.5, {"catch_up": "all", "live": 1},
         ([], [("overlap", 0, 0, 1)], 1, ACTIVE)),
        ("five missed, none", 5.5, {"catch_up": "none"}, ([], [("missed", 0, 5, 6)], 6, ACTIVE)),
        ("none, but only seconds late", 0.1, {"catch_up": "none"}, ([0], [], 1, ACTIVE)),
        ("within grace", 5.5, {"grace": MINUTE}, ([5], [("missed", 0, 4, 5)], 6, ACTIVE)),
        ("beyond grace", 5.5, {"grace": MINUTE / 4}, ([], [("missed", 0, 5, 6)], 6, ACTIVE)),
        ("all within grace", 5.5, {"grace": 2 * MINUTE, "catch_up": "all", "overlap": "allow"},
         ([4, 5], [("missed", 0, 3, 4)], 6, ACTIVE)),
        ("five missed and one live", 5.5, {"live": 1},
         ([], [("missed", 0, 4, 5), ("overlap", 5, 5, 1)], 6, ACTIVE)),
        ("paused meanwhile", 5.5, {"paused_at": NINE - MINUTE, "resumed_at": NINE + 5.2 * MINUTE},
         ([], [("paused", 0, 5, 6)], 6, ACTIVE)),
        ("missed, then paused, then due", 5.5, {"paused_at": NINE + 1.5 * MINUTE, "resumed_at": NINE + 4.2 * MINUTE},
         ([5], [("missed", 0, 1, 2), ("paused", 2, 4, 3)], 6, ACTIVE)),
        ("resumed long ago", 0.0, {"paused_at": NINE - 9 * MINUTE, "resumed_at": NINE - 5 * MINUTE},
         ([0], [], 1, ACTIVE)),
        ("new: strictly after it was written", 0.0, {"next_run": None}, ([0], [], 1, ACTIVE)),
        ("new, starts later", 0.0, {"next_run": None, "starts_at": NINE + 3 * MINUTE}, ([], [], 3, ACTIVE)),
        ("new, once, in the past: missed like any other",
         0.0, {"next_run": None, "expression": "@at 2027-01-04T08:00:00Z"}, ([-60], [], None, FINISHED)),
        ("once", 0.0, {"expression": "@at 2027-01-04T09:00:00Z"}, ([0], [], None, FINISHED)),
        ("ends before the next", 0.0, {"ends_at": NINE + MINUTE / 2}, ([0], [], None, FINISHED)),
        ("ended before this one", 0.0, {"ends_at": NINE - SECOND}, ([], [], None, FINISHED)),
        ("ended during a downtime", 5.5, {"ends_at": NINE + 2.5 * MINUTE},
         ([2], [("missed", 0, 1, 2)], None, FINISHED)),
        ("last of max_runs", 0.0, {"max_runs": 3, "run_count": 2}, ([0], [], None, FINISHED)),
        ("next_run set by hand, off the expression", 0.0, {"expression": "@yearly", "next_run": NINE},
         ([0], [], (datetime(2028, 1, 1, tzinfo=UTC) - NINE) / MINUTE, ACTIVE)),
    ],
)  # fmt: skip
def test_plan(what, now, changes, expected):
    changes = dict(changes)
    live = changes.pop("live", 0)
    assert decide(NINE + now * MINUTE, live, **changes) == expected, what


def test_a_downtime_of_years_is_planned_at_once():
    runs, skips, coming, _ = decide(NINE + timedelta(days=3650), expression="* * * * * *")
    assert len(runs) == 1 and skips[0][3] == 3650 * 86400
    assert coming is not None


def test_previous_fire_time_is_that_of_the_run_before():
    schedule = replace(BASE, last_run=NINE - 7 * MINUTE, catch_up="all", overlap="allow")
    times = parse("* * * * *")
    result = plan(schedule, times, 0, NINE + MINUTE, NINE + MINUTE)
    assert [r.previous for r in result.runs] == [NINE - 7 * MINUTE, NINE]


def test_jitter_is_the_same_everywhere_and_stays_before_the_next_fire_time():
    schedule = replace(BASE, jitter=timedelta(minutes=10))
    times = parse("* * * * *")
    values = {jitter(schedule, times, NINE + n * MINUTE) for n in range(200)}
    assert len(values) > 150 and all(timedelta(0) <= v < MINUTE for v in values)
    assert jitter(schedule, times, NINE) == jitter(schedule, times, NINE)
    assert jitter(BASE, times, NINE) == timedelta(0)


@pytest.mark.parametrize(("attempt", "seconds"), [(0, 0), (1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (50, 10), (999, 10)])
def test_retry_delay(attempt, seconds):
    assert retry_delay(SECOND, 10 * SECOND, attempt) == seconds * SECOND


def test_retry_delay_does_not_overflow():
    assert retry_delay(timedelta(days=36500), timedelta(days=36500), 900) == timedelta(days=36500)


@pytest.mark.parametrize("bad", [{"attempts": 0}, {"attempts": True}, {"attempts": 1.5}, {"backoff": -SECOND},
                                 {"backoff": 3}, {"max_backoff": timedelta(days=99999)}])  # fmt: skip
def test_retry_refuses(bad):
    with pytest.raises(ValueError, match=r"Retry\("):
        Retry(**bad)


SILENT = Silent(
    id=1, attempt=1, worker=uuid4(), entrypoint="e", heartbeat_at=NINE, max_attempts=3, backoff=SECOND,
    max_backoff=timedelta(hours=1), direct=True, connected=True, heartbeat_interval=None, stall_timeout=None,
)  # fmt: skip


@pytest.mark.parametrize(
    ("what", "silence", "changes", "stalled"),
    [
        ("connected and silent for a while", 29.9, {}, False),
        ("connected and silent for the stall timeout", 30, {}, True),
        ("gone, two beats missed", 2.9, {"connected": False}, False),
        ("gone, three beats missed", 3, {"connected": False}, True),
        ("behind a pooler nothing can be seen", 29.9, {"connected": False, "direct": False}, False),
        ("behind a pooler the stall timeout decides", 30, {"connected": False, "direct": False}, True),
        (
            "gone, but it beats only every ten seconds",
            29,
            {"connected": False, "heartbeat_interval": 10 * SECOND},
            False,
        ),
        ("its own stall timeout counts", 59, {"stall_timeout": MINUTE}, False),
    ],
)
def test_is_stalled(what, silence, changes, stalled):
    run = replace(SILENT, **changes)
    assert is_stalled(run, NINE + silence * SECOND, SECOND, 30 * SECOND) is stalled, what


@pytest.mark.parametrize(
    ("attempt", "expected"),
    [(1, (RunStatus.QUEUED, 0)), (2, (RunStatus.QUEUED, 1)), (3, (RunStatus.FAILED, 0)), (9, (RunStatus.FAILED, 0))],
)
def test_after_loss(attempt, expected):
    status, delay = after_loss(replace(SILENT, attempt=attempt))
    assert (status, delay / SECOND) == expected


def test_unsupported():
    assert "not available" in (unsupported(replace(BASE, overlap="queue")) or "")
    assert unsupported(BASE) is None
