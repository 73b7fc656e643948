"""The implementation of run.transaction(): it commits an application's writes and its run's success, or neither.

The block's last statement writes the success, under the claim, and is sent together with the COMMIT. If the claim is
gone by then, the whole transaction is rolled back. The run's row is not locked before that, so beats go on, and a
worker that stands still at any point can be replaced.

If the answer to a commit is lost, the commit may have happened, or may still happen. So the old session is ended, and
once its transaction is over the run's row shows the result.

No answer is waited for without end: a connection that gives none is closed. A statement may still take as long as it
needs, a COMMIT too (for deferred constraints, for a standby): the server is asked whether it is at work on it.

Coroutines and threads wait differently: see waits. The worker's connections are in pools.
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
from pgsched.db.fence.waits import LIMIT, Coroutines, Source, Statement, Threads, Way
from pgsched.db.mishaps import Failures, read_only
from pgsched.db.pool import finished
from pgsched.db.session import Backoff, Connection
from pgsched.db.statements.queries import Queries
from pgsched.errors import ClaimLost, PgschedError
from pgsched.model import Claim

_CLAIM_LOST = "PS410"
_TRIES = 3  # to begin, if a connection breaks just then


def session_name(claim: Claim) -> str:
    """The application_name of an attempt's transaction. A reaper does not count such a session as a worker's sign of
    life. PostgreSQL keeps 63 bytes, so the token, which is unique to the claim, comes first."""
    return f"pgsched-run {claim.token} {claim.worker}"[:63]


class Fence:
    """Lets one attempt commit under its claim. Another process can rebuild it from the first four arguments.

    dsn: as for connect(); None for libpq's environment.
    started_at: when the attempt began, if that is known.
    queries: its statements; read from the query files by default.
    pools: the connections to use; without them each transaction makes a new one.
    committed: called once the commit is certain, in the thread of the transaction.
    """

    __slots__ = ("_entered", "claim", "committed", "dsn", "pools", "queries", "schema", "started_at")

    def __init__(
        self,
        dsn: str | None,
        schema: str,
        claim: Claim,
        started_at: datetime | None = None,
        *,
        queries: Queries | None = None,
        pools: Pools | None = None,
        committed: Callable[[], None] = lambda: None,
    ) -> None:
        self.dsn = dsn
        self.schema = schema
        self.claim = claim
        self.started_at = started_at
        self.queries = queries
        self.pools = pools
        self.committed = committed
        self._entered = threading.Lock()

    def transaction(self) -> Transaction:
        """One transaction, for `async with` in coroutines and `with` in threads."""
        return Transaction(self)

    def enter(self) -> None:
        """Raises PgschedError if the attempt has already had its transaction."""
        if not self._entered.acquire(blocking=False):
            raise PgschedError(
                "run.transaction() can be used only once in an attempt, because it commits the run's success. "
                "Put all writes into one block."
            )

    @property
    def source(self) -> Source:
        """The source of its connections."""
        return Source(self.dsn, session.conninfo_for(self.dsn, session_name(self.claim)), self.pools)

    def statement(self, name: str) -> Statement:
        """A statement about this claim, and its parameters."""
        claim = self.claim
        params = {"id": claim.run_id, "token": claim.token, "worker": claim.worker, "started_at": self.started_at}
        queries = self.queries or Queries(self.schema)
        return queries.query(name), {**params, "limit": _limit(), "name": (own := session_name(claim)), "names": [own]}

    @property
    def patience(self) -> Statement:
        """A statement that makes the server give up the next ones of its transaction before we do, and leave nothing
        behind."""
        return (self.queries or Queries(self.schema)).query("wait_briefly"), {"limit": (own := _limit()), "most": own}

    def lost(self) -> ClaimLost:
        """The error for a block whose claim is gone."""
        return ClaimLost(
            f"run {self.claim.run_id} is no longer this worker's: its transaction was rolled back, and none of its "
            "writes were kept."
        )


def _limit() -> str:
    """Of a statement, for the server: it gives up before we do."""
    return f"{int(800 * LIMIT)}ms"


class Transaction:
    """The block: entering it begins the application's transaction; leaving it commits it with the run's success.

    Coroutines and threads share its steps, which wait by way of Coroutines or Threads.
    """

    def __init__(self, fence: Fence) -> None:
        self._fence = fence
        self._way: Way
        self._connection: Any
        self._block: Any

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
        tries, backoff = 0, Backoff(0.05, 2.0)
        while True:
            self._connection = await self._way.take()
            try:
                self._block = self._connection.transaction()
                await self._way.begin(self._connection, self._block, *self._fence.statement("begin_transaction"))
            except BaseException as error:
                tries += 1
                gone = isinstance(error, Failures) and self._connection.closed
                await self._way.give_back(self._connection)
                if not gone or tries == _TRIES:
                    raise
            else:
                pid = {"pid": self._connection.info.backend_pid}
                query, params = self._fence.statement("read_transaction")
                self._way.watch(self._connection, (query, params | pid))
                return
            await self._way.sleep(backoff.delay())  # nothing has begun

    async def _exit(self, error: BaseException | None) -> bool:
        try:
            return await self._end(error)
        except BaseException as raised:
            error = raised
            raise
        finally:
            if error is not None and read_only(error):
                await self._way.close(self._connection)
            await self._way.give_back(self._connection)

    async def _end(self, error: BaseException | None) -> bool:
        if error is not None:
            return await self._roll_back(error)
        if self._connection.info.transaction_status == TransactionStatus.IDLE:
            error = PgschedError(
                "The block ended its transaction itself, so its writes are not fenced, and the run's success is "
                "not recorded. Leave BEGIN, COMMIT and ROLLBACK to run.transaction()."
            )
            await self._roll_back(error)
            raise error
        # Up to here a cancellation rolls everything back. From here on it must wait for the answer.
        await self._way.apart(self._commit())
        return False

    async def _roll_back(self, error: BaseException) -> bool:
        """Returns whether the error ends here: with psycopg.Rollback the block itself asked for the rollback."""
        with contextlib.suppress(*Failures):  # if the connection is lost, the server rolls back
            return await self._way.end(self._connection, self._block, error)
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
            with contextlib.suppress(*Failures):  # ends the empty transaction that COMMIT AND CHAIN began
                await self._way.end(self._connection, self._block, None)
        self._fence.committed()

    async def _find_out(self, error: BaseException) -> bool:
        """Whether a commit without an answer has happened. Raises ClaimLost if nothing was written and the claim is
        gone, and the error if there is no more time to ask the database."""
        backoff = Backoff(0.05, 2.0)
        while True:
            try:
                rows = await self._way.ask([self._fence.patience, *map(self._fence.statement, ASKING)])
            except Failures:
                if self._way.given_up:
                    error.add_note("It is unknown whether the transaction has committed: the database did not answer.")
                    raise error from None
                await self._way.sleep(backoff.delay())
            else:
                if not rows:
                    raise self._fence.lost() from error
                return bool(rows[0][0])


# The commit may still be on its way to the server, so the run's row alone would not show whether it will happen.
ASKING = ("end_transactions", "wait_for_transaction", "forget_transaction", "look_after_commit")


class Transactions:
    """A worker's connections for run.transaction(). most: the limit for coroutines, and again for threads."""

    def __init__(self, dsn: str | None, queries: Queries, worker: uuid.UUID, most: int) -> None:
        self._dsn = dsn
        self._queries = queries
        self._pools = Pools(session.conninfo_for(dsn, f"pgsched-run {worker}"), most)

    def fence(self, claim: Claim, started_at: datetime | None, committed: Callable[[], None]) -> Fence:
        """The fence of one attempt."""
        queries = self._queries
        return Fence(
            self._dsn, queries.schema, claim, started_at, queries=queries, pools=self._pools, committed=committed
        )

    async def close(self) -> None:
        """Closes idle connections now and the others when they are given back. Waiting for one raises an error."""
        await self._pools.close()
