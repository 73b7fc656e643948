"""Writes outcomes, many in one fenced statement, until the database has them. Decides nothing about them.

If the database refuses an outcome, it is written with less in it, and in the end as a bare failure. If that is refused
too, the outcome is kept with its claim and tried again now and then. Before an end is written, scribe writes the
attempt's last lines.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import timedelta

import psycopg

from pgsched import log
from pgsched.db.apart import Apart
from pgsched.db.mishaps import Mishaps, one_line, passing
from pgsched.db.session import Backoff, Connection
from pgsched.model import Outcome, RunError, RunStatus
from pgsched.worker.aside import Kind
from pgsched.worker.kit import Kit
from pgsched.worker.run.ended import Ended
from pgsched.worker.run.scribe import Scribe
from pgsched.worker.run.surroundings import Key

BATCH = 1000
_LOCKED_AGAIN = 0.1  # seconds until an outcome is tried again if a client has locked its row
REFUSED_AGAIN = (30.0, 300.0)  # seconds between tries of an outcome that is refused in every form: first, most
_LOCK_AGAIN = (1.0, 5.0)  # the same, if it waits for a lock that a trigger or an index needs
_PATIENCE = 3  # after this many tries, a transient error that persists may be caused by one row
_NO_END = RunError("Unstorable", "its end could not be stored")
_LAGGED = "a failover has lost the record of its end; a synchronous standby loses none"
_UNDONE = "a failover has lost its commit, so it is run again; a synchronous standby loses none"
Answer = Callable[[Outcome, bool], None]
Item = tuple[Outcome, Answer]


class Landing(enum.IntEnum):
    """The result of writing an outcome under its claim."""

    LOCKED = 0  # somebody has locked the row: try again
    LANDED = 1
    COMMITTED = 2  # and the run's own transaction had already committed its success
    UNDONE = 3  # the database does not know of the commit that the run's own transaction was promised


class Finisher:
    """A queue of outcomes. While one batch is being written, the next one gathers, so a single outcome goes out at once
    and a thousand go out together."""

    def __init__(self, kit: Kit) -> None:
        self._statements = kit.store.runs
        self._session = kit.writes
        self._worker = kit.worker
        self._lease = kit.settings.stall_timeout  # how long a thread that is left behind counts as running at first
        self._outage = kit.outage
        self._scribe = Scribe(kit)
        self._aside = kit.aside
        self._waiting: list[Item] = []
        self._writing = 0
        self._locked = 0
        self._kept: dict[tuple[int, int], tuple[Item, asyncio.TimerHandle]] = {}  # refused in every form
        self._waits: dict[tuple[int, int], float] = {}  # how long each of them waited last
        self._wake = asyncio.Event()
        self._done = asyncio.Event()
        self._done.set()
        self._ended = Ended()
        self._again: set[Key] = set()  # the claims whose ends are being written again
        self.wrote = asyncio.Event()
        self._backoff = Backoff(0.02, 2.0)
        self._log = log.get()

    def put(self, outcome: Outcome, answer: Answer) -> None:
        """Takes an outcome. Once it is certain whether the outcome landed, `answer` is called with it; if the run's own
        transaction had committed, it is called with that success."""
        self._waiting.append((outcome, answer))
        self._done.clear()
        self._wake.set()

    def write_again(self, key: Key) -> bool:
        """Writes the end of a claim again that the database had recorded, and now takes for running: the server that
        was promoted lacked it. Returns False if the end is not known. Until the database has answered, it stays known:
        a look in between must not take the claim away."""
        if key in self._again:
            return True
        outcome = self._ended.take(key)
        if outcome is None:
            return False
        self._log.warning("end_written_again", run=key[0], status=str(outcome.status), advice=_LAGGED)
        self._again.add(key)
        self.put(outcome, lambda outcome, landed: self._again.discard(key))
        return True

    @property
    def pending(self) -> int:
        """Outcomes that are not written yet."""
        return self.behind + self._locked

    @property
    def behind(self) -> int:
        """Unwritten outcomes that hold up new claims: all but those whose rows somebody has locked."""
        return len(self._waiting) + self._writing + len(self._kept)

    async def flush(self, seconds: float) -> bool:
        """Waits until all outcomes are written, at most this many seconds. Returns whether they are. Outcomes that were
        refused get one more try, and are not waited for after that."""
        for key in list(self._kept):
            self._try_again(key)
        try:
            async with asyncio.timeout(seconds):
                await self._done.wait()
        except TimeoutError:
            return False
        return not self._kept

    async def run(self) -> None:
        """Writes until it is cancelled. An outcome leaves the queue only once the database has answered."""
        while True:
            # Clear before looking: an outcome that comes in between costs one spare turn, never a lost write.
            self._wake.clear()
            if not self._waiting:
                if not self._locked:
                    self._done.set()
                await self._wake.wait()
                continue
            batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
            self._writing = len(batch)
            try:
                await self._write(batch)
            except asyncio.CancelledError:
                # The end of the event loop: these are written once more. Where they have landed, nothing changes.
                self._waiting = batch + self._waiting
                raise
            finally:
                self._writing = 0

    async def _write(self, batch: Sequence[Item]) -> None:
        """Writes a batch, no matter how long it takes. If the database refuses it, it is taken apart. Outcomes that
        were refused before are sent separately: the others must not wait for them again."""
        fresh: list[Item] = []
        before: list[Item] = []
        for item in batch:
            claim = item[0].claim
            (before if (claim.run_id, claim.token) in self._waits else fresh).append(item)
        await Apart(self._send, self._reduce, self._wait, _PATIENCE).all(fresh)
        await Apart(self._send, self._reduce, self._wait, 0).all(before)

    async def _send(self, batch: Sequence[Item]) -> tuple[()]:
        answers = await self.send([outcome for outcome, _ in batch])
        self._outage.answered("finish")
        self.wrote.set()
        refused_before = len(self._waits)
        self._answer(batch, answers)
        if len(self._waits) < refused_before:
            await self._noting(self._aside.review)
        return ()

    async def _wait(self, error: BaseException) -> None:
        self._outage.lost(error, "finish")
        await asyncio.sleep(self._backoff.delay())

    def _answer(self, batch: Sequence[Item], answers: dict[tuple[int, int], Landing]) -> None:
        locked = []
        with log.together():
            for outcome, answer in batch:
                landing = answers.get((outcome.claim.run_id, outcome.claim.token))
                if landing is Landing.LOCKED:
                    locked.append((outcome, answer))
                elif landing is Landing.UNDONE:
                    self._log.error("transaction_undone", run=outcome.claim.run_id, advice=_UNDONE)
                    self.put(_undone(outcome), answer)
                elif landing in (Landing.LANDED, Landing.COMMITTED):
                    recorded = _committed(outcome) if landing is Landing.COMMITTED else outcome
                    self._ended.remember(recorded)
                    answer(recorded, True)
                else:
                    answer(outcome, False)
                if landing is not Landing.LOCKED and self._waits:
                    self._waits.pop((outcome.claim.run_id, outcome.claim.token), None)
        if locked:
            self._locked += len(locked)
            asyncio.get_running_loop().call_later(_LOCKED_AGAIN, self._put_again, locked)

    def _put_again(self, locked: list[Item]) -> None:
        self._locked -= len(locked)
        self._waiting += locked
        self._wake.set()

    async def send(self, outcomes: list[Outcome]) -> dict[tuple[int, int], Landing]:
        """Writes outcomes. Returns the landing of each by (run id, token), without those that lost their claim."""
        speaking = [(o.claim, o.journal) for o in outcomes if o.journal is not None]
        # Lines go first: an ended run has all its lines. If they do not land, it does not end yet.
        mute = await self._scribe.write_all(speaking) if speaking else set()
        ready = [o for o in outcomes if (o.claim.run_id, o.claim.token) not in mute] if mute else outcomes
        ends = [o for o in ready if not o.unbegun]
        backs = [[o.claim for o in ready if o.unbegun and o.stays is stays] for stays in (False, True)]
        async with self._session.use() as connection:
            landed = await self._statements.finish_runs(connection, self._worker, ends, self._lease) if ends else {}
            answers = {key: Landing.COMMITTED if early else Landing.LANDED for key, early in landed.items()}
            for stay, claims in enumerate(backs):
                if claims:
                    given = await self._statements.give_back_runs(connection, self._worker, claims, stay=bool(stay))
                    answers |= dict.fromkeys(given, Landing.LANDED)
            if len(answers) < len(outcomes):
                missing = [o for o in outcomes if (o.claim.run_id, o.claim.token) not in answers]
                seen = await self._statements.look_after_ends(connection, self._worker, missing)
                transacted = {(o.claim.run_id, o.claim.token) for o in missing if o.transacted}
                for key, (early, committed) in seen.items():
                    undone = not early and not committed and key in transacted
                    answers[key] = Landing.LANDED if early else Landing.UNDONE if undone else Landing.LOCKED
        return answers

    async def _reduce(self, item: Item, error: BaseException) -> None:
        """Sends a refused outcome again, with less and less in it."""
        outcome, answer = item
        for bare in _barer(outcome) if not passing(error) else ():
            refusals: list[BaseException] = []

            async def refused(_: Item, refusal: BaseException, refusals: list[BaseException] = refusals) -> None:
                refusals.append(refusal)

            # The log and the hooks get an error even if the row may have none.
            heard = outcome if bare.status is outcome.status else dataclasses.replace(bare, error=bare.error or _NO_END)
            await Apart(self._send, refused, self._wait, _PATIENCE).all([(bare, _as(heard, answer))])
            if not refusals:
                run, status = outcome.claim.run_id, str(bare.status)
                self._log.error("outcome_reduced", run=run, status=status, error=one_line(error))
                return
        # The application's own constraint or trigger refuses it.
        await self._keep(item, error)

    async def _keep(self, item: Item, error: BaseException) -> None:
        """Keeps an outcome for later. Until then its claim is kept alive, so that no worker executes the run again."""
        claim = item[0].claim
        key = claim.run_id, claim.token
        first, most = REFUSED_AGAIN if not isinstance(error, psycopg.errors.LockNotAvailable) else _LOCK_AGAIN
        wait = self._waits[key] = min(2 * self._waits.get(key, (1.0 if passing(error) else first) / 2), most)
        self._kept[key] = item, asyncio.get_running_loop().call_later(wait, self._try_again, key)
        await self._noting(lambda connection: self._aside.put(connection, Kind.END, [(claim.run_id, error)]))

    async def _noting(self, note: Callable[[Connection], Awaitable[None]]) -> None:
        """Writes a note about refused outcomes. Nothing depends on it."""
        try:
            async with self._session.use() as connection:
                await note(connection)
        except Mishaps as error:
            self._outage.lost(error, "finish")

    def _try_again(self, key: tuple[int, int]) -> None:
        item, timer = self._kept.pop(key)
        timer.cancel()
        self.put(*item)


def _barer(outcome: Outcome) -> Iterator[Outcome]:
    """The outcome with less and less in it. A give-back has nothing to leave out, and its run has not failed. But if
    its fire time goes back to the schedule, its row may stay, because another table may refer to it."""
    if outcome.refund:
        if outcome.unbegun and not outcome.stays:
            yield dataclasses.replace(outcome, stays=True)
        return
    unstorable = RunError("Unstorable", "the error could not be stored") if outcome.error else None
    reason = "the result could not be stored" if outcome.status is RunStatus.SUCCEEDED else outcome.reason
    bare = dataclasses.replace(outcome, result_json=None, reason=reason, error=unstorable, journal=None)
    if bare != outcome:
        yield bare
    failed = dataclasses.replace(
        bare, status=RunStatus.FAILED, reason=_NO_END.message, error=_NO_END, delay=timedelta(0)
    )
    yield failed
    yield dataclasses.replace(failed, error=None)


def _as(outcome: Outcome, answer: Answer) -> Answer:
    """The answer with the given outcome, unless the run's own transaction had committed."""
    return lambda written, landed: answer(written if written.committed else outcome, landed)


def _undone(outcome: Outcome) -> Outcome:
    """Gives back a run whose committed transaction is gone with a failover: its effects are gone, too."""
    return Outcome(
        outcome.claim, RunStatus.QUEUED, started_at=outcome.started_at, finished_at=outcome.finished_at, refund=True,
        reason="a failover has undone its transaction", left_behind=outcome.left_behind,
    )  # fmt: skip


def _committed(outcome: Outcome) -> Outcome:
    """The success that the run's own transaction committed, no matter how the attempt ended after that."""
    return dataclasses.replace(
        outcome, status=RunStatus.SUCCEEDED, error=None, delay=timedelta(0), refund=False, committed=True
    )
