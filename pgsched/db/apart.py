"""Takes a batch apart that the server refuses, down to the row. What becomes of such a row belongs to aside."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import psycopg

from pgsched.db.session import Mishaps, answered, of_prepared, refused

Item = TypeVar("Item")
Result = TypeVar("Result")
# By the server: somebody holds a lock that one of the rows needs, or the statement took too long.
_WAITED = (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled)


@dataclass(frozen=True, slots=True)
class Apart(Generic[Item, Result]):
    """How to send a batch.

    send: sends a part of it and returns results. If it fails, nothing of that part may be left behind.
    refuse: takes the item that is refused alone, with the error.
    retry: waits after an error that passes; then the part is sent again. Without it the error is raised.
    patience: after this many tries an error that passes, and does not, counts as a refusal: if the server
    answers, or if one item alone takes too long each time. Where the server has waited in vain, at once.
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
                    # The prepared statement may be at fault. It has gone with its connection, or with the rollback.
                    again = True
                elif refused(error):
                    return await self._apart(items, error)
                elif self.patience is not None and tries > self.patience and self._of_rows(error, items):
                    return await replace(self, patience=0)._apart(items, error)
                elif self.patience is not None and isinstance(error, _WAITED):
                    return await self._apart(items, error)  # for one row, perhaps: the others must not wait, too
                elif self.retry is None:
                    raise
                else:
                    await self.retry(error)
                    if isinstance(error, TimeoutError) and len(items) > 1:  # perhaps it is only too much at once
                        return await self._apart(items, error)
        return []

    async def _apart(self, items: Sequence[Item], error: BaseException) -> list[Result]:
        if len(items) == 1:
            await self.refuse(items[0], error)
            return []
        half = len(items) // 2
        return await self.all(items[:half]) + await self.all(items[half:])

    def _of_rows(self, error: BaseException, items: Sequence[Item]) -> bool:
        """Whether an error that does not pass may be that of some rows."""
        return answered(error) or (isinstance(error, TimeoutError) and len(items) == 1 and self.retry is not None)
