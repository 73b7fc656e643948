"""run.transaction() over connections that fall silent: every run ends, new ones go on, and nothing is done twice."""

import asyncio
import threading
import uuid
from datetime import timedelta

import psycopg
import pytest
import structlog
from psycopg import sql
from psycopg.conninfo import make_conninfo
from support.proxies import Door, Proxy
from support.workers import until, working

from pgsched import Retry, Run, Scheduler
from pgsched.db import session
from pgsched.db.fence.fence import Fence
from pgsched.db.fence.pools import Pools
from pgsched.db.fence.waits import Coroutines, Source, Threads
from pgsched.db.pool import finished
from pgsched.db.statements.queries import in_schema
from pgsched.model import Claim

THREADED = pytest.mark.parametrize("threaded", [False, True], ids=["coroutine", "thread"])


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """The waits of production, and shorter."""
    monkeypatch.setattr("pgsched.db.pool.CHECK", 0.3)
    monkeypatch.setattr("pgsched.db.reaching.ON_ITS_WAY", 0.3)
    monkeypatch.setattr("pgsched.db.fence.waits.LIMIT", 0.5)
    monkeypatch.setattr("pgsched.db.fence.fence.LIMIT", 0.5)
    monkeypatch.setattr("pgsched.db.fence.waits.BLOCK", 0.5)


@pytest.fixture
async def proxy(dsn):
    async with Proxy(dsn) as made:
        yield made


@pytest.fixture
def behind(settings, proxy):
    """Settings that lead through the proxy."""
    return settings.merged({"dsn": proxy.dsn}, "test")


class Paid:
    """A table of the application: the statement that inserts a run's id, and the ids that are there."""

    def __init__(self, db):
        self._db = db
        self.insert = in_schema(b"insert into pgsched.paid values (%s)", db.schema)

    async def __call__(self):
        return [row[0] for row in await self._db.all("select run from pgsched.paid order by run")]


@pytest.fixture
async def paid(db):
    await db.all("create table pgsched.paid (run bigint)")
    return Paid(db)


@pytest.fixture
def events(monkeypatch):
    """What the daemon logs, after a tenth of a second: names with their fields."""
    monkeypatch.setattr("pgsched.db.fence.pools.SAY_AFTER", 0.1)
    found = []

    def keep(_logger, _method, event):
        found.append((event.pop("event"), event))
        raise structlog.DropEvent

    structlog.configure(processors=[keep])
    yield found
    structlog.reset_defaults()


def paying(threaded, *statements, attempts=3, before=None):
    """A scheduler with a job that sends the statements in its transaction, with the run's id. before: awaited first."""
    scheduler = Scheduler()
    loop = asyncio.get_running_loop()

    async def job(run: Run):
        async with run.transaction() as connection:
            if before is not None:
                await before()
            for statement in statements:
                await connection.execute(statement, (run.id,))

    def blocking(run: Run):
        with run.transaction() as connection:
            if before is not None:
                asyncio.run_coroutine_threadsafe(before(), loop).result()
            for statement in statements:
                connection.execute(statement, (run.id,))

    retry = Retry(attempts=attempts, backoff=timedelta(0))
    scheduler.entrypoint("job", retry=retry)(blocking if threaded else job)
    return scheduler


async def enqueue(db, count=1):
    return [row[0] for row in await db.all("select pgsched.enqueue('job') from generate_series(1, %s)", count)]


async def attempts_of(db, *ids):
    """Waits until the runs have ended; returns their statuses and attempts."""
    await db.until(
        "select count(*) = %s from pgsched.runs where id = any(%s) and status not in ('queued', 'running')",
        len(ids), list(ids)
    )  # fmt: skip
    return await db.all("select status, attempt from pgsched.runs where id = any(%s) order by id", list(ids))


@THREADED
async def test_idle_connections_that_are_silent_are_replaced(behind, db, proxy, paid, threaded):
    together = asyncio.Barrier(3)
    gate = [together.wait]

    async def before():
        if gate:
            await gate[0]()

    async with working(paying(threaded, paid.insert, before=before), behind):
        first = await enqueue(db, 3)  # each has a connection of its own
        await attempts_of(db, *first)
        gate.clear()
        proxy.silence("pgsched-run")
        rest = await enqueue(db, 12)
        assert await attempts_of(db, *rest) == [("succeeded", 1)] * 12
    assert await paid() == first + rest


@THREADED
async def test_a_connection_that_falls_silent_at_the_begin_costs_no_attempt(behind, db, proxy, paid, threaded):
    proxy.trap(b"Names the session", arrives=True)
    async with working(paying(threaded, paid.insert, attempts=1), behind):
        [run_id] = await enqueue(db)
        assert await attempts_of(db, run_id) == [("succeeded", 1)]
        assert proxy.sprung.is_set()
    assert await paid() == [run_id]


@pytest.mark.parametrize("arrives", [False, True], ids=["lost", "answer-lost"])
@THREADED
async def test_a_statement_whose_answer_is_lost_ends_its_attempt(  # noqa: PLR0917 - fixtures
    behind, db, proxy, paid, threaded, arrives
):
    """The server is asked: it is not at work on it."""
    proxy.trap(b".paid values", arrives=arrives)
    async with working(paying(threaded, paid.insert), behind):
        [run_id] = await enqueue(db)
        assert await attempts_of(db, run_id) == [("succeeded", 2)]
        assert proxy.sprung.is_set()
    assert await paid() == [run_id]


@THREADED
async def test_a_long_statement_is_waited_for(behind, db, paid, threaded):
    """It takes several times the limit after which the server is asked."""
    long = "select pg_sleep(1.5), %s"
    async with working(paying(threaded, paid.insert, long, attempts=1), behind):
        [run_id] = await enqueue(db)
        assert await attempts_of(db, run_id) == [("succeeded", 1)]
    assert await paid() == [run_id]


@THREADED
async def test_a_long_statement_of_a_session_with_another_name_is_waited_for(behind, db, paid, threaded):
    other = "select set_config('application_name', 'mine', true), pg_sleep(1.5), %s"
    async with working(paying(threaded, paid.insert, other, attempts=1), behind):
        [run_id] = await enqueue(db)
        assert await attempts_of(db, run_id) == [("succeeded", 1)]


@THREADED
async def test_a_long_commit_is_waited_for(behind, db, paid, threaded):
    """A deferred trigger takes several times its limit."""
    await db.all(
        "create function pgsched.slow() returns trigger language plpgsql as $$begin perform pg_sleep(1.5);"
        " return null; end$$"
    )
    await db.all(
        "create constraint trigger slow after insert on pgsched.paid deferrable initially deferred for each row"
        " execute function pgsched.slow()"
    )
    async with working(paying(threaded, paid.insert, attempts=1), behind):
        [run_id] = await enqueue(db)
        assert await attempts_of(db, run_id) == [("succeeded", 1)]
    assert await paid() == [run_id]


@THREADED
async def test_a_commit_that_is_lost_is_tried_again(behind, db, proxy, paid, threaded):
    proxy.trap(b"Writes a run's success", arrives=False)
    async with working(paying(threaded, paid.insert), behind):
        [run_id] = await enqueue(db)
        assert await attempts_of(db, run_id) == [("succeeded", 2)]
        assert proxy.sprung.is_set()
    assert await paid() == [run_id]
    assert await db.value("select count(*) from pgsched.transactions") == 0


@THREADED
async def test_a_commit_whose_answer_is_lost_has_happened(behind, db, proxy, paid, threaded):
    proxy.trap(b"Writes a run's success", arrives=True)
    async with working(paying(threaded, paid.insert, attempts=1), behind):
        [run_id] = await enqueue(db)
        assert await attempts_of(db, run_id) == [("succeeded", 1)]
        assert proxy.sprung.is_set()
        assert await paid() == [run_id]
        [after] = await enqueue(db)
        assert await attempts_of(db, after) == [("succeeded", 1)]
    assert await db.value("select count(*) from pgsched.transactions") == 0


async def claimed(db):
    worker = uuid.uuid4()
    run_id = await db.value(
        "insert into pgsched.runs (entrypoint, status, attempt, token, max_attempts, worker, claimed_at, heartbeat_at)"
        " values ('job', 'running', 1, 1, 1, %s, now(), now()) returning id",
        worker,
    )
    return Claim(run_id, 1, worker)


@THREADED
async def test_a_commit_is_waited_for_while_nobody_can_be_asked(  # noqa: PLR0917 - fixtures
    settings, db, proxy, paid, threaded, monkeypatch
):
    """As when the whole server stands still, or is away: the old connection may be the first to answer."""
    monkeypatch.setattr("pgsched.db.addresses.ALONE", 2)
    claim = await claimed(db)
    fence = Fence(proxy.dsn, settings.schema, claim)
    asked, used = [], []
    loop = asyncio.get_running_loop()
    way = Threads if threaded else Coroutines
    ask = way.ask

    async def noting(self, statements):
        try:
            return await ask(self, statements)
        finally:
            asked.append(1)

    monkeypatch.setattr(way, "ask", noting)

    async def use():
        async with fence.transaction() as connection:
            used.append(connection)
            await connection.execute(paid.insert, (claim.run_id,))
            proxy.freeze()

    def use_blocking():
        with fence.transaction() as connection:
            used.append(connection)
            connection.execute(paid.insert, (claim.run_id,))
            loop.call_soon_threadsafe(proxy.freeze)
            frozen.wait(10)

    frozen = threading.Event()
    using = asyncio.create_task(asyncio.to_thread(use_blocking) if threaded else use())
    await until(lambda: proxy.door is Door.SILENT)
    frozen.set()
    await until(lambda: len(asked) >= 2, 20)
    assert not used[0].closed
    proxy.thaw()
    async with asyncio.timeout(20):
        await using
    assert await paid() == [claim.run_id]
    assert await db.value("select status from pgsched.runs") == "succeeded"


@THREADED
async def test_a_run_that_waits_for_others_says_so_and_goes_on(behind, db, paid, events, threaded):
    go_on, inside = asyncio.Event(), []

    async def before():
        inside.append(1)
        await go_on.wait()

    async with working(paying(threaded, paid.insert, before=before), behind, max_transactions=1):
        ids = await enqueue(db, 3)
        await until(lambda: any(name == "transactions_wait" for name, _ in events))
        [fields] = [fields for name, fields in events if name == "transactions_wait"]
        assert (fields["in_use"], fields["max_transactions"]) == (1, 1)
        assert fields["reason"] == "all 1 connections are in use"
        assert 1 <= fields["runs"] <= 2 and fields["waited_s"] >= 0.1
        await asyncio.sleep(0.5)
        assert len([1 for name, _ in events if name == "transactions_wait"]) == 1, "again after a minute"
        assert inside == [1]
        go_on.set()
        assert await attempts_of(db, *ids) == [("succeeded", 1)] * 3
    assert await paid() == ids


@THREADED
async def test_the_servers_reason_is_logged_each_minute(dsn, db, events, threaded, monkeypatch):
    monkeypatch.setattr("pgsched.db.fence.pools.SAY_AGAIN", 0.2)
    role = sql.Identifier(f"few_{uuid.uuid4().hex[:8]}")
    await db.connection.execute(sql.SQL("create role {} login connection limit 1").format(role))
    info = session.conninfo_for(make_conninfo(dsn, user=role.as_string().strip('"')), "few")
    pools = Pools(info, 2)

    async def taken():
        way = (Threads if threaded else Coroutines)(Source(None, info, pools))
        return way, await (asyncio.to_thread(lambda: finished(way.take())) if threaded else way.take())

    def said():
        return [fields for name, fields in events if name == "transactions_wait" and "too many" in fields["reason"]]

    try:
        way, connection = await taken()
        second = asyncio.create_task(taken())
        await until(lambda: len(said()) >= 2)
        assert {(fields["in_use"], fields["runs"]) for fields in said()} == {(1, 1)}
        assert said()[1]["waited_s"] > said()[0]["waited_s"]
        await way.give_back(connection)
        async with asyncio.timeout(10):
            way, connection = await second
        await way.give_back(connection)
    finally:
        await pools.close()
        await db.all("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'few'")
        await db.until("select count(*) = 0 from pg_stat_activity where application_name = 'few'")
        await db.connection.execute(sql.SQL("drop role {}").format(role))


@THREADED
async def test_a_connection_that_was_in_use_when_others_fell_silent_is_closed_at_once(proxy, threaded):
    """To clean it, as it comes back, would take as long as to find out that it is silent."""
    pools = Pools(session.conninfo_for(proxy.dsn, "two"), 2)
    source = Source(None, proxy.dsn, pools)
    kind = Threads if threaded else Coroutines

    async def does(work):
        return await (asyncio.to_thread(lambda: finished(work)) if threaded else work)

    ways = [kind(source) for _ in range(3)]
    try:
        used, idle = [await does(way.take()) for way in ways[:2]]
        await does(ways[1].give_back(idle))
        proxy.silence()
        new = await does(ways[2].take())
        assert idle.closed and not used.closed
        await does(ways[0].give_back(used))
        assert used.closed
        await does(ways[2].give_back(new))
        assert not new.closed
    finally:
        await pools.close()


@THREADED
async def test_a_session_that_cannot_write_does_not_go_back(dsn, db, paid, threaded):
    """The block itself finds it, in the middle of a switch-over."""
    info = session.conninfo_for(dsn, "once")
    pools = Pools(info, 1)
    claim = await claimed(db)
    fence = Fence(dsn, db.schema, claim, pools=pools)
    used = []

    async def use():
        async with fence.transaction() as connection:
            used.append(connection)
            await connection.execute("set transaction read only")
            await connection.execute(paid.insert, (1,))

    def use_blocking():
        with fence.transaction() as connection:
            used.append(connection)
            connection.execute("set transaction read only")
            connection.execute(paid.insert, (1,))

    try:
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            await (asyncio.to_thread(use_blocking) if threaded else use())
        assert used[0].closed
    finally:
        await pools.close()


@THREADED
@pytest.mark.parametrize("step", ["take", "ask"])
async def test_a_new_session_that_falls_silent_while_it_is_set_up_ends(threaded, step, proxy):
    way = (Threads if threaded else Coroutines)(Source(proxy.dsn, proxy.dsn, None))
    work = way.take() if step == "take" else way.ask([(b"select 1", {})])
    proxy.trap(b"pg_backend_pid", arrives=False)
    with pytest.raises(psycopg.OperationalError, match=r"^the server has not answered for 0.5 s$"):
        await asyncio.wait_for(asyncio.to_thread(finished, work) if threaded else work, 20)
    assert proxy.sprung.is_set()
