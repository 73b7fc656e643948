"""Commits an application's writes together with its run's success, or neither: what run.transaction() is.

The block's last statement writes the success, under the claim, and goes out together with the COMMIT. A claim that is
gone by then takes the whole transaction with it. Nothing of the run is locked before that, so that beats go on, and a
worker that stands still, wherever it does, can be replaced.

A commit whose answer is lost may have happened, or may happen yet: the old session is ended and waited for, and then
the run's row tells.

Waiting, which coroutines and threads do differently, belongs to waits; the worker's connections, to pools.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import uuid
from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from pgsched.db import session
from pgsched.db.fence.pools import Blocking, Pools
from pgsched.db.fence.waits import Coroutines, Source, Statement, Threads, Way, finished
from pgsched.db.session import Backoff, Connection, Failures
from pgsched.db.statements.store import Store
from pgsched.errors import ClaimLost, PgschedError
from pgsched.model import Claim

_CLAIM_LOST = "PS410"


def session_name(claim: Claim) -> str:
    """The application_name of an attempt's transaction. A reaper that looks for a worker's sign of life takes no
    session of this kind for one. PostgreSQL keeps 63 bytes: the token, which no other claim has, comes first."""
    return f"pgsched-run {claim.token} {claim.worker}"[:63]


class Fence:
    """What one attempt needs to commit under its claim; in a process of its own it is made again of the first four.

    dsn: as for connect(); None for libpq's environment. started_at: when the attempt began, where that is known.
    store: its statements; by default they are read. pools: the connections to use; without them each transaction makes
    one of its own. committed: called once the commit is certain, in whatever thread has done it.
    """

    __slots__ = ("_entered", "claim", "committed", "dsn", "pools", "schema", "started_at", "store")

    def __init__(
        self,
        dsn: str | None,
        schema: str,
        claim: Claim,
        started_at: datetime | None = None,
        *,
        store: Store | None = None,
        pools: Pools | None = None,
        committed: Callable[[], None] = lambda: None,
    ) -> None:
        self.dsn = dsn
        self.schema = schema
        self.claim = claim
        self.started_at = started_at
        self.store = store
        self.pools = pools
        self.committed = committed
        self._entered = threading.Lock()

    def transaction(self) -> Transaction:
        """One transaction, for `async with` in coroutines and `with` in threads."""
        return Transaction(self)

    def enter(self) -> None:
        """Raises PgschedError where the attempt has had its transaction."""
        if not self._entered.acquire(blocking=False):
            raise PgschedError(
                "run.transaction() can be used once in an attempt: what it commits is the run's success. "
                "Put all writes into one block."
            )

    @property
    def source(self) -> Source:
        """Where its connections come from."""
        return Source(self.dsn, session.conninfo_for(self.dsn, session_name(self.claim)), self.pools)

    def statement(self, name: str) -> Statement:
        """A statement about this claim, and its parameters."""
        claim = self.claim
        params = {"id": claim.run_id, "token": claim.token, "worker": claim.worker, "started_at": self.started_at}
        store = self.store or Store(self.schema)
        return store.query(name), {**params, "name": (own := session_name(claim)), "names": [own]}

    def lost(self) -> ClaimLost:
        """The error of a block whose claim is gone."""
        return ClaimLost(
            f"run {self.claim.run_id} is no longer this worker's: its transaction was rolled back, nothing of it is "
            "written."
        )


class Transaction:
    """The block: entering it begins the application's transaction, leaving it commits it with the run's success.

    The work is told once, over what can wait in two ways: a coroutine's, and a thread's.
    """

    def __init__(self, fence: Fence) -> None:
        self._fence = fence
        self._way: Way
        self._connection: Any
        self._block: Any
        self._transaction: Any

    async def __aenter__(self) -> Connection:
        self._way = Coroutines(self._fence.source)
        await self._enter()
        connection: Connection = self._connection
        return connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return await self._exit(error)

    def __enter__(self) -> Blocking:
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop()
            raise PgschedError("This would block the event loop: write `async with run.transaction() as connection:`.")
        self._way = Threads(self._fence.source)
        finished(self._enter())
        connection: Blocking = self._connection
        return connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return finished(self._exit(error))

    async def _enter(self) -> None:
        self._fence.enter()
        self._connection = await self._way.take()
        try:
            self._block = self._connection.transaction()
            self._transaction = await self._way.begin(self._block)
            await self._way.execute(self._connection, *self._fence.statement("begin_transaction"))
        except BaseException:
            await self._way.give_back(self._connection)
            raise

    async def _exit(self, error: BaseException | None) -> bool:
        try:
            if error is not None:
                return await self._roll_back(error)
            if self._connection.info.transaction_status == TransactionStatus.IDLE:
                error = PgschedError(
                    "The block has ended its transaction itself, so what it wrote is not fenced, and the run's success "
                    "is not written: leave BEGIN, COMMIT and ROLLBACK to run.transaction()."
                )
                await self._roll_back(error)
                raise error
            # Up to here a cancellation rolls everything back. From here on it must wait for the answer.
            await self._way.apart(self._commit())
        finally:
            await self._way.give_back(self._connection)
        return False

    async def _roll_back(self, error: BaseException) -> bool:
        """Returns whether the error was the block's own wish, a psycopg.Rollback, and ends here."""
        with contextlib.suppress(*Failures):  # it is rolled back where the connection is gone, too
            return await self._way.end(self._block, error)
        return False

    async def _commit(self) -> None:
        try:
            await self._way.commit(self._connection, *self._fence.statement("commit_run"))
        except (*Failures, asyncio.CancelledError) as error:
            answered = isinstance(error, psycopg.Error) and error.sqlstate and not self._connection.closed
            if not answered:
                await self._way.close(self._connection)
            await self._roll_back(error)
            if isinstance(error, psycopg.Error) and error.sqlstate == _CLAIM_LOST:
                raise self._fence.lost() from None
            if answered or not await self._find_out(error):
                raise
        else:
            with contextlib.suppress(*Failures):  # the empty transaction after it
                await self._way.end(self._block, None)
        self._fence.committed()

    async def _find_out(self, error: BaseException) -> bool:
        """Whether a commit that was not answered has been done. Raises ClaimLost where nothing was written and the
        claim is gone, the error where nobody can be asked any more."""
        backoff = Backoff(0.05, 2.0)
        while True:
            try:
                rows = await self._way.ask([self._fence.statement(name) for name in _ASKING])
            except Failures:
                if self._way.given_up:
                    error.add_note("Whether its transaction has committed is not known: the database did not tell.")
                    raise error from None
                await self._way.sleep(backoff.delay())
            else:
                if not rows:
                    raise self._fence.lost() from error
                return bool(rows[0][0])


# Its message may still be on its way to the server: reading alone would not tell what becomes of it.
_ASKING = ("end_transactions", "wait_for_transaction", "forget_transaction", "look_after_commit")


class Transactions:
    """What a worker has for its runs' transactions. most: how many connections for coroutines, and for threads."""

    def __init__(self, dsn: str | None, store: Store, worker: uuid.UUID, most: int) -> None:
        self._dsn = dsn
        self._store = store
        self._pools = Pools(session.conninfo_for(dsn, f"pgsched-run {worker}"), most)

    def fence(self, claim: Claim, started_at: datetime | None, committed: Callable[[], None]) -> Fence:
        """An attempt's."""
        return Fence(
            self._dsn, self._store.schema, claim, started_at, store=self._store, pools=self._pools, committed=committed
        )

    async def close(self) -> None:
        """Closes what is idle now, and the rest when it is given back. Whoever waits for a connection gets an error."""
        await self._pools.close()
