"""What a run logs and how far it is: taken in, kept with it, read, shown and followed."""

import asyncio
import json
import logging
import threading
from datetime import UTC, datetime, timedelta

import pytest
import structlog
from structlog.testing import capture_logs
from support.lines import LINES, ONCE, Gate
from support.shell import Shell, isolate, spawn
from support.workers import working

from pgsched import Retry, Run, Scheduler
from pgsched.client.connections import Statements
from pgsched.errors import NotFound
from pgsched.executors.capture import Handler
from pgsched.journal import Journal
from pgsched.testing import Harness

FAR = {"heartbeat_interval": "30s", "stall_timeout": "1h"}
pytestmark = pytest.mark.usefixtures("quiet_structlog")


@pytest.fixture
def shell(settings, monkeypatch, tmp_path) -> Shell:
    isolate(monkeypatch, tmp_path)
    return Shell(settings)


# --- taken in ---------------------------------------------------------------------------------------------


async def test_what_a_run_logs_in_any_way_is_kept_with_it(settings, db, client):
    sc = Scheduler()
    logger = logging.getLogger("app.part")

    @sc.entrypoint("soon", retry=ONCE)
    async def soon(run: Run) -> None:
        run.log("first\nsecond", "error")
        logger.warning("of %s", "logging")
        structlog.get_logger().info("of_structlog", user="ada", text="two words")

        async def inner() -> None:
            logger.error("of a task")

        await asyncio.create_task(inner())

    @sc.entrypoint("thread", retry=ONCE)
    def thread() -> None:
        try:
            raise KeyError("gone")
        except KeyError:
            logger.exception("caught")

    with capture_logs():  # our own events are not printed into the test
        async with working(sc, settings):
            a, b = [await client.enqueue(name) for name in ("soon", "thread")]
            await db.until("select count(*) = 2 from pgsched.runs where status = 'succeeded'")
    lines = await client.runs.log(a)
    assert [(line["level"], line["text"]) for line in lines] == [
        ("error", "first"), ("error", "second"), ("warning", "app.part: of logging"),
        ("info", "of_structlog user=ada text='two words'"), ("error", "app.part: of a task"),
    ]  # fmt: skip
    assert {line["attempt"] for line in lines} == {1} and lines[0]["at"].tzinfo is UTC
    texts = [line["text"] for line in await client.runs.log(b)]
    assert texts[0] == "app.part: caught" and texts[1].startswith("Traceback") and texts[-1] == "KeyError: 'gone'"
    assert not any(isinstance(handler, Handler) for handler in logging.getLogger().handlers)


@pytest.mark.parametrize(
    "given", [("x", logging.INFO), ("x", None), ("x", "loud"), ("x", ["info"]), (5,), (None,), (b"x",)]
)
async def test_what_is_no_line_is_the_runs_error_and_not_its_workers(settings, db, given):
    sc = Scheduler()

    @sc.entrypoint("job", retry=ONCE)
    async def job(run: Run) -> None:
        run.log(*given)

    async with working(sc, settings):
        await db.value("select pgsched.enqueue('job')")
        await db.until("select status = 'failed' from pgsched.runs")
    error = await db.value("select errors -> 0 from pgsched.runs")
    assert error["type"] == "ValueError" and "run.log()" in error["message"], error


# --- written ----------------------------------------------------------------------------------------------


async def test_lines_and_progress_are_there_while_the_run_runs(settings, db, client):
    sc = Scheduler()

    def said(run: Run) -> None:
        run.log("it begins")
        for n in range(1000):
            run.progress(n, 1000)

    gate = Gate(sc, said)
    async with working(sc, settings):
        run_id = await client.enqueue("job")
        await db.until("select count(*) = 1 from pgsched.logs")
        row = await client.get_run(run_id)
        assert row["status"] == "running" and row["progress"] == {"done": 999, "total": 1000}
        assert (await client.list_runs())[0]["progress"] == {"done": 999, "total": 1000}
        gate.go.set()
        await db.until("select status = 'succeeded' from pgsched.runs")
    assert (await client.get_run(run_id))["progress"] == {"done": 999, "total": 1000}  # how far it came


async def test_what_it_says_last_is_there_when_it_has_ended(settings, db, client):
    sc = Scheduler()

    @sc.entrypoint("job", retry=ONCE)
    async def job(run: Run) -> None:
        for n in range(30_000):
            run.log(f"{n:05}")
        run.progress(7)
        raise ValueError("no")

    async with working(sc, settings, **FAR):
        run_id = await client.enqueue("job")
        row = await client.runs.wait(run_id, 20)
        lines = await client.runs.log(run_id)
    assert row["status"] == "failed" and row["progress"] == {"done": 7, "total": None}
    assert [line["text"] for line in lines[:2]] == ["00000", "00001"]
    assert sum(len(line["text"]) + 1 for line in lines[:-1]) <= Journal.LIMIT
    assert (
        lines[-1]["text"]
        == f"{30_000 - len(lines) + 1:,} more lines were dropped: at most 64 KiB are kept per attempt."
    )


async def test_a_job_that_sets_up_logging_costs_later_runs_no_line(settings, db, client):
    sc = Scheduler()

    @sc.entrypoint("setup", retry=ONCE)
    def setup() -> None:
        logging.basicConfig(force=True, handlers=[logging.NullHandler()])
        structlog.configure(
            processors=[structlog.processors.JSONRenderer()], logger_factory=structlog.ReturnLoggerFactory()
        )

    @sc.entrypoint("after", retry=ONCE)
    async def after() -> None:
        logging.getLogger("app").warning("of logging")
        structlog.get_logger().info("of structlog")

    async with working(sc, settings):
        await client.enqueue("setup")
        await db.until("select status = 'succeeded' from pgsched.runs")
        await client.enqueue("after")
        await db.until("select count(*) = 2 from pgsched.runs where status = 'succeeded'")
        assert [row[1] for row in await db.all(LINES)] == ["app: of logging", "of structlog"]


async def test_an_applications_tests_see_them_too(dsn):
    sc = Scheduler()

    @sc.entrypoint("job", retry=ONCE)
    def job() -> None:
        logging.getLogger("app").warning("seen")

    async with Harness(sc, dsn) as harness:
        run_id = await harness.client.enqueue("job")
        await harness.run_due()
        assert [line["text"] for line in await harness.client.runs.log(run_id)] == ["app: seen"]


async def test_progress_of_an_earlier_attempt_is_not_this_ones(settings, db, client):
    sc = Scheduler()
    go = asyncio.Event()

    @sc.entrypoint("job", retry=Retry(3, timedelta(0)))
    async def job(run: Run) -> None:
        if run.attempt == 1:
            run.progress(1, 2)
            raise ValueError
        await go.wait()

    async with working(sc, settings):
        run_id = await client.enqueue("job")
        await db.until("select attempt = 2 and started_at is not null from pgsched.runs")
        assert await db.value("select progress_done from pgsched.runs") == 1
        assert (await client.get_run(run_id))["progress"] is None
        go.set()
        await db.until("select status = 'succeeded' from pgsched.runs")


# --- read and followed ------------------------------------------------------------------------------------


async def said_by(db, run_id, *texts, attempt=1):
    for n, text in enumerate(texts, 1):
        await db.all(
            "insert into pgsched.logs (run_id, attempt, worker, number, at, level, text)"
            " values (%s, %s, '00000000-0000-0000-0000-000000000001',"
            " %s + coalesce((select max(number) from pgsched.logs), 0), %s, 'info', %s)",
            run_id, attempt, n, datetime(2027, 1, 1, 9, 0, 0, 5000, tzinfo=UTC), text,
        )  # fmt: skip


async def test_a_log_is_read_whole_or_from_a_line_on(client, db, settings):
    run_id = await client.enqueue("job")
    assert await client.runs.log(run_id) == []
    await said_by(db, run_id, "a", "b")
    await said_by(db, run_id, "c", attempt=2)
    lines = await client.runs.log(run_id)
    assert [(line["attempt"], line["text"]) for line in lines] == [(1, "a"), (1, "b"), (2, "c")]
    assert [line["text"] for line in await client.runs.log(run_id, after=lines[0]["id"])] == ["b", "c"]
    assert [line["text"] for line in await client.runs.log(run_id, attempt=1)] == ["a", "b"]
    assert [line["text"] for line in await client.runs.log(run_id, limit=2)] == ["b", "c"]
    with pytest.raises(NotFound, match="There is no run 4711"):
        await client.runs.log(4711)

    def in_a_thread():
        from pgsched import connect_sync

        with connect_sync(settings.dsn, schema=settings.schema) as sync:
            sync.cancel(run_id)
            return [x["text"] for x in sync.runs.log(run_id)], [x["text"] for x in sync.runs.follow(run_id)]

    assert await asyncio.to_thread(in_a_thread) == (["a", "b", "c"],) * 2


async def test_following_ends_with_the_run_and_misses_no_line_of_its_end(client, db, monkeypatch):
    run_id = await client.enqueue("job")
    await db.all(
        "update pgsched.runs set status = 'running', attempt = 1, worker = gen_random_uuid(), claimed_at = now(),"
        " heartbeat_at = now()"
    )
    await said_by(db, run_id, "a")
    seen, looks = [], []
    real = Statements.call

    async def call(self, name, params, connection):
        found = await real(self, name, params, connection)
        looks.append(found)
        if len(looks) == 2:  # after the look, before the lines are read
            await said_by(db, run_id, "b")
            await db.all("update pgsched.runs set status = 'failed', finished_at = now()")
        return found

    monkeypatch.setattr(Statements, "call", call)
    async for line in client.runs.follow(run_id):
        seen.append(line["text"])
    assert seen == ["a", "b"] and looks == ["running", "running", "failed"]


async def test_following_one_attempt_ends_with_that(client, db):
    run_id = await client.enqueue("job")
    await db.all("update pgsched.runs set status = 'queued', attempt = 1")
    await said_by(db, run_id, "a")
    assert [line["text"] async for line in client.runs.follow(run_id, attempt=1)] == ["a"]


def test_the_commands_show_it(shell):
    [(run_id,)] = shell.sql(
        "insert into pgsched.runs (entrypoint, status, attempt, worker, claimed_at, heartbeat_at, progressed_at,"
        " progress_done, progress_total) values ('job', 'running', 1, gen_random_uuid(), now(), now(), now(), 30, 120)"
        " returning id"
    )
    assert shell("runs", "logs", run_id).stderr == f"Run {run_id} has logged nothing.\n"
    for n in range(1, 26):
        shell.sql(
            "insert into pgsched.logs (run_id, attempt, worker, number, at, level, text)"
            " values (%s, 1, gen_random_uuid(), %s, '2027-01-01T09:00:00.005Z', 'warning', %s)",
            run_id, n, f"l{n}\x1b[2J",
        )  # fmt: skip
    assert shell.ok("runs", "logs", run_id).splitlines()[0] == "2027-01-01 09:00:00.005Z #1 warning l1\\x1b[2J"
    shown = shell.ok("runs", "show", run_id)
    assert f"Log, its last 20 lines (all: pgsched runs logs {run_id})" in shown
    assert "progress             30 of 120 (25%)" in shown and " l6\\x1b" in shown and " l5\\x1b" not in shown
    assert shell.ok("runs", "list").splitlines()[1].endswith("30 of 120 (25%)")
    lines = json.loads(shell.ok("runs", "logs", run_id, "--json"))
    assert len(lines) == 25 and lines[0]["at"] == "2027-01-01T09:00:00.005000Z"
    assert json.loads(shell.ok("runs", "show", run_id, "--json"))["log"] == lines
    assert shell("runs", "logs", 4711).exit_code == 3 and shell("runs", "logs", 4711, "-f").exit_code == 3


def test_the_command_follows_until_the_run_has_ended(shell):
    [(run_id,)] = shell.sql(
        "insert into pgsched.runs (entrypoint, status, attempt, worker, claimed_at, heartbeat_at)"
        " values ('job', 'running', 1, gen_random_uuid(), now(), now()) returning id"
    )
    insert = (
        "insert into pgsched.logs (run_id, attempt, worker, number, at, level, text)"
        " values (%s, 1, '00000000-0000-0000-0000-000000000001', %s, now(), 'info', %s)"
    )
    shell.sql(insert, run_id, 1, "one")
    with spawn("runs", "logs", str(run_id), "-f", "--json", *shell.where, text=True) as process:
        watchdog = threading.Timer(30, process.kill)
        watchdog.start()
        try:
            assert json.loads(process.stdout.readline())["text"] == "one"
            shell.sql(insert, run_id, 2, "two")
            assert json.loads(process.stdout.readline())["text"] == "two"
            shell.sql("update pgsched.runs set status = 'failed', finished_at = now()")
            assert (process.stdout.read(), process.stderr.read(), process.wait(20)) == ("", "", 0)
        finally:
            watchdog.cancel()
            process.kill()
