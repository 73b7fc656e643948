"""Tests of the quickstart's schedules: `pip install "pgsched[embedded]" pytest`, then `pytest test_quickstart.py`."""

from datetime import UTC, datetime, timedelta

import pytest
from quickstart import create_scheduler

from pgsched.testing import SyncHarness

NOON = datetime(2027, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def pg():
    with SyncHarness(create_scheduler(), now=NOON) as harness:
        yield harness


def test_the_report_reads_the_clock_of_berlin(pg):
    run = pg.fire("berlin-report")
    assert run["status"] == "succeeded"
    assert run["result"] == "read on the clock of Europe/Berlin"


def test_it_gets_through_at_the_third_attempt(pg):
    run = pg.fire("fails-twice")
    assert run["status"] == "queued"
    assert run["errors"][0]["message"] == "the other side is not there yet"
    pg.run_until(NOON + timedelta(seconds=5))  # its waits are over then, and no real second has passed
    run = pg.client.get_run(run["id"])
    assert (run["status"], run["attempt"], run["result"]) == ("succeeded", 3, "third time lucky")


def test_after_a_downtime_the_report_runs_once(pg):
    pg.run_due()
    pg.client.pause("blocks-the-loop")  # it would block this test, too
    pg.clock.advance(timedelta(hours=3))
    runs = pg.run_due()
    assert [run["fire_time"] for run in runs if run["schedule"] == "berlin-report"] == [NOON + timedelta(hours=3)]
    [skip] = pg.client.list_runs("berlin-report", "skipped")
    assert (skip["reason"], skip["skipped_count"]) == ("missed", 3 * 360 - 1)
