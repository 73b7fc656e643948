"""Writes what attempts say, lines and progress, in batches, each under its claim.

What is said is the journal's to keep until it is written. When it is: with a beat while the attempt runs, and before
its end; without anything said there is no statement.
"""

from __future__ import annotations

from collections.abc import Sequence

from pgsched import log
from pgsched.db.apart import Apart
from pgsched.db.session import describe
from pgsched.journal import Journal, Said
from pgsched.model import Claim
from pgsched.worker.kit import Kit

BATCH = 1 << 20  # characters in one statement
_PART = Journal.LIMIT  # of these at most so many of one attempt

Speaking = tuple[Claim, Journal]


class Scribe:
    """A worker's."""

    def __init__(self, kit: Kit) -> None:
        self._store = kit.store
        self._session = kit.writes
        self._worker = kit.worker
        self._log = log.get()

    async def write_some(self, speaking: Sequence[Speaking]) -> None:
        """Writes one batch. What is left, and what belongs to a row that somebody has locked, the next one brings."""
        if speaking:
            await self._send(speaking)

    async def write_all(self, speaking: Sequence[Speaking]) -> set[tuple[int, int]]:
        """Writes all there is. Returns the (run id, token) of those of which it could not: the claim is lost, or
        somebody has the row locked."""
        missed: set[tuple[int, int]] = set()
        left = list(speaking)
        while left := [(c, j) for c, j in left if j.unwritten and (c.run_id, c.token) not in missed]:
            missed |= await self._send(left)
        return missed

    async def _send(self, speaking: Sequence[Speaking]) -> set[tuple[int, int]]:
        """Sends one batch of what these say; returns those that it did not land for."""
        missed: set[tuple[int, int]] = set()
        read: dict[int, Said] = {}

        async def write(part: Sequence[Speaking]) -> tuple[()]:
            async with self._session.use() as connection:
                batch = _batch(part)
                read.update({id(journal): said for _, journal, said in batch})
                held = await self._store.write_journals(connection, self._worker, [(c, said) for c, _, said in batch])
            for claim, journal, said in batch:
                key = (claim.run_id, claim.token)
                if key in held:
                    journal.wrote(said)
                else:
                    missed.add(key)
            return ()

        async def refuse(one: Speaking, error: BaseException) -> None:
            # A run must not be kept from ending by what it said.
            claim, journal = one
            said = read[id(journal)]
            self._log.error("lines_not_kept", run=claim.run_id, lines=len(said.lines), error=describe(error))
            journal.wrote(said)

        await Apart(write, refuse, patience=0).all(speaking)
        return missed


def _batch(speaking: Sequence[Speaking]) -> list[tuple[Claim, Journal, Said]]:
    """What these say, as far as it fits into one statement."""
    batch: list[tuple[Claim, Journal, Said]] = []
    room = BATCH
    for claim, journal in speaking:
        said = journal.read(min(room, _PART))
        batch.append((claim, journal, said))
        room -= sum(len(line.text) + 1 for line in said.lines)
        if room <= 0:
            break
    return batch
