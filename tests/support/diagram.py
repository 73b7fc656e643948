"""Draws the tables of the schema into docs/schema.md, as the catalogue has them (`make diagram`)."""

import sys
from pathlib import Path
from typing import Any

import psycopg

from pgsched.db import migrate
from support.servers import running

PAGE = Path(__file__).parents[2] / "docs" / "schema.md"
BEGIN, END = "<!-- drawn by make diagram: {} -->\n", "<!-- end -->\n"
# Columns that name a row of another table without a foreign key, since they may outlive it.
NAMED = {"schedule_id": "schedules", "run_id": "runs", "worker": "workers"}
SHORT = {"timestamp with time zone": "timestamptz", "timestamp without time zone": "timestamp"}

TABLES = """
select c.relname, obj_description(c.oid, 'pg_class') from pg_class c
where c.relnamespace = (select oid from pg_namespace where nspname = %(schema)s) and c.relkind = any(%(kinds)s)
order by c.relname
"""
COLUMNS = """
select c.relname, a.attname, coalesce(d.typname, format_type(a.atttypid, a.atttypmod)) as type,
    exists (select from pg_constraint k where k.conrelid = c.oid and k.contype = 'p' and a.attnum = any(k.conkey)),
    (select k.confrelid from pg_constraint k where k.conrelid = c.oid and k.contype = 'f' and a.attnum = any(k.conkey))
from pg_class c
join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
left join pg_type d on d.oid = a.atttypid and d.typtype = 'd'
where c.relnamespace = (select oid from pg_namespace where nspname = %(schema)s) and c.relkind = 'r'
order by c.relname, a.attnum
"""
NAMES = "select c.oid, c.relname from pg_class c where c.relkind = 'r'"


def short(type_: str) -> str:
    """The name of a type as one word, which is all that the picture can take."""
    for long, word in SHORT.items():
        type_ = type_.replace(long, word)
    return type_


def entities(connection: psycopg.Connection[Any], schema: str) -> str:
    """The tables with their columns, and the rows that each of their rows names."""
    names = dict(connection.execute(NAMES).fetchall())
    boxes: dict[str, list[str]] = {}
    lines = []
    for table, column, type_, primary, target in connection.execute(COLUMNS, {"schema": schema}):
        other = names.get(target) or NAMED.get(column)
        if other and other != table:
            lines.append(f"    {other} ||{'--' if target else '..'}o{{ {table} : {column}")
        key = ", ".join([*(["PK"] if primary else []), *(["FK"] if target else [])])
        boxes.setdefault(table, []).append(f"        {short(type_)} {column} {key}".rstrip())
    drawn = [f"    {table} {{\n" + "\n".join(columns) + "\n    }" for table, columns in boxes.items()]
    return "```mermaid\nerDiagram\n" + "\n".join([*sorted(lines), *drawn]) + "\n```\n"


def tables(connection: psycopg.Connection[Any], schema: str, kind: str) -> str:
    """A list of the tables (r) or views (v), by their comments."""
    found = connection.execute(TABLES, {"schema": schema, "kinds": [kind]})
    return "".join(f"- `{name}`: {comment}\n" for name, comment in found)


def drawn(connection: psycopg.Connection[Any], schema: str, page: str) -> str:
    """The page with its drawn parts as the catalogue has them now."""
    parts = {
        "entities": entities(connection, schema),
        "tables": tables(connection, schema, "r"),
        "views": tables(connection, schema, "v"),
    }
    for name, text in parts.items():
        before, _, rest = page.partition(BEGIN.format(name))
        _, _, after = rest.partition(END)
        page = before + BEGIN.format(name) + text + END + after
    return page


def main() -> None:
    with running() as dsn, psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(migrate.script("pgsched").encode())
        PAGE.write_text(drawn(connection, "pgsched", PAGE.read_text("utf-8")), "utf-8")
    print(f"{PAGE} is drawn.", file=sys.stderr)


if __name__ == "__main__":
    main()
