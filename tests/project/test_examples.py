"""The examples run as their first lines say, and what they enqueue runs; so does whatever a factory returns."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from support.workers import until, working

from pgsched import Scheduler, connect

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def database(root) -> Iterator[str]:
    """A migrated database of its own, since the examples use the schema's usual name."""
    name = f"pgsched examples {os.getpid()}"
    with psycopg.connect(root, autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        there = psycopg.conninfo.make_conninfo(root, dbname=name)
        subprocess.run([sys.executable, "-m", "pgsched", "migrate"], env=environment(there), check=True, timeout=60)
        yield there
        connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def environment(dsn: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PGSCHED_", "PGHOST", "PGDATABASE"))}
    return {**kept, "PGSCHED_DSN": dsn, "PYTHONPATH": str(EXAMPLES.parent)}


@contextlib.contextmanager
def worker(database: str, factory: str) -> Iterator[None]:
    """`pgsched run` in the examples' folder; it has to end well."""
    command = [sys.executable, "-m", "pgsched", "run", factory]
    with subprocess.Popen(command, cwd=EXAMPLES, env=environment(database)) as process:
        try:
            yield
            process.terminate()
            assert process.wait(30) == 0
        finally:
            process.kill()


def output(database: str, example: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, example],
        check=False, cwd=EXAMPLES, env=environment(database), capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def rows(database: str, statement: str) -> list[tuple]:
    with psycopg.connect(database, autocommit=True) as connection:
        return connection.execute(statement).fetchall()


def test_the_asynchronous_application(database):
    with worker(database, "fastapi_style:create_scheduler"):
        told = output(database, "fastapi_style.py")
    assert told == ["{'status': 'succeeded', 'result': 'wrote to ada@example.org at attempt 1'}"]
    assert rows(database, "select email from customers") == [("ada@example.org",)], "nobody was rolled back"
    assert rows(database, "select status from pgsched.runs where entrypoint = 'welcome'") == [("succeeded",)]


def test_the_synchronous_application(database):
    with worker(database, "sync_app:create_scheduler"):
        told = output(database, "sync_app.py")
    assert told[:2] == ["invoice 1 to bob@example.org", "['succeeded', 'succeeded']"]
    assert told[2].startswith("a pdf of 2") and len(told) == 3
    waiting = "select due_at > now() + interval '23 hours' from pgsched.runs where entrypoint = 'remind'"
    assert rows(database, waiting) == [(True,)]
    assert rows(database, "select status from pgsched.schedules where name = 'morning-report'") == [("active",)]


def test_plain_sql(database):
    script = (EXAMPLES / "plain.sql").read_text()
    with psycopg.connect(database, autocommit=True) as connection:
        with pytest.raises(psycopg.errors.UndefinedTable):  # as a whole or not at all
            connection.execute(script.replace("commit;", "select 1 from nowhere; commit;"))
        connection.execute("rollback")
        assert connection.execute("select to_regclass('orders')").fetchone() == (None,)
        first = connection.execute("select coalesce(max(id), 0) from pgsched.runs").fetchone()[0]
        with worker(database, "sync_app:create_scheduler"):
            connection.execute(script)
            ended = f"select result #>> '{{}}' from pgsched.runs where id > {first} and status = 'succeeded' order by 1"
            for _ in range(2000):
                found = [result for (result,) in connection.execute(ended).fetchall()]
                if len(found) == 3:
                    break
                connection.execute("select pg_sleep(0.01)")
        assert found[0].startswith("a csv of 2")
        assert found[1:] == ["invoice 1 to carla@example.org", "invoice 2 to dan@example.org"]
        left = f"select entrypoint from pgsched.runs where id > {first} and status = 'queued'"
        assert connection.execute(left).fetchall() == [("remind",)]
        connection.execute(script)  # a second time it alters the schedule that is there
        nightly = "select expression, overlap, timeout, status from pgsched.schedules where name = 'nightly'"
        assert connection.execute(nightly).fetchall() == [("0 4 * * *", "queue", None, "paused")]


# --- what a factory may return ----------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [("schedules",), ("jobs",), ("schedules", "jobs")], ids="+".join)
async def test_a_scheduler_may_have_schedules_only_jobs_only_or_both(settings, dsn, schema, db, kinds):
    scheduler, seen = Scheduler(), set()
    if "schedules" in kinds:

        @scheduler.schedule("tick", "@every 1s")
        async def tick():
            seen.add("schedules")

    if "jobs" in kinds:

        @scheduler.entrypoint("job")
        async def job():
            seen.add("jobs")

    async with working(scheduler, settings), connect(dsn, schema=schema) as client:
        run_id = await client.enqueue("job")
        await until(lambda: seen == set(kinds))
        if "jobs" not in kinds:
            assert (await client.get_run(run_id))["status"] == "queued", "it is left to a worker that knows it"


async def test_what_is_rolled_back_never_runs_and_what_is_committed_runs_at_once(settings, dsn, schema):
    scheduler, seen, ran = Scheduler(), [], asyncio.Event()

    @scheduler.entrypoint("job")
    async def job(n: int):
        seen.append(n)
        ran.set()

    # No resync and no retry of anything: only the wake-up of the commit can bring the worker to look.
    async with (
        working(scheduler, settings, resync_interval=timedelta(0)),
        connect(dsn, schema=schema) as client,
        await psycopg.AsyncConnection.connect(dsn) as mine,
    ):
        await client.enqueue("job", {"n": 1}, connection=mine)
        await client.enqueue_many("job", [{"n": 2}], connection=mine)
        await mine.rollback()
        await client.enqueue("job", {"n": 3}, connection=mine)
        assert seen == []
        await mine.commit()
        async with asyncio.timeout(20):
            await ran.wait()
    assert seen == [3]


async def test_jobs_are_delayed_ordered_and_deduplicated_while_live(settings, dsn, schema, db):
    scheduler, order, gate = Scheduler(), [], asyncio.Event()

    @scheduler.entrypoint("job")
    async def job(name: str):
        order.append(name)
        if name == "first":
            await gate.wait()

    async with connect(dsn, schema=schema) as client:
        now = await client.now()
        soon = now + timedelta(seconds=2)
        later = await client.enqueue("job", {"name": "later"}, due_at=soon, priority=100)
        low = await client.enqueue("job", {"name": "low"}, priority=-5)
        await client.enqueue("job", {"name": "middle"})
        first = await client.enqueue("job", {"name": "first"}, priority=50, unique_key="k")
        async with working(scheduler, settings, max_running=1, lookahead=timedelta(0)):
            await until(lambda: order == ["first"])
            assert await client.enqueue("job", {"name": "never"}, unique_key="k") == first, "it runs"
            gate.set()
            await client.runs.wait(low, 20)
            again = await client.enqueue("job", {"name": "again"}, unique_key="k", priority=-100)
            assert again != first, "it has ended"
            await client.runs.wait(again, 20)
            run = await client.runs.wait(later, 20)
    assert "never" not in order and order[:3] == ["first", "middle", "low"]
    assert run["started_at"] >= soon


def test_the_example_of_the_documentation_is_this_one_and_passes(tmp_path):
    example = (EXAMPLES / "test_quickstart.py").read_text()
    documented = (EXAMPLES.parent / "docs" / "testing.md").read_text()
    assert example.split("\n\n", 1)[1].strip() in documented
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-c", str(tmp_path / "pytest.ini"), "-p", "no:asyncio",
            "-p", "no:cacheprovider", f"--rootdir={EXAMPLES}", str(EXAMPLES / "test_quickstart.py"),
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        env={k: v for k, v in os.environ.items() if not k.startswith(("PGSCHED_", "PYTEST_"))},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
