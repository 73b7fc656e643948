"""`pgsched migrate`: brings the schema to this version, or reports how it differs."""

from __future__ import annotations

from typing import Any

import click

from pgsched.cli.options import database_options, json_option, run_async
from pgsched.cli.show.output import print_json, write
from pgsched.config import Settings
from pgsched.db import migrate as schema
from pgsched.db.failures import reach
from pgsched.db.session import conninfo_for
from pgsched.db.target import database

# Longer than a migration may take to build an index; each of its locks is bounded by itself.
_LIMIT = 24 * 3600.0


@click.command()
@click.option("--sql", "as_sql", is_flag=True, help="Print the whole schema as one SQL script, without a database.")
@click.option("--check", is_flag=True, help="Change nothing; exit 78 if the schema is of another version.")
@json_option
@database_options
def migrate(settings: Settings, as_sql: bool, check: bool, as_json: bool) -> None:
    """Bring the schema to this version, each migration in its own transaction.

    Two migrations at once take turns. Exit codes: 0 done, or nothing to do; 69 no database; 78 the schema is of
    another version.
    """
    if as_sql and check:
        raise click.UsageError("--sql and --check exclude each other.")
    if as_sql:
        write(schema.script(settings.schema).rstrip("\n"))
        return
    with database(settings) as dsn:
        done = run_async(_migrate(dsn, settings.schema, check), _LIMIT)
    version = len(schema.migrations())
    if as_json:
        applied = [{"version": m.version, "name": m.name} for m in done]
        print_json({"schema": settings.schema, "version": version, "applied": applied})
        return
    for migration in done:
        write(f"Applied {migration.version:04} {migration.name}.")
    if not done:
        write(f'The schema "{settings.schema}" is at version {version}, which this pgsched needs: nothing to do.')


async def _migrate(dsn: str | None, name: str, only_check: bool) -> list[Any]:
    async with await reach(conninfo_for(dsn, "pgsched migrate")) as connection:
        if only_check:
            await schema.check(connection, name)
            return []
        return await schema.migrate(connection, name)
