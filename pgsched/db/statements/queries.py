"""Loads the query files, puts them into a schema and sends them. No other module reads queries/."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from importlib.resources import files
from typing import Any, NamedTuple, TypeAlias, TypeVar

from psycopg import AsyncRawCursor, sql
from psycopg.rows import AsyncRowFactory, dict_row, scalar_row

from pgsched.db.pooled import Shared, SharedRaw
from pgsched.db.session import Connection
from pgsched.db.statements.parameters import in_any_format

_Row = TypeVar("_Row")
Rewrite: TypeAlias = Callable[[bytes], bytes]


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


class Queries:
    """Sends the statements, for one schema. Methods take the connection, so that they can share a transaction.

    Subclasses have a typed method for each statement of one part.

    app: the application of the worker that sends them. Without one, claims see only work that names no application.
    rewrite: changes each statement before it is put into the schema; pgsched.testing has a clock of its own.
    """

    def __init__(self, schema: str = "pgsched", app: str = "", rewrite: Rewrite | None = None) -> None:
        self.schema, self.app = schema, app
        self._rewrite = rewrite
        self._queries: dict[str, bytes] = {}  # those that were asked for
        self._numbered: dict[bytes, Numbered] = {}

    @staticmethod
    def texts() -> dict[str, bytes]:
        """The unchanged statements, for the schema pgsched."""
        return dict(_FILES)

    def query(self, name: str) -> bytes:
        """The text of a query file, for this schema."""
        text = self._queries.get(name)
        if text is None:
            text = self.texts()[name]
            text = self._queries[name] = in_schema(self._rewrite(text) if self._rewrite else text, self.schema)
        return text

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
        kind = SharedRaw if connection.cursor_factory is Shared else AsyncRawCursor
        cursor: AsyncRawCursor[_Row] = kind(connection, row_factory=rows)
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

    async def set_patience(self, connection: Connection, limit: timedelta) -> None:
        """Limits this transaction: the time of each statement, of its wait for a lock, and of idling."""
        await connection.execute(self.query("set_patience"), {"limit": f"{limit // timedelta(milliseconds=1)}ms"})

    async def settle_constraints(self, connection: Connection) -> None:
        """Checks the deferred constraints of this transaction now."""
        await connection.execute(self.query("settle_constraints"), {})

    async def wait_briefly(self, connection: Connection, limit: timedelta) -> None:
        """Limits how long each statement of this transaction waits for a lock, and its total time to ten times that."""
        wait = limit // timedelta(milliseconds=1)
        await connection.execute(self.query("wait_briefly"), {"limit": f"{wait}ms", "most": f"{10 * wait}ms"})
