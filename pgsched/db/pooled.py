"""Cursors and loaders for a connection behind a pooler, whose session has anybody's settings.

session.py sets up the connection.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Self

import psycopg
from psycopg.pq import Format, TransactionStatus
from psycopg.types.datetime import TimestamptzBinaryLoader, TimestamptzLoader


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
