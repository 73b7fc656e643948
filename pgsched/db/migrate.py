"""Migrates the schema to this version, or reports how it differs. Numbered files are applied once each, in order."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import psycopg
from psycopg import conninfo, sql

from pgsched.db.failures import reach
from pgsched.db.mishaps import Failures
from pgsched.db.reaching import watched
from pgsched.db.session import Backoff, Connection
from pgsched.db.statements.queries import in_schema
from pgsched.errors import DatabaseUnavailable, PgschedError, SchemaError

# Everybody who needs a table waits behind a migration that waits for it. It gives up before a worker does: a heartbeat
# waits for 200 ms, and then its run is set aside.
LOCK_TIMEOUT = "50ms"
TRIES = 60
# Nobody waits behind a migration that waits for its turn.
TURN_TIMEOUT = "5s"
# A migration may take long, to build an index perhaps.
ASK_AFTER = 60.0  # seconds until the server is asked whether it is still at work on it, and again until the next time
_ASK = 15.0  # seconds for the answer
_UNASKED = 5  # times in a row that it cannot be asked until the migration is given up
# The first of the migrations that were replaced before 0.1.0. Their schemas cannot be upgraded.
_REPLACED = "initial"
_NAME = re.compile(r"^(\d{4})_([a-z0-9_]+)\.sql$")
_SERVES = re.compile(rb"-- Serves workers built for schema version (\d+) or later\.\r?\n")
_SERVES_SINCE = 5  # the migration that adds the column
_TABLE = b"""
create table if not exists pgsched.migrations (
    version int primary key, name text not null, checksum text not null,
    applied_at timestamptz not null default clock_timestamp()
);
comment on table pgsched.migrations is 'What pgsched migrate has applied. Written by nothing else.';
"""
_AT_WORK = (
    "select exists (select from pg_stat_activity where pid = %s and usename = session_user"
    " and datname = current_database() and state = 'active')"
)
# Live workers that a migration does not serve.
_UNSERVED = b"""
select w.host, w.pid, coalesce(w.schema_version, 4) from pgsched.workers w
join pgsched.live_workers l on l.id = w.id
where coalesce(w.schema_version, 4) < %(serves)s order by w.host, w.pid
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

    @property
    def serves(self) -> int:
        """The oldest workers that can go on after it, by the version that they were built for. Its first line says so;
        without that line, it serves only its own version."""
        found = _SERVES.match(self.text)
        return int(found[1]) if found else self.version

    @property
    def record(self) -> tuple[bytes, tuple[object, ...]]:
        """The columns of its row, and their values."""
        row: dict[str, object] = {"version": self.version, "name": self.name, "checksum": self.checksum}
        if self.version >= _SERVES_SINCE:
            row["serves"] = self.serves
        return ", ".join(row).encode(), tuple(row.values())


class Applied(NamedTuple):
    """A migration that the database has. serves: see Migration."""

    version: int
    name: str
    checksum: str
    serves: int


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
        columns, row = migration.record
        values = sql.SQL("({})").format(sql.SQL(", ").join(map(sql.Literal, row)))
        insert = b"insert into pgsched.migrations (" + columns + b") values "
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


async def check(connection: Connection, schema: str) -> int:
    """Returns the schema's version: this one's, or a newer one that serves this one.

    Raises SchemaError, with the command to run, for every other schema.
    """
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
            "Run `pgsched migrate` (or `pgsched run --migrate`) before you start new workers."
        )
    return applied[-1].version


async def migrate(
    connection: Connection, schema: str, *, rewrite: Callable[[bytes], bytes] = lambda text: text
) -> list[Migration]:
    """Applies the missing migrations, each in its own transaction. Returns those that it applied.

    Concurrent calls take turns. If a lock is not free at once, the wait ends and starts again later, so that a waiting
    migration never makes everybody else wait behind it.

    rewrite: changes each text before it is applied, for tests that need another clock.
    Raises SchemaError if the database is newer and does not serve this version, or if a migration was edited;
    PgschedError if the next migration does not serve a worker that is alive; and DatabaseUnavailable if a lock is still
    not free after TRIES tries. A connection with limits raises NoAnswer if the answer to a migration is lost.
    """
    done: list[Migration] = []
    backoff = Backoff(0.1, 2.0)
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
        await _wait_at_most(connection, TURN_TIMEOUT)
        await connection.execute("select set_config('statement_timeout', '0', true)")
        if not await _exists(connection, schema):
            await _create_schema(connection, schema)
        # Lock first and then a look: it must see what the one before us applied. Workers that read do not wait.
        await connection.execute(in_schema(b"lock table pgsched.migrations in exclusive mode", schema), ())
        applied = await _applied(connection, schema)
        shipped = migrations()
        _compare(applied, shipped, schema)
        if len(applied) >= len(shipped):
            return None
        coming = shipped[len(applied)]
        if coming.version > _SERVES_SINCE:
            await _refuse_beside_unserved(connection, schema, coming)
        await _wait_at_most(connection, LOCK_TIMEOUT)
        with watched(connection, ASK_AFTER, await _asker(connection)):
            await run_script(connection, _for_schema(rewrite(coming.text), schema))
        columns, row = coming.record
        places = b", ".join([b"%s"] * len(row))
        insert = in_schema(b"insert into pgsched.migrations (" + columns + b") values (" + places + b")", schema)
        await connection.execute(insert, row)
        return coming


async def _asker(connection: Connection) -> Callable[[], Awaitable[bool]]:
    """Asks over another connection whether the server is at work on a statement of this transaction."""
    row = await (await connection.execute("select pg_backend_pid()")).fetchone()  # a pooler invents the one it gives
    # Only this server is asked, even if the DSN leads to several. info.dsn lacks values that are libpq's defaults, and
    # the environment or a service would replace them.
    used = {each.keyword.decode(): each.val.decode() for each in connection.pgconn.info if each.val}
    info = conninfo.make_conninfo("", **{**used, "password": connection.info.password})
    unasked = 0

    async def at_work() -> bool:
        nonlocal unasked
        try:
            async with await reach(info, _ASK, _ASK) as other:
                found = await (await other.execute(_AT_WORK, row)).fetchone()
        except Failures:  # perhaps there are too many connections
            unasked += 1
            return unasked < _UNASKED
        unasked = 0
        return found is not None and bool(found[0])

    return at_work


async def _wait_at_most(connection: Connection, limit: str) -> None:
    """Limits how long each statement of this transaction waits for a lock."""
    await connection.execute("select set_config('lock_timeout', %s, true)", (limit,))


async def _refuse_beside_unserved(connection: Connection, schema: str, coming: Migration) -> None:
    """Raises PgschedError if a worker is alive that could not go on after this migration."""
    query = in_schema(_UNSERVED, schema)
    rows = await (await connection.execute(query, {"serves": coming.serves})).fetchall()
    if rows:
        named = ", ".join(f"{host} (pid {pid}, built for {version})" for host, pid, version in rows[:5])
        more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
        raise PgschedError(
            f'Migration {coming.version:04} ({coming.name}) of the schema "{schema}" serves only workers built for '
            f"version {coming.serves} or later, and older ones are alive: {named}{more}. Stop them, or replace them "
            "with workers of a release in between, and run `pgsched migrate` again."
        )


class _Overtaken(Exception):
    """Another process has created the schema at the same time."""


async def _create_schema(connection: Connection, schema: str) -> None:
    try:
        # "if not exists" needs the right to create even if the schema exists, so look first.
        known = await connection.execute("select from pg_namespace where nspname = %s", (schema,))
        if await known.fetchone() is None:
            await connection.execute(sql.SQL("create schema {}").format(sql.Identifier(schema)))
        await run_script(connection, in_schema(_TABLE, schema, parametrised=False))
    except (
        psycopg.errors.UniqueViolation, psycopg.errors.DuplicateSchema, psycopg.errors.DuplicateTable,
        psycopg.errors.DuplicateObject,
    ) as error:  # fmt: skip
        raise _Overtaken from error


async def run_script(connection: Connection, text: bytes) -> None:
    """Runs a script, which only the text format can hold."""
    await psycopg.AsyncCursor(connection).execute(text)


async def _exists(connection: Connection, schema: str) -> bool:
    known = await connection.execute(
        "select from pg_class c join pg_namespace n on n.oid = c.relnamespace"
        " where n.nspname = %s and c.relname = 'migrations'",
        (schema,),
    )
    return await known.fetchone() is not None


async def _applied(connection: Connection, schema: str) -> list[Applied]:
    if not await _exists(connection, schema):
        return []
    # By way of jsonb, since schemas before version 5 lack the column.
    query = in_schema(
        b"select version, name, checksum, coalesce((to_jsonb(m) ->> 'serves')::int, version)"
        b" from pgsched.migrations m order by version",
        schema,
    )
    return [Applied(*row) for row in await (await connection.execute(query, ())).fetchall()]


def _compare(applied: list[Applied], shipped: list[Migration], schema: str) -> None:
    """Raises SchemaError unless the schema has the shipped migrations, or the first of them, or more that serve us."""
    if applied and applied[0].name == _REPLACED:
        raise SchemaError(
            f'The schema "{schema}" was made by a development version of pgsched before 0.1.0, which cannot be '
            "upgraded: export the data that you want to keep, drop the schema or choose another one with --schema, and "
            "run `pgsched migrate`."
        )
    ours = len(shipped)
    oldest = max((newer.serves for newer in applied if newer.version > ours), default=ours)
    if oldest > ours:
        raise SchemaError(
            f'The schema "{schema}" is at version {applied[-1].version}, newer than this pgsched, which was built for '
            f"{ours}; it serves those built for {oldest} or later. Install the pgsched that made it, or a newer one."
        )
    for there, migration in zip(applied, shipped, strict=False):
        if (there.version, there.checksum) != (migration.version, migration.checksum):
            raise SchemaError(
                f'Migration {there.version:04} ({there.name}) of the schema "{schema}" was applied with a different '
                "text than this pgsched ships. Install the pgsched that applied it; migrations are never edited."
            )
