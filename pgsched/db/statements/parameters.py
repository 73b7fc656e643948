"""Python values as statements take them."""

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
    """A cursor of a connection that may be a caller's, in any time zone, with any DateStyle and IntervalStyle: values
    come as numbers, and instants in UTC."""
    cursor = connection.cursor(row_factory=row_factory, binary=True)
    if isinstance(cursor, AsyncClientCursor):  # a framework's choice, which cannot
        cursor = AsyncCursor(connection, row_factory=row_factory)
        cursor.format = Format.BINARY
    cursor.adapters.register_loader("timestamptz", InUtcBinary)
    return cursor


def array(values: Iterable[object]) -> str:
    """An array of numbers, instants or bare words, as PostgreSQL writes it: of a thousand values one by one, psycopg
    would take as long as everything else."""
    return "{" + ",".join(["NULL" if value is None else str(value) for value in values]) + "}"


def name_array(names: Iterable[str]) -> str:
    """An array of names, likewise."""
    return "{" + ",".join(['"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"' for name in names]) + "}"


def seconds(duration: timedelta | None) -> str | None:
    """A duration in such an array."""
    return None if duration is None else f"{duration.days} days {duration.seconds}.{duration.microseconds:06d}s"


def text_array(values: Iterable[str | None]) -> list[str | None] | None:
    """An array of texts; none where all are null, with which unnest() fills up beside longer ones."""
    texts = list(values)
    return texts if any(text is not None for text in texts) else None


def claim_of(run: ClaimedRun, worker: uuid.UUID) -> Claim:
    """The claim under which a run is held."""
    return Claim(run.id, run.token, worker)
