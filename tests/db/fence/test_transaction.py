"""run.transaction(): the application's writes and the run's success commit together, or neither is there."""

import asyncio
import contextlib
import threading
import uuid
from datetime import timedelta

import psycopg
import pytest
from psycopg.pq import TransactionStatus
from support.workers import Elapsed, reap, until, working

from pgsched import Retry, Run, Scheduler
from pgsched.db.fence.fence import Fence, session_name
from pgsched.db.fence.pools import Pools
from pgsched.db.fence.waits import Coroutines, Source, Threads
from pgsched.db.pool import finished
from pgsched.db.statements.queries import in_schema
from pgsched.errors import ClaimLost, PgschedError
from pgsched.model import Claim
from pgsched.testing import Harness
from pgsched.worker.kit import Kit
from pgsched.worker.run.roster import Roster
from pgsched.worker.upkeep.reaper import Reaper

ONCE = Retry(attempts=1)


@pytest.fixture
async def paid(db):
    """A table of the application; returns a function that tells what is in it."""
    await db.all("create table pgsched.paid (who text)")

    async def found():
        return [row[0] for row in await db.all("select who from pgsched.paid order by who")]

    return found


@pytest.fixture
def insert(schema):
    """A statement of the application."""
    return in_schema(b"insert into pgsched.paid values (%s)", schema)


@pytest.fixture
def events(monkeypatch):
    """The daemon's events, as (name, fields)."""
    import structlog

    found = []

    def keep(_logger, method, event):
        found.append((event.pop("event"), {**event, "level": method}))
        raise structlog.DropEvent

    structlog.configure(processors=[keep])
    yield found
    structlog.reset_defaults()


class Gates:
    """Where functions stop until the test lets them go on."""

    def __init__(self):
        self.reached, self.go = asyncio.Event(), asyncio.Event()
        self.go_on = threading.Event()

    async def stop(self):
        self.reached.set()
        await self.go.wait()


def job(scheduler, function, **options):
    scheduler.entrypoint("job", **{"retry": ONCE, **options})(function)


async def enqueue(db):
    return await db.value("select pgsched.enqueue('job')")


ROW = "select status, attempt, result, reason, committed_at is not null, errors from pgsched.runs"
ENDED = "select status not in ('queued', 'running') from pgsched.runs"


async def row(db):
    await db.until(ENDED)
    return await db.one(ROW)


@pytest.mark.parametrize("threaded", [False, True])
async def test_writes_and_success_commit_together(settings, db, paid, insert, threaded):
    scheduler = Scheduler()
    seen = []

    async def a(run: Run):
        async with run.transaction() as connection:
            await connection.execute(insert, ("ann",))
            seen.append((await paid(), await db.value("select status from pgsched.runs")))
        seen.append((await paid(), await db.value("select status from pgsched.runs")))
        return {"n": 1}

    def b(run: Run):
        with run.transaction() as connection:
            connection.execute(insert, ("ann",))
            seen.append(asyncio.run_coroutine_threadsafe(both(), loop).result())
        seen.append(asyncio.run_coroutine_threadsafe(both(), loop).result())
        return {"n": 1}

    async def both():
        return await paid(), await db.value("select status from pgsched.runs")

    loop = asyncio.get_running_loop()
    job(scheduler, b if threaded else a)
    async with working(scheduler, settings):
        await enqueue(db)
        await db.until("select result is not null from pgsched.runs")
    assert seen == [([], "running"), (["ann"], "succeeded")]
    assert await db.one(ROW) == ("succeeded", 1, {"n": 1}, None, True, [])
    assert await db.value("select started_at <= committed_at and finished_at = committed_at from pgsched.runs")


@pytest.mark.parametrize("threaded", [False, True])
async def test_what_the_block_raises_rolls_everything_back(settings, db, paid, insert, threaded):
    scheduler = Scheduler()

    async def a(run: Run):
        async with run.transaction() as connection:
            await connection.execute(insert, (f"try {run.attempt}",))
            if run.attempt == 1:
                raise ValueError("no")

    def b(run: Run):
        with run.transaction() as connection:
            connection.execute(insert, (f"try {run.attempt}",))
            if run.attempt == 1:
                raise ValueError("no")

    job(scheduler, b if threaded else a, retry=Retry(attempts=2, backoff=timedelta(0)))
    async with working(scheduler, settings):
        await enqueue(db)
        status, attempt, _, _, committed, errors = await row(db)
    assert (status, attempt, committed) == ("succeeded", 2, True)
    assert [error["type"] for error in errors] == ["ValueError"]
    assert await paid() == ["try 2"]


async def test_a_statement_that_failed_inside_the_block_commits_nothing_even_if_it_is_swallowed(
    settings, db, paid, insert
):
    scheduler = Scheduler()

    async def a(run: Run):
        async with run.transaction() as connection:
            await connection.execute(insert, ("ann",))
            with contextlib.suppress(psycopg.Error):
                await connection.execute("select 1/0")

    job(scheduler, a)
    async with working(scheduler, settings):
        await enqueue(db)
        status, _, _, _, committed, errors = await row(db)
    assert (status, committed, await paid()) == ("failed", False, [])
    assert errors[0]["type"].endswith("InFailedSqlTransaction")


@pytest.mark.parametrize("threaded", [False, True])
async def test_a_claim_that_is_lost_before_the_block_ends_takes_its_writes_with_it(
    settings, db, paid, insert, threaded
):
    """Another client takes the claim away in a transaction that is open while the block ends: it waits, and fails."""
    scheduler, gates, raised = Scheduler(), Gates(), []

    async def a(run: Run):
        try:
            async with run.transaction() as connection:
                await connection.execute(insert, ("zombie",))
                await gates.stop()
        except BaseException as error:
            raised.append(error)
            raise

    def b(run: Run):
        try:
            with run.transaction() as connection:
                connection.execute(insert, ("zombie",))
                loop.call_soon_threadsafe(gates.reached.set)
                gates.go_on.wait(20)
        except BaseException as error:
            raised.append(error)
            raise

    loop = asyncio.get_running_loop()
    job(scheduler, b if threaded else a)
    async with (
        working(scheduler, settings, heartbeat_interval="5s", stall_timeout="60s", max_running=1),
        await psycopg.AsyncConnection.connect(settings.dsn) as thief,
    ):
        await enqueue(db)
        await gates.reached.wait()
        await thief.execute(
            in_schema(b"update pgsched.runs set attempt = 2, token = 0, worker = %s", settings.schema),
            (uuid.uuid4(),),
        )
        gates.go.set()
        gates.go_on.set()
        await db.until(
            "select count(*) = 1 from pg_stat_activity where wait_event_type = 'Lock' and application_name like"
            " 'pgsched-run %%' and query like '%%commit_run%%'"
        )
        assert not raised
        await thief.commit()
        await until(lambda: raised)
        assert isinstance(raised[0], ClaimLost)
        assert await db.one("select status, attempt, committed_at from pgsched.runs") == ("running", 2, None)
        assert await paid() == []
        await db.all("delete from pgsched.runs")


def reaping(settings) -> Kit:
    """The kit of a worker that is quick to take silence for death."""
    quick = settings.merged({"stall_timeout": "1s", "heartbeat_interval": "200ms"}, "t")
    return Kit.build(Scheduler(), quick, elapsed=Elapsed())


@pytest.mark.parametrize("limit", ["lock_timeout", "statement_timeout"])
async def test_the_success_waits_for_a_beat_longer_than_the_applications_own_limits(settings, db, paid, insert, limit):
    """A beat holds the row for a moment, while the block ends. The limits are the role's, or the block's own."""
    claim = await claimed(db)
    hold = in_schema(b"update pgsched.runs set heartbeat_at = now()", settings.schema, parametrised=False)
    entered, pids = asyncio.Event(), []

    async def block():
        async with Fence(settings.dsn, settings.schema, claim).transaction() as connection:
            await connection.execute(insert, ("ann",))
            await connection.execute(f"set {limit} = '100ms'".encode())
            pids.append(connection.info.backend_pid)
            await entered.wait()

    async with await psycopg.AsyncConnection.connect(settings.dsn) as beat:
        leaving = asyncio.create_task(block())
        await until(lambda: pids)
        await beat.execute(hold)
        entered.set()
        await db.until("select wait_event_type = 'Lock' from pg_stat_activity where pid = %s", *pids)
        await asyncio.wait([leaving], timeout=0.5)  # longer than that limit
        await beat.commit()
        await leaving
    assert await db.one(ROW) == ("succeeded", 1, None, None, True, [])
    assert await paid() == ["ann"]


async def test_a_reaper_that_comes_while_the_success_is_being_committed_leaves_it_in_peace(settings, db, paid, insert):
    """The commit holds the row's lock; the reaper passes over it, and finds nothing to reap afterwards."""
    claim = await claimed(db, silent=3600)
    kit = reaping(settings)
    reaper = Reaper(kit, Roster(kit.settings))
    try:
        async with Fence(settings.dsn, settings.schema, claim).transaction() as connection:
            await connection.execute(insert, ("ann",))
            commit = in_schema(b"select pgsched.commit_run(%s, 1, %s)", settings.schema)
            await connection.execute(commit, (claim.run_id, claim.worker))
            await reap(reaper, kit)
            assert await db.value("select status from pgsched.runs") == "running"
            # So that the block's end finds its claim as it was.
            await connection.execute(
                in_schema(b"update pgsched.runs set status = 'running'", settings.schema, parametrised=False)
            )
        await reap(reaper, kit)
    finally:
        await kit.control.discard()
        await kit.writes.discard()
    assert await db.one(ROW) == ("succeeded", 1, None, None, True, [])
    assert await paid() == ["ann"]


async def test_a_reaped_attempt_loses_its_transaction_and_what_it_has_locked(settings, db, paid, insert):
    claim = await claimed(db, silent=3600)
    kit = reaping(settings)
    reaper = Reaper(kit, Roster(kit.settings))
    try:
        with pytest.raises(psycopg.OperationalError):
            async with Fence(settings.dsn, settings.schema, claim).transaction() as connection:
                await connection.execute(insert, ("zombie",))
                name = session_name(claim)
                assert await db.value("select count(*) from pg_stat_activity where application_name = %s", name) == 1
                await reap(reaper, kit)
                await db.until("select count(*) = 0 from pg_stat_activity where application_name = %s", name)
                await connection.execute("select 1")
    finally:
        await kit.control.discard()
        await kit.writes.discard()
    assert await paid() == []
    assert await db.value("select status from pgsched.runs") == "failed"


async def claimed(db, *, silent=0.0):
    """A run that a worker has claimed which is nowhere to be found."""
    worker = uuid.uuid4()
    run_id = await db.value(
        "insert into pgsched.runs (entrypoint, status, attempt, token, max_attempts, worker, claimed_at, heartbeat_at)"
        " values ('job', 'running', 1, 1, 1, %s, now(), clock_timestamp() - %s * interval '1 second') returning id",
        worker, silent,
    )  # fmt: skip
    return Claim(run_id, 1, worker)


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("threaded", [False, True])
async def test_a_commit_whose_answer_is_lost_is_told_as_what_became_of_it(  # noqa: PLR0917 - fixtures
    settings, db, paid, insert, done, threaded, monkeypatch
):
    """The connection dies at COMMIT: after the server has done it, or before the server hears of it."""
    claim = await claimed(db)
    told = []
    fence = Fence(settings.dsn, settings.schema, claim, committed=lambda: told.append("committed"))
    way = "pgsched.db.fence.waits.Threads" if threaded else "pgsched.db.fence.waits.Coroutines"
    lost = psycopg.OperationalError("server closed the connection unexpectedly")

    async def cut(self, connection, query, params):
        if not done:
            connection.pgconn.finish()
        elif threaded:
            psycopg.ClientCursor(connection).execute(query, params)
            connection.close()
        else:
            await psycopg.AsyncClientCursor(connection).execute(query, params)
            await connection.close()
        raise lost

    monkeypatch.setattr(f"{way}.commit", cut)

    async def use():
        async with fence.transaction() as connection:
            await connection.execute(insert, ("ann",))

    def use_blocking():
        with fence.transaction() as connection:
            connection.execute(insert, ("ann",))

    work = asyncio.to_thread(use_blocking) if threaded else use()
    if done:
        await work
        assert told == ["committed"]
        assert await paid() == ["ann"]
        assert await db.one(ROW) == ("succeeded", 1, None, None, True, [])
    else:
        with pytest.raises(psycopg.OperationalError, match="unexpectedly"):
            await work
        assert (told, await paid()) == ([], [])
        assert await db.value("select status from pgsched.runs") == "running"


async def test_a_commit_that_may_still_be_on_its_way_to_the_server_is_cut_off_before_the_row_is_read(
    settings, db, paid, insert, monkeypatch
):
    """Its session is there, in its transaction, and its message could reach it after the row was read."""
    claim = await claimed(db)
    left = []

    async def hang(self, connection, query, params):
        left.append((connection, query, params))
        raise TimeoutError

    async def close(self, connection):
        pass

    monkeypatch.setattr("pgsched.db.fence.waits.Coroutines.commit", hang)
    monkeypatch.setattr("pgsched.db.fence.waits.Coroutines.close", close)
    monkeypatch.setattr("pgsched.db.fence.waits.Coroutines.end", _of_block)
    with pytest.raises(TimeoutError):
        async with Fence(settings.dsn, settings.schema, claim).transaction() as connection:
            monkeypatch.setattr("pgsched.db.fence.waits.Coroutines.give_back", close)
            await connection.execute(insert, ("ann",))
    connection, query, params = left[0]
    with pytest.raises(psycopg.OperationalError):
        await psycopg.AsyncClientCursor(connection).execute(query, params)
    assert await paid() == []
    assert await db.value("select status from pgsched.runs") == "running"


async def _of_block(self, connection, block, error):
    return False


async def test_an_unanswered_commit_that_the_server_still_works_on_is_waited_for(
    settings, db, paid, insert, monkeypatch
):
    """As behind a pooler, where its session cannot be ended: what is read must be newer than its end."""
    claim = await claimed(db)
    left = []

    async def hang(self, connection, query, params):
        left.append((connection, query, params))
        raise TimeoutError

    async def close(self, connection):
        pass

    async def use():
        async with Fence(settings.dsn, settings.schema, claim).transaction() as connection:
            monkeypatch.setattr("pgsched.db.fence.waits.Coroutines.give_back", close)
            await connection.execute("set local application_name = 'pooled'")
            await connection.execute(insert, ("ann",))

    monkeypatch.setattr("pgsched.db.fence.waits.Coroutines.commit", hang)
    monkeypatch.setattr("pgsched.db.fence.waits.Coroutines.close", close)
    monkeypatch.setattr("pgsched.db.fence.waits.Coroutines.end", _of_block)
    using = asyncio.create_task(use())
    await db.until(
        "select count(*) = 1 from pg_stat_activity where wait_event_type = 'Lock' and query like '%%transactions%%'"
    )
    assert not using.done()
    connection, query, params = left[0]
    await psycopg.AsyncClientCursor(connection).execute(query, params)
    await using
    await connection.close()
    assert await paid() == ["ann"]
    assert await db.value("select status from pgsched.runs") == "succeeded"


async def test_an_unanswered_commit_under_a_claim_that_is_gone_says_so(settings, db, paid, insert, monkeypatch):
    claim = await claimed(db)

    async def fail(self, connection, query, params):
        await connection.close()
        await db.all("update pgsched.runs set attempt = 2, worker = %s", uuid.uuid4())
        raise TimeoutError

    monkeypatch.setattr("pgsched.db.fence.waits.Coroutines.commit", fail)
    with pytest.raises(ClaimLost):
        async with Fence(settings.dsn, settings.schema, claim).transaction() as connection:
            await connection.execute(insert, ("ann",))
    assert await paid() == []


async def test_a_commit_is_asked_after_until_the_database_answers(settings, db, paid, insert, monkeypatch):
    claim = await claimed(db)
    from pgsched.db.fence.waits import Coroutines

    asked, ask, commit = [], Coroutines.ask, Coroutines.commit

    async def cut(self, connection, query, params):
        await commit(self, connection, query, params)
        await connection.close()
        raise OSError("gone")

    async def away(self, statements):
        asked.append(1)
        if len(asked) < 3:
            raise psycopg.OperationalError("the database system is starting up")
        return await ask(self, statements)

    monkeypatch.setattr(Coroutines, "commit", cut)
    monkeypatch.setattr(Coroutines, "ask", away)
    async with Fence(settings.dsn, settings.schema, claim).transaction() as connection:
        await connection.execute(insert, ("ann",))
    assert len(asked) == 3
    assert await paid() == ["ann"]


async def test_a_cancellation_during_the_commit_waits_for_it(settings, db, paid, insert, monkeypatch):
    from pgsched.db.fence.waits import Coroutines

    claim = await claimed(db)
    fence, gates, commit = Fence(settings.dsn, settings.schema, claim), Gates(), Coroutines.commit

    async def slow(self, *arguments):
        await gates.stop()
        await commit(self, *arguments)

    async def use():
        async with fence.transaction() as connection:
            await connection.execute(insert, ("ann",))

    monkeypatch.setattr(Coroutines, "commit", slow)
    using = asyncio.create_task(use())
    await gates.reached.wait()
    using.cancel()
    await asyncio.sleep(0)
    using.cancel()  # and once more
    await asyncio.sleep(0)
    assert not using.done()
    gates.go.set()
    with pytest.raises(asyncio.CancelledError):
        await using
    assert await paid() == ["ann"]
    assert await db.value("select status from pgsched.runs") == "succeeded"


async def test_a_cancellation_inside_the_block_rolls_it_back(settings, db, paid, insert):
    scheduler, gates = Scheduler(), Gates()

    async def a(run: Run):
        async with run.transaction() as connection:
            await connection.execute(insert, ("ann",))
            await gates.stop()

    job(scheduler, a)
    async with working(scheduler, settings):
        run_id = await enqueue(db)
        await gates.reached.wait()
        await db.value("select pgsched.cancel(%s)", run_id)
        assert (await row(db))[0] == "cancelled"
    assert await paid() == []


@pytest.mark.parametrize("how", ["error", "timeout", "cancel", "drain", "thread"])
async def test_what_comes_after_the_commit_changes_nothing_of_the_success(  # noqa: PLR0917 - fixtures
    settings, db, paid, insert, events, how
):
    gates, told = Gates(), []
    scheduler = Scheduler()
    scheduler.after_run(lambda run, end: told.append((end.status, type(end.error))))
    scheduler.on_failure(lambda run, failure: told.append("failure"))

    async def a(run: Run):
        async with run.transaction() as connection:
            await connection.execute(insert, ("ann",))
        gates.reached.set()
        if how == "error":
            raise ValueError("too late")
        await asyncio.sleep(60)

    def b(run: Run):
        with run.transaction() as connection:
            connection.execute(insert, ("ann",))
        loop.call_soon_threadsafe(gates.reached.set)
        raise ValueError("too late")

    loop = asyncio.get_running_loop()
    job(
        scheduler, b if how == "thread" else a, retry=Retry(attempts=3, backoff=timedelta(0)),
        timeout=timedelta(milliseconds=300) if how == "timeout" else None,
    )  # fmt: skip
    async with working(scheduler, settings, drain_timeout="100ms") as worker:
        if how == "cancel":  # asked before the commit, and seen by a beat after it
            beat, worker.heartbeat.beat = worker.heartbeat.beat, _nothing
        await enqueue(db)
        await gates.reached.wait()
        if how == "cancel":
            worker.heartbeat.beat = beat
            worker.roster.running()[0].end(_requested())
        if how != "drain":
            await db.until("select reason is not null from pgsched.runs")
            await until(lambda: told)
    await until(lambda: told)
    status, attempt, result, reason, committed, errors = await db.one(ROW)
    assert (status, attempt, result, committed, errors) == ("succeeded", 1, None, True, [])
    expected = {
        "error": "ValueError: too late", "thread": "ValueError: too late", "drain": "its worker was stopped",
        "timeout": "Timeout: ran longer than its timeout of 0.3 s", "cancel": "cancelled on request",
    }  # fmt: skip
    assert reason == f"after its transaction had committed: {expected[how]}"
    assert await paid() == ["ann"]
    assert [each if each == "failure" else str(each[0]) for each in told] == ["succeeded"]
    names = [name for name, _ in events]
    assert names.count("run_finished") == names.count("error_after_commit") == 1
    assert not {"run_failed", "run_failed_for_good", "claim_lost", "run_given_back"} & set(names)
    assert next(fields["level"] for name, fields in events if name == "error_after_commit") == "warning"


async def _nothing():
    pass


def _requested():
    from pgsched.rules.outcome import Stop

    return Stop.REQUESTED


async def test_beats_go_on_after_the_commit_and_do_not_take_the_run_for_lost(settings, db, paid, insert, events):
    scheduler, gates = Scheduler(), Gates()

    async def a(run: Run):
        async with run.transaction() as connection:
            await connection.execute(insert, ("ann",))
        await gates.stop()
        return "kept"

    job(scheduler, a)
    async with working(scheduler, settings) as worker:
        await enqueue(db)
        await gates.reached.wait()
        for _ in range(3):
            await worker.heartbeat.beat()
            await asyncio.sleep(0)
        assert len(worker.roster.running()) == 1
        gates.go.set()
        await db.until("select result is not null from pgsched.runs")
    assert (await db.one(ROW))[:3] == ("succeeded", 1, "kept")
    assert "claim_lost" not in [name for name, _ in events]


async def test_a_run_that_waits_for_the_overlap_starts_at_the_commit(settings, db, paid, insert):
    scheduler, gates, began = Scheduler(), Gates(), []

    @scheduler.schedule("job", "@yearly", overlap="queue", name="nightly")
    async def a(run: Run):
        began.append(run.id)
        async with run.transaction() as connection:
            await connection.execute(insert, (str(len(began)),))
            if len(began) == 1:
                await gates.stop()
        if len(began) == 1:
            await until(lambda: len(began) == 2)

    async with working(scheduler, settings) as worker:
        told = []
        worker.roster.watch(freed=lambda attempt: told.append((attempt.claimed.id, attempt.state.value)))
        await db.value("select pgsched.trigger('nightly')")
        await gates.reached.wait()
        await db.value("select pgsched.trigger('nightly')")
        await asyncio.sleep(0.1)
        assert len(began) == 1
        gates.go.set()
        await db.until("select count(*) = 2 from pgsched.runs where status = 'succeeded'")
    assert await paid() == ["1", "2"]
    assert told[0] == (began[0], "running")  # without it, only the dispatcher's own looks would find it
    assert await db.value("select last_status from pgsched.schedules") == "succeeded"


async def test_a_second_transaction_in_one_attempt_is_refused(settings, db, paid, insert):
    scheduler, raised = Scheduler(), []

    async def a(run: Run):
        async with run.transaction() as connection:
            await connection.execute(insert, ("ann",))
        try:
            async with run.transaction() as connection:
                await connection.execute(insert, ("bob",))
        except PgschedError as error:
            raised.append(str(error))

    job(scheduler, a)
    async with working(scheduler, settings):
        await enqueue(db)
        assert (await row(db))[0] == "succeeded"
    assert await paid() == ["ann"]
    assert "once in an attempt" in raised[0]


async def test_a_blocking_block_in_a_coroutine_is_refused(settings, db):
    scheduler = Scheduler()

    async def a(run: Run):
        with run.transaction():
            pass

    job(scheduler, a)
    async with working(scheduler, settings):
        await enqueue(db)
        status, _, _, _, _, errors = await row(db)
    assert status == "failed"
    assert "async with run.transaction()" in errors[0]["message"]


async def test_a_block_that_ends_its_transaction_itself_is_told_so(settings, db, paid, insert):
    scheduler = Scheduler()

    async def a(run: Run):
        async with run.transaction() as connection:
            await connection.execute(insert, ("ann",))
            await connection.execute("commit")

    job(scheduler, a)
    async with working(scheduler, settings):
        await enqueue(db)
        status, _, _, _, committed, errors = await row(db)
    assert (status, committed) == ("failed", False)
    assert "ended its transaction itself" in errors[0]["message"]


async def test_what_one_run_sets_in_its_session_is_not_there_for_the_next(settings, db, dsn):
    scheduler, seen = Scheduler(), []

    async def a(run: Run):
        async with run.transaction() as connection:
            cursor = await connection.execute(
                "select current_setting('search_path'), current_setting('application_name'), pg_backend_pid()"
            )
            seen.append(await cursor.fetchone())
            assert type(cursor) is psycopg.AsyncCursor
            await connection.execute("set search_path = pg_temp")
            connection.row_factory, connection.cursor_factory = psycopg.rows.dict_row, psycopg.AsyncClientCursor

    job(scheduler, a)
    async with working(scheduler, settings, max_transactions=1) as worker:
        for count in (1, 2):
            await enqueue(db)
            await db.until("select count(*) = %s from pgsched.runs where status = 'succeeded'", count)
        (first, name, pid), (second, _, again) = seen
        assert first == second != "pg_temp"
        assert pid == again  # one connection serves them
        assert name.startswith("pgsched-run ") and name.endswith(f" {worker.kit.worker}")


async def test_many_runs_take_turns_at_few_connections(settings, db, paid, insert):
    scheduler = Scheduler()

    async def a(run: Run):
        async with run.transaction() as connection:
            await connection.execute(insert, (f"{run.id:04}",))

    job(scheduler, a)
    async with working(scheduler, settings, max_transactions=2):
        await db.all("select pgsched.enqueue('job') from generate_series(1, 40)")
        await db.until("select count(*) = 40 from pgsched.runs where status = 'succeeded'")
    assert len(await paid()) == 40


@pytest.mark.parametrize("threaded", [False, True])
async def test_after_an_outage_a_pool_connects_soon(settings, monkeypatch, threaded):
    monkeypatch.setattr("pgsched.db.pool.RETRY", 0.1)
    monkeypatch.setattr("pgsched.db.fence.pools.SAY_AFTER", 0.1)
    kind = psycopg.Connection if threaded else psycopg.AsyncConnection
    real, tried = kind.connect.__func__, []

    def unreachable(cls, *args, **kwargs):
        tried.append(1)
        if len(tried) < 12:  # by the pool's own pace the twelfth would come after minutes
            raise psycopg.OperationalError("nobody is there")
        return real(cls, *args, **kwargs)

    monkeypatch.setattr(kind, "connect", classmethod(unreachable))
    pools = Pools(settings.dsn, 1)
    way = (Threads if threaded else Coroutines)(Source(settings.dsn, settings.dsn, pools))
    try:
        async with asyncio.timeout(20):
            taken = await (asyncio.to_thread(lambda: finished(way.take())) if threaded else way.take())
        assert taken.info.transaction_status == TransactionStatus.IDLE
        await way.give_back(taken)
    finally:
        await pools.close()


async def test_a_client_that_has_the_row_locked_delays_the_result_and_nothing_else(settings, db, paid, insert):
    scheduler, gates = Scheduler(), Gates()

    async def a(run: Run):
        async with run.transaction() as connection:
            await connection.execute(insert, ("ann",))
        await gates.stop()
        return 7

    job(scheduler, a)
    async with (
        working(scheduler, settings) as worker,
        await psycopg.AsyncConnection.connect(settings.dsn) as other,
    ):
        await enqueue(db)
        await gates.reached.wait()
        await other.execute(in_schema(b"select from pgsched.runs for update", settings.schema, parametrised=False))
        gates.go.set()
        await until(lambda: worker.finisher.pending > worker.finisher.behind)
        assert (await db.one(ROW))[:3] == ("succeeded", 1, None)
        await other.commit()
        await db.until("select result = '7' from pgsched.runs")


async def test_a_fence_needs_no_worker_and_no_pool(settings, db, paid, insert):
    claim = await claimed(db)
    again = Fence(settings.dsn, settings.schema, claim)

    def child():
        with again.transaction() as connection:
            connection.execute(insert, ("child",))

    await asyncio.to_thread(child)
    assert await paid() == ["child"]
    assert await db.value("select status from pgsched.runs") == "succeeded"
    with pytest.raises(ClaimLost):
        async with Fence(settings.dsn, settings.schema, claim).transaction() as connection:
            await connection.execute(insert, ("twice",))
    assert await paid() == ["child"]


@pytest.mark.parametrize("threaded", [False, True])
async def test_without_a_pool_a_beat_in_between_is_no_conflict_either(settings, db, paid, insert, threaded):
    claim = await claimed(db)
    strict = psycopg.conninfo.make_conninfo(settings.dsn, options="-c default_transaction_isolation=serializable")
    fence, loop = Fence(strict, settings.schema, claim), asyncio.get_running_loop()

    async def beat():
        await db.all("update pgsched.runs set heartbeat_at = clock_timestamp()")

    def child():
        with fence.transaction() as connection:
            connection.execute(insert, ("child",))
            asyncio.run_coroutine_threadsafe(beat(), loop).result()

    if threaded:
        await asyncio.to_thread(child)
    else:
        async with fence.transaction() as connection:
            await connection.execute(insert, ("child",))
            await beat()
    assert await paid() == ["child"]


async def test_a_run_that_no_worker_made_has_no_transaction():
    run = Run(1, "job", None, None, None, 1, {}, uuid.uuid4(), None)
    with pytest.raises(PgschedError, match="not made by a worker"):
        run.transaction()


@pytest.mark.parametrize("threaded", [False, True])
async def test_an_application_can_test_its_transactions(dsn, threaded):
    scheduler = Scheduler()
    temporary = "create table if not exists {}.mine (n int)"

    async def a(run: Run):
        async with run.transaction() as connection:
            await connection.execute(temporary.format(harness.schema))
            await connection.execute(f"insert into {harness.schema}.mine values (1)")
        return "done"

    def b(run: Run):
        with run.transaction() as connection:
            connection.execute(temporary.format(harness.schema))
            connection.execute(f"insert into {harness.schema}.mine values (1)")
        return "done"

    job(scheduler, b if threaded else a)
    async with Harness(scheduler, dsn) as harness:
        await harness.client.enqueue("job")
        (run,) = await harness.run_due()
        assert (run["status"], run["result"], run["finished_at"]) == ("succeeded", "done", harness.clock.now)
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            cursor = await connection.execute(f"select n from {harness.schema}.mine")
            assert await cursor.fetchall() == [(1,)]
