"""Which silence counts: only time in which claims could be renewed, as a table of one reaper's looks."""

from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import pytest
from support.schedules import NINE

from pgsched.rules.retry import Silent
from pgsched.worker.upkeep.silences import Silences

SECOND = timedelta(seconds=1)
SILENT = Silent(
    id=1, attempt=1, token=1, worker=uuid4(), entrypoint="e", heartbeat_at=NINE, alive_at=NINE, max_attempts=3,
    backoff=SECOND, max_backoff=SECOND, direct=True, connected=False, heartbeat_interval=None, stall_timeout=None,
)  # fmt: skip


class Reaping:
    """A reaper's looks at one silent run, once a second. The database's clock says NINE at second 0."""

    def __init__(self, started=0):
        self.at = float(started)
        self.step = timedelta(0)  # of the database's clock
        self.alive_at = NINE
        self.server, self.session = NINE, 1
        self.silences = Silences(1.0, lambda: self.at)
        self.seen = None

    def look(self):
        now = NINE + self.at * SECOND + self.step
        self.silences.begin(now, self.server, self.session)
        if now - self.alive_at > SECOND:  # else the look does not find it
            self.seen = self.silences.of(replace(SILENT, alive_at=self.alive_at), now)
        self.silences.end()
        return self

    def wait(self, seconds):
        self.at += seconds
        return self

    def looks(self, count):
        for _ in range(count):
            self.wait(1).look()
        return self

    def does(self, name, *values):
        setattr(self, name, *values) if values else getattr(self.silences, name)()
        return self


# The looks -> for how many seconds the silence was watched, steady and beatable.
CASES = {
    "it has looked all along": (Reaping(-60).looks(70), (8, 70, 10)),
    "it starts into a silence": (Reaping(100).looks(5), (4, 5, 5)),
    "it starts, and looks for the first time later": (Reaping(100).wait(40).look(), (0, 40, 40)),
    "looks failed": (Reaping(-60).looks(65).does("disrupted").wait(40).looks(3), (46, 2, 7)),
    "it met another server": (Reaping(-60).looks(65).does("server", NINE - SECOND).looks(3), (6, 2, 7)),
    "its connection was made again": (Reaping(-60).looks(65).does("session", 2).looks(3), (6, 2, 7)),
    "it rested, and nothing has changed": (Reaping(-60).looks(1).does("rest").wait(70).looks(3), (2, 74, 14)),
    "it rested, and the server is another": (
        Reaping(-60).looks(1).does("rest").does("server", NINE - SECOND).wait(70).looks(3), (2, 2, 2)
    ),
    "the server stood still during a look": (Reaping(-60).looks(65).wait(40).look().looks(3), (46, 3, 8)),
    "one look was late": (Reaping(-60).looks(65).wait(8).look(), (11, 73, 7)),
    "the database's clock was set forward": (Reaping(-60).looks(65).does("step", 9 * SECOND).looks(1), (4, 66, 6)),
    "the owner has beaten": (Reaping(-60).looks(71).does("alive_at", NINE + 10 * SECOND).looks(5), (4, 76, 6)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_which_silence_counts(case):
    reaping, expected = CASES[case]
    seen = reaping.seen
    assert tuple(each.total_seconds() for each in (seen.watched, seen.steady, seen.beatable)) == expected


def test_a_server_that_restarts_again_and_again_puts_no_death_off_for_ever():
    reaping = Reaping(100)
    for turn in range(10):
        reaping.does("disrupted").wait(20).does("server", NINE + turn * SECOND).looks(7)
    assert reaping.seen.steady == 6 * SECOND
    assert reaping.seen.beatable == 60 * SECOND
