"""The settings of every statement, whatever the role, the database, the environment or a neighbour has set.

A session of our own has them from its start. Behind a pooler a session is anybody's: there, each transaction has them,
and each statement has a transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, LiteralString, Self

import psycopg
from psycopg.pq import Format, TransactionStatus
from psycopg.pq.abc import PGconn
from psycopg.types.datetime import TimestamptzBinaryLoader, TimestamptzLoader

from pgsched.db.reaching import Bounded, BoundedBlocking
from pgsched.errors import ConfigurationError

# The statements here are sent before ours is the search path, so they name the schema of each function and operator.

# The longest time of a statement, of a wait for a lock, and of an idle transaction.
_LIMITED = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
LIMITS = ("15s", "10s", "30s")
_SETTINGS = {
    "TimeZone": "UTC",
    "search_path": "pg_catalog, pg_temp",
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",  # psycopg reads only this style
    # A setting must not change the meaning of a statement, or the digits of a number.
    "array_nulls": "on",
    "extra_float_digits": "1",
    "quote_all_identifiers": "off",
    "row_security": "on",
    "standard_conforming_strings": "on",
    "transform_null_equals": "off",
    # Rows are found by an index, no matter how small or quiet a table was when it was last analysed.
    "enable_seqscan": "off",
    # The parameters do not change the plans, and planning takes longer than execution.
    "plan_cache_mode": "force_generic_plan",
    # And in the index's order: a bitmap scan collects all rows before it returns the first, but we want only a few.
    "enable_bitmapscan": "off",
    "jit": "off",  # short statements, but overestimated before the first analyze
}
_OF_SESSIONS = {
    # After a pass has locked rows, it must read data that is newer than the lock.
    "default_transaction_isolation": "read committed",
    "idle_session_timeout": "0",  # a listener is idle by trade
    # If the network forgets a connection, the server gives its place to others: by default, after two hours. Later than
    # a stall timeout, since a missing session may prove a death. A Unix socket has none of this.
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "60000",
}
# These are only set if they have another value: not every server has them, or not every role may set them.
_IF_OTHER = {
    "transaction_timeout": "0",  # each statement has its limit
    "session_replication_role": "origin",  # or else no trigger fires
    "restrict_nonsystem_relation_kind": "",  # the schema has views
}
# A transaction behind a pooler begins with the user and the role of a new session. A null is the value that it had
# first, by `alter role … set role`, too. The user comes first: to set it sets the role.
_AS_ITSELF: LiteralString = (
    "pg_catalog.set_config('session_authorization', null, true), pg_catalog.set_config('role', null, true)"
)
SET = frozenset({*_LIMITED, *_SETTINGS, *_OF_SESSIONS, "transaction_timeout"})  # what our sessions change
# In an application's transaction, its own search path, time zone and limits apply, not ours and not a neighbour's.
AS_THE_ROLE_HAS_IT: LiteralString = (
    "select pg_catalog.set_config(name, reset_val, true) from pg_catalog.pg_settings"
    " where name operator(pg_catalog.=) any(%s)"
)
# A transaction behind a pooler begins as READ WRITE, so a neighbour cannot make it read-only. An operator can.
_AS_THE_OPERATOR_HAS_IT: LiteralString = (
    "case when pg_catalog.current_setting('default_transaction_read_only') operator(pg_catalog.=) 'on' and 'on'"
    " operator(pg_catalog.=) (select reset_val from pg_catalog.pg_settings"
    " where name operator(pg_catalog.=) 'default_transaction_read_only')"
    " then pg_catalog.set_config('transaction_read_only', 'on', true) end"
)


def _setting(settings: Mapping[LiteralString, LiteralString], local: LiteralString) -> LiteralString:
    """Calls that make settings, with the limits as their parameters. local: 'true' for the transaction alone."""
    calls = [f"pg_catalog.set_config('{name}', %s, {local})" for name in _LIMITED]
    calls += [f"pg_catalog.set_config('{name}', '{value}', {local})" for name, value in settings.items()]
    for name, value in _IF_OTHER.items():
        other = f"pg_catalog.current_setting('{name}', true) operator(pg_catalog.<>) '{value}'"
        calls.append(f"case when {other} then pg_catalog.set_config('{name}', '{value}', {local}) end")
    return ", ".join(calls)


SESSION: LiteralString = f"select {_setting({**_SETTINGS, **_OF_SESSIONS}, 'false')}"
_TRANSACTION: LiteralString = f"select {_AS_ITSELF}, {_setting(_SETTINGS, 'true')}, {_AS_THE_OPERATOR_HAS_IT}"
OWN_PATH: LiteralString = "select pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true)"
# The process that answers, and whether it can only read.
WHO: LiteralString = "select pg_catalog.pg_backend_pid(), pg_catalog.pg_is_in_recovery()"


def refuse_encoding(connection: Any) -> None:
    """Raises ConfigurationError if the database cannot store every text. The server says so with each connect."""
    pgconn: PGconn = connection.pgconn
    encoding = (pgconn.parameter_status(b"server_encoding") or b"UTF8").decode()
    if encoding != "UTF8":
        raise ConfigurationError(
            f'The database "{connection.info.dbname}" has the encoding {encoding}, which cannot store every text: '
            "pgsched needs a database with the encoding UTF8. Create one with `create database NAME encoding 'UTF8' "
            "template template0`, and let the DSN lead to it."
        )


def share(connection: Bounded | BoundedBlocking, limits: Sequence[str]) -> None:
    """Lets each transaction of a connection behind a pooler have our settings.

    Nothing may be left in such a session, and nothing of it is relied on: prepared statements would not be found again.
    """
    connection.prepare_threshold = None
    # Its time zone at the connect says nothing of the next statement's.
    connection.adapters.register_loader("timestamptz", InUtc)
    connection.adapters.register_loader("timestamptz", InUtcBinary)
    connection.opening = [(_TRANSACTION, limits)]
    if isinstance(connection, Bounded):
        connection.cursor_factory = Shared
    else:
        connection.cursor_factory = SharedBlocking


def lend(connection: Bounded | BoundedBlocking) -> None:
    """Lets each transaction of a connection behind a pooler be an application's own, with the settings of its role."""
    connection.opening = [
        (f"select {_AS_ITSELF}, {_AS_THE_OPERATOR_HAS_IT}", ()),
        (AS_THE_ROLE_HAS_IT, (list(SET),)),
    ]


class InUtc(TimestamptzLoader):
    """Reads instants as UTC in any session time zone."""

    def load(self, data: Any) -> datetime:
        return super().load(data).astimezone(UTC)


class InUtcBinary(TimestamptzBinaryLoader):
    """Does the same for the binary format."""

    def load(self, data: Any) -> datetime:
        return super().load(data).astimezone(UTC)


class Shared(psycopg.AsyncCursor[Any]):
    """A cursor behind a pooler: each statement outside of a transaction has one of its own, with our settings.

    It reads values in binary format: psycopg reads texts by the settings that it saw at the connect.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.format = Format.BINARY

    async def execute(self, *args: Any, **kwargs: Any) -> Self:
        """Executes a statement."""
        if self.connection.info.transaction_status != TransactionStatus.IDLE:
            return await super().execute(*args, **kwargs)
        async with self.connection.transaction():
            return await super().execute(*args, **kwargs)


class SharedRaw(psycopg.AsyncRawCursor[Any]):
    """The same for statements with numbered parameters."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.format = Format.BINARY

    async def execute(self, *args: Any, **kwargs: Any) -> Self:
        """Executes a statement."""
        if self.connection.info.transaction_status != TransactionStatus.IDLE:
            return await super().execute(*args, **kwargs)
        async with self.connection.transaction():
            return await super().execute(*args, **kwargs)


class SharedBlocking(psycopg.Cursor[Any]):
    """The same for threads. Statements that return values ask for the binary format by themselves."""

    def execute(self, *args: Any, **kwargs: Any) -> Self:
        """Executes a statement."""
        if self.connection.info.transaction_status != TransactionStatus.IDLE:
            return super().execute(*args, **kwargs)
        with self.connection.transaction():
            return super().execute(*args, **kwargs)
