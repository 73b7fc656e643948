"""Why did it not run at T? The answers, as a table, and as the command gives them."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from support.shell import Shell, isolate

from pgsched.client.why import MOST, Situation, around, fates

NINE = datetime(2027, 1, 4, 9, tzinfo=UTC)
HOUR = timedelta(hours=1)
WORKER = UUID(int=7)


def at(hours: float) -> datetime:
    return NINE + hours * HOUR


# Hourly; made yesterday; it is five past nine; everything through nine is decided.
ROW: dict[str, Any] = {
    "name": "s", "entrypoint": "job", "expression": "0 * * * *", "timezone": "UTC", "status": "active", "note": None,
    "created_at": at(-24), "timed_at": at(-24), "starts_at": None, "ends_at": None, "max_runs": None, "run_count": 0,
    "paused_at": None, "paused_until": None, "backlog": False, "interruptions": [], "next_run": at(1),
    "accounted_through": NINE,
}  # fmt: skip
NOW = at(1 / 12)
RUN: dict[str, Any] = {
    "id": 17, "fire_time": NINE, "due_at": NINE, "origin": None, "again": 0, "status": "succeeded", "reason": None,
    "detail": None, "skipped_count": None, "skipped_through": None, "attempt": 1, "max_attempts": 3, "worker": WORKER,
    "started_at": NINE + timedelta(milliseconds=2), "finished_at": NINE + timedelta(milliseconds=1202), "error": None,
}  # fmt: skip
SKIP: dict[str, Any] = {
    **RUN, "id": 16, "status": "skipped", "reason": "missed", "attempt": 0, "fire_time": at(-3), "skipped_count": 4,
    "skipped_through": NINE, "started_at": None, "finished_at": NOW, "worker": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("what", "hours", "row", "records", "situation", "state", "says"),
    [
        ("it ran", 0, {}, [RUN], {}, "ran",
         "Run 17 succeeded (attempt 1 of 3, started 2027-01-04 09:00:00.002Z, took 1.200s)"),
        ("it failed", 0, {}, [{**RUN, "status": "failed", "attempt": 3, "error": "no ink\nline"}], {}, "ran",
         "Run 17 failed (attempt 3 of 3, started 2027-01-04 09:00:00.002Z, took 1.200s): no ink"),
        ("it was cancelled", 0, {}, [{**RUN, "status": "cancelled", "reason": "replaced by the next fire time"}], {},
         "ran", "took 1.200s): replaced by the next fire time"),
        ("it runs", 0, {}, [{**RUN, "status": "running", "finished_at": None}], {}, "live",
         f"Run 17 is running (attempt 1 of 3, started 2027-01-04 09:00:00.002Z) on worker {WORKER}"),
        ("it waits for its turn", 0, {}, [{**RUN, "status": "queued", "attempt": 0}], {}, "live",
         "Run 17 is queued, due 2027-01-04 09:00:00Z"),
        ("it is tried again", 0, {}, [{**RUN, "status": "queued", "due_at": at(0.5)}], {}, "live",
         "Run 17 failed and will be tried again at 2027-01-04 09:30:00Z (attempt 1 of 3 was the last)"),
        ("it was skipped alone", 0, {},
         [{**SKIP, "reason": "overlap", "detail": "run 15 was live", "fire_time": NINE, "skipped_count": 1}], {},
         "skipped", "Skipped: an earlier run was live (run 15 was live); recorded 2027-01-04 09:05:00Z"),
        ("it was missed among others", -2, {}, [{**SKIP, "detail": "catch_up is latest"}], {}, "skipped",
         "Missed (catch_up is latest), as one of 4 from 2027-01-04 06:00:00Z through 2027-01-04 09:00:00Z; recorded "
         "2027-01-04 09:05:00Z"),
        ("it was paused", -2, {}, [{**SKIP, "reason": "paused", "detail": "audit"}], {}, "skipped",
         "Skipped: the schedule was paused (audit), as one of 4"),
        ("it lay before the start", -2, {}, [{**SKIP, "reason": "bounds"}], {}, "skipped",
         "Skipped: before the schedule's start, as one of 4"),
        ("it was missed, and backfilled", -2, {}, [SKIP, {**RUN, "fire_time": at(-2), "origin": "backfill"}], {},
         "ran", "recorded 2027-01-04 09:05:00Z. Run 17, backfilled succeeded"),
        ("it ran twice, as was asked for", 0, {}, [RUN, {**RUN, "id": 18, "again": 1, "origin": "backfill"}], {},
         "ran", "Run 18, backfilled succeeded"),
        ("it ran, and runs again", 0, {}, [RUN, {**RUN, "id": 18, "again": 1, "status": "running"}], {}, "live",
         "Run 17 succeeded"),
        ("its record is gone, the last one", 0, {}, [], {}, "none", "Its record is gone"),
        ("its record is gone", -2, {}, [], {}, "none", "Its record is gone: ended runs are deleted"),
        ("the schedule is paused", 0, {"status": "paused", "note": "audit", "paused_at": at(-0.5),
                                       "accounted_through": at(-1)}, [], {}, "due",
         "The schedule has been paused since 2027-01-04 08:30:00Z (audit): this fire time will be recorded as skipped"),
        ("the schedule is paused, with a backlog", 0, {"status": "paused", "backlog": True, "paused_at": at(-0.5),
                                                       "accounted_through": at(-1)}, [], {}, "due",
         "this fire time will be treated as missed, by its catch_up"),
        ("it was due before the pause", 0, {"status": "paused", "paused_at": at(0.05),
                                            "accounted_through": at(-1)}, [], {}, "due",
         "No worker claimed it before the schedule was paused at 2027-01-04 09:03:00Z"),
        ("resumed, and nobody has looked yet", 0, {"accounted_through": at(-1), "interruptions": [
            {"kind": "paused", "since": "2027-01-04T08:30:00+00:00", "through": "2027-01-04T09:02:00+00:00",
             "note": "audit"}]}, [], {}, "due",
         "The schedule was paused then (audit): the next worker will record it as skipped"),
        ("retired then, and nobody has looked yet", 0, {"accounted_through": at(-1), "interruptions": [
            {"kind": "retired", "since": "2027-01-04T08:30:00+00:00", "through": "2027-01-04T09:02:00+00:00",
             "note": None}]}, [], {}, "due", "It is due: a worker is about to claim it"),
        ("its plan is refused", 0, {"accounted_through": at(-1)}, [], {"refused": "not this one"}, "due",
         "It is due, but the database refuses to change the schedule: not this one"),
        ("no worker knows it", 0, {"accounted_through": at(-1)}, [], {"served": False}, "due",
         "It is due, but no live worker knows the entrypoint 'job': start one that does"),
        ("its own run is live", 0, {"accounted_through": at(-1)}, [], {"live": (15,)}, "due",
         "It is due, but waits: run 15 of the schedule is live"),
        ("nobody has a slot", 0, {"accounted_through": at(-1)}, [], {}, "due",
         "It is due: a worker is about to claim it, or has no free slot"),
        ("it is finished", 0, {"status": "finished", "note": "all of its 3 runs are made", "accounted_through": at(-1)},
         [], {}, "none", "The schedule is finished: all of its 3 runs are made"),
        ("it is invalid", 0, {"status": "invalid", "note": "no such zone", "accounted_through": at(-1)}, [], {},
         "none", "The schedule is invalid: no such zone"),
        ("before its start", -2, {"starts_at": at(-1)}, [], {}, "none", "It is before the schedule's start"),
        ("after its end", 2, {"ends_at": at(1)}, [], {}, "none", "It is after the schedule's end"),
        ("at its very end", 2, {"ends_at": at(2)}, [], {}, "coming", "It will run then"),
        ("it will not: the pause ends after it", 2, {"status": "paused", "paused_at": NINE, "paused_until": at(3)}, [],
         {}, "none", "it is paused until 2027-01-04 12:00:00Z"),
        ("it will: the pause ends with it", 2, {"status": "paused", "paused_at": NINE, "paused_until": at(2)}, [], {},
         "coming", "It will run then"),
        ("it is due: the pause has ended with it", 0, {"status": "paused", "paused_at": NINE, "paused_until": at(0),
                                                        "accounted_through": at(-1)}, [], {}, "due",
         "It is due: a worker is about to claim it"),
        ("it will run", 2, {}, [], {}, "coming", "It will run then"),
        ("it may run", 2, {"max_runs": 3, "run_count": 2}, [], {}, "coming",
         "It will run then, if its last 1 run is not used up by then"),
        ("it will not: finished", 2, {"status": "finished", "note": "retired"}, [], {}, "none",
         "It will not run: the schedule is finished: retired"),
        ("it will not: paused", 2, {"status": "paused", "paused_at": NINE, "note": "audit"}, [], {}, "none",
         "It will not run unless the schedule is resumed first: it is paused (audit)"),
        ("it will: the pause ends before", 2, {"status": "paused", "paused_at": NINE, "paused_until": at(1)}, [], {},
         "coming", "It will run then"),
    ],
)  # fmt: skip
def test_fate(what, hours, row, records, situation, state, says):  # noqa: PLR0917
    told = fates({**ROW, **row}, records, Situation(NOW, **situation), at(hours), at(hours) + HOUR / 60)
    assert [fate.fire_time for fate in told] == [at(hours)], what
    assert (told[0].state, says in told[0].sentence) == (state, True), told[0]


def test_between_fire_times_there_is_none():
    assert fates(ROW, [], Situation(NOW), at(0.4), at(0.6)) == []
    assert around(ROW, at(0.4), at(0.6)) == (NINE, at(1))


def test_before_the_present_timing_only_what_is_recorded_is_known():
    row = {**ROW, "timed_at": at(-2.5)}
    told = fates(row, [{**RUN, "fire_time": at(-4.5)}], Situation(NOW), at(-6), at(-1.5))
    assert [fate.fire_time for fate in told] == [at(-4.5), at(-2)]


def test_a_triggered_run_is_told_at_its_own_time():
    (fate,) = fates(ROW, [{**RUN, "fire_time": at(0.5), "origin": "trigger"}], Situation(at(2)), at(0.4), at(0.6))
    assert "Run 17, triggered by hand succeeded" in fate.sentence


def test_daylight_saving_is_told():
    row = {**ROW, "expression": "30 2 * * *", "timezone": "Europe/Paris"}
    gap = datetime(2027, 3, 28, 1, tzinfo=UTC)
    (fate,) = fates(row, [], Situation(NOW), gap - HOUR, gap + HOUR)
    assert fate.fire_time == gap and fate.mark == "02:30 does not exist on 2027-03-28, runs at 03:00"


def test_an_expression_that_cannot_be_read_hides_no_record():
    told = fates({**ROW, "expression": "61 * * * *"}, [RUN], Situation(NOW), at(-1), at(1))
    assert [fate.state for fate in told] == ["ran"]
    assert around({**ROW, "expression": "61 * * * *"}, NINE, NINE) == (None, None)


def test_a_dense_day_is_cut():
    told = fates({**ROW, "expression": "* * * * * *"}, [], Situation(NOW), at(1), at(24))
    assert len(told) == MOST


# --- the command --------------------------------------------------------------------------------------------


@pytest.fixture
def shell(settings, monkeypatch, tmp_path) -> Shell:
    isolate(monkeypatch, tmp_path)
    return Shell(settings)


def test_show_answers_for_a_moment_on_the_schedules_clock(shell):
    shell.ok("schedules", "add", "n", "job", "30 2 * * *", "--tz", "Europe/Paris")
    text = shell.ok("schedules", "show", "n", "--at", "2031-03-30T02:30")
    assert text == (
        "02:30 does not exist on 2031-03-30 in Europe/Paris: the clock goes from 02:00 to 03:00.\n"
        "2031-03-30 01:00:00Z  2031-03-30 03:00:00 +02:00 (Sun)\n"
        "  02:30 does not exist on 2031-03-30, runs at 03:00\n"
        "  It will run then.\n"
    )
    twice = shell.ok("schedules", "show", "n", "--at", "2031-10-26")
    assert "02:30 comes twice on 2031-10-26, runs the first time only" in twice
    none = shell.ok("schedules", "show", "n", "--at", "2031-10-27T12:00Z")
    assert none.splitlines()[0] == (
        '"n" (30 2 * * *, Europe/Paris) has no fire time at 2031-10-27 12:00:00Z (2031-10-27 13:00:00 +01:00 (Mon)).'
    )
    assert "The fire time before: 2031-10-27 01:30:00Z, 2031-10-27 02:30:00 +01:00 (Mon)." in none
    assert "The fire time after: 2031-10-28 01:30:00Z" in none
    found = json.loads(shell.ok("schedules", "show", "n", "--at", "2031-10-26", "--json"))
    assert [fate["state"] for fate in found["fire_times"]] == ["coming"]
    assert found["from"] == "2031-10-25T22:00:00Z" and found["through"] == "2031-10-26T22:59:59.999999Z"


def test_show_lists_marks_of_daylight_saving(shell):
    shell.ok("schedules", "add", "n", "job", "30 2 30 3 *", "--tz", "Europe/Paris")
    shell.sql("update pgsched.schedules set next_run = '2030-01-01', planned_at = now()")
    text = shell.ok("schedules", "show", "n")
    assert "02:30 does not exist on 2031-03-30, runs at 03:00" in text
    assert "daylight saving" in text


def test_show_tells_of_the_past(shell):
    shell.ok("schedules", "add", "n", "job", "0 * * * *")
    shell.sql("update pgsched.schedules set created_at = '2026-01-01', timed_at = '2026-01-01', planned_at = now()")
    shell.sql(
        "insert into pgsched.runs (schedule_id, entrypoint, fire_time, status, reason, detail, skipped_count,"
        " skipped_through, finished_at) select id, 'job', '2026-02-01 08:00Z', 'skipped', 'paused', 'audit', 48,"
        " '2026-02-03 07:00Z', '2026-02-03 07:30Z' from pgsched.schedules"
    )
    text = shell.ok("schedules", "show", "n", "--at", "2026-02-02T10:00Z")
    assert text == (
        "2026-02-02 10:00:00Z  2026-02-02 10:00:00 +00:00 (Mon)\n"
        "  Skipped: the schedule was paused (audit), as one of 48 from 2026-02-01 08:00:00Z through "
        "2026-02-03 07:00:00Z; recorded 2026-02-03 07:30:00Z.\n"
    )
    assert "The schedule was made at 2026-01-01 00:00:00Z" in shell.ok("schedules", "show", "n", "--at", "2025-12-24")


@pytest.mark.parametrize("moment", ["noon", "2027-13-01", "1800-01-01", "2027-01-01T25:00", "9999-12-31"])
def test_a_moment_that_is_none_is_refused(shell, moment):
    result = shell("schedules", "show", "n", "--at", moment)
    assert result.exit_code == 2
    assert "is neither a date (2027-03-28), nor a time on the schedule's clock" in result.stderr
