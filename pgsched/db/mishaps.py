"""The errors of a database: their kinds, by which services decide how to go on, and how they are logged."""

from __future__ import annotations

import time
from collections.abc import Callable

import psycopg

from pgsched.errors import DatabaseUnavailable
from pgsched.log import Logger, get

# Errors of a database that will be back: everything that psycopg raises, and the errors of its sockets.
Failures = (psycopg.Error, DatabaseUnavailable, OSError, TimeoutError)
# These, and errors before a statement is sent or while its answer is read, such as a value in one row that psycopg
# cannot adapt. They must not end a service.
Mishaps = (*Failures, ValueError, TypeError, OverflowError, NotImplementedError)

_READ_ONLY = "25006"
# A standby refuses BEGIN READ WRITE as a feature that it lacks, in the server's language.
_UNSUPPORTED = "0A000"
_REFUSES_READ_WRITE = ("check_transaction_read_only", "check_XactReadOnly")  # the latter up to PostgreSQL 14
_STOOD_STILL = "25P03"
# Errors that are known to pass: of connections, conflicts, resources, locks, operators, the machine, and a
# transaction's time limits. With every other SQLSTATE the server refuses a statement because of its content.
_PASSING = ("08", "40", "53", "55006", "55P", "57", "58", "25P0", _READ_ONLY)
# Errors of a prepared statement: another statement has its name, or a table has been created again.
_PREPARED = ("0A000", "26000", "42P05")
# A statement names something that does not exist. Perhaps the whole schema has been replaced.
_UNDEFINED = ("42P01", "42703", "42883", "42704", "3F000")


def one_line(error: BaseException) -> str:
    """One line about a database error, without row data (DETAIL) and without the statement."""
    if isinstance(error, psycopg.Error) and error.sqlstate:
        return f"{error.diag.message_primary or type(error).__name__} (SQLSTATE {error.sqlstate})"
    first = str(error).strip().splitlines()
    return first[0] if first else type(error).__name__


def passing(error: BaseException) -> bool:
    """Whether an error is known to pass by itself: the database is away or busy, or another session is in the way."""
    if not isinstance(error, psycopg.Error):
        return isinstance(error, Failures)
    if error.sqlstate is not None:
        return error.sqlstate.startswith(_PASSING) or read_only(error)
    # Without an SQLSTATE the server has not answered: the connection is gone, or psycopg cannot adapt a value.
    return not isinstance(error, (psycopg.DataError, psycopg.ProgrammingError, psycopg.NotSupportedError))


def is_refusal(error: BaseException) -> bool:
    """Whether a statement failed because of its content and would fail again. Then its rows must be sent separately."""
    return isinstance(error, Mishaps) and not passing(error)


def answered(error: BaseException) -> bool:
    """Whether the server answered a statement with an error and went on, so that other rows may succeed."""
    if not isinstance(error, psycopg.Error) or error.sqlstate is None:
        return is_refusal(error)
    # An error that ends the session is FATAL. Its code proves nothing: a trigger may raise any, even a connection's.
    # A pooler's own errors have only the severity that can be translated, and it does not translate.
    severity = error.diag.severity_nonlocalized or error.diag.severity
    return severity not in ("FATAL", "PANIC") and not read_only(error)


def of_prepared(error: BaseException) -> bool:
    """Whether a prepared statement may be the cause of an error. A new connection has none."""
    return isinstance(error, psycopg.Error) and error.sqlstate in _PREPARED and not read_only(error)


def stood_still(error: BaseException) -> bool:
    """Whether the server ended a session because its transaction was idle for too long."""
    return isinstance(error, psycopg.Error) and error.sqlstate == _STOOD_STILL


def read_only(error: BaseException) -> bool:
    """Whether the server refused a write, or BEGIN READ WRITE, because it or the session is read-only."""
    if not isinstance(error, psycopg.Error):
        return False
    return error.sqlstate == _READ_ONLY or (
        error.sqlstate == _UNSUPPORTED and error.diag.source_function in _REFUSES_READ_WRITE
    )


def misfits(error: BaseException) -> bool:
    """Whether a statement did not fit the schema, which may be another one now."""
    return isinstance(error, psycopg.Error) and error.sqlstate in _UNDEFINED


# The state of each purpose while the database does not answer it, for people.
TROUBLE = {
    "claim": "no claims",
    "heartbeat": "no heartbeats",
    "finish": "ends not written",
    "listen": "not listening",
    "reap": "other workers not watched",
    "declare": "declarations not compared",
    "register": "not registered",
    "schema": "schema not checked",
    "left behind": "threads not recorded",
    "prune": "history not deleted",
}


class Outage:
    """Knows for which purposes the database does not answer. Logs for each once that it is lost, and once that it is
    back: one connection may be dead while another works.

    changed: called whenever the database is lost or back for a purpose.
    """

    def __init__(self, changed: Callable[[], None] = lambda: None, log: Logger | None = None) -> None:
        self._since: dict[str, float] = {}  # by purpose, on the monotonic clock
        self._refusals: set[tuple[str, str]] = set()  # those logged since a statement of their purpose was answered
        self._changed = changed
        self._log = log or get()

    @property
    def up(self) -> bool:
        """Whether the last statement of every purpose was answered."""
        return not self._since

    @property
    def unwritten(self) -> bool:
        """Whether ends or heartbeats cannot be written."""
        return bool(self._since.keys() & {"finish", "heartbeat"})

    def lost(self, error: BaseException, purpose: str) -> None:
        """Records that a statement failed. If the server answered, the database is not lost: it refused the statement,
        or another session's lock was in the way."""
        if answered(error):
            refusal = (purpose, one_line(error))
            if refusal not in self._refusals:
                self._refusals.add(refusal)
                event = "statement_refused" if is_refusal(error) else "statement_failed"
                self._log.error(event, purpose=purpose, error=refusal[1])
        elif purpose not in self._since:
            self._since[purpose] = time.monotonic()
            self._log.error("database_lost", purpose=purpose, error=one_line(error))
            self._changed()
        else:
            self._log.debug("database_still_lost", purpose=purpose, error=one_line(error))

    def answered(self, purpose: str) -> None:
        """Records that a statement was answered."""
        if (since := self._since.pop(purpose, None)) is not None:
            self._log.info("database_back", purpose=purpose, lost_for_s=round(time.monotonic() - since, 3))
            self._changed()
        if self._refusals:
            self._refusals = {refusal for refusal in self._refusals if refusal[0] != purpose}

    def ceased(self, purpose: str) -> None:
        """Records that nothing of this purpose is left to be sent."""
        if self._since.pop(purpose, None) is not None:
            self._changed()

    def trouble(self) -> str:
        """What the database does not answer, such as "ends not written for 40 s"; empty if nothing is wrong."""
        now = time.monotonic()
        return ", ".join(
            f"{TROUBLE.get(purpose, purpose)} for {now - since:.0f} s" for purpose, since in self._since.items()
        )
