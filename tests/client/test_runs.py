"""`client.runs` and its commands: waiting for a run's end, and queueing many again."""

import asyncio
import json
import os
import pty
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from support.shell import Shell, isolate, spawn
from support.workers import working

from pgsched import Retry, Run, Scheduler, connect
from pgsched.client.client import Client
from pgsched.client.connections import Pooled, Statements
from pgsched.client.runs import Runs
from pgsched.db.statements.queries import in_schema
from pgsched.errors import InvalidArguments, NotFound


@pytest.fixture
async def client(dsn, schema) -> AsyncIterator[Client]:
    async with connect(dsn, schema=schema) as made:
        yield made


@pytest.fixture
def shell(settings, monkeypatch, tmp_path) -> Shell:
    isolate(monkeypatch, tmp_path)
    return Shell(settings)


# --- wait -------------------------------------------------------------------------------------------------


class Looks(Pooled):
    """Connections that keep how long they were asked to wait, and do something then instead."""

    def __init__(self, info, then):
        super().__init__(info)
        self.pauses, self.then = [], then

    async def sleep(self, seconds):
        assert self.pool.used == 0, "nobody else lacks the connection meanwhile"
        self.pauses.append(seconds)
        await self.then(len(self.pauses))


async def test_it_looks_ever_less_often_until_the_run_has_ended(dsn, store, client, db):
    run_id = await client.enqueue("job")

    async def then(n):
        status = {5: "running", 10: "queued", 15: "succeeded"}.get(n)
        if status:
            await db.all(
                "update pgsched.runs set status = %s, result = '[1]', worker = gen_random_uuid(), claimed_at = now(),"
                " heartbeat_at = now()", status
            )  # fmt: skip

    looks = Looks(dsn, then)
    async with looks.opened():
        run = await Runs(Statements(looks, store.claims)).wait(run_id)
    assert (run["id"], run["status"], run["result"]) == (run_id, "succeeded", [1])
    assert len(looks.pauses) == 15 and looks.pauses == sorted(looks.pauses)
    assert (looks.pauses[0], looks.pauses[-1]) == (0.02, 0.5)


@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled", "skipped"])
async def test_every_end_is_one(client, db, status):
    run_id = await client.enqueue("job")
    await db.all("update pgsched.runs set status = %s", status)
    assert (await client.runs.wait(run_id, 0))["status"] == status


async def test_what_has_committed_by_itself_is_over_once_its_result_is_there_too(client, db, settings):
    scheduler, go_on = Scheduler(), asyncio.Event()

    @scheduler.entrypoint("job")
    async def job(run: Run):
        async with run.transaction():
            pass
        await go_on.wait()
        return "done"

    async with working(scheduler, settings):
        run_id = await client.enqueue("job")
        await db.until("select committed_at is not null from pgsched.runs")
        with pytest.raises(TimeoutError):
            await client.runs.wait(run_id, 0)
        go_on.set()
        assert (await client.runs.wait(run_id, 20))["result"] == "done"


async def test_what_has_committed_is_over_where_its_worker_is_gone(client, db):
    run_id = await client.enqueue("job")
    await db.all(
        "update pgsched.runs set status = 'succeeded', finished_at = now(), committed_at = now(),"
        " worker = gen_random_uuid()"
    )
    assert (await client.runs.wait(run_id, 0))["status"] == "succeeded"


async def test_an_attempt_that_failed_is_not_the_end(client, settings):
    scheduler = Scheduler()

    @scheduler.entrypoint("job", retry=Retry(3, backoff=timedelta(milliseconds=50)))
    async def job(run: Run):
        if run.attempt < 3:
            raise ValueError("not yet")
        return "done"

    async with working(scheduler, settings):
        run = await client.runs.wait(await client.enqueue("job"), timedelta(seconds=30))
    assert (run["status"], run["result"], len(run["errors"])) == ("succeeded", "done", 2)


async def test_a_timeout_says_where_the_run_is(client):
    run_id = await client.enqueue("job")
    with pytest.raises(TimeoutError, match=rf"^Run {run_id} is still queued after 0\.03 s\.$"):
        await client.runs.wait(run_id, timedelta(milliseconds=30))
    with pytest.raises(
        InvalidArguments, match=r"^timeout must be a timedelta or a number of seconds of 0 or more, not -1\.$"
    ):
        await client.runs.wait(run_id, -1)
    with pytest.raises(InvalidArguments, match="not nan"):
        await client.runs.wait(run_id, float("nan"))


async def test_a_run_that_is_not_there_is_told_at_once_and_one_that_goes_too(dsn, client, store, db):
    async with await psycopg.AsyncConnection.connect(dsn) as mine:
        uncommitted = await client.enqueue("job", connection=mine)
        with pytest.raises(NotFound, match=f"^There is no run {uncommitted}"):
            await client.runs.wait(uncommitted)
    run_id = await client.enqueue("job")
    looks = Looks(dsn, lambda n: db.all("delete from pgsched.runs"))
    async with looks.opened():
        with pytest.raises(NotFound):
            await Runs(Statements(looks, store.claims)).wait(run_id)


# --- retry_many -------------------------------------------------------------------------------------------


async def dead(client, db, count, **columns) -> list[int]:
    ids = await client.enqueue_many("job", [{}] * count)
    columns = {"status": "failed", "finished_at": datetime.now(UTC), **columns}
    for name, value in columns.items():
        await db.all(f"update pgsched.runs set {name} = %s where id = any (%s)", value, ids)
    return ids


async def test_many_are_queued_again_in_batches(client, db):
    ids = await dead(client, db, 1200, attempt=3, max_attempts=3, reason="boom")
    told = []
    assert await client.runs.retry_many([*ids, ids[0]], progress=lambda *seen: told.append(seen)) == ids
    assert told == [(500, 1200), (1000, 1200), (1200, 1200)]
    rows = await db.all("select distinct status, max_attempts, reason, finished_at from pgsched.runs")
    assert rows == [("queued", 4, None, None)]
    assert await client.runs.retry_many(ids) == [], "a second call does no harm"


async def test_what_somebody_is_at_is_left_alone(client, db, dsn, schema):
    ids = await dead(client, db, 3)
    await db.all("update pgsched.runs set status = 'succeeded', finished_at = now() where id = %s", ids[2])
    async with await psycopg.AsyncConnection.connect(dsn) as other:
        await other.execute(in_schema(b"select 1 from pgsched.runs where id = %s for update", schema), (ids[0],))
        assert await client.runs.retry_many([*ids, 10**6]) == [ids[1]]


async def test_of_several_with_one_key_one_is_queued(client, db):
    ids = await dead(client, db, 3, unique_key="k")
    assert await client.runs.retry_many(ids) == ids[:1]
    assert [row["id"] for row in await client.runs.list_dead()] == ids[1:]


async def test_a_key_that_somebody_takes_meanwhile_leaves_the_rest_of_the_batch(client, db, dsn):
    """The retry waits for the enqueue that has the key; that commits, and wins."""
    ids = await dead(client, db, 3)
    await db.all("update pgsched.runs set unique_key = 'k' where id = %s", ids[1])
    async with await psycopg.AsyncConnection.connect(dsn) as other:
        live = await client.enqueue("job", unique_key="k", connection=other)
        retrying = asyncio.create_task(client.runs.retry_many(ids))
        await db.until("select exists (select from pg_locks where not granted and locktype = 'transactionid')")
        await other.commit()
        assert await retrying == [ids[0], ids[2]]
    with pytest.raises(Exception, match=rf"^Run {ids[1]} cannot be retried: a live run has its unique key\.$"):
        await client.retry(ids[1])
    assert {row["id"] for row in await client.list_runs(status="queued")} == {ids[0], ids[2], live}


async def test_it_joins_the_callers_transaction(client, db, dsn):
    ids = await dead(client, db, 3)
    async with await psycopg.AsyncConnection.connect(dsn) as mine:
        assert await client.runs.retry_many(ids, connection=mine) == ids
        await mine.rollback()
    assert [row["id"] for row in await client.runs.list_dead()] == ids


async def test_the_dead_are_found_by_what_they_have_in_common(client, db):
    await client.create_schedule("s", "other", "@daily")
    old = await dead(client, db, 2, finished_at=datetime(2031, 1, 1, tzinfo=UTC))
    new = await dead(client, db, 2, finished_at=datetime(2031, 1, 3, tzinfo=UTC), status="cancelled")
    of_s = await client.trigger("s")
    second = datetime(2031, 1, 2, tzinfo=UTC)
    await db.all("update pgsched.runs set status = 'failed', finished_at = %s where id = %s", second, of_s)
    await db.all("insert into pgsched.runs (entrypoint, status, finished_at) values ('job', 'succeeded', now())")

    async def found(*args, **which):
        return [row["id"] for row in await client.runs.list_dead(*args, **which)]

    assert await found() == [*old, of_s, *new]
    assert await found(status="failed") == [*old, of_s]
    assert await found(status="cancelled", entrypoint="job") == new
    assert await found(schedule="s") == [of_s]
    assert await found(since=second) == [of_s, *new]
    assert await found(since=second, until=second) == [of_s]
    assert await found([new[0], old[1], 10**6]) == [old[1], new[0]]
    assert await found([]) == []
    with pytest.raises(NotFound, match='"t"'):
        await found(schedule="t")
    with pytest.raises(InvalidArguments, match="status must be 'failed' or 'cancelled', not 'queued'"):
        await found(status="queued")
    assert {row["id"] for row in await client.list_runs("s", since=second + timedelta(1))} == set()
    assert {row["id"] for row in await client.list_runs("s", since=second)} == {of_s}


# --- the command line -------------------------------------------------------------------------------------


def dead_runs(shell, count, entrypoint="job", status="failed", ago="1 hour") -> list[int]:
    rows = shell.sql(
        "insert into pgsched.runs (entrypoint, status, finished_at, errors)"
        " select %s, %s, clock_timestamp() - %s::interval, '[{\"message\": \"boom\"}]' from generate_series(1, %s)"
        " returning id",
        entrypoint, status, ago, count,
    )  # fmt: skip
    return [run_id for (run_id,) in rows]


def queued(shell) -> list[int]:
    return [run_id for (run_id,) in shell.sql("select id from pgsched.runs where status = 'queued' order by id")]


def test_retry_shows_first_what_it_would_queue(shell):
    jobs, others = dead_runs(shell, 7), dead_runs(shell, 1, "other")
    shown = shell.ok("runs", "retry", "--failed", "--dry-run").splitlines()
    assert [line.split() for line in shown[:3]] == [
        ["entrypoint", "status", "runs"],
        ["job", "failed", "7"],
        ["other", "failed", "1"],
    ]
    assert [line.split()[0] for line in shown[5:10]] == [str(run_id) for run_id in jobs[:5]]
    assert shown[10:] == ["… and 3 more"] and "boom" in shown[5]
    rows = json.loads(shell.ok("runs", "retry", "--failed", "--entrypoint", "other", "--dry-run", "--json"))
    assert [row["id"] for row in rows] == others
    assert queued(shell) == []


def test_retry_takes_what_the_options_say(shell):
    old, new = dead_runs(shell, 2, ago="3 days"), dead_runs(shell, 2)
    cancelled = dead_runs(shell, 1, status="cancelled")
    dead_runs(shell, 1, "other")
    assert (
        shell.ok("runs", "retry", "--failed", "--entrypoint", "job", "--since", "2h", "--yes")
        == "Queued 2 runs again.\n"
    )
    assert queued(shell) == new
    told = json.loads(shell.ok("runs", "retry", "--cancelled", "--until", "30m", "--yes", "--json"))
    assert told == {"queued": cancelled, "left_alone": []}
    answer = shell(
        "runs", "retry", "--failed", "--cancelled", "--until", "2031-01-01T00:00:00Z", "--since", "90h", "--yes"
    )
    assert (answer.exit_code, answer.stdout) == (0, "Queued 3 runs again.\n")
    assert {*old, *new, *cancelled} < {*queued(shell)}
    answer = shell("runs", "retry", "--failed", "--yes")
    assert (answer.exit_code, answer.stdout, answer.stderr) == (0, "", "No runs match.\n")


def test_retry_tells_what_it_left_alone(shell):
    ids = dead_runs(shell, 2)
    shell.sql("update pgsched.runs set unique_key = 'k'")
    answer = shell("runs", "retry", "--failed", "--yes")
    assert (answer.exit_code, answer.stdout) == (0, "Queued 1 run again; left 1 run alone.\n")
    assert "unique key" in answer.stderr
    assert queued(shell) == ids[:1]


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ([], 2, "Name the runs to retry: give IDs, or --failed or --cancelled."),
        (["--entrypoint", "job", "--yes"], 2, "Name the runs to retry"),
        (["1", "--failed"], 2, "not both"),
        (["1", "--since", "2h"], 2, "not both"),
        (["--failed"], 2, "There is no terminal to ask on: add --yes"),
        (["--failed", "--since", "soon", "--yes"], 2, "neither an instant such as"),
        (["--failed", "--since", "2031-01-01", "--yes"], 2, "neither an instant such as"),
        (["--failed", "--schedule", "s", "--yes"], 3, 'There is no schedule "s".'),
        (["1000000", "--dry-run"], 3, "There is no run 1000000."),
    ],
)
def test_retry_refuses_with_a_sentence(shell, args, code, says):
    dead_runs(shell, 1)
    answer = shell("runs", "retry", *args)
    assert (answer.exit_code, answer.stdout) == (code, "")
    assert says in answer.stderr.replace("\n", " ")
    assert queued(shell) == []


def test_retry_by_id_has_a_dry_run_too(shell):
    [failed] = dead_runs(shell, 1)
    assert shell.ok("runs", "retry", failed, "--dry-run") == f"{failed} would be queued\n"
    assert queued(shell) == []
    shell.ok("runs", "retry", failed)
    answer = shell("runs", "retry", failed, "--dry-run")
    assert (answer.exit_code, answer.stderr) == (
        1, f"Error: Run {failed} is queued: only a failed or cancelled one can be retried.\n",
    )  # fmt: skip


@pytest.mark.parametrize(("answer", "code", "count"), [("y", 0, 3), ("n", 1, 0)])
def test_retry_on_a_terminal_asks(shell, answer, code, count):
    dead_runs(shell, 3)
    ours, theirs = pty.openpty()
    process = spawn("runs", "retry", "--failed", *shell.where, stdin=theirs)
    os.close(theirs)
    asked = b""
    while b"[y/N]" not in asked:
        asked += process.stderr.read1()
    assert b"Queue 3 runs again?" in asked and b"boom" in asked
    os.write(ours, f"{answer}\n".encode())
    stdout, _ = process.communicate(timeout=30)
    os.close(ours)
    assert (process.returncode, stdout) == (code, b"Queued 3 runs again.\n" if count else b"")
    assert len(queued(shell)) == count


def test_list_since_leaves_out_what_ended_before(shell):
    dead_runs(shell, 2, ago="3 days")
    new = dead_runs(shell, 1)
    shell.sql("select pgsched.enqueue('job')")
    rows = json.loads(shell.ok("runs", "list", "--since", "2h", "--json"))
    assert [row["id"] for row in rows] == [new[0] + 1, *new]


# --- trigger --wait ---------------------------------------------------------------------------------------


async def ran(shell, *args) -> tuple[int, str, str]:
    """A command in a process of its own, so that its output is not mixed with the worker's log."""
    process = spawn(*args, *shell.where)
    stdout, stderr = await asyncio.to_thread(process.communicate, timeout=60)
    return process.returncode, stdout.decode(), stderr.decode()


async def test_trigger_waits_for_the_runs_end(shell, settings, client):
    scheduler = Scheduler()

    @scheduler.entrypoint("job", retry=Retry(1))
    async def job(x: int):
        return 1 // x

    async with working(scheduler, settings):
        await client.create_schedule("good", "job", "@yearly", args={"x": 1})
        await client.create_schedule("bad", "job", "@yearly", args={"x": 0})
        good = await ran(shell, "schedules", "trigger", "good", "--wait", "--timeout", "30s")
        bad = await ran(shell, "schedules", "trigger", "bad", "--wait")
        as_json = await ran(shell, "schedules", "trigger", "bad", "--wait", "--json")
    [third, second, first] = [row["id"] for row in await client.list_runs()]
    assert re.fullmatch(rf"{first} succeeded after 0\.\d+s\n", good[1]) and good[::2] == (0, "")
    assert re.fullmatch(rf"{second} failed after 0\.\d+s: ZeroDivisionError: .*\n", bad[1]) and bad[::2] == (1, "")
    row = json.loads(as_json[1])
    assert (as_json[0], row["run_id"], row["status"], row["result"]) == (1, third, "failed", None)


def test_trigger_gives_up_with_a_sentence(shell):
    shell.ok("schedules", "add", "s", "job", "@yearly")
    answer = shell("schedules", "trigger", "s", "--wait", "--timeout", "50ms")
    [run_id] = queued(shell)
    assert (answer.exit_code, answer.stdout) == (1, "")
    assert answer.stderr == f"Error: Run {run_id} is still queued after 0.05 s.\n"
    assert shell("schedules", "trigger", "s", "--timeout", "5s").exit_code == 2


async def test_trigger_tells_of_a_run_that_was_cancelled(shell, client, db):
    await client.create_schedule("s", "job", "@yearly")
    waiting = asyncio.create_task(ran(shell, "schedules", "trigger", "s", "--wait"))
    run_id = await db.until("select max(id) from pgsched.runs")
    await client.cancel(run_id)
    assert await waiting == (1, f"{run_id} cancelled: cancelled on request\n", "")
