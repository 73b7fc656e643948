"""Converts Python values into parameters of statements."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import psycopg
from psycopg import AsyncClientCursor, AsyncCursor, AsyncRawCursor
from psycopg.adapt import Dumper
from psycopg.pq import Format
from psycopg.rows import AsyncRowFactory
from psycopg.types.array import ListBinaryDumper

from pgsched.db.session import Connection
from pgsched.db.session_settings import InUtcBinary
from pgsched.model import Claim, ClaimedRun
from pgsched.rules.retry import Retry

_DEFAULT = Retry()
_Row = TypeVar("_Row")


def in_any_format(connection: Connection, row_factory: AsyncRowFactory[_Row]) -> AsyncCursor[_Row]:
    """A cursor that sends arrays and reads values in binary format, and instants in UTC.

    The connection may be a caller's, with any time zone, DateStyle, IntervalStyle and array_nulls.
    """
    cursor = connection.cursor(row_factory=row_factory, binary=True)
    # A framework's choice. The one cannot read the binary format, the other knows only numbered parameters.
    if isinstance(cursor, AsyncClientCursor | AsyncRawCursor):
        cursor = AsyncCursor(connection, row_factory=row_factory)
        cursor.format = Format.BINARY
    cursor.adapters.register_loader("timestamptz", InUtcBinary)
    cursor.adapters.register_dumper(list, ListBinaryDumper)
    return cursor


def array(values: Iterable[object]) -> str:
    """An array of numbers or bare words, none of them None, in PostgreSQL's format.

    Adapting a thousand values one by one would take psycopg as long as everything else.
    """
    return "{" + ",".join(map(str, values)) + "}"


def name_array(names: Iterable[str]) -> str:
    """An array of names in the same format."""
    return "{" + ",".join(['"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"' for name in names]) + "}"


# The following are arrays in binary format: how PostgreSQL reads a NULL, an instant or a duration in a text depends on
# settings of the session, and it takes longer to write one.


class Int8s(bytes):
    """A bigint[]."""


class Float8s(bytes):
    """A float8[]."""


class Instants(bytes):
    """A timestamptz[]."""


class Walls(bytes):
    """A timestamp[]."""


class Durations(bytes):
    """An interval[]."""


class Texts(bytes):
    """A text[]."""


_NULL = b"\xff\xff\xff\xff"
_head = struct.Struct(">iiiii").pack
_int8 = struct.Struct(">iq").pack
_float8 = struct.Struct(">id").pack
_interval = struct.Struct(">iqii").pack
_length = struct.Struct(">i").pack
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)  # PostgreSQL's
_WALL_EPOCH = datetime(2000, 1, 1)  # noqa: DTZ001 - a timestamp has no zone
_TICK = timedelta(microseconds=1)
_INT8, _TEXT, _FLOAT8, _TIMESTAMP, _TIMESTAMPTZ, _INTERVAL = 20, 25, 701, 1114, 1184, 1186


def _joined(element: int, items: list[bytes]) -> bytes:
    # Dimensions, whether there are NULLs (ignored), the elements' type, the dimension's length and its first index.
    return _head(1, 1, element, len(items), 1) + b"".join(items) if items else _head(0, 0, element, 0, 0)[:12]


def numbers(values: Iterable[int | None]) -> Int8s:
    """An array of integers or None."""
    return Int8s(_joined(_INT8, [_NULL if value is None else _int8(8, value) for value in values]))


def floats(values: Iterable[float | None]) -> Float8s:
    """An array of floats or None."""
    return Float8s(_joined(_FLOAT8, [_NULL if value is None else _float8(8, value) for value in values]))


def instants(values: Iterable[datetime | None]) -> Instants:
    """An array of aware datetimes or None."""
    items = [_NULL if value is None else _int8(8, (value - _EPOCH) // _TICK) for value in values]
    return Instants(_joined(_TIMESTAMPTZ, items))


def walls(values: Iterable[datetime | None]) -> Walls:
    """An array of naive datetimes or None."""
    items = [_NULL if value is None else _int8(8, (value - _WALL_EPOCH) // _TICK) for value in values]
    return Walls(_joined(_TIMESTAMP, items))


def durations(values: Iterable[timedelta | None]) -> Durations:
    """An array of timedeltas or None."""
    items = [
        _NULL if value is None else _interval(16, value.seconds * 1_000_000 + value.microseconds, value.days, 0)
        for value in values
    ]
    return Durations(_joined(_INTERVAL, items))


def texts(values: Iterable[str | None]) -> Texts | None:
    """An array of texts or None; None if all are: unnest() pads a missing array with nulls."""
    found = [None if value is None else value.encode() for value in values]
    if all(value is None for value in found):
        return None
    return Texts(_joined(_TEXT, [_NULL if value is None else _length(len(value)) + value for value in found]))


def _register(kind: type[bytes], array_oid: int) -> None:
    class ArrayDumper(Dumper):
        format = Format.BINARY
        oid = array_oid

        def dump(self, obj: bytes) -> bytes:
            return obj

    psycopg.adapters.register_dumper(kind, ArrayDumper)


for _kind, _oid in ((Int8s, 1016), (Float8s, 1022), (Instants, 1185), (Walls, 1115), (Durations, 1187), (Texts, 1009)):
    _register(_kind, _oid)


def claim_of(run: ClaimedRun, worker: uuid.UUID) -> Claim:
    """The claim of this worker to the run."""
    return Claim(run.id, run.token, worker)
