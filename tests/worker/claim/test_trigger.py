"""A triggered run takes a free microsecond as its fire time, and the search for one has an end."""

import uuid

import psycopg
import pytest
from psycopg import sql
from support.worlds import make_skewed

from pgsched import PgschedError, connect
from pgsched.db.statements.queries import in_schema

TRIES = 100


@pytest.fixture
def schema(dsn):
    """A schema whose clock a test can stop."""
    name = f"still {uuid.uuid4().hex[:8]}"
    make_skewed(dsn, name)
    yield name
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("drop schema {} cascade").format(sql.Identifier(name)))


@pytest.fixture
async def counted(db, schema):
    """Counts the tries to insert a run, whatever becomes of them. Those before number `below` are dropped."""
    text = """
        create sequence pgsched.tries;
        create table pgsched.dropping as select 0 as below;
        create function pgsched.count_try() returns trigger language plpgsql as $$ begin
            return case when nextval('pgsched.tries') < (select below from pgsched.dropping) then null else new end;
        end $$;
        create trigger count_try before insert on pgsched.runs for each row execute function pgsched.count_try();
        insert into pgsched.schedules (name, entrypoint, expression) values ('s', 'job', '@daily')
    """
    await db.connection.execute(in_schema(text.encode(), schema, parametrised=False))


async def rows(db):
    return await db.all("select to_jsonb(r) from pgsched.runs r union all select to_jsonb(s) from pgsched.schedules s")


async def test_a_hundred_instants_that_are_taken_are_enough(dsn, schema, db, counted):
    stopped = (
        "create or replace function pgsched.clock_timestamp() returns timestamptz language sql volatile"
        " as $$ select '2026-06-01Z'::timestamptz $$"
    )
    await db.connection.execute(in_schema(stopped.encode(), schema, parametrised=False))
    async with connect(dsn, schema=schema) as client:
        first = await client.trigger("s")
        before = await rows(db)
        with pytest.raises(PgschedError) as refused:
            await client.trigger("s")
        assert str(refused.value).startswith(
            'Schedule "s" could not be triggered: its run could not be inserted in a hundred tries.'
        )
        assert await db.value("select last_value from pgsched.tries") == 1 + TRIES
        assert await rows(db) == before, "nothing is written"
        assert [row["id"] for row in await client.list_runs()] == [first]


@pytest.mark.parametrize("lands", [True, False])
async def test_the_hundredth_try_counts_and_none_comes_after_it(dsn, schema, db, counted, lands):
    await db.all("update pgsched.dropping set below = %s", TRIES if lands else TRIES + 1)
    if lands:
        assert await db.value("select pgsched.trigger('s')")
    else:
        with pytest.raises(psycopg.Error) as refused:
            await db.all("select pgsched.trigger('s')")
        assert refused.value.sqlstate == "PS409"
    assert await db.value("select last_value from pgsched.tries") == TRIES
    assert await db.value("select count(*) from pgsched.runs") == lands
