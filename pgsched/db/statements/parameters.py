"""Converts Python values into parameters of statements."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from datetime import timedelta
from typing import TypeVar

from psycopg import AsyncClientCursor, AsyncCursor
from psycopg.pq import Format
from psycopg.rows import AsyncRowFactory

from pgsched.db.session import Connection, InUtcBinary
from pgsched.model import Claim, ClaimedRun
from pgsched.rules.retry import Retry

_DEFAULT = Retry()
_Row = TypeVar("_Row")


def in_any_format(connection: Connection, row_factory: AsyncRowFactory[_Row]) -> AsyncCursor[_Row]:
    """A cursor that reads values in binary format, and instants in UTC.

    The connection may be a caller's, with any time zone, DateStyle and IntervalStyle.
    """
    cursor = connection.cursor(row_factory=row_factory, binary=True)
    if isinstance(cursor, AsyncClientCursor):  # a framework's choice, which cannot read the binary format
        cursor = AsyncCursor(connection, row_factory=row_factory)
        cursor.format = Format.BINARY
    cursor.adapters.register_loader("timestamptz", InUtcBinary)
    return cursor


def array(values: Iterable[object]) -> str:
    """An array of numbers, instants or bare words in PostgreSQL's format.

    Adapting a thousand values one by one would take psycopg as long as everything else.
    """
    return "{" + ",".join(["NULL" if value is None else str(value) for value in values]) + "}"


def name_array(names: Iterable[str]) -> str:
    """An array of names in the same format."""
    return "{" + ",".join(['"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"' for name in names]) + "}"


def seconds(duration: timedelta | None) -> str | None:
    """A duration as an element of array()."""
    return None if duration is None else f"{duration.days} days {duration.seconds}.{duration.microseconds:06d}s"


def text_array(values: Iterable[str | None]) -> list[str | None] | None:
    """An array of texts, or None if all are null: unnest() pads a missing array with nulls."""
    texts = list(values)
    return texts if any(text is not None for text in texts) else None


def claim_of(run: ClaimedRun, worker: uuid.UUID) -> Claim:
    """The claim of this worker to the run."""
    return Claim(run.id, run.token, worker)
