"""What `pgsched migrate` makes of a schema: one of any name, for now."""

import psycopg
import pytest
from psycopg import sql

from pgsched.db import migrate
from pgsched.db.statements.store import in_schema


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
