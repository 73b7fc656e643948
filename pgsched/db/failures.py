"""Turns the database's refusals into sentences for people, and raises them. Callers decide how to react."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import psycopg
from psycopg_pool import PoolClosed

from pgsched.db.mishaps import one_line, read_only
from pgsched.db.reaching import Bounded
from pgsched.db.session import Connection, prepare
from pgsched.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    InvalidArguments,
    NotFound,
    PgschedError,
    SchemaError,
)

# Undefined table, schema, function, type or column: the schema is missing, or has another version.
_NO_SCHEMA = frozenset({"42P01", "3F000", "42883", "42704", "42703"})
_SETUP = 10.0  # seconds for each statement that sets up a new connection
_ENCODING = "22021"  # the bytes of a text are none in its encoding
_LEAST = 0.1  # no matter how long the connection took
_LOST = (psycopg.OperationalError, psycopg.InternalError)
_NO_DATABASE = ("08", "57P", "53")
ADVICE = "Check that the server runs and that --dsn, PGSCHED_DSN or libpq's environment leads to it."
# The schema's own functions raise these with their own messages.
_OWN: dict[str, type[PgschedError]] = {"PS404": NotFound, "PS409": PgschedError, "PS422": InvalidArguments}


async def reach(info: str, total: float | None = None, answer: float | None = None) -> Connection:
    """Makes a connection in autocommit mode, with our settings.

    total: the limit in seconds; each host has one of its own.
    answer: the limit of each later wait for the server, in seconds; None for none.

    Raises DatabaseUnavailable with the server's reason, ConfigurationError for options that psycopg refuses and for a
    database that cannot store every text.
    """
    end = None if total is None else time.monotonic() + total
    with reaching():
        connection = await Bounded.connect(info, autocommit=True, total=total)
        try:
            connection.limit = _SETUP if end is None else min(_SETUP, max(end - time.monotonic(), _LEAST))
            await prepare(connection)
            connection.limit = answer
        except BaseException:
            await connection.close()
            raise
        return connection


@contextlib.contextmanager
def reaching() -> Iterator[None]:
    """Turns a failure to connect into the errors that reach() raises."""
    try:
        yield
    except psycopg.ProgrammingError as error:
        raise ConfigurationError(f"The DSN cannot be used: {one_line(error)}.") from None
    except (psycopg.OperationalError, OSError) as error:
        raise unreachable(error) from None


def unreachable(error: BaseException) -> DatabaseUnavailable:
    """The error to raise if the database cannot be reached and the caller does not wait for it."""
    return DatabaseUnavailable(f"The database cannot be reached: {one_line(error)}. {ADVICE}")


@contextlib.contextmanager
def in_sentences(schema: str) -> Iterator[None]:
    """Turns the database's refusals into sentences.

    Errors that a caller's transaction must see (a deadlock, a serialisation failure) pass unchanged. The
    sentences quote only the server's primary message: the details may hold row data.
    """
    try:
        yield
    except PoolClosed:
        raise PgschedError("This client is closed: use it inside the `with` block that made it.") from None
    except UnicodeEncodeError:
        raise InvalidArguments("A text holds a lone surrogate, which PostgreSQL cannot store: remove it.") from None
    except psycopg.Error as error:
        sentence = _sentence(error, schema)
        if sentence is None:
            raise
        raise sentence from None


def _sentence(error: psycopg.Error, schema: str) -> PgschedError | None:
    state = error.sqlstate or ""
    message = (error.diag.message_primary or str(error).strip() or type(error).__name__).rstrip(".")
    message = f"{message[0].upper()}{message[1:]}."
    if state in _OWN:
        return _OWN[state](message)
    if state[:2] in ("22", "23", "54") or (not state and isinstance(error, psycopg.DataError)):
        if state == _ENCODING and "0x00" in message:
            message = "A text holds a NUL character, which PostgreSQL cannot store: remove it."
        return InvalidArguments(message)
    if read_only(error):
        return DatabaseUnavailable(f"The database can only be read: {message} Let the DSN lead to the primary.")
    if state in _NO_SCHEMA:
        return SchemaError(
            f'The database has no pgsched schema "{schema}", or one of another version: run `pgsched migrate`. '
            f"(The server says: {message})"
        )
    # Without an SQLSTATE an internal error is psycopg's: a pooler has mixed its own error into an answer.
    if state.startswith(_NO_DATABASE) or (not state and isinstance(error, _LOST)):
        return unreachable(error)
    return None
