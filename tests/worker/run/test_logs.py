"""What a run logs and how far it is: taken in, written in batches under its claim, read, shown and followed."""

import asyncio
import json
import logging
import threading
from datetime import UTC, datetime, timedelta

import pytest
import structlog
from structlog.testing import capture_logs
from support.shell import Shell, isolate, spawn
from support.workers import until, working

from pgsched import Retry, Run, Scheduler, connect
from pgsched.db.statements.statements import in_schema
from pgsched.db.statements.store import Store
from pgsched.errors import NotFound
from pgsched.executors.capture import JOURNAL, Handler, capturing
from pgsched.journal import Journal, Said
from pgsched.model import Claim, RunStatus
from pgsched.rules.outcome import Outcome
from pgsched.testing import Harness
from pgsched.worker.run.scribe import Scribe

ONCE = Retry(attempts=1)
FAR = {"heartbeat_interval": "30s", "stall_timeout": "1h"}
LINES = "select level, text from pgsched.logs order by id"


@pytest.fixture
async def client(settings):
    async with connect(settings.dsn, schema=settings.schema) as client:
        yield client


@pytest.fixture
def shell(settings, monkeypatch, tmp_path) -> Shell:
    isolate(monkeypatch, tmp_path)
    return Shell(settings)


@pytest.fixture(autouse=True)
def quiet_structlog():
    yield
    structlog.reset_defaults()


def noting(real, name, names):
    def called(self, *args):
        names.append(name)
        return real(self, *args)

    return called


@pytest.fixture
def sent(monkeypatch):
    """The names of the statements that go out about runs, in order."""
    names = []
    for name in ("beat", "write_journals", "finish_runs"):
        monkeypatch.setattr(Store, name, noting(getattr(Store, name), name, names))
    return names


class Gate:
    """Where a run's function waits until the test lets it go on."""

    def __init__(self, sc: Scheduler, said) -> None:
        self.go = asyncio.Event()

        @sc.entrypoint("job", retry=ONCE)
        async def job(run: Run) -> None:
            said(run)
            await self.go.wait()


class Held:
    """A run that is running, held by a worker of which only the scribe is there."""

    def __init__(self, kit, db):
        self.kit, self.db = kit, db
        self.scribe = Scribe(kit)
        self.journal = Journal()

    async def claim(self, attempt=1):
        run_id = await self.db.value(
            "insert into pgsched.runs (entrypoint, status, attempt, token, worker, claimed_at, heartbeat_at)"
            " values ('job', 'running', %s, %s, %s, now(), now()) returning id",
            attempt, attempt, self.kit.worker,
        )  # fmt: skip
        return Claim(run_id, attempt, self.kit.worker)

    async def texts(self):
        return [text for _, text in await self.db.all(LINES)]


@pytest.fixture
async def held(settings, db):
    from pgsched.worker.kit import Kit

    kit = Kit.build(Scheduler(), settings)
    yield Held(kit, db)
    await kit.writes.discard()


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


def events_of(journal: Journal) -> list[tuple[str, str]]:
    return [(line.level, line.text) for line in journal.read().lines]


def test_structlog_is_listened_to_however_the_application_has_configured_it():
    journal, printed = Journal(), []

    def printer(_logger, _method, event):
        printed.append(event["event"])
        raise structlog.DropEvent

    structlog.configure(processors=[printer], cache_logger_on_first_use=True)
    used = structlog.get_logger()
    used.info("before")  # it has its processors now
    token = JOURNAL.set(journal)
    try:
        with capturing(), capturing():  # two workers in one process
            used.info("hello", n=1, name="x y")
            try:
                raise ValueError("bad")
            except ValueError:
                used.exception("oops")
        used.info("after")
    finally:
        JOURNAL.reset(token)
    found = events_of(journal)
    assert found[0] == ("info", "hello n=1 name='x y'")
    assert found[1] == ("error", "oops") and found[-1] == ("error", "ValueError: bad")
    assert printed == ["before", "hello", "oops", "after"]
    assert "after" not in [text for _, text in found]


def test_structlogs_processors_may_be_no_list():
    journal, printed = Journal(), []

    def printer(_logger, _method, event):
        printed.append(event["event"])
        raise structlog.DropEvent

    structlog.configure(processors=(printer,))
    token = JOURNAL.set(journal)
    try:
        with capturing():
            structlog.get_logger().info("hello")
            structlog.configure(processors=(printer,))
        structlog.get_logger().info("after")
    finally:
        JOURNAL.reset(token)
    assert events_of(journal) == [("info", "hello")] and printed == ["hello", "after"]


def test_a_value_that_logs_as_it_is_shown_ends_with_the_loggers_own_error():
    shown = []

    class Odd:
        def __repr__(self):
            shown.append(1)
            assert len(shown) < 10_000  # there are fewer frames, but no end of ways through them
            structlog.get_logger().info("again", it=self)
            return "odd"

    structlog.configure(processors=[structlog.processors.JSONRenderer(default=repr)])
    token = JOURNAL.set(Journal())
    try:
        with capturing(), pytest.raises(RecursionError):
            structlog.get_logger().info("hello", it=Odd())
    finally:
        JOURNAL.reset(token)
    handler = Handler(Journal)
    record = logging.makeLogRecord({"levelno": logging.INFO, "msg": "%r", "args": (Odd(),)})
    Odd.__repr__ = lambda self: handler.emit(record)
    with pytest.raises(RecursionError):
        handler.emit(record)


def test_structlog_that_leads_to_the_standard_library_is_taken_in_once():
    journal = Journal()
    structlog.configure(
        processors=[structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    token = JOURNAL.set(journal)
    try:
        with capturing():
            structlog.get_logger("lib").warning("told", n=1)
    finally:
        JOURNAL.reset(token)
    assert events_of(journal) == [("warning", "told n=1")]


def test_a_flood_is_capped_and_told_at_the_end():
    journal = Journal()
    for _ in range(3):
        journal.add("x" * 30_000, "info")  # a line is cut to 8 KiB
    journal.add("\n" * 100_000, "info")
    said = journal.read(1 << 30)
    assert [len(line.text) for line in said.lines[:3]] == [8192] * 3 and said.lines[0].text.endswith("…")
    assert len(said.lines) == Journal.LINES
    journal.close()
    journal.add("late", "info")
    journal.close()
    last = journal.read(1 << 30).lines[-1]
    assert (last.level, last.text) == (
        "warning",
        "80,003 more lines were dropped: at most 64 KiB are kept per attempt.",
    )
    full = Journal()
    for _ in range(20):
        full.add("y" * 8000, "info")
    assert sum(len(line.text) + 1 for line in full.read(1 << 30).lines) <= Journal.LIMIT and full.dropped == 12


def test_what_is_said_while_it_is_written_is_written_next():
    journal = Journal()
    journal.add("a\nb", "info")
    said = journal.read()
    journal.add("c", "info")
    journal.wrote(said)
    journal.wrote(said)  # two have sent it
    assert journal.read() == Said(3, journal.read().lines, None) and [x.text for x in journal.read().lines] == ["c"]


def test_a_thread_that_is_left_behind_says_nothing_more():
    journal = Journal()
    journal.progress = (1.0, None)
    journal.close()
    journal.progress = (2.0, None)
    journal.close()
    journal.add("still here", "info")
    said = journal.read()
    assert (said.lines, said.progress) == ([], (1.0, None))
    journal.wrote(said)
    assert not journal.unwritten


@pytest.mark.parametrize("value", ["half", float("nan"), float("inf"), None, 10**400])
def test_progress_is_a_number(value):
    run = Run(1, "job", None, None, None, 1, {}, None, None)
    with pytest.raises(ValueError, match=r"run.progress\(\) takes finite numbers, not "):
        run.progress(value)
    with pytest.raises(ValueError, match="finite"):
        run.progress(1, "many")
    assert run.journal.progress is None


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


async def test_who_says_nothing_costs_no_statement(settings, db, client, sent):
    sc = Scheduler()

    def said(run: Run) -> None:
        pass

    gate = Gate(sc, said)
    async with working(sc, settings):
        await client.enqueue("job")
        await until(lambda: sent.count("beat") >= 3)
        gate.go.set()
        await db.until("select status = 'succeeded' from pgsched.runs")
    assert "write_journals" not in sent and sent.count("finish_runs") == 1


async def test_many_lines_of_many_runs_are_one_statement_a_beat(settings, db, client, sent):
    sc = Scheduler()

    def said(run: Run) -> None:
        for n in range(50):
            run.log(f"line {n}")

    gate = Gate(sc, said)
    async with working(sc, settings, **FAR) as worker:
        await client.enqueue_many("job", [{}] * 20)
        await db.until("select count(*) = 20 from pgsched.runs where status = 'running'")
        await until(lambda: len(worker.roster.running()) == 20)
        await until(lambda: all(live.journal.unwritten for live in worker.roster.running()))
        sent.clear()
        await worker.heartbeat.beat()
        assert sent == ["beat", "write_journals"]
        await worker.heartbeat.beat()
        assert sent == ["beat", "write_journals", "beat"]
        gate.go.set()
        await db.until("select count(*) = 20 from pgsched.runs where status = 'succeeded'")
    assert await db.value("select count(*) from pgsched.logs") == 1000
    assert "write_journals" not in sent[3:]  # at the end nothing was left to say


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


async def test_a_lost_claim_writes_nothing(held):
    claim = await held.claim()
    held.journal.add("mine", "info")
    held.journal.progress = (1.0, 2.0)
    for change in ("token = 2", "worker = gen_random_uuid(), token = 1", "status = 'queued'"):
        await held.db.all(f"update pgsched.runs set {change}")
        assert await held.scribe.write_all([(claim, held.journal)]) == {(claim.run_id, 1)}
    assert held.journal.unwritten and await held.texts() == []
    assert await held.db.value("select progress_done is null from pgsched.runs")


async def test_a_row_that_a_client_has_locked_is_passed_over_and_comes_later(held, dsn, schema):
    import psycopg

    mine, other = await held.claim(), await held.claim()
    second = Journal()
    held.journal.add("of the locked", "info")
    second.add("of the other", "info")
    async with await psycopg.AsyncConnection.connect(dsn) as locker:
        await locker.execute(in_schema(b"select from pgsched.runs where id = %s for update", schema), [mine.run_id])
        missed = await held.scribe.write_all([(mine, held.journal), (other, second)])
        assert missed == {(mine.run_id, 1)} and await held.texts() == ["of the other"]
        await locker.rollback()
    assert await held.scribe.write_all([(mine, held.journal)]) == set()
    assert await held.texts() == ["of the other", "of the locked"]


async def test_an_end_waits_for_its_lines_and_holds_up_no_other(held, dsn, schema):
    import psycopg

    from pgsched.worker.run.finisher import Finisher, Landing

    finisher = Finisher(held.kit)
    mine, other = await held.claim(), await held.claim()
    held.journal.add("last words", "info")
    ends = [Outcome(mine, RunStatus.SUCCEEDED, journal=held.journal), Outcome(other, RunStatus.SUCCEEDED)]
    real = held.scribe._store.finish_runs

    async with await psycopg.AsyncConnection.connect(dsn) as locker:
        await locker.execute(in_schema(b"select from pgsched.runs where id = %s for update", schema), [mine.run_id])

        async def freed_in_between(*args):
            if not locker.closed:
                await locker.rollback()  # the row is free again after the lines were refused, before the end is sent
            return await real(*args)

        object.__setattr__(held.kit.store, "finish_runs", freed_in_between)
        answers = await finisher.send(ends)
    assert answers == {(mine.run_id, 1): Landing.LOCKED, (other.run_id, 1): Landing.LANDED}
    assert await finisher.send(ends[:1]) == {(mine.run_id, 1): Landing.LANDED}
    assert await held.texts() == ["last words"]


async def test_a_write_whose_answer_was_lost_is_not_written_twice(held):
    claim = await held.claim()
    held.journal.add("a\nb", "info")
    await held.scribe._store.write_journals(
        await held.kit.writes.connect(), claim.worker, [(claim, held.journal.read())]
    )
    held.journal.add("c", "info")
    await held.scribe.write_all([(claim, held.journal)])
    assert await held.texts() == ["a", "b", "c"]


async def test_lines_that_the_database_refuses_keep_no_run_from_its_end(held, db):
    await db.all("alter table pgsched.logs add check (text <> 'bad')")
    claims = [await held.claim(), await held.claim()]
    bad, good = Journal(), Journal()
    bad.add("bad", "info")
    good.add("good \0 \udcff", "info")
    with capture_logs() as events:
        assert await held.scribe.write_all([(claims[0], bad), (claims[1], good)]) == set()
    assert [(e["event"], e["run"], e["lines"]) for e in events] == [("lines_not_kept", claims[0].run_id, 1)]
    assert await held.texts() == ["good \\x00 \\udcff"]


async def test_an_attempt_that_was_given_back_and_the_next_of_its_number_keep_their_lines_apart(held, db):
    claim = await held.claim()
    held.journal.add("of the first", "info")
    await held.scribe.write_all([(claim, held.journal)])
    other = await db.value("update pgsched.runs set worker = gen_random_uuid() returning worker")
    again = Journal()
    again.add("of the second", "info")
    said = [(Claim(claim.run_id, 1, other), again.read())]
    assert await held.kit.store.write_journals(await held.kit.writes.connect(), other, said)
    assert await held.texts() == ["of the first", "of the second"]


async def test_two_claims_of_one_worker_and_attempt_number_keep_their_lines_apart(held, db):
    claim = await held.claim()
    held.journal.add("of the first", "info")
    await held.scribe.write_all([(claim, held.journal)])
    token = await db.value("update pgsched.runs set token = 7 returning token")
    again = Journal()
    again.add("of the second", "info")
    assert await held.scribe.write_all([(claim._replace(token=token), again)]) == set()
    assert await held.texts() == ["of the first", "of the second"]


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


async def test_lines_go_with_their_run(held, db):
    claim = await held.claim()
    held.journal.add("a", "info")
    await held.scribe.write_all([(claim, held.journal)])
    await db.all("delete from pgsched.runs")
    assert await held.texts() == []


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


async def test_following_ends_with_the_run_and_misses_no_line_of_its_end(client, db):
    run_id = await client.enqueue("job")
    await db.all(
        "update pgsched.runs set status = 'running', attempt = 1, worker = gen_random_uuid(), claimed_at = now(),"
        " heartbeat_at = now()"
    )
    await said_by(db, run_id, "a")
    seen, looks = [], []
    real = client.runs._sql.call

    async def call(name, params, connection):
        found = await real(name, params, connection)
        looks.append(found)
        if len(looks) == 2:  # after the look, before the lines are read
            await said_by(db, run_id, "b")
            await db.all("update pgsched.runs set status = 'failed', finished_at = now()")
        return found

    client.runs._sql.call = call
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
