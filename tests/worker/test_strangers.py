"""A role that can connect and has no right on the schema keeps nobody from anything."""

import uuid

import psycopg
import pytest
from psycopg import sql
from support.workers import working

from pgsched import Run, Scheduler
from pgsched.db import migrate
from pgsched.db.fence.fence import session_name
from pgsched.db.statements.queries import Queries, in_schema
from pgsched.model import Claim

KEYS = ("pgsched {}", "pgsched {} retention", "pgsched {} declarations shop")
TABLES = "declarations runs schedules turns transactions migrations limits workers"


@pytest.fixture
def stranger(dsn):
    """A session of such a role."""
    role = sql.Identifier(f"stranger {uuid.uuid4().hex[:8]}")
    with psycopg.connect(dsn, autocommit=True) as owner, psycopg.connect(dsn) as connection:
        owner.execute(sql.SQL("create role {}").format(role))
        connection.execute(sql.SQL("set session authorization {}").format(role))
        connection.commit()
        yield connection
        connection.close()
        owner.execute(sql.SQL("drop role {}").format(role))


async def test_a_role_without_rights_blocks_no_start_no_transaction_no_retention(settings, db, schema, stranger):
    sc = Scheduler(app="shop")

    @sc.schedule("hourly", "@hourly")
    async def hourly(): ...

    @sc.entrypoint("job")
    async def job(run: Run):
        # As soon as the claim is made its names can be seen, and locked.
        claim = Claim(run.id, run.token, run.worker)
        lock(session_name(claim))
        async with run.transaction():
            pass

    def lock(key):
        stranger.execute("select pg_advisory_xact_lock(hashtextextended(%s, 0))", (key,))

    for key in KEYS:
        lock(key.format(schema))
    for table in TABLES.split():
        for statement in (f"select from pgsched.{table} for update", f"lock table pgsched.{table} in share mode"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege), stranger.transaction():
                stranger.execute(in_schema(statement.encode(), schema, parametrised=False))
    assert await migrate.migrate(db.connection, schema) == []
    async with working(sc, settings) as worker:
        await db.all("select pgsched.enqueue('job')")
        await db.until("select committed_at is not null from pgsched.runs")
        await db.until("select status = 'succeeded' from pgsched.runs")
        await db.all("update pgsched.runs set finished_at = now() - interval '1 year'")
        assert await worker.retention.round() == 1
    assert await db.value("select count(*) from pgsched.transactions") == 0


def test_no_statement_takes_an_advisory_lock():
    assert not [name for name, text in Queries.texts().items() if b"advisory_" in text]
    assert "advisory_" not in migrate.script("pgsched")
