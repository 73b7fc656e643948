"""Both clients behind one interface, so that a test of one is a test of both."""

import asyncio
import contextlib

from pgsched import connect, connect_sync

KINDS = ["async", "sync"]


class Either:
    """A client whose methods are awaited: those of the synchronous one run in a thread."""

    def __init__(self, client, threaded):
        self._client, self._threaded = client, threaded

    def __getattr__(self, name):
        member = getattr(self._client, name)
        if name == "runs":
            return Either(member, self._threaded)

        async def call(*args, **options):
            if self._threaded:
                return await asyncio.to_thread(member, *args, **options)
            return await member(*args, **options)

        return call

    @contextlib.asynccontextmanager
    async def transaction(self):
        async with entered(self._client.transaction(), self._threaded) as connection:
            yield connection

    async def execute(self, connection, *args):
        """A statement of the test's own."""
        if self._threaded:
            return await asyncio.to_thread(connection.execute, *args)
        return await connection.execute(*args)


@contextlib.asynccontextmanager
async def entered(context, threaded):
    """A context manager of either kind; a synchronous one is entered and left in threads."""
    if not threaded:
        async with context as value:
            yield value
        return
    value = await asyncio.to_thread(context.__enter__)
    try:
        yield value
    except BaseException as error:
        if not await asyncio.to_thread(context.__exit__, type(error), error, error.__traceback__):
            raise
    else:
        await asyncio.to_thread(context.__exit__, None, None, None)


@contextlib.asynccontextmanager
async def using(kind, *args, **options):
    """A client of the kind, "async" or "sync", made with connect()'s parameters."""
    threaded = kind == "sync"
    async with entered((connect_sync if threaded else connect)(*args, **options), threaded) as client:
        yield Either(client, threaded)
