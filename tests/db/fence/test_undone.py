"""A commit that a failover has undone: its effects are gone, so its run has not succeeded and is made again."""

import threading

import pytest
from structlog.testing import capture_logs
from support.workers import until, working

from pgsched import Retry, Run, Scheduler
from pgsched.db.statements.queries import in_schema

# What a standby has that lacks the commit, and is promoted.
UNDO = "update pgsched.runs set status = 'running', committed_at = null, finished_at = null, result = null"


@pytest.mark.parametrize("kind", ["coroutine", "thread"])
@pytest.mark.parametrize("end", ["returns", "raises"])
async def test_a_run_whose_commit_is_undone_is_made_again(settings, db, schema, kind, end):
    await db.all("create table pgsched.paid (run bigint)")
    insert = in_schema(b"insert into pgsched.paid values (%s)", schema)
    scheduler = Scheduler()
    committed, gate, calls = threading.Event(), threading.Event(), []

    def after(run):
        calls.append((run.attempt, run.token))
        if len(calls) == 1 and end == "raises":
            raise ValueError("after its transaction")
        return "done"

    async def job(run: Run):
        async with run.transaction() as connection:
            await connection.execute(insert, (run.id,))
        committed.set()
        await until(gate.is_set)
        return after(run)

    def blocking(run: Run):
        with run.transaction() as connection:
            connection.execute(insert, (run.id,))
        committed.set()
        gate.wait(20)
        return after(run)

    scheduler.entrypoint("job", retry=Retry(attempts=1))(blocking if kind == "thread" else job)
    with capture_logs() as logs:
        async with working(scheduler, settings):
            await db.all("select pgsched.enqueue('job')")
            await until(committed.is_set)
            await db.all(UNDO)
            await db.all("delete from pgsched.paid")
            gate.set()
            await db.until("select status = 'succeeded' and reported_at is not null from pgsched.runs")
    assert await db.one("select attempt, result, errors from pgsched.runs") == (1, "done", [])
    assert await db.value("select count(*) from pgsched.paid") == 1
    (first, token), (second, later) = calls
    assert (first, second) == (1, 1) and later > token
    assert [line["run"] for line in logs if line["event"] == "transaction_undone"] == [1]
