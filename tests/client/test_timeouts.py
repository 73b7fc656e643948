"""A client's timeout: every call ends within it and says what it has waited for, over silent connections too."""

import asyncio
import contextlib
import functools
import re
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg.pq import TransactionStatus
from support.clients import KINDS, using
from support.proxies import Door, Proxy

import pgsched.client
from pgsched import connect, connect_sync
from pgsched.client.client import Client
from pgsched.client.runs import Runs
from pgsched.client.timeouts import closing, limits_of, method_of, reads, seconds_of
from pgsched.db import pool, reaching
from pgsched.db.statements.queries import in_schema
from pgsched.errors import DatabaseUnavailable, InvalidArguments

BOTH = pytest.mark.parametrize("kind", KINDS)
COMMIT = b"COMMIT"
ENQUEUE = b"enqueue_unique"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("pgsched.db.pool.CHECK", 0.3)


@pytest.fixture
async def proxy(dsn):
    async with Proxy(dsn) as made:
        yield made


async def queued(db):
    return await db.value("select count(*) from pgsched.runs")


@contextlib.asynccontextmanager
async def transactions(client, count):
    """As many open transactions of the client's own."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(client.transaction()) for _ in range(count)]


# --- connections ------------------------------------------------------------------------------------------


@BOTH
async def test_idle_connections_that_are_silent_are_replaced(kind, proxy, schema, db):
    async with using(kind, proxy.dsn, schema=schema, timeout=20) as client:
        async with transactions(client, 4):
            pass  # now there are four
        proxy.silence("pgsched client")
        for _ in range(5):
            await client.enqueue("job")
    assert await queued(db) == 5


@BOTH
async def test_one_silent_connection_stands_for_all_of_them(kind, proxy, schema, monkeypatch):
    """Each of them would cost the same wait."""
    checked = []

    def noting(connection, seconds):
        if seconds <= pool.CHECK:
            checked.append(connection)
        return reaching.within(connection, seconds)

    monkeypatch.setattr(pool, "within", noting)
    async with using(kind, proxy.dsn, schema=schema, timeout=20) as client:
        async with transactions(client, 4) as taken:
            pass
        proxy.silence("pgsched client")
        checked.clear()
        await client.enqueue("job")
        assert checked[0] in taken and not {*checked[1:]} & {*taken}


@BOTH
async def test_the_check_of_a_silent_connection_ends_with_the_timeout(kind, proxy, schema, monkeypatch):
    monkeypatch.setattr("pgsched.db.pool.CHECK", 60.0)
    async with using(kind, proxy.dsn, schema=schema, timeout=1) as client:
        await client.now()
        proxy.freeze()
        with pytest.raises(DatabaseUnavailable, match=r"^No connection to the database for now\(\) within 1 s: the "):
            await client.now()
        proxy.thaw()
        assert await client.now()


@BOTH
async def test_without_a_free_connection_it_says_so(kind, proxy, schema, db):
    async with using(kind, proxy.dsn, schema=schema, timeout=timedelta(seconds=0.5)) as client:
        async with transactions(client, 4):
            with pytest.raises(
                DatabaseUnavailable,
                match=r"^No free connection for enqueue\(\) within 0.5 s: all 4 connections are in use. Make fewer",
            ):
                await client.enqueue("job")
        await client.enqueue("job")
    assert await queued(db) == 1


@BOTH
async def test_without_a_new_connection_it_says_why(kind, proxy, schema):
    """One that is silent, and one that refuses."""
    async with using(kind, proxy.dsn, schema=schema, timeout=1) as client:
        proxy.freeze()
        with pytest.raises(
            DatabaseUnavailable,
            match=r"^No connection to the database for list_workers\(\) within 1 s: the server has not answered",
        ):
            await client.list_workers()
        proxy.thaw()
        assert await client.list_workers() == []
        proxy.cut(Door.REFUSE)
        with pytest.raises(DatabaseUnavailable, match=r"for list_workers\(\) within 1 s: .*refused.*Check that the"):
            await client.list_workers()


@BOTH
async def test_to_connect_at_first_has_the_timeout(kind, proxy, schema):
    proxy.freeze()
    with pytest.raises(
        DatabaseUnavailable, match=r"^The database cannot be reached: no answer from 127.0.0.1 within 0.3 s. Check"
    ):
        async with using(kind, proxy.dsn, schema=schema, timeout=0.3):
            raise AssertionError("never")


async def test_the_questions_of_the_first_connection_have_the_timeout(proxy, schema):
    proxy.trap(b"pg_backend_pid", arrives=False)
    with pytest.raises(
        DatabaseUnavailable, match=r"^The database cannot be reached: the server has not answered for 0"
    ):
        async with connect(proxy.dsn, schema=schema, timeout=0.5):
            raise AssertionError("never")


@BOTH
async def test_a_server_that_restarts_is_waited_for(kind, proxy, schema, monkeypatch):
    """Its connections are closed, and new ones are silent for a while."""
    async with using(kind, proxy.dsn, schema=schema, timeout=20) as client:
        await client.now()
        proxy.freeze()
        calling = asyncio.create_task(client.now())
        await asyncio.sleep(0.5)  # the check is over
        assert not calling.done()
        proxy.thaw()
        assert await calling


@BOTH
async def test_a_client_is_left_soon_while_connections_are_being_made(kind, proxy, schema, monkeypatch):
    waits = []

    def noting(self, seconds=99.0, *, close):
        waits.append(seconds)
        return close(self, seconds)

    for each in (pool.CoroutinePool, pool.ThreadPool):
        monkeypatch.setattr(each, "close", functools.partialmethod(noting, close=each.close))
    async with asyncio.timeout(4):
        async with using(kind, proxy.dsn, schema=schema, timeout=0.4) as client:
            proxy.freeze()
            for result in await asyncio.gather(client.now(), client.now(), return_exceptions=True):
                assert isinstance(result, DatabaseUnavailable)
    assert waits == [0.4]


# --- answers ----------------------------------------------------------------------------------------------


@BOTH
async def test_an_answer_that_is_lost_says_what_is_unknown(kind, proxy, schema, db):
    async with using(kind, proxy.dsn, schema=schema, timeout=0.5) as client:
        proxy.trap(ENQUEUE, arrives=True)
        with pytest.raises(DatabaseUnavailable) as raised:
            await client.enqueue("job")
        text = "No answer to enqueue() within 0.5 s. It is unknown whether the call has taken effect."
        assert str(raised.value) == text
        await db.until("select count(*) = 1 from pgsched.runs")
        proxy.trap(ENQUEUE, arrives=False)
        with pytest.raises(DatabaseUnavailable, match=re.escape(text)):
            await client.enqueue("job")
        assert await queued(db) == 1
        assert await client.enqueue("job"), "and it goes on"


@BOTH
async def test_a_read_without_an_answer_changes_nothing_and_says_nothing_of_it(kind, proxy, schema):
    async with using(kind, proxy.dsn, schema=schema, timeout=0.5) as client:
        proxy.trap(b"limit", arrives=True)
        with pytest.raises(DatabaseUnavailable, match=r"^No answer to list_runs\(\) within 0.5 s\.$"):
            await client.list_runs()


@BOTH
async def test_the_server_gives_up_first_so_it_is_known_that_nothing_has_happened(kind, dsn, schema, db):
    async with (
        using(kind, dsn, schema=schema, timeout=0.8) as client,
        await psycopg.AsyncConnection.connect(dsn) as other,
    ):
        await other.execute(in_schema(b"lock table pgsched.runs", schema, parametrised=False))
        with pytest.raises(
            DatabaseUnavailable,
            match=r"^The database has given up enqueue\(\), so nothing has happened: canceling statement due to",
        ):
            await client.enqueue("job")
        await other.rollback()
        assert await queued(db) == 0
        await client.enqueue("job")
    assert await queued(db) == 1


@BOTH
async def test_two_statements_of_one_call_share_the_timeout(kind, proxy, schema, monkeypatch):
    """list_runs() looks for the schedule if it has no runs, and gets what is left."""
    limits = []
    from pgsched.client import connections

    real = connections.within

    def noting(connection, seconds):
        limits.append(seconds)
        return real(connection, seconds)

    monkeypatch.setattr(connections, "within", noting)
    async with using(kind, proxy.dsn, schema=schema, timeout=100) as client:
        with pytest.raises(pgsched.NotFound):
            await client.list_runs("none")
        with pytest.raises(pgsched.NotFound):
            await client.runs.list_dead(schedule="none")
    assert len(limits) == 4 and limits[0] > limits[1] and limits[2] > limits[3]


@BOTH
async def test_a_wait_for_a_run_may_take_longer_but_not_each_look(kind, proxy, schema, db):
    async with using(kind, proxy.dsn, schema=schema, timeout=0.5) as client:
        run_id = await client.enqueue("job")
        proxy.trap(b"The status of a run", arrives=True)
        with pytest.raises(DatabaseUnavailable, match=r"^No answer to runs.wait\(\) within 0.5 s\.$"):
            await client.runs.wait(run_id)
        waiting = asyncio.create_task(client.runs.wait(run_id))
        await asyncio.sleep(0.8)
        assert not waiting.done()
        await db.all("update pgsched.runs set status = 'cancelled'")
        assert (await waiting)["status"] == "cancelled"


@pytest.mark.parametrize("text", [b"The status of a run", b"One run, all of it"], ids=["status", "run"])
@BOTH
async def test_a_wait_for_a_run_ends_with_its_own_timeout_if_the_database_is_silent(kind, proxy, schema, text):
    """The client's is much longer."""
    method = "runs.wait" if text == b"The status of a run" else "get_run"
    async with using(kind, proxy.dsn, schema=schema, timeout=300) as client:
        run_id = await client.enqueue("job")
        await client.cancel(run_id)
        proxy.trap(text, arrives=True)
        with pytest.raises(DatabaseUnavailable, match=rf"^No answer to {method}\(\) within 2 s\.$"):
            await asyncio.wait_for(client.runs.wait(run_id, 2), 20)
        assert (await client.runs.wait(run_id, 2))["status"] == "cancelled", "and it goes on"


@BOTH
async def test_a_wait_for_a_run_whose_look_is_the_last_one_has_some_time_for_it(kind, proxy, schema, monkeypatch):
    monkeypatch.setattr("pgsched.client.runs.LAST_LOOK", 0.4)
    async with using(kind, proxy.dsn, schema=schema, timeout=300) as client:
        run_id = await client.enqueue("job")
        with pytest.raises(TimeoutError, match="still queued after 0 s"):
            await client.runs.wait(run_id, 0)
        proxy.trap(b"The status of a run", arrives=True)
        with pytest.raises(DatabaseUnavailable, match=r"^No answer to runs.wait\(\) within 0.4 s\.$"):
            await asyncio.wait_for(client.runs.wait(run_id, 0), 20)


@BOTH
async def test_a_wait_for_a_run_without_a_connection_ends_with_its_own_timeout(kind, proxy, schema, monkeypatch):
    monkeypatch.setattr("pgsched.client.runs.LAST_LOOK", 0.4)
    async with using(kind, proxy.dsn, schema=schema, timeout=300) as client:
        run_id = await client.enqueue("job")
        proxy.freeze()
        with pytest.raises(
            DatabaseUnavailable, match=r"^No connection to the database for runs.wait\(\) within 0.5 s: "
        ):
            await asyncio.wait_for(client.runs.wait(run_id, 0.5), 20)
        proxy.thaw()


# --- connections that break ---------------------------------------------------------------------------------

BROKEN = r"^The connection was lost before the answer to {}\(\): .+\. It is unknown whether {}\.$"
TAKEN = "the call has taken effect"


@pytest.mark.parametrize("door", [Door.OPEN, Door.RESET])
@BOTH
async def test_a_connection_that_breaks_before_the_answer_says_what_is_unknown(kind, proxy, schema, db, door):
    """With a reset, new connections are of no use either."""
    async with using(kind, proxy.dsn, schema=schema, timeout=20) as client:
        proxy.trap(ENQUEUE, arrives=True)
        calling = asyncio.create_task(client.enqueue("job"))
        await db.until("select count(*) = 1 from pgsched.runs")
        proxy.cut(door)
        with pytest.raises(DatabaseUnavailable, match=BROKEN.format("enqueue", TAKEN)):
            await calling
        proxy.mend()
        proxy.trap(b"limit", arrives=True)
        proxy.sprung.clear()
        reading = asyncio.create_task(client.list_runs())
        await proxy.sprung.wait()
        proxy.cut(Door.OPEN)
        with pytest.raises(DatabaseUnavailable, match=r"^The database cannot be reached: "):
            await reading
        assert len(await client.list_runs()) == 1, "and it goes on"


@BOTH
async def test_a_session_that_the_server_ends_during_a_call_says_what_is_unknown(kind, dsn, schema, db):
    async with (
        using(kind, dsn, schema=schema, timeout=20) as client,
        await psycopg.AsyncConnection.connect(dsn) as other,
    ):
        await other.execute(in_schema(b"lock table pgsched.runs", schema, parametrised=False))
        calling = asyncio.create_task(client.enqueue("job"))
        waits = "from pg_stat_activity where application_name = 'pgsched client' and wait_event_type = 'Lock'"
        await db.until(f"select count(*) = 1 {waits}")
        await db.all(f"select pg_terminate_backend(pid) {waits}")
        with pytest.raises(DatabaseUnavailable, match=BROKEN.format("enqueue", TAKEN)) as raised:
            await calling
        assert "SQLSTATE 57P01" in str(raised.value)


@BOTH
async def test_a_transaction_whose_connection_breaks_says_what_is_unknown(kind, proxy, schema, db):
    async with using(kind, proxy.dsn, schema=schema, timeout=20) as client:

        async def enqueued():
            async with client.transaction() as connection:
                await client.enqueue("job", connection=connection)
                proxy.trap(COMMIT, arrives=True)

        committing = asyncio.create_task(enqueued())
        await db.until("select count(*) = 1 from pgsched.runs")
        proxy.cut(Door.OPEN)
        unknown = BROKEN.format("the COMMIT of transaction", "the transaction has committed")
        with pytest.raises(DatabaseUnavailable, match=unknown):
            await committing
        with pytest.raises(DatabaseUnavailable, match=r"^The connection of transaction\(\) was lost, so nothing has "):
            async with client.transaction() as connection:
                with contextlib.suppress(psycopg.OperationalError):
                    await client.execute(connection, "select pg_terminate_backend(pg_backend_pid())")
        await client.now()
        proxy.trap(b"BEGIN", arrives=True)
        proxy.sprung.clear()
        beginning = asyncio.create_task(enqueued())
        await proxy.sprung.wait()
        proxy.cut(Door.OPEN)
        nothing = r"^The connection was lost before the answer to transaction\(\): .+\. Nothing has happened\.$"
        with pytest.raises(DatabaseUnavailable, match=nothing):
            await beginning
    assert await queued(db) == 1


# --- transactions -----------------------------------------------------------------------------------------


@BOTH
async def test_a_begin_without_an_answer_ends(kind, proxy, schema):
    async with using(kind, proxy.dsn, schema=schema, timeout=0.5) as client:
        proxy.trap(b"BEGIN", arrives=True)
        with pytest.raises(DatabaseUnavailable, match=r"^No answer to transaction\(\) within 0.5 s. Nothing has"):
            async with client.transaction():
                raise AssertionError("never")
        async with client.transaction() as connection:
            await client.execute(connection, "select 1")


@BOTH
async def test_the_blocks_own_statements_take_as_long_as_they_need(kind, proxy, schema, db):
    async with using(kind, proxy.dsn, schema=schema, timeout=0.5) as client:
        async with client.transaction() as connection:
            await client.enqueue("job", connection=connection)
            await client.execute(connection, "select pg_sleep(1.2)")
        assert await queued(db) == 1


@BOTH
async def test_a_call_in_a_transaction_has_the_timeout_too(kind, proxy, schema, db):
    async with using(kind, proxy.dsn, schema=schema, timeout=0.5) as client:
        with pytest.raises(DatabaseUnavailable, match=r"^No answer to enqueue\(\) within 0.5 s over the connection"):
            async with client.transaction() as connection:
                proxy.trap(ENQUEUE, arrives=True)
                await client.enqueue("job", connection=connection)
        assert await client.enqueue("job")
    assert await queued(db) == 1


@pytest.mark.parametrize("arrives", [True, False], ids=["answer-lost", "lost"])
@BOTH
async def test_a_commit_without_an_answer_ends(kind, proxy, schema, db, arrives):
    async with using(kind, proxy.dsn, schema=schema, timeout=0.5) as client:
        with pytest.raises(
            DatabaseUnavailable,
            match=r"^No answer to the COMMIT of transaction\(\) within 0.5 s. It is unknown whether the transaction",
        ):
            async with client.transaction() as connection:
                await client.enqueue("job", connection=connection)
                proxy.trap(COMMIT, arrives=arrives)
        if arrives:
            await db.until("select count(*) = 1 from pgsched.runs")
        else:
            assert await queued(db) == 0
        assert await client.list_workers() == []


@BOTH
async def test_a_rollback_without_an_answer_hides_no_error(kind, proxy, schema, db):
    async with using(kind, proxy.dsn, schema=schema, timeout=0.5) as client:
        error = ZeroDivisionError()
        with pytest.raises(ZeroDivisionError) as raised:
            async with client.transaction() as connection:
                await client.enqueue("job", connection=connection)
                proxy.silence()
                raise error
        assert raised.value is error
        assert await client.enqueue("job")
    assert await queued(db) == 1


# --- the caller's connection ------------------------------------------------------------------------------


async def test_a_slow_answer_on_the_callers_connection_is_cancelled(dsn, schema, db):
    """The server hears of it: the transaction has failed, and can be rolled back."""
    async with (
        connect(dsn, schema=schema, timeout=0.5) as client,
        await psycopg.AsyncConnection.connect(dsn) as other,
        await psycopg.AsyncConnection.connect(dsn) as mine,
    ):
        await other.execute(in_schema(b"lock table pgsched.runs", schema, parametrised=False))
        with pytest.raises(
            DatabaseUnavailable, match=r"^No answer to enqueue\(\) within 0.5 s over the connection that"
        ):
            await client.enqueue("job", connection=mine)
        assert mine.info.transaction_status == TransactionStatus.INERROR
        await mine.rollback()
        await other.rollback()
        await client.enqueue("job", connection=mine)
        await mine.commit()
    assert await queued(db) == 1


async def test_a_silent_connection_of_the_caller_is_closed(proxy, schema, db):
    async with connect(proxy.dsn, schema=schema, timeout=0.3) as client:
        mine = await psycopg.AsyncConnection.connect(proxy.dsn)
        proxy.trap(ENQUEUE, arrives=False)
        with pytest.raises(DatabaseUnavailable, match=r"or make a new connection if it is closed\.$"):
            await client.enqueue("job", connection=mine)
        assert mine.closed
        assert await client.enqueue("job")
    assert await queued(db) == 1


async def test_on_the_callers_connection_only_a_call_that_commits_by_itself_is_unknown(proxy, schema, db):
    """Another one's transaction is rolled back."""

    async def broken(autocommit, cut):
        async with connect(proxy.dsn, schema=schema, timeout=20 if cut else 0.3) as client:
            mine = await psycopg.AsyncConnection.connect(proxy.dsn, autocommit=autocommit)
            proxy.trap(ENQUEUE, arrives=True)
            proxy.sprung.clear()
            calling = asyncio.create_task(client.enqueue("job", connection=mine))
            await proxy.sprung.wait()
            if cut:
                proxy.cut(Door.OPEN)
            with pytest.raises(DatabaseUnavailable) as raised:
                await calling
            await mine.close()
            return str(raised.value)

    unknown = f"It is unknown whether {TAKEN}."
    assert re.match(BROKEN.format("enqueue", TAKEN), await broken(autocommit=True, cut=True))
    assert (await broken(autocommit=True, cut=False)).endswith(f"{unknown} Make a new connection if it is closed.")
    for cut in (True, False):
        assert unknown not in await broken(autocommit=False, cut=cut)


# --- the value --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, "30", True, float("nan"), float("inf"), 1e9, timedelta(0), timedelta(days=2)])
@BOTH
async def test_a_bad_timeout_is_refused_in_a_sentence(kind, value):
    with pytest.raises(InvalidArguments, match=r"^timeout must be a timedelta or a number of seconds, .*, not .*\.$"):
        async with using(kind, "host=127.0.0.1 port=1", timeout=value):
            raise AssertionError("never")


@BOTH
async def test_without_a_timeout_there_is_no_limit(kind, dsn, schema):
    async with using(kind, dsn, schema=schema, timeout=None) as client:
        async with transactions(client, 4):
            waiting = asyncio.create_task(client.now())
            await asyncio.sleep(0.5)
            assert not waiting.done()
        assert await waiting
    assert limits_of(None)[:2] == ("0ms", "0ms")


def test_the_end_of_a_client_waits_for_no_longer_than_a_call():
    assert [closing(each) for each in (None, 30.0, 0.4)] == [5.0, 5.0, 0.4]


def test_the_servers_limits_follow_from_the_timeout():
    assert limits_of(30.0) == ("24000ms", "10000ms", "30s")
    assert limits_of(5.0) == ("4000ms", "0ms", "30s")  # the wait for a lock is a part of the statement
    assert limits_of(0.0001)[0] == "1ms"
    assert [seconds_of(each) for each in (None, 2, 2.5, timedelta(minutes=1))] == [None, 2.0, 2.5, 60.0]


def test_every_statement_is_named_by_a_method():
    folder = Path(pgsched.client.__file__).parent
    sent = {name for file in folder.glob("*.py") for name in re.findall(r'_sql\.\w+\(\s*"(\w+)"', file.read_text())}
    assert len(sent) > 20
    for name in sent:
        method = method_of(name)
        assert hasattr(Runs if method.startswith("runs.") else Client, method.removeprefix("runs.")), name
    writing = {method for method in map(method_of, sent) if not reads(method)}
    changes = {"alter", "cancel", "create_schedule", "enqueue", "enqueue_many", "pause", "remove", "resume", "retry"}
    assert writing == changes | {"backfill", "runs.retry_many", "trigger"}


def test_both_have_the_same_parameters():
    import inspect

    parameters = [inspect.signature(function).parameters for function in (connect, connect_sync)]
    assert parameters[0] == parameters[1] and parameters[0]["timeout"].default == 30.0
