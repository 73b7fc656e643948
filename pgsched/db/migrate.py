"""Migrates the schema to this version, or reports how it differs. Numbered files are applied once each, in order."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import psycopg
from psycopg import sql

from pgsched.db.session import Backoff, Connection
from pgsched.db.statements.queries import in_schema
from pgsched.errors import DatabaseUnavailable, SchemaError

LOCK_TIMEOUT = "5s"
TRIES = 12
# The first of the migrations that were replaced before 0.1.0. Their schemas cannot be upgraded.
_REPLACED = "initial"
_NAME = re.compile(r"^(\d{4})_([a-z0-9_]+)\.sql$")
_TABLE = b"""
create table if not exists pgsched.migrations (
    version int primary key, name text not null, checksum text not null,
    applied_at timestamptz not null default clock_timestamp()
);
comment on table pgsched.migrations is 'What pgsched migrate has applied. Written by nothing else.';
"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of migrations/."""

    version: int
    name: str
    text: bytes

    @property
    def checksum(self) -> str:
        """The hash of the shipped text, the same for all line ends."""
        return hashlib.sha256(self.text.replace(b"\r\n", b"\n")).hexdigest()


def migrations() -> list[Migration]:
    """All migrations that this version ships, oldest first."""
    inside = files("pgsched").joinpath("migrations")
    folder = inside if inside.is_dir() else Path(__file__).parents[2] / "migrations"
    found = [
        Migration(int(match[1]), match[2], entry.read_bytes())
        for entry in folder.iterdir()
        if (match := _NAME.match(entry.name))
    ]
    found.sort(key=lambda m: m.version)
    if [m.version for m in found] != list(range(1, len(found) + 1)):
        raise SchemaError("This installation lacks some of its migrations. Reinstall pgsched.")
    return found


def script(schema: str) -> str:
    """All migrations as one SQL script, for people who apply it with their own tools."""
    parts = [b"begin;\n", b"create schema if not exists " + sql.Identifier(schema).as_bytes() + b";\n"]
    parts.append(in_schema(_TABLE, schema, parametrised=False).lstrip())
    for migration in migrations():
        parts.append(b"\n" + _for_schema(migration.text, schema))
        values = sql.SQL("({}, {}, {})").format(migration.version, migration.name, migration.checksum)
        insert = b"insert into pgsched.migrations (version, name, checksum) values "
        parts.append(b"\n" + in_schema(insert, schema, parametrised=False) + values.as_bytes() + b";\n")
    parts.append(b"commit;\n")
    return b"".join(parts).decode()


def _for_schema(text: bytes, schema: str) -> bytes:
    """A migration for another schema. If the schema's name has dollar signs, function bodies are quoted with a tag that
    is not in the name: a $$ in it would end the first body."""
    if "$" in schema:
        tag = next(tag for n in itertools.count() if (tag := f"$b{n}$") not in schema)
        text = text.replace(b"$$", tag.encode())
    return in_schema(text, schema, parametrised=False)


async def check(connection: Connection, schema: str) -> None:
    """Raises SchemaError, with the command to run, unless the schema is exactly this version's."""
    applied = await _applied(connection, schema)
    shipped = migrations()
    if not applied:
        raise SchemaError(
            f'The database has no pgsched schema "{schema}". Run `pgsched migrate` (or `pgsched run --migrate`).'
        )
    _compare(applied, shipped, schema)
    if len(applied) < len(shipped):
        raise SchemaError(
            f'The schema "{schema}" is at version {len(applied)}, but this pgsched needs {len(shipped)}. '
            "Run `pgsched migrate` (or `pgsched run --migrate`)."
        )


async def migrate(
    connection: Connection, schema: str, *, rewrite: Callable[[bytes], bytes] = lambda text: text
) -> list[Migration]:
    """Applies the missing migrations, each in its own transaction. Returns those that it applied.

    Concurrent calls take turns. If a lock is not free within seconds, the wait ends and starts again later, so that a
    waiting migration never makes everybody else wait behind it.

    rewrite: changes each text before it is applied, for tests that need another clock.
    Raises SchemaError if the database is newer than this version or a migration was edited, and DatabaseUnavailable if
    a lock is still not free after TRIES tries.
    """
    done: list[Migration] = []
    backoff = Backoff(0.1, 5.0)
    failures = 0
    while True:
        try:
            applied = await _next(connection, schema, rewrite)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected, _Overtaken) as error:
            failures += 1
            if failures >= TRIES:
                raise DatabaseUnavailable(
                    f'The schema "{schema}" is in use: a lock could not be taken in {TRIES} tries of {LOCK_TIMEOUT}. '
                    "Run `pgsched migrate` again when the database is quieter."
                ) from error
            await asyncio.sleep(backoff.delay() + random.random() * 0.1)  # noqa: S311
            continue
        if applied is None:
            return done
        done.append(applied)


async def _next(connection: Connection, schema: str, rewrite: Callable[[bytes], bytes]) -> Migration | None:
    """Applies the first missing migration and returns it; None if none is missing."""
    async with connection.transaction():
        await connection.execute("select set_config('lock_timeout', %s, true)", (LOCK_TIMEOUT,))
        await connection.execute("select set_config('statement_timeout', '0', true)")
        if not await _exists(connection, schema):
            await _create_schema(connection, schema)
        # Lock first and then a look: it must see what the one before us applied. Workers that read do not wait.
        await connection.execute(in_schema(b"lock table pgsched.migrations in exclusive mode", schema), ())
        applied = await _applied(connection, schema)
        shipped = migrations()
        _compare(applied, shipped, schema)
        if len(applied) == len(shipped):
            return None
        coming = shipped[len(applied)]
        await connection.execute(_for_schema(rewrite(coming.text), schema))
        insert = in_schema(b"insert into pgsched.migrations (version, name, checksum) values (%s, %s, %s)", schema)
        await connection.execute(insert, (coming.version, coming.name, coming.checksum))
        return coming


class _Overtaken(Exception):
    """Another process has created the schema at the same time."""


async def _create_schema(connection: Connection, schema: str) -> None:
    try:
        # "if not exists" needs the right to create even if the schema exists, so look first.
        known = await connection.execute("select from pg_namespace where nspname = %s", (schema,))
        if await known.fetchone() is None:
            await connection.execute(sql.SQL("create schema {}").format(sql.Identifier(schema)))
        await connection.execute(in_schema(_TABLE, schema, parametrised=False))
    except (
        psycopg.errors.UniqueViolation, psycopg.errors.DuplicateSchema, psycopg.errors.DuplicateTable,
        psycopg.errors.DuplicateObject,
    ) as error:  # fmt: skip
        raise _Overtaken from error


async def _exists(connection: Connection, schema: str) -> bool:
    known = await connection.execute(
        "select from pg_class c join pg_namespace n on n.oid = c.relnamespace"
        " where n.nspname = %s and c.relname = 'migrations'",
        (schema,),
    )
    return await known.fetchone() is not None


async def _applied(connection: Connection, schema: str) -> list[tuple[int, str, str]]:
    if not await _exists(connection, schema):
        return []
    query = in_schema(b"select version, name, checksum from pgsched.migrations order by version", schema)
    rows = await (await connection.execute(query, ())).fetchall()
    return [(row[0], row[1], row[2]) for row in rows]


def _compare(applied: list[tuple[int, str, str]], shipped: list[Migration], schema: str) -> None:
    if applied and applied[0][1] == _REPLACED:
        raise SchemaError(
            f'The schema "{schema}" was made by a development version of pgsched before 0.1.0, which cannot be '
            "upgraded: export the data that you want to keep, drop the schema or choose another one with --schema, and "
            "run `pgsched migrate`."
        )
    newest = applied[-1][0] if applied else 0
    if newest > len(shipped):
        raise SchemaError(
            f'The schema "{schema}" is at version {newest}, newer than this pgsched, which knows {len(shipped)}. '
            "Install the pgsched that made it, or a newer one."
        )
    for (version, name, checksum), migration in zip(applied, shipped, strict=False):
        if (version, checksum) != (migration.version, migration.checksum):
            raise SchemaError(
                f'Migration {version:04} ({name}) of the schema "{schema}" was applied with a different text than this '
                "pgsched ships. Install the pgsched that applied it; migrations are never edited."
            )
