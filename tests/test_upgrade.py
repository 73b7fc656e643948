"""A database of the first schema, with schedules and runs in it, brought to this version."""

import psycopg
import pytest
from psycopg import sql

from pgsched.db import migrate
from pgsched.db.statements.store import in_schema


async def test_what_a_first_schema_holds_is_carried_over(dsn):
    name = "upgraded"
    shipped = migrate.migrations()

    def of(text: str) -> bytes:
        return in_schema(text.encode(), name, parametrised=False)

    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        try:
            with_first = migrate.migrations
            migrate.migrations = lambda: shipped[:1]
            try:
                await migrate.migrate(connection, name)
            finally:
                migrate.migrations = with_first
            for status, next_run in (("active", "'2090-01-01Z'"), ("finished", "null")):
                await connection.execute(
                    of(
                        "insert into pgsched.schedules (name, entrypoint, expression, status, next_run, planned_at)"
                        f" values ('{status}', 'job', '@daily', '{status}', {next_run}, now())"
                    )
                )
            await connection.execute(of("select pgsched.create_schedule('new', 'job', '@daily')"))
            await connection.execute(of("select pgsched.trigger('active'), pgsched.enqueue('job')"))
            await migrate.migrate(connection, name)
            await migrate.check(connection, name)
            cursor = await connection.execute(
                of(
                    "select name, accounted_through = next_run - interval '1 microsecond', accounted_through is null,"
                    " timed_at = updated_at, interruptions from pgsched.schedules order by name"
                )
            )
            assert await cursor.fetchall() == [
                ("active", True, False, True, []), ("finished", None, False, True, []), ("new", None, True, True, []),
            ]  # fmt: skip
            cursor = await connection.execute(of("select schedule_id is not null, gated from pgsched.runs order by id"))
            assert await cursor.fetchall() == [(True, True), (False, False)]
        finally:
            await connection.execute(sql.SQL("drop schema if exists {} cascade").format(sql.Identifier(name)))


@pytest.mark.parametrize("name", ["a$$b", "$b0$ $1 $$", "$$"])
async def test_a_schema_may_have_dollar_signs_in_its_name(dsn, name):
    """They end no function's body, in a migration and in the script of all of them."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        for apply in ("migrate", "script"):
            try:
                if apply == "migrate":
                    await migrate.migrate(connection, name)
                else:
                    await connection.execute(migrate.script(name))
                await migrate.check(connection, name)
                call = in_schema(b"select pgsched.enqueue('job')", name, parametrised=False)
                assert len(await (await connection.execute(call)).fetchall()) == 1
            finally:
                await connection.execute(sql.SQL("drop schema if exists {} cascade").format(sql.Identifier(name)))
