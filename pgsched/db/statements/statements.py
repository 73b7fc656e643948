"""Loads the query files, puts them into a schema and sends them. No other module reads queries/."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, NamedTuple, TypeVar

from psycopg import AsyncRawCursor, sql
from psycopg.pq import Format
from psycopg.rows import AsyncRowFactory, dict_row, scalar_row

from pgsched.db.session import Connection, Plain
from pgsched.db.statements.parameters import in_any_format

_Row = TypeVar("_Row")


def _dense(text: bytes) -> bytes:
    """The statement without indentation and with only its first comment line, which identifies it in
    pg_stat_activity."""
    first, *lines = map(bytes.strip, text.splitlines())
    return b"\n".join([first, *(line for line in lines if line and not line.startswith(b"--"))])


_FILES = {
    entry.name.removesuffix(".sql"): _dense(entry.read_bytes())
    for folder in files("pgsched.db").joinpath("queries").iterdir()
    if folder.is_dir()
    for entry in folder.iterdir()
    if entry.name.endswith(".sql")
}
_QUALIFIER = re.compile(rb"\bpgsched\.(?=[a-z])")
_PLACEHOLDER = re.compile(rb"%(?:%|\((\w+)\)s)")


def in_schema(statement: bytes, schema: str, *, parametrised: bool = True) -> bytes:
    """Rewrites a statement for the schema pgsched to another schema. psycopg reads % in a parametrised one."""
    quoted = sql.Identifier(schema).as_bytes()
    if parametrised:
        quoted = quoted.replace(b"%", b"%%")
    return _QUALIFIER.sub(lambda _: quoted + b".", statement)


class Numbered(NamedTuple):
    """A statement with numbered parameters, as the server reads it. names: the parameters' names, in that order."""

    text: bytes
    names: tuple[str, ...]

    @classmethod
    def of(cls, statement: bytes) -> Numbered:
        numbers: dict[bytes, int] = {}

        def number(found: re.Match[bytes]) -> bytes:
            return b"%" if found[1] is None else b"$%d" % numbers.setdefault(found[1], len(numbers) + 1)

        return cls(_PLACEHOLDER.sub(number, statement), tuple(name.decode() for name in numbers))


class Statements:
    """Loads the statements, puts them into a schema, and sends them. Subclasses have one typed method for each."""

    def __init__(self, schema: str = "pgsched", app: str = "") -> None:
        self.schema, self.app = schema, app
        self._queries = {name: in_schema(text, schema) for name, text in self.texts().items()}
        self._numbered: dict[bytes, Numbered] = {}

    @staticmethod
    def texts() -> dict[str, bytes]:
        """The unchanged statements, for the schema pgsched."""
        return dict(_FILES)

    def query(self, name: str) -> bytes:
        """The text of a query file, for this schema."""
        return self._queries[name]

    async def _send(
        self, connection: Connection, name: str, params: Mapping[str, Any], rows: AsyncRowFactory[_Row]
    ) -> AsyncRawCursor[_Row]:
        """Sends one of the long statements that workers send often.

        psycopg would search a statement of more than 4096 bytes for placeholders each time: 0.1 ms at each start.
        """
        text = self.query(name)
        statement = self._numbered.get(text)
        if statement is None:
            statement = self._numbered[text] = Numbered.of(text)
        cursor = AsyncRawCursor(connection, row_factory=rows)
        if connection.cursor_factory is Plain:
            cursor.format = Format.BINARY
        await cursor.execute(statement.text, [params[each] for each in statement.names])
        return cursor

    @property
    def channel(self) -> sql.Identifier:
        """The notification channel, as an identifier for LISTEN."""
        return sql.Identifier(self.schema)

    async def rows(self, connection: Connection, name: str, params: dict[str, Any]) -> list[dict[str, Any]]:
        """The rows of a query, as dictionaries."""
        cursor = in_any_format(connection, dict_row)
        await cursor.execute(self.query(name), params)
        return await cursor.fetchall()

    async def call(self, connection: Connection, name: str, params: dict[str, Any]) -> Any:
        """The single value of a query that calls one of the schema's functions."""
        cursor = in_any_format(connection, scalar_row)
        await cursor.execute(self.query(name), params)
        return await cursor.fetchone()
