"""Which version's declarations count, and what a start changes: the rules, as tables."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from pgsched.expression.expression import parse
from pgsched.rules.deploy import (
    Compared,
    Kind,
    Other,
    Standing,
    Verdict,
    difference,
    fingerprint,
    is_ours,
    kind,
    verdict,
)

NOW = datetime(2027, 1, 1, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
PAST = datetime(2020, 1, 1, tzinfo=UTC)
MARCH = datetime(2027, 3, 1, 9, tzinfo=UTC)
BERLIN_NINE = datetime(2027, 1, 2, 8, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("in_force", "known", "alive", "expected"),
    [
        (None, False, 0, Verdict.FIRST),
        ("ours", False, 0, Verdict.CURRENT),
        ("ours", True, 0, Verdict.CURRENT),
        ("ours", True, 3, Verdict.CURRENT),
        ("other", False, 0, Verdict.NEW),  # all were stopped, then deployed
        ("other", False, 3, Verdict.NEW),  # a rolling deploy: the newer version wins over any number of older workers
        ("other", True, 0, Verdict.BACK),  # all were stopped, then rolled back
        ("other", True, 1, Verdict.DEFERRED),  # an old process that started again, or a rolling roll-back
    ],
)
def test_whose_word_counts(in_force, known, alive, expected):
    assert verdict("ours", Standing(NOW, in_force, None, known, alive)) is expected


@pytest.mark.parametrize(
    ("app", "schedules", "shared", "gone", "ours"),
    [
        ("shop/a.b", 2, 2, True, True),
        ("shop/a.b", 2, 1, True, True),
        ("shop/a.b", 3, 1, True, False),  # another service of the project may not be importable here
        ("shop/a.b", 0, 0, True, True),  # all retired
        ("shop/a.b", 2, 2, False, False),
        ("bank/a.b", 2, 2, True, False),
        ("a.b", 2, 2, True, False),
        ("core.app", 2, 2, False, True),
        ("core.app", 3, 1, False, False),
    ],
)
def test_whether_another_application_is_ours_under_an_earlier_name(app, schedules, shared, gone, ours):
    other = Other(app, schedules, shared, 0)
    assert is_ours(other, "shop", {"core.app"}, lambda path: gone and path == "a.b") is ours


def test_code_of_no_project_owns_no_name_without_one():
    assert not is_ours(Other("a.b", 2, 2, 0), "", (), lambda path: True)


ROW = {
    "name": "n", "entrypoint": "e", "expression": "0 9 * * *", "timezone": "UTC", "args": {"a": 1, "b": [1, {"x": 2}]},
    "starts_at": None, "ends_at": None, "max_runs": None,
}  # fmt: skip


def test_a_fingerprint_is_of_what_is_declared_not_of_how():
    other = {**ROW, "name": "m"}
    turned = {**dict(reversed(ROW.items())), "args": {"b": [1, {"x": 2}], "a": 1}}
    assert fingerprint([ROW, other]) == fingerprint([other, turned])
    assert fingerprint([ROW]) != fingerprint([ROW, other]) != fingerprint([])
    assert fingerprint([ROW]) != fingerprint([{**ROW, "args": {"a": 1, "b": [{"x": 2}, 1]}}])
    # Pinned: a release that computed it otherwise would take every application for a new version.
    assert fingerprint([]) == "7ebb3c7c2a87b1a2f8a7ed729ecb040d"


OURS = Compared("n", True, id=1, owner="code:us", timezone="UTC", status="active", next_run=NOW + HOUR, created_at=NOW)
CHANGED = {"overlap": ("skip", "allow")}


@pytest.mark.parametrize(
    ("compared", "expected"),
    [
        (Compared("n", True), Kind.NEW),
        (OURS, Kind.UNCHANGED),
        (replace(OURS, changes=CHANGED), Kind.CHANGED),
        (replace(OURS, status="invalid"), Kind.CHANGED),
        (replace(OURS, status="paused"), Kind.UNCHANGED),
        (replace(OURS, declared=False), Kind.RETIRED),
        (replace(OURS, retired=True, status="finished"), Kind.RETURNING),
        (replace(OURS, owner="api"), Kind.FOREIGN),
        (replace(OURS, owner="api", changes=CHANGED), Kind.FOREIGN),
        (replace(OURS, owner="code:them", changes=CHANGED), Kind.FOREIGN),
        (replace(OURS, owner="code:them", retired=True), Kind.RETURNING),  # they have let go of it
        (replace(OURS, owner="api", retired=True), Kind.FOREIGN),
    ],
)
def test_what_a_row_means(compared, expected):
    assert kind(compared, "code:us") is expected


def times_of(row, anchor):
    return parse(row["expression"], row["timezone"], name=row["name"], anchor=anchor)


TEN = datetime(2027, 1, 2, 9, 0, tzinfo=UTC)
RETIMED = replace(OURS, changes={"expression": ("0 8 * * *", "0 9 * * *")})
GONE = replace(OURS, retired=True, status="finished", next_run=None)


@pytest.mark.parametrize(
    ("compared", "row", "status", "before", "after"),
    [
        (Compared("n", True), {}, "active", None, TEN),
        (Compared("n", True), {"timezone": "Europe/Berlin"}, "active", None, BERLIN_NINE),
        (Compared("n", True), {"expression": "@every 7m"}, "active", None, NOW + timedelta(minutes=7)),
        (Compared("n", True), {"starts_at": "2027-03-01T09:00:00+00:00"}, "active", None, MARCH),
        (Compared("n", True), {"ends_at": "2027-01-02T08:59:00+00:00"}, "finished", None, None),
        (Compared("n", True), {"expression": "@at 2020-01-01T00:00:00Z"}, "active", None, PAST),
        (OURS, {}, "active", NOW + HOUR, NOW + HOUR),
        (replace(OURS, changes=CHANGED), {}, "active", NOW + HOUR, NOW + HOUR),  # its timing is as it was
        (RETIMED, {}, "active", NOW + HOUR, TEN),
        (replace(RETIMED, status="finished", next_run=None), {}, "active", None, TEN),
        (replace(OURS, status="finished", next_run=None, changes=CHANGED), {}, "finished", None, None),
        (replace(OURS, changes={"max_runs": (None, 3)}, run_count=3), {"max_runs": 3}, "finished", NOW + HOUR, None),
        (replace(OURS, status="invalid", next_run=None), {}, "active", None, TEN),
        (replace(RETIMED, status="paused", paused=True), {}, "paused", NOW + HOUR, None),
        (replace(OURS, status="paused", paused=True, changes=CHANGED), {}, "paused", NOW + HOUR, NOW + HOUR),
        (GONE, {}, "active", None, TEN),
        (replace(GONE, paused=True), {}, "paused", None, None),
        (replace(OURS, declared=False), None, "finished", NOW + HOUR, None),
        (replace(OURS, owner="api", changes=RETIMED.changes), {}, "active", NOW + HOUR, NOW + HOUR),
    ],
)  # fmt: skip
def test_what_becomes_of_a_schedule(compared, row, status, before, after):
    found = difference(compared, None if row is None else {**ROW, **row}, "code:us", NOW, times_of)
    assert (found.status_after, found.next_run_before, found.next_run_after) == (status, before, after)


def test_an_interval_keeps_its_anchor():
    compared = replace(RETIMED, created_at=NOW - timedelta(minutes=3))
    found = difference(compared, {**ROW, "expression": "@every 7m"}, "code:us", NOW, times_of)
    assert found.next_run_after == NOW + timedelta(minutes=4)


def test_an_executor_that_computes_its_own_is_not_asked():
    found = difference(Compared("n", True), ROW, "code:us", NOW, lambda row, anchor: None)
    assert found.own_times and found.next_run_after is None and found.status_after == "active"


def test_a_taken_over_schedule_shows_its_former_owner():
    found = difference(replace(GONE, owner="code:them"), ROW, "code:us", NOW, times_of)
    assert found.changes == {"owner": ("code:them", "code:us")} and found.kind is Kind.RETURNING
