"""`pgsched migrate`: brings the schema to this version, or reports how it differs."""

from __future__ import annotations

import click
import psycopg

from pgsched.cli.options import database_options, json_option, run_async
from pgsched.cli.show.output import print_json, write
from pgsched.config import Settings
from pgsched.db import migrate as schema
from pgsched.db import session
from pgsched.db.failures import reach, unreachable
from pgsched.db.mishaps import answered
from pgsched.db.target import database

# Longer than a migration may take to build an index; each of its locks is bounded by itself.
_LIMIT = 24 * 3600.0


@click.command()
@click.option("--sql", "as_sql", is_flag=True, help="Print the whole schema as one SQL script, without a database.")
@click.option("--check", is_flag=True, help="Change nothing; exit 78 if the schema does not serve this version.")
@json_option
@database_options
def migrate(settings: Settings, as_sql: bool, check: bool, as_json: bool) -> None:
    """Bring the schema to this version, each migration in its own transaction.

    Workers of the previous release go on: run this first, then replace them one by one. Two migrations at once take
    turns. Exit codes: 0 done, or nothing to do; 1 a live worker would not fit; 69 no database, or its tables stay
    locked; 78 the schema does not serve this version.
    """
    if as_sql and check:
        raise click.UsageError("--sql and --check exclude each other.")
    if as_sql:
        write(schema.script(settings.schema).rstrip("\n"))
        return
    with database(settings) as dsn:
        done, version = run_async(_migrate(dsn, settings.schema, check), _LIMIT)
    if as_json:
        applied = [{"version": m.version, "name": m.name} for m in done]
        print_json({"schema": settings.schema, "version": version, "applied": applied})
        return
    for migration in done:
        write(f"Applied {migration.version:04} {migration.name}.")
    if not done:
        write(f'The schema "{settings.schema}" is at version {version}, which serves this pgsched: nothing to do.')


async def _migrate(dsn: str | None, name: str, only_check: bool) -> tuple[list[schema.Migration], int]:
    """Returns the applied migrations and the version that the schema has now."""
    info, limit = session.conninfo_for(dsn, "pgsched migrate"), session.STATEMENT_LIMIT.total_seconds()
    async with await reach(info, answer=limit) as connection:
        try:
            done = [] if only_check else await schema.migrate(connection, name)
            return done, await schema.check(connection, name)
        except psycopg.Error as error:
            if answered(error):
                raise
            raise unreachable(error) from None
