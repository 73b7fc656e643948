"""How each attempt of a run ended: told one by one, whatever way it ended."""

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest
from support.shell import Shell, isolate
from support.workers import until, working

from pgsched import Discard, Retry, RetryLater, Run, Scheduler, connect
from pgsched.client.attempts import attempts_of
from pgsched.model import RunStatus
from pgsched.worker.kit import Kit

AT = datetime(2027, 1, 1, tzinfo=UTC)
NOW = Retry(3, timedelta(0))
LATER = "pgsched.RetryLater"
OLD_LATER = "pgsched.errors.RetryLater"


@pytest.fixture
async def client(settings):
    async with connect(settings.dsn, schema=settings.schema) as client:
        yield client


async def ends(client, run_id) -> list[tuple]:
    return [(a["attempt"], a["end"], a["why"]) for a in (await client.get_run(run_id))["attempts"]]


def row(status, attempt, *, errors=(), stops=(), asked=None, reason=None, worker="w", finished=AT):
    return {
        "status": status, "attempt": attempt, "errors": list(errors), "stops": list(stops) or None,
        "cancel_requested_at": asked, "reason": reason, "worker": worker, "started_at": AT, "finished_at": finished,
    }  # fmt: skip


def error(attempt, type_="ValueError", minute=0):
    return {"attempt": attempt, "type": type_, "message": "bad", "at": f"2027-01-01T00:{minute:02}:00+00:00"}


def stop(attempt, end="given_back", minute=0, **more):
    return {"attempt": attempt, "end": end, "at": f"2027-01-01T00:{minute:02}:00+00:00", **more}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (row("queued", 0), []),
        (row("skipped", 0), []),
        (row("queued", 1), []),  # an older version had it queued again
        (row("running", 1), [(1, "running")]),
        (row("succeeded", 2, errors=[error(1)]), [(1, "failed"), (2, "succeeded")]),
        (row("queued", 1, errors=[error(1, "WorkerLost")]), [(1, "worker_lost")]),
        (row("failed", 1, errors=[error(1, "Timeout")]), [(1, "timed_out")]),
        (row("failed", 1), [(1, "failed")]),  # its error could not be stored
        (row("cancelled", 1, reason="gone"), [(1, "discarded")]),
        (row("cancelled", 1, asked=AT), [(1, "cancelled")]),
        (row("cancelled", 1, errors=[error(1)]), [(1, "failed")]),  # cancelled while it waited for the next
        (row("queued", 0, stops=[stop(1)]), [(1, "given_back")]),
        (row("running", 1, stops=[stop(1)]), [(1, "given_back"), (1, "running")]),
        (row("cancelled", 1, stops=[stop(1)], asked=AT), [(1, "given_back"), (1, "cancelled")]),
        (row("cancelled", 1, stops=[stop(1, "discarded", final=True)]), [(1, "discarded")]),
        (
            row("running", 3, errors=[error(1, "A", 1), error(2, LATER, 3)], stops=[stop(2, minute=2)]),
            [(1, "failed"), (2, "given_back"), (2, "retry_later"), (3, "running")],
        ),
        (row("queued", 1, errors=[error(1, OLD_LATER)]), [(1, "retry_later")]),
        (row("failed", 1, errors=["odd", 7, error(1)], stops=[3]), [(1, "failed")]),  # somebody else's writing
        (row("failed", 1, errors=[{**error(1), "at": "once"}]), [(1, "failed")]),
    ],
)  # fmt: skip
def test_the_attempts_of_a_row(found, expected):
    assert [(each["attempt"], each["end"]) for each in attempts_of(found)] == expected


async def test_failures_and_the_success_after_them(settings, db, client):
    sc = Scheduler()

    @sc.entrypoint("job", retry=Retry(9, timedelta(0)), timeout=timedelta(milliseconds=150))
    async def job(run: Run) -> None:
        match run.attempt:
            case 1:
                raise ValueError("bad")
            case 2:
                raise RetryLater(0, "limited")
            case 3:
                await asyncio.sleep(60)

    async with working(sc, settings) as worker:
        run_id = await client.enqueue("job")
        await db.until("select status = 'succeeded' from pgsched.runs")
        attempts = (await client.get_run(run_id))["attempts"]
    assert [(a["attempt"], a["end"]) for a in attempts] == [
        (1, "failed"), (2, "retry_later"), (3, "timed_out"), (4, "succeeded"),
    ]  # fmt: skip
    assert attempts[0]["why"] == "ValueError: bad" and attempts[2]["why"].startswith("Timeout: ran longer than")
    assert {a["worker"] for a in attempts} == {str(worker.kit.worker)}
    assert all(a["started_at"].tzinfo is a["ended_at"].tzinfo is UTC for a in attempts)


async def test_discarded_then_retried_then_cancelled_then_retried(settings, db, client):
    sc = Scheduler()
    began = asyncio.Event()

    @sc.entrypoint("job", retry=NOW)
    async def job(run: Run) -> None:
        if run.attempt == 1:
            raise Discard("no such customer")
        if run.attempt == 2:
            began.set()
            await asyncio.sleep(60)

    async with working(sc, settings):
        run_id = await client.enqueue("job")
        await db.until("select status = 'cancelled' from pgsched.runs")
        assert await ends(client, run_id) == [(1, "discarded", "no such customer")]
        await client.retry(run_id)
        await began.wait()
        await client.cancel(run_id)
        await db.until("select status = 'cancelled' from pgsched.runs")
        await client.retry(run_id)
        await db.until("select status = 'succeeded' from pgsched.runs")
    assert await ends(client, run_id) == [
        (1, "discarded", "no such customer"), (2, "cancelled", "cancelled on request"), (3, "succeeded", None),
    ]  # fmt: skip


async def test_retrying_what_was_cancelled_in_the_queue_tells_no_attempt_twice(db, client):
    run_id = await client.enqueue("job")
    await client.cancel(run_id)
    await client.retry(run_id)  # it has had no attempt
    assert await ends(client, run_id) == []
    await db.all("update pgsched.runs set status = 'cancelled', reason = 'why', attempt = 1, finished_at = now()")
    for _ in range(2):
        await client.retry(run_id)
        assert await ends(client, run_id) == [(1, "discarded", "why")]
        await client.cancel(run_id)
    await db.all("""update pgsched.runs set attempt = 2, errors = '[{"attempt": 2, "type": "X", "message": "m"}]'""")
    await client.retry(run_id)
    assert sorted(await ends(client, run_id)) == [(1, "discarded", "why"), (2, "failed", "X: m")]


async def test_what_a_drain_gave_back_and_what_had_not_started(settings, db, client):
    sc = Scheduler()
    began = asyncio.Event()

    @sc.entrypoint("job", retry=NOW)
    async def job() -> None:
        began.set()
        await asyncio.sleep(60)

    async with working(sc, settings, drain_timeout="0s", lookahead="10s") as worker:
        run_id = await client.enqueue("job")
        later = await client.enqueue("job", due_at=datetime.now(UTC) + timedelta(seconds=9))
        await began.wait()
        await until(lambda: len(worker.roster.attempts) == 2)  # one of which is held
    row = await client.get_run(run_id)
    assert (row["status"], row["attempt"], row["errors"]) == ("queued", 0, [])
    assert [(a["attempt"], a["end"], a["worker"]) for a in row["attempts"]] == [
        (1, "given_back", str(worker.kit.worker))
    ]
    assert row["attempts"][0]["started_at"] and row["attempts"][0]["ended_at"]
    assert await ends(client, later) == []


async def test_a_worker_that_was_lost(settings, db, client):
    kit = Kit.build(Scheduler(), settings)
    run_id = await db.value(
        "insert into pgsched.runs (entrypoint, status, attempt, worker, claimed_at, started_at, heartbeat_at)"
        " values ('job', 'running', 1, %s, now(), now(), now() - interval '1 h') returning id", kit.worker
    )  # fmt: skip
    try:
        connection = await kit.control.connect()
        _, _, _, silent = await kit.store.upkeep.find_silent_runs(connection, kit.worker, timedelta(0))
        verdict = (silent[0], RunStatus.QUEUED, timedelta(0), "its worker is gone")
        assert await kit.store.upkeep.reap_runs(connection, [verdict]) == [run_id]
    finally:
        await kit.control.discard()
    [attempt] = (await client.get_run(run_id))["attempts"]
    assert (attempt["end"], attempt["why"]) == ("worker_lost", "WorkerLost: its worker is gone")
    assert attempt["worker"] == str(kit.worker) and attempt["started_at"] <= attempt["ended_at"]


async def test_the_newest_twenty_are_kept(db):
    grown = "[]"
    for n in range(25):
        grown = await db.value("select pgsched.appended(%s::jsonb, to_jsonb(%s))::text", grown, n)
    assert json.loads(grown) == list(range(5, 25))
    assert await db.value("select pgsched.appended(null, '1')") == [1]


def test_the_command_shows_them(settings, monkeypatch, tmp_path):
    isolate(monkeypatch, tmp_path)
    shell = Shell(settings)
    entry = json.dumps([{**error(1), "worker": "0123456789", "started_at": "2027-01-01T00:00:00+00:00"}])
    [(run_id,)] = shell.sql(
        "insert into pgsched.runs (entrypoint, status, attempt, errors, finished_at)"
        " values ('job', 'succeeded', 2, %s, '2027-01-02Z') returning id", entry
    )  # fmt: skip
    lines = shell.ok("runs", "show", run_id).splitlines()
    table = lines[lines.index("Attempts") + 1 :]
    assert table[0].split() == ["attempt", "worker", "started", "ended", "how", "why"]
    assert "01234567  2027-01-01 00:00:00Z" in table[1] and table[1].endswith("failed     ValueError: bad")
    assert "succeeded" in table[2]
    shown = json.loads(shell.ok("runs", "show", run_id, "--json"))
    assert [a["end"] for a in shown["attempts"]] == ["failed", "succeeded"] and "stops" not in shown
