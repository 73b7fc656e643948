"""Whether a schema still has everything that statements for an earlier one rely on."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.pq import ExecStatus

from pgsched.db.statements.queries import Numbered, in_schema

_NUMBERS = itertools.count(1)
_IN = "where c.relnamespace = %(schema)s::text::regnamespace"
COLUMNS = f"""
select c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
    a.atthasdef or a.attidentity <> '' or c.relkind = 'v'
from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
{_IN} and c.relkind in ('r', 'v')
"""
CONSTRAINTS = f"""
select c.relname, k.conname, pg_get_constraintdef(k.oid),
    array(select a.attname::text from pg_attribute a where a.attrelid = c.oid and a.attnum = any(k.conkey))
from pg_constraint k join pg_class c on c.oid = k.conrelid {_IN} and k.contype <> 'n'
"""
UNIQUE = f"""
select c.relname, regexp_replace(pg_get_indexdef(i.indexrelid), 'INDEX .* USING', 'INDEX USING'),
    array(select a.attname::text from pg_attribute a where a.attrelid = c.oid and a.attnum = any(i.indkey))
from pg_index i join pg_class c on c.oid = i.indrelid {_IN} and i.indisunique and i.indisvalid
"""
FUNCTIONS = """
select p.proname || '(' || pg_get_function_arguments(p.oid) || ')',
    coalesce(pg_get_function_result(p.oid), '')
from pg_proc p where p.pronamespace = %(schema)s::text::regnamespace
"""


@dataclass(frozen=True)
class Catalogue:
    """What a schema has."""

    columns: dict[tuple[str, str], tuple[str, bool, bool]]  # type, not null, filled in by itself
    constraints: dict[tuple[str, str], tuple[str, frozenset[str]]]
    unique: dict[tuple[str, str], frozenset[str]]
    functions: dict[str, str]

    @classmethod
    async def read(cls, connection: psycopg.AsyncConnection[Any], schema: str) -> "Catalogue":
        given = {"schema": sql.Identifier(schema).as_string(connection)}

        async def rows(query: str) -> list[tuple[Any, ...]]:
            return await (await connection.execute(query, given)).fetchall()

        async with connection.transaction():
            # The server then writes the names of the schema's types and tables without the schema.
            await connection.execute("select set_config('search_path', %(schema)s, true)", given)
            return cls(
                {(table, name): (kind, strict, filled) for table, name, kind, strict, filled in await rows(COLUMNS)},
                {(table, name): (text, frozenset(of)) for table, name, text, of in await rows(CONSTRAINTS)},
                {(table, text): frozenset(of) for table, text, of in await rows(UNIQUE)},
                dict(await rows(FUNCTIONS)),
            )

    @property
    def tables(self) -> set[str]:
        return {table for table, _ in self.columns}


def contractions(before: Catalogue, after: Catalogue) -> Iterator[str]:
    """Changes by which a statement for the schema before may fail, or read another thing."""
    for (table, name), (kind, strict, filled) in before.columns.items():
        now = after.columns.get((table, name))
        if now is None:
            yield f"column {table}.{name} is gone"
        elif now[0] != kind:
            yield f"column {table}.{name} is of another type"
        elif now[1] and not strict:
            yield f"column {table}.{name} takes no null any more"
        elif filled and not now[2]:
            yield f"column {table}.{name} has lost its default"
    for (table, name), (_, strict, filled) in after.columns.items():
        if table in before.tables and (table, name) not in before.columns and strict and not filled:
            yield f"column {table}.{name} is new and takes no null"
    for table, text in before.unique.keys() - after.unique.keys():
        if table in after.tables:
            yield f"a unique index of {table} is gone, which ON CONFLICT may name: {text}"
    yield from _limits(before, after)
    for signature, result in before.functions.items():
        if after.functions.get(signature) != result:
            yield f"function {signature} is gone, or returns another type"


def _limits(before: Catalogue, after: Catalogue) -> Iterator[str]:
    """Rules that rows of the schema before may break."""

    def concerns(table: str, columns: frozenset[str]) -> bool:
        """Whether a rule of a table that was there is about columns that were there alone. If it is about a new one,
        too, an earlier statement leaves that column as it is by default."""
        return table in before.tables and all((table, column) in before.columns for column in columns)

    for (table, name), (text, columns) in after.constraints.items():
        if before.constraints.get((table, name), ("",))[0] != text and concerns(table, columns):
            yield f"constraint {name} of {table} is new or another one: {text}"
    for (table, text), columns in after.unique.items():
        if (table, text) not in before.unique and concerns(table, columns):
            yield f"a unique index of {table} is new: {text}"


def shape(connection: psycopg.Connection[Any], statement: bytes, schema: str) -> tuple[Any, ...]:
    """How the server understands a statement: the types of its parameters, its columns and their types, and whether it
    can be planned. Nothing is executed. Or the server's SQLSTATE."""
    text, name = Numbered.of(in_schema(statement, schema)).text, f"shape {next(_NUMBERS)}"
    raw = connection.pgconn
    prepared = raw.prepare(name.encode(), text)
    if prepared.status != ExecStatus.COMMAND_OK:
        return ("refused", psycopg.errors.error_from_result(prepared).sqlstate)
    found = raw.describe_prepared(name.encode())
    parameters = _names(connection, [found.param_type(i) for i in range(found.nparams)])
    columns = list(zip(
        [found.fname(i) for i in range(found.nfields)],
        _names(connection, [found.ftype(i) for i in range(found.nfields)]),
        strict=True,
    ))  # fmt: skip
    # Only the planner looks for the index that ON CONFLICT names.
    given = f"({', '.join(['null'] * len(parameters))})" if parameters else ""
    planned = raw.exec_(f'explain execute "{name}"{given}'.encode())
    good = planned.status in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK)
    return (parameters, columns, None if good else psycopg.errors.error_from_result(planned).sqlstate)


def _names(connection: psycopg.Connection[Any], types: list[int]) -> list[str]:
    """The names of types, without their schema."""
    query = (
        "select t.typname from unnest(%s::oid[]) with ordinality as o (oid, n) join pg_type t using (oid) order by n"
    )
    return [name for (name,) in connection.execute(query, (types,)).fetchall()]
