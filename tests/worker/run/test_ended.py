"""The ends that a worker remembers are the last ones, and take a limited amount of memory."""

import uuid

import pytest

from pgsched.model import Claim, Outcome, RunError, RunStatus
from pgsched.worker.run import ended
from pgsched.worker.run.ended import Ended


def end(run: int, *, result: str = "", error: RunError | None = None, **fields) -> Outcome:
    return Outcome(
        Claim(run, 1, uuid.UUID(int=0)), RunStatus.SUCCEEDED, result_json=result or None, error=error, **fields
    )


def known(ends: Ended, *runs: int) -> list[int]:
    return [run for run in runs if ends.take((run, 1)) is not None]


@pytest.mark.parametrize(
    "big", [{"result": "x" * 60}, {"error": RunError("E", "x" * 30, "y" * 30)}], ids=["result", "error"]
)
def test_the_oldest_are_forgotten(monkeypatch, big):
    monkeypatch.setattr(ended, "_ENDS", 3)
    monkeypatch.setattr(ended, "_CHARACTERS", 100)
    ends = Ended()
    for run in (1, 2, 3, 4):
        ends.remember(end(run))
    ends.remember(end(2))  # again: it counts once
    assert known(ends, 1, 2, 3, 4) == [2, 3, 4] and known(ends, 2) == []
    ends.remember(end(5, **big))
    ends.remember(end(6, **big))
    assert known(ends, 5, 6) == [6]
    for run in (7, 8):  # what was taken takes no room
        ends.remember(end(run, **big))
        assert known(ends, run) == [run]


def test_the_database_is_asked_about_a_commit_that_it_had_confirmed():
    ends = Ended()
    ends.remember(end(1, committed=True))
    taken = ends.take((1, 1))
    assert taken is not None and taken.transacted and taken.journal is None
