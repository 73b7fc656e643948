"""How a client gets to its database, and whose transaction its calls are in."""

from collections.abc import AsyncIterator
from datetime import timedelta

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from pgsched.client.client import Client, connect
from pgsched.client.connections import Pooled, conninfo_of
from pgsched.db.session_settings import SET
from pgsched.db.statements.queries import Queries
from pgsched.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    InvalidArguments,
    NotFound,
    PgschedError,
    SchemaError,
)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    for name in ("PGSCHED_DSN", "PGSCHED_SCHEMA", "PGHOST", "PGDATABASE", "PGUSER", "PGSERVICE", "PGPORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def client(dsn, schema) -> AsyncIterator[Client]:
    async with connect(dsn, schema=schema) as made:
        yield made


# --- the caller's transaction ---------------------------------------------------------------------------


async def test_a_transaction_of_the_clients_own_is_all_or_nothing(client, db):
    class Oops(BaseException):
        pass

    error = Oops()
    with pytest.raises(Oops) as raised:
        async with client.transaction() as connection:
            await client.create_schedule("a", "job", "@daily", connection=connection)
            await client.enqueue("job", connection=connection)
            assert await client.list_runs() == []
            raise error
    assert raised.value is error
    assert await client.list_schedules() == await client.list_runs() == []
    async with client.transaction() as connection:
        await client.create_schedule("a", "job", "@daily", connection=connection)
        await connection.execute("select 1")  # it is psycopg's, and takes any statement
    assert [row["name"] for row in await client.list_schedules()] == ["a"]


async def test_in_a_transaction_of_the_clients_own_the_session_is_the_applications(dsn, schema):
    """Its search path above all: an unqualified table of the application has to be found."""
    connections = Pooled(conninfo_of(dsn, schema, "test"))
    client = Client(connections, Queries(schema))
    names = sorted(SET)
    show = "select string_agg(name || '=' || setting, ', ' order by name) from pg_settings where name = any(%s)"
    with psycopg.connect(dsn) as plain:
        [own] = plain.execute(show, (names,)).fetchone()
    async with connections.opened():
        for _ in range(2):
            async with client.transaction() as connection:
                cursor = await connection.execute(show, (names,))
                assert await cursor.fetchone() == (own,)
                assert connection.info.transaction_status == TransactionStatus.INTRANS
        connection = await connections.pool.take(10)
        cursor = await connection.execute("show search_path")
        assert await cursor.fetchone() == ("pg_catalog, pg_temp",), "afterwards it is the client's again"
        await connections.pool.give_back(connection)
    assert len(names) == 24 and "search_path" in names


@pytest.mark.parametrize("factory", [psycopg.AsyncClientCursor, psycopg.AsyncRawCursor])
async def test_cursors_of_the_callers_connection_may_be_of_any_kind(client, dsn, factory):
    """The encoding has the client set its own for a moment, and backfill() and reads the search path."""
    async with await psycopg.AsyncConnection.connect(dsn, cursor_factory=factory, client_encoding="latin1") as mine:
        await client.create_schedule("a", "job", "@daily", connection=mine)
        now = await client.now(connection=mine)
        filled = await client.backfill("a", now - timedelta(days=2), now, connection=mine)
        assert len(filled.queued) == 2
        ids = await client.enqueue_many("job", [None, {"x": 1}], unique_keys=["k", None], connection=mine)
        assert (await client.get_run(ids[1], connection=mine))["args"] == {"x": 1}
        assert isinstance(mine.cursor(), factory), "it is the caller's"


async def test_on_the_callers_connection_views_can_be_read_if_its_settings_forbid_it(client, dsn, monkeypatch):
    restricted = "-c restrict_nonsystem_relation_kind=view"
    async with await psycopg.AsyncConnection.connect(dsn, options=restricted) as mine:
        run_id = await client.enqueue("job", connection=mine)
        assert (await client.get_run(run_id, connection=mine))["id"] == run_id
        cursor = await mine.execute("show restrict_nonsystem_relation_kind")
        assert await cursor.fetchone() == ("view",), "it is the caller's"
    missing = {"search_path": "pg_catalog", "there_is_no_such_setting": ""}
    monkeypatch.setattr("pgsched.client.connections._READING", missing)
    async with await psycopg.AsyncConnection.connect(dsn) as mine:
        assert (await client.get_run(run_id, connection=mine))["id"] == run_id, "an older server lacks it"


async def test_what_ends_a_transaction_is_told_once(client, db):
    """The block's errors, the database's included, are the caller's; what the commit says is the client's to tell."""
    with pytest.raises(psycopg.errors.DivisionByZero):
        async with client.transaction() as connection:
            await connection.execute("select 1 / 0")
    with pytest.raises(NotFound):
        async with client.transaction() as connection:
            await client.trigger("nothing", connection=connection)
    with pytest.raises(InvalidArguments, match="late"):
        async with client.transaction() as connection:
            await connection.execute("create temp table late (n int unique deferrable initially deferred)")
            await connection.execute("insert into late values (1), (1)")
    with pytest.raises(DatabaseUnavailable):
        async with client.transaction() as connection:
            await client.enqueue("job", connection=connection)
            await db.all("select pg_terminate_backend(%s)", connection.info.backend_pid)
    assert await client.list_runs() == []


async def test_everything_joins_the_callers_transaction(client, dsn, db):
    async with await psycopg.AsyncConnection.connect(dsn) as mine:
        await client.create_schedule("a", "e", "@daily", connection=mine)
        run_id = await client.enqueue("send", connection=mine)
        assert await client.get_run(run_id, connection=mine)
        assert [row["name"] for row in await client.list_schedules(connection=mine)] == ["a"]
        assert await client.list_schedules() == []
        with pytest.raises(NotFound):
            await client.get_run(run_id)
        await mine.rollback()
        assert await db.value("select count(*) from pgsched.schedules") == 0
        await client.enqueue("send", connection=mine)
        await mine.commit()
    assert len(await client.list_runs()) == 1


async def test_a_deadlock_or_a_serialisation_failure_reaches_the_caller_as_it_is(client, dsn):
    await client.create_schedule("a", "e", "@daily")
    async with await psycopg.AsyncConnection.connect(dsn) as mine:
        await mine.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        await client.get_schedule("a", connection=mine)
        await client.pause("a")
        with pytest.raises(psycopg.errors.SerializationFailure):
            await client.pause("a", connection=mine)
        await mine.rollback()


# --- getting there --------------------------------------------------------------------------------------


async def test_an_unmigrated_schema_is_told_with_the_command(dsn):
    async with connect(dsn, schema='not "there" %s') as client:
        for call in (client.list_schedules(), client.enqueue("e"), client.list_workers()):
            with pytest.raises(SchemaError, match="pgsched migrate") as told:
                await call
            assert 'not "there" %s' in str(told.value)
            assert told.value.exit_code == 78


async def test_a_database_that_is_not_there_is_told_at_once_and_without_the_password():
    with pytest.raises(DatabaseUnavailable) as told:
        async with connect("postgresql://me:s3cret@127.0.0.1:1/db?connect_timeout=5"):
            raise AssertionError("never")
    assert "s3cret" not in str(told.value)
    assert "127.0.0.1" in str(told.value)
    assert told.value.exit_code == 69


@pytest.mark.parametrize(
    ("dsn_", "schema_"),
    [("host=127.0.0.1 connect_timeout=soon", "pgsched"), ("host=x nonsense", "pgsched"), (None, "pg_x")],
)
async def test_a_dsn_or_schema_that_cannot_be_is_a_configuration_error(dsn_, schema_):
    with pytest.raises(ConfigurationError):
        async with connect(dsn_, schema=schema_):
            raise AssertionError("never")


async def test_without_a_dsn_the_environment_names_the_database(dsn, schema, monkeypatch):
    monkeypatch.setenv("PGSCHED_DSN", dsn)
    async with connect(schema=schema) as client:
        assert await client.list_schedules() == []
    monkeypatch.delenv("PGSCHED_DSN")
    for key, value in psycopg.conninfo.conninfo_to_dict(dsn).items():
        name = {"host": "PGHOST", "dbname": "PGDATABASE", "user": "PGUSER", "port": "PGPORT", "password": "PGPASSWORD"}
        monkeypatch.setenv(name[key], str(value))
    async with connect(schema=schema) as client:
        assert await client.list_schedules() == []


async def test_sessions_carry_a_name_that_is_no_workers(client, db):
    await client.list_schedules()
    names = await db.all(
        "select distinct application_name from pg_stat_activity where application_name like 'pgsched%%'"
    )
    assert names == [("pgsched client",)]


async def test_a_terminated_session_is_replaced(client, db):
    await client.list_schedules()
    gone = await db.value(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'pgsched client'"
    )
    assert gone == 1
    assert await client.list_schedules() == []


async def test_a_closed_client_says_so(dsn, schema):
    async with connect(dsn, schema=schema) as client:
        pass
    with pytest.raises(PgschedError, match="closed"):
        await client.list_schedules()
