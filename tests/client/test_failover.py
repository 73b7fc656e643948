"""An old primary that can only be read: clients and transactional jobs move to the new one."""

import asyncio
import re
import shutil

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support.clients import KINDS, using
from support.servers import new_folder, start_cluster
from support.workers import working

from pgsched import Retry, Run, Scheduler
from pgsched.db import addresses, migrate
from pgsched.db.statements.queries import in_schema
from pgsched.errors import DatabaseUnavailable

BOTH = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def old_server():
    """A server of this module's own: the old primary."""
    folder = new_folder()
    handle = start_cluster(folder)
    yield handle.get_uri()
    handle.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


class Old:
    """The old primary, with a database and a schema like the new one's."""

    def __init__(self, root, dsn, schema):
        self._root, self._schema = root, schema
        self._name = conninfo_to_dict(dsn)["dbname"]
        self.dsn = make_conninfo(root, dbname=self._name)
        hosts = [{"port": "5432", **conninfo_to_dict(each)} for each in (self.dsn, dsn)]
        both = {key: ",".join(each[key] for each in hosts) for key in ("host", "port")}
        self.both = make_conninfo(dsn, **both)  # the old one first

    def __enter__(self):
        with psycopg.connect(self._root, autocommit=True) as connection:
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(self._name)))
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(migrate.script(self._schema).encode())
        return self

    def __exit__(self, *_):
        self._switch("off")
        with psycopg.connect(self._root, autocommit=True) as connection:
            connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(self._name)))

    def read_only(self):
        self._switch("on")

    def _switch(self, value):
        with psycopg.connect(self._root, autocommit=True) as connection:
            connection.execute("set default_transaction_read_only = off")
            connection.execute(sql.SQL("alter system set default_transaction_read_only = {}").format(value))
            connection.execute("select pg_reload_conf()")
        while True:  # until a new session has it
            with psycopg.connect(self._root, autocommit=True) as connection:
                if connection.execute("show default_transaction_read_only").fetchone() == (value,):
                    return

    async def all(self, statement):
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as connection:
            cursor = await connection.execute(in_schema(statement.encode(), self._schema, parametrised=False))
            return await cursor.fetchall() if cursor.description else []


@pytest.fixture
def old(old_server, dsn, schema):
    addresses.forget()
    with Old(old_server, dsn, schema) as made:
        yield made


@BOTH
async def test_a_client_moves(kind, old, schema, db):
    async with using(kind, old.both, schema=schema) as client:
        first = [await client.enqueue("job") for _ in range(3)]
        assert await old.all("select count(*) from pgsched.runs") == [(3,)]
        async with client.transaction() as one, client.transaction() as other:  # two connections
            await asyncio.gather(*(client.execute(each, "select 1") for each in (one, other)))
        old.read_only()
        ids = [await client.enqueue("job") for _ in range(3)]
        async with client.transaction() as connection:
            ids.append(await client.enqueue("job", connection=connection))
        assert [row["id"] for row in await client.list_runs()] == ids[::-1]
    assert await db.value("select count(*) from pgsched.runs") == 4
    assert await old.all("select count(*) from pgsched.runs") == [(len(first),)]


@BOTH
async def test_a_client_that_was_in_a_transaction_says_so_and_moves(kind, old, schema, db):
    async with using(kind, old.both, schema=schema) as client:
        with pytest.raises(DatabaseUnavailable, match=r"^The database can only be read: Cannot execute"):
            async with client.transaction() as connection:
                await client.execute(connection, "set transaction read only")  # as if it were switched just now
                await client.enqueue("job", connection=connection)
        old.read_only()
        await client.enqueue("job")
    assert await db.value("select count(*) from pgsched.runs") == 1


@BOTH
async def test_a_client_that_is_sent_to_a_read_only_server_reads(kind, old, schema):
    """Its DSN asks for any server, so another connection would be no better."""
    old.read_only()
    any_server = make_conninfo(old.dsn, target_session_attrs="any")
    async with using(kind, any_server, schema=schema, timeout=5) as client:
        assert await client.list_runs() == []
        with pytest.raises(DatabaseUnavailable, match=r"Let the DSN lead to the primary\.$"):
            await client.enqueue("job")
        assert await client.list_runs() == []


@pytest.mark.parametrize("end", ["pg_cancel_backend", "pg_terminate_backend"])
@BOTH
async def test_a_commit_that_no_longer_waits_for_a_standby_is_unknown(kind, old, schema, end):
    """It has happened on the primary, and would be lost in a failover. The server itself calls a cancelled one done."""
    waits = "from pg_stat_activity where application_name = 'pgsched client' and wait_event = 'SyncRep'"

    async def ended(calling):
        while not await old.all(f"select {end}(pid) {waits}"):
            await asyncio.sleep(0.02)
        return await asyncio.gather(calling, return_exceptions=True)

    async with using(kind, old.dsn, schema=schema, timeout=20) as client:

        async def transaction():
            async with client.transaction() as connection:
                await client.enqueue("job", connection=connection)

        await client.now()
        await old.all("alter system set synchronous_standby_names = 'nobody'")
        await old.all("select pg_reload_conf()")
        try:
            while await old.all("show synchronous_standby_names") != [("nobody",)]:
                await asyncio.sleep(0.02)
            first = r"^The wait of {} for a synchronous standby was cancelled, so a failover may undo it\. "
            if end == "pg_terminate_backend":
                first = r"^The connection was lost before the answer to {}: .+\. "
            [error] = await ended(asyncio.create_task(client.enqueue("job")))
            assert isinstance(error, DatabaseUnavailable)
            assert re.match(first.format(r"enqueue\(\)") + r"It is unknown whether the call has", str(error))
            [error] = await ended(asyncio.create_task(transaction()))
            assert isinstance(error, DatabaseUnavailable)
            named = first.format(r"the COMMIT of transaction\(\)")
            assert re.match(named + r"It is unknown whether the transaction has committed\.$", str(error))
        finally:
            await old.all("alter system reset synchronous_standby_names")
            await old.all("select pg_reload_conf()")
    assert await old.all("select count(*) from pgsched.runs") == [(2,)]


@BOTH
async def test_a_session_that_a_neighbour_left_read_only_is_set_back(kind, dsn, schema, db):
    """As behind a pooler, where a new connection may lead to the same session."""
    async with using(kind, dsn, schema=schema) as client:
        async with client.transaction() as connection:
            await client.execute(connection, "set default_transaction_read_only = on")
            session = connection.info.backend_pid
        await client.enqueue("job")
        async with client.transaction() as connection:
            assert connection.info.backend_pid == session
    assert await db.value("select count(*) from pgsched.runs") == 1


@BOTH
async def test_without_a_server_that_can_write_a_client_says_so(kind, old, schema):
    async with using(kind, old.dsn, schema=schema, timeout=0.5) as client:
        await client.enqueue("job")
        old.read_only()
        with pytest.raises(DatabaseUnavailable, match=r"^No connection to the database for enqueue\(\) .*read-only"):
            await client.enqueue("job")


@BOTH
async def test_transactional_jobs_move(kind, old, settings, db, schema):
    scheduler = Scheduler()
    insert = in_schema(b"insert into pgsched.paid values (%s)", schema)

    async def job(run: Run):
        async with run.transaction() as connection:
            await connection.execute(insert, (run.id,))

    def blocking(run: Run):
        with run.transaction() as connection:
            connection.execute(insert, (run.id,))

    scheduler.entrypoint("job", retry=Retry(attempts=1))(blocking if kind == "sync" else job)
    table = "create table pgsched.paid (run bigint)"
    await old.all(table)
    await db.all(table)
    async with working(scheduler, settings.merged({"dsn": old.both}, "test"), resync_interval="1s"):
        await old.all("select pgsched.enqueue('job') from generate_series(1, 4)")
        async with asyncio.timeout(20):
            while await old.all("select count(*) from pgsched.runs where status = 'succeeded'") != [(4,)]:
                await asyncio.sleep(0.02)
        old.read_only()
        await db.all("select pgsched.enqueue('job') from generate_series(1, 12)")
        await db.until("select count(*) = 12 from pgsched.runs where status = 'succeeded'")
    assert await db.value("select count(distinct run) from pgsched.paid") == 12
    assert await old.all("select count(*) from pgsched.paid") == [(4,)]
