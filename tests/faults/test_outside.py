"""The soak of the outside world works: a short one, always the same; and its books find a loss and a double.

See outside/__init__.py. `make soak` runs it for longer, with faults that a seed draws.
"""

from datetime import UTC, datetime, timedelta

import pytest
from outside import books
from outside.faults import KINDS
from outside.gauges import Gauges
from outside.notes import Call, Mercy, Reader
from outside.scene import Excuse
from outside.soak import Drawn, draw, soak
from outside.traffic import Enqueued

NOON = datetime(2027, 2, 1, 12, tzinfo=UTC)
TURNS = [
    [Drawn("server restart", 1.0, "1")],
    [Drawn("daemon killed", 1.0, "2"), Drawn("refuse", 2.0, "3")],
    [Drawn("failover from a read-only one", 1.0, "4")],
]


def call(**values):
    given = {
        "key": "job", "run": 1, "token": 7, "attempt": 1, "pid": 10, "worker": "w", "daemon": "spare",
        "entrypoint": "work", "began": 100.0, "ended": 101.0, "how": "ended",
    }  # fmt: skip
    return Call(**{**given, **values})


def row(**values):
    given = {
        "id": 1, "schedule": None, "fire_time": None, "job": "job", "entrypoint": "work", "status": "succeeded",
        "attempt": 1, "token": 7, "worker": "w", "skipped_count": None, "skipped_through": None, "losses": [],
        "payments": None, "due_at": NOON, "heartbeat_at": NOON, "now": NOON.timestamp(),
    }  # fmt: skip
    return {**given, **values}


def fires(*seconds):
    return [row(schedule="tick spare", entrypoint="tick spare", job=None, id=s, fire_time=NOON + timedelta(seconds=s))
            for s in seconds]  # fmt: skip


@pytest.mark.slow
async def test_a_short_soak_recovers_from_each_fault_and_finds_nothing(capsys):
    report = await soak(1, 60, TURNS, longest=1.0)
    said = capsys.readouterr().out
    print(said)
    assert not report.findings
    for turn in TURNS:
        assert all(drawn.name in said for drawn in turn)
    assert report.counts["fire times that ran"] > 0
    assert report.counts["transactions of runs"] > 0


def test_a_seed_draws_the_same_faults_and_each_kind_in_time():
    assert [draw(7, number) for number in range(50)] == [draw(7, number) for number in range(50)]
    assert draw(7, 3) != draw(8, 3)
    drawn = [each for number in range(400) for each in draw(7, number)]
    assert {each.name for each in drawn} == set(KINDS)
    assert all(KINDS[each.name].shortest <= each.length <= KINDS[each.name].longest for each in drawn)


def test_a_lost_and_a_doubled_fire_time_are_found():
    assert not list(books.unaccounted(fires(0, 1, 2, 3)))
    assert "is missing" in next(books.unaccounted(fires(0, 1, 3)))
    assert "is there twice" in next(books.unaccounted(fires(0, 1, 1, 2)))
    skip = {**fires(1)[0], "status": "skipped", "skipped_through": NOON + timedelta(seconds=3)}
    assert not list(books.unaccounted([*fires(0), {**skip, "skipped_count": 3}, *fires(4)]))
    assert "counts 2 instead of 3" in next(books.unaccounted([*fires(0), {**skip, "skipped_count": 2}, *fires(4)]))


def test_a_lost_job_is_found():
    enqueued = {"job": Enqueued("job", 1, 90.0)}
    assert not list(books.forgotten([row()], [call()], enqueued, Mercy()))
    assert "there is no such run" in next(books.forgotten([], [], enqueued, Mercy()))
    lost = [{"key": "job", "run": 1, "token": 0}]  # by PostgreSQL itself
    assert not list(books.forgotten([], [], enqueued, Mercy([], lost)))
    assert "there is no such run" in next(books.unknown([], [call()], Mercy(), 200.0))
    assert "succeeded without a call" in next(books.torn([row()], [], Mercy()))
    enqueued["job"].cancelled = 95.0
    assert "is succeeded" in next(books.forgotten([row()], [call()], enqueued, Mercy()))


def test_a_double_is_found_unless_its_worker_was_hindered():
    second = call(token=8, attempt=2, pid=11, worker="v", began=105.0, ended=106.0)
    assert "without a reason" in next(books.doubled([call(), second], Mercy()))
    assert "two calls at once" in next(books.doubled([call(ended=None, how=None), second], Mercy()))
    assert "called twice" in next(books.doubled([call(), call(began=105.0)], Mercy()))
    assert not list(books.doubled([call(how="failed"), second], Mercy()))
    for kind, seconds, excused in (
        ("killed", 0, True), ("stopped", 35, True), ("stopped", 20, False), ("cut", 35, True), ("cut", 20, False),
    ):  # fmt: skip
        mercy = Mercy([Excuse(10, kind, 100.5, 100.5 + seconds)])
        assert bool(list(books.doubled([call(), second], mercy))) is not excused, (kind, seconds)


def test_a_claim_taken_from_a_healthy_worker_is_found():
    at = datetime.fromtimestamp(110.0, UTC).isoformat()
    reaped = row(losses=[{"attempt": 1, "worker": "w", "at": at, "message": "its worker is silent"}])
    assert "taken from a healthy worker" in next(books.taken_away([reaped], [call(ended=None)], Mercy(), 0.0))
    mercy = Mercy([Excuse(10, "stopped", 75.0, 111.0)])
    assert not list(books.taken_away([reaped], [call(ended=None)], mercy, 0.0))


def test_half_a_transaction_and_too_many_at_once_are_found():
    assert "2 payments" in next(books.torn([row(payments=2)], [call()], Mercy()))
    assert "1 payments" in next(books.torn([row(payments=1, status="cancelled")], [call()], Mercy()))
    three = [call(key=f"job {n}", run=n, entrypoint="limited", began=100.0 + n / 10) for n in range(3)]
    assert "3 calls at once" in next(books.over_limits(three, Mercy(), 200.0))
    assert not list(books.over_limits(three[:2], Mercy(), 200.0))
    two = [call(key=f"skip all {n}", run=n, began=100.0 + n / 10) for n in range(2)]
    assert "2 calls at once" in next(books.over_limits(two, Mercy(), 200.0))


def test_notes_that_are_not_complete_wait(tmp_path):
    reader = Reader(tmp_path)
    begun = ('{"what": "began", "key": "job", "run": 1, "token": 7, "attempt": 1, "pid": 10, "worker": "w", '
             '"daemon": "spare", "entrypoint": "work", "at": 1.0}\n')  # fmt: skip
    path = tmp_path / "notes spare"
    path.write_text(begun + '{"what": "ended", "key": "jo')
    assert [each.how for each in reader.read()] == [None]
    path.write_text(begun + '{"what": "ended", "key": "job", "run": 1, "token": 7, "pid": 10, "at": 2.0}\n')
    assert [each.how for each in reader.read()] == ["ended"]


@pytest.mark.parametrize("grows", [False, True])
def test_memory_that_grows_is_found(grows):
    gauges = Gauges()
    gauges.begun -= 100.0
    for second in range(100):
        gauges.samples["pooled", "memory, MB"].append((gauges.begun + second, 50.0 + grows * second))
    assert bool(gauges.grown()) is grows
