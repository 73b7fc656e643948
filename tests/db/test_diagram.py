"""docs/schema.md shows the schema as it is: its tables, and the statements that move a run from state to state."""

import re

import psycopg
from support import diagram

from pgsched.db.statements.queries import Queries

PAGE = diagram.PAGE.read_text("utf-8")
WRITES = re.compile(
    r"(?:insert into|delete from) pgsched\.runs\b|update pgsched\.runs(?: \w+)? set (?:(?! where ).)*?\bstatus = "
)
GONE, NEW = "gone", "new"


def bare(text: str) -> str:
    """A statement on one line, without comments."""
    return " ".join(re.sub(r"--.*", "", text).split())


def arrows() -> set[tuple[str, str]]:
    """Those of the first picture."""
    picture = PAGE.split("```mermaid\nstateDiagram-v2\n")[1].split("```")[0]
    found = re.findall(r"^ *(\S+) --> (\w+|\[\*\]): \S", picture, re.M)
    assert len(found) == len(picture.strip().splitlines())
    return {(NEW if start == "[*]" else start, GONE if end == "[*]" else end) for start, end in found}


def moves() -> list[tuple[str, str, str, str]]:
    """The rows of the table below it: from, to, statements, when."""
    section = PAGE.split("## The life of a run")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")][2:]
    return [(start.strip(), end.strip(), statements, when) for start, end, statements, when in rows]


def words(text: str) -> list[str]:
    return re.findall(r"`([\w()]+)`", text)


async def functions(db) -> dict[str, str]:
    """The schema's functions, with their texts."""
    rows = await db.all(
        "select proname || '()', coalesce(pg_get_function_sqlbody(oid), prosrc) from pg_proc"
        " where pronamespace = (select oid from pg_namespace where nspname = %s)",
        db.schema,
    )
    quoted = psycopg.sql.Identifier(db.schema).as_string()
    return {name: bare(text.replace(quoted, "pgsched")) for name, text in rows}


def test_the_drawn_parts_are_as_the_catalogue_has_them(dsn, schema):
    with psycopg.connect(dsn, autocommit=True) as connection:
        assert diagram.drawn(connection, schema, PAGE) == PAGE, "make diagram draws them again"


def test_make_diagram_draws_the_page(monkeypatch, tmp_path):
    page = tmp_path / "schema.md"
    page.write_text(PAGE.replace("timestamptz", "gone"), "utf-8")
    monkeypatch.setattr(diagram, "PAGE", page)
    diagram.main()
    assert page.read_text("utf-8") == PAGE


async def test_the_picture_shows_the_states_that_the_table_allows(db):
    for table, picture in zip(("runs", "schedules"), PAGE.split("stateDiagram-v2\n")[1:], strict=True):
        check = await db.value(
            "select pg_get_constraintdef(oid) from pg_constraint where conname = %s", f"{table}_status_check"
        )
        shown = {
            state for line in picture.split("```")[0].splitlines() for state in re.findall(r"\w+", line.split(":")[0])
        }
        assert shown == set(re.findall(r"'(\w+)'", check))


def test_the_table_of_moves_has_the_arrows_of_the_picture():
    listed = {(s, e) for start, end, *_ in moves() for s in words(start) or [NEW] for e in words(end) or [GONE]}
    assert listed == arrows()


async def test_the_table_of_moves_names_each_statement_that_writes_a_state(db):
    known = {name: bare(text.decode()) for name, text in Queries.texts().items()} | await functions(db)
    taken_back = {"try_claim", "waiting_instead()"}
    writers = {name for name, text in known.items() if WRITES.search(text)} - taken_back
    movers = {name for _, _, statements, _ in moves() for name in words(statements)}
    assert movers == writers
    assert {name for *_, when in moves() for name in words(when) if name.endswith("()")} <= {*known}


async def test_a_state_that_a_row_of_the_table_names_is_in_its_statements(db):
    """But for ends, whose states are values that the worker sends."""
    known = {name: bare(text.decode()) for name, text in Queries.texts().items()} | await functions(db)
    for start, end, statements, _ in moves():
        for name in words(statements):
            text = known[name]
            assert (
                "delete from pgsched.runs" in text
                if end == GONE
                else (
                    all(f"'{state}'" in text for state in words(end))
                    or name in ("finish_runs", "reap_runs")
                    or (end == "`queued`" and start == NEW)  # the default of the column
                )
            ), (name, end)
