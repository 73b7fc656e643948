"""The client in synchronous code: the same methods, in any thread, in the caller's own transaction."""

import asyncio
import inspect
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from psycopg.types.datetime import TimestamptzLoader
from psycopg.types.string import TextLoader
from support.workers import working

from pgsched import Retry, Scheduler, connect, connect_sync
from pgsched.client.client import Client
from pgsched.client.runs import Runs
from pgsched.client.sync import SyncClient, finished, mirror
from pgsched.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    InvalidArguments,
    NotFound,
    PgschedError,
    SchemaError,
)


@pytest.fixture
def client(dsn, schema) -> Iterator[SyncClient]:
    with connect_sync(dsn, schema=schema) as made:
        yield made


def test_it_has_every_method_with_its_signature_and_its_words(client):
    for asynchronous, synchronous in ((Client, client), (Runs, client.runs)):
        methods = [
            name for name, member in vars(asynchronous).items()
            if name[0] != "_" and inspect.iscoroutinefunction(member)
        ]  # fmt: skip
        assert {"wait", "cancel"} & {*methods}
        for name in methods:
            there, here = getattr(asynchronous, name), getattr(synchronous, name)
            assert not inspect.iscoroutinefunction(here)
            assert inspect.getdoc(here) == inspect.getdoc(there)
            assert inspect.signature(getattr(type(synchronous), name)) == inspect.signature(there)
            assert name in dir(synchronous)
    with pytest.raises(AttributeError):
        client.enqeue  # noqa: B018


def test_a_schedules_life_without_an_event_loop(client):
    """One call of most methods: that each runs through without ever suspending."""
    made = client.create_schedule(
        "a", "job", "@daily", timezone="Europe/Berlin", args={"x": 1}, retry=Retry(4), grace=timedelta(hours=1)
    )
    client.alter("a", priority=3, grace=None)
    client.pause("a", "holidays", until=datetime(2031, 1, 1, tzinfo=UTC))
    row = client.get_schedule("a")
    assert (row["id"], row["status"], row["args"], row["priority"], row["grace"]) == (made, "paused", {"x": 1}, 3, None)
    assert row["paused_until"] == datetime(2031, 1, 1, tzinfo=UTC) and row["paused_until"].tzinfo is UTC
    client.resume("a")
    done = client.backfill("a", client.now() - timedelta(days=3), client.now())
    assert len(done.queued) == 3
    run_id = client.trigger("a")
    assert client.cancel(run_id) == "cancelled"
    client.retry(run_id)
    assert client.runs.count([run_id]) == {"queued": 1}
    assert client.situation("a").served is False
    assert [row["id"] for row in client.list_runs("a", limit=1)] == [run_id]
    client.remove("a")
    assert client.list_schedules() == client.list_workers() == []
    assert client.runs.wait(run_id)["reason"] == "schedule removed"
    assert client.enqueue_many("job", [{}, {}], unique_keys=["k", "k"]) == [client.enqueue("job", unique_key="k")] * 2


def test_it_refuses_as_the_other_does(client):
    with pytest.raises(InvalidArguments, match="priority"):
        client.enqueue("job", priority=1000)
    with pytest.raises(NotFound, match=r'^There is no schedule "a".$'):
        client.trigger("a")
    with pytest.raises(NotFound, match=r"^There is no run 7.$"):
        client.runs.wait(7)
    with pytest.raises(TypeError, match="enqueue"):
        client.enqueue()


async def test_a_run_is_waited_for_while_a_worker_is_at_it(client, settings):
    scheduler, gate = Scheduler(), asyncio.Event()

    @scheduler.entrypoint("job")
    async def job(n: int):
        await gate.wait()
        return n + 1

    async with working(scheduler, settings):
        run_id = await asyncio.to_thread(client.enqueue, "job", {"n": 1})
        with pytest.raises(TimeoutError, match=rf"^Run {run_id} is still (queued|running) after 0.05 s\.$"):
            await asyncio.to_thread(client.runs.wait, run_id, 0.05)
        waiting = asyncio.create_task(asyncio.to_thread(client.runs.wait, run_id, timedelta(seconds=20)))
        gate.set()
        assert (await waiting)["result"] == 2


async def test_it_works_where_an_event_loop_runs(client):
    """An old part of an asynchronous program calls it: it blocks, as anything there would."""
    run_id = client.enqueue("job")
    assert client.get_run(run_id)["status"] == "queued"
    assert await asyncio.gather(*(asyncio.to_thread(client.get_run, run_id) for _ in range(3)))


def test_threads_share_it(client):
    def work(n: int) -> list[int]:
        return [client.enqueue("job", {"n": n, "m": m}) for m in range(20)]

    with ThreadPoolExecutor(12) as threads:
        ids = [run_id for made in threads.map(work, range(12)) for run_id in made]
    assert len({*ids}) == 240
    assert {row["id"] for row in client.list_runs(limit=1000)} == {*ids}


@pytest.mark.parametrize("autocommit", [False, True])
def test_everything_joins_the_callers_transaction(client, dsn, autocommit):
    with psycopg.connect(dsn, autocommit=autocommit) as mine:
        with pytest.raises(ZeroDivisionError), mine.transaction():
            client.create_schedule("a", "job", "@daily", connection=mine)
            run_id = client.trigger("a", connection=mine)
            assert client.get_run(run_id, connection=mine)["schedule"] == "a"
            assert client.list_runs() == []
            with pytest.raises(NotFound):
                client.runs.wait(run_id)
            raise ZeroDivisionError
        assert client.list_schedules() == client.list_runs() == []
        with mine.transaction():
            run_id = client.enqueue("job", connection=mine)
    assert [row["id"] for row in client.list_runs()] == [run_id]


def test_a_transaction_of_the_clients_own_is_all_or_nothing(client):
    error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt) as raised, client.transaction() as mine:
        client.create_schedule("a", "job", "@daily", connection=mine)
        assert client.list_schedules() == []
        raise error
    assert raised.value is error
    assert client.list_schedules() == []
    with client.transaction() as mine:
        assert isinstance(mine, psycopg.Connection)
        client.create_schedule("a", "job", "@daily", connection=mine)
        assert mine.execute("show search_path").fetchone() == ('"$user", public',)
    assert [row["name"] for row in client.list_schedules()] == ["a"]
    assert inspect.getdoc(client.transaction) == inspect.getdoc(Client.transaction)


def test_what_ends_a_transaction_is_told_once(client, dsn):
    with pytest.raises(psycopg.errors.DivisionByZero), client.transaction() as mine:
        mine.execute("select 1 / 0")
    with pytest.raises(InvalidArguments, match="late"), client.transaction() as mine:
        mine.execute("create temp table late (n int unique deferrable initially deferred)")
        mine.execute("insert into late values (1), (1)")
    with pytest.raises(DatabaseUnavailable), client.transaction() as mine:
        client.enqueue("job", connection=mine)
        with psycopg.connect(dsn) as other:
            other.execute("select pg_terminate_backend(%s)", [mine.info.backend_pid])
    with client.transaction() as mine:
        client.enqueue("job", connection=mine)
        raise psycopg.Rollback  # psycopg's own word for a quiet end
    assert client.list_runs() == []


@pytest.mark.parametrize("factory", [psycopg.ClientCursor, psycopg.RawCursor])
def test_a_connection_set_up_by_a_framework_will_do(client, dsn, factory):
    """As Django's is: it binds on its own side, keeps JSON as text, and may read instants without a zone. Another
    framework's has raw cursors."""

    class Naive(TimestamptzLoader):
        def load(self, data):
            return super().load(data).replace(tzinfo=None)

    with psycopg.connect(dsn, cursor_factory=factory, options="-c timezone=Asia/Tokyo") as mine:
        mine.adapters.register_loader("jsonb", TextLoader)
        mine.adapters.register_loader("timestamptz", Naive)
        args = {"text": "100% %s {} \\ ' täglich"}
        due_at = datetime(2031, 1, 1, tzinfo=UTC)
        run_id = client.enqueue("job", args, due_at=due_at, connection=mine)
        client.enqueue_many("job", [args, args], unique_keys=["k", None], connection=mine)
        run = client.get_run(run_id, connection=mine)
        assert (run["args"], run["due_at"], run["due_at"].tzinfo, run["errors"]) == (args, due_at, UTC, [])
        assert mine.execute("select '2031-01-01Z'::timestamptz").fetchone()[0].tzinfo is None, "it is the caller's"


async def test_a_connection_of_the_other_kind_is_told(client, dsn, schema):
    async with await psycopg.AsyncConnection.connect(dsn) as mine:
        with pytest.raises(
            InvalidArguments, match=r"must be a psycopg.Connection .*, not psycopg's AsyncConnection; for a"
        ):
            client.enqueue("job", connection=mine)
    with psycopg.connect(dsn) as mine:
        with pytest.raises(InvalidArguments, match=r"for a psycopg.Connection, use a client from connect_sync\(\)"):
            async with connect(dsn, schema=schema) as other:
                await other.enqueue("job", connection=mine)
        with pytest.raises(InvalidArguments, match=r"not psycopg's Cursor"):
            client.enqueue("job", connection=mine.cursor())
    assert client.list_runs() == []


def test_a_terminated_session_is_replaced(client, dsn):
    client.list_schedules()
    with psycopg.connect(dsn) as other:
        gone = "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'pgsched client'"
        assert other.execute(gone).fetchone() == (1,)
    assert client.list_schedules() == []


def test_what_is_wrong_is_told_at_once(dsn, schema):
    with pytest.raises(DatabaseUnavailable) as told, connect_sync("postgresql://me:s3cret@127.0.0.1:1/db"):
        raise AssertionError("never")
    assert "s3cret" not in str(told.value)
    with pytest.raises(ConfigurationError, match="DSN"), connect_sync("host=x nonsense"):
        raise AssertionError("never")
    with connect_sync(dsn, schema="nothing here") as client, pytest.raises(SchemaError, match="pgsched migrate"):
        client.enqueue("job")
    with pytest.raises(PgschedError, match="closed"):
        client.enqueue("job")


def test_what_would_have_to_wait_for_a_loop_is_a_mistake():
    with pytest.raises(RuntimeError, match=r"sleep waits for an event loop"):
        finished(asyncio.sleep(0))


def test_a_generator_is_mirrored_too():
    ended = []

    class Behind:
        async def lines(self, count: int):
            """Some lines."""
            try:
                for n in range(count):
                    yield n
            finally:
                ended.append(count)

    @mirror(Behind)
    class Here:
        behind = Behind()

    assert list(Here().lines(3)) == [0, 1, 2]
    assert next(iter(Here().lines(5))) == 0
    assert ended == [3, 5], "left in the middle, it is closed"
