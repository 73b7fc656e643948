"""Splits a batch that the server refuses, down to the refused row. worker.aside sets that row aside."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import psycopg

from pgsched.db.mishaps import Mishaps, answered, is_refusal, of_prepared

Item = TypeVar("Item")
Result = TypeVar("Result")
# The server stopped waiting: another session holds a lock that a row needs, or the statement took too long.
_WAITED = (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled)


@dataclass(frozen=True, slots=True)
class Apart(Generic[Item, Result]):
    """How to send a batch.

    send: sends a part of it and returns results. If it fails, it must leave nothing of that part behind.
    refuse: takes an item that was refused alone, and the error.
    retry: waits after a passing error; then the part is sent again. Without it the error is raised.
    patience: after this many tries a passing error counts as a refusal, if the server answered or if one item alone
        timed out. If the server stopped waiting, it counts at once. None: it never counts.
    """

    send: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]]
    refuse: Callable[[Item, BaseException], Awaitable[object]]
    retry: Callable[[BaseException], Awaitable[object]] | None = None
    patience: int | None = None

    async def all(self, items: Sequence[Item]) -> list[Result]:
        """Sends a batch; if it is refused, its halves, and so on down to the row. Returns the results."""
        tries, again = 0, False
        while items:
            try:
                return list(await self.send(items))
            except Mishaps as error:
                tries += 1
                if not again and len(items) == 1 and of_prepared(error):
                    # The prepared statement may be the cause. It is gone with its connection, or with the rollback.
                    again = True
                elif is_refusal(error):
                    return await self._apart(items, error)
                elif self.patience is not None and tries > self.patience and self._of_rows(error, items):
                    return await replace(self, patience=0)._apart(items, error)
                elif self.patience is not None and isinstance(error, _WAITED):
                    return await self._apart(items, error)  # perhaps because of one row: the others must not wait too
                elif self.retry is None:
                    raise
                else:
                    await self.retry(error)
                    if isinstance(error, TimeoutError) and len(items) > 1:  # perhaps it was only too much at once
                        return await self._apart(items, error)
        return []

    async def _apart(self, items: Sequence[Item], error: BaseException) -> list[Result]:
        if len(items) == 1:
            await self.refuse(items[0], error)
            return []
        half = len(items) // 2
        return await self.all(items[:half]) + await self.all(items[half:])

    def _of_rows(self, error: BaseException, items: Sequence[Item]) -> bool:
        """Whether single rows may be the cause of an error that does not go away."""
        return answered(error) or (isinstance(error, TimeoutError) and len(items) == 1 and self.retry is not None)
