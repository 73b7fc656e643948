"""Writes the lines and the progress of attempts, in batches, each attempt's under its claim.

The journal buffers them. They are written with each beat and once more before the end is written; if there are none, no
statement is sent.
"""

from __future__ import annotations

from collections.abc import Sequence

from pgsched import log
from pgsched.db.apart import Apart
from pgsched.db.mishaps import one_line
from pgsched.journal import Journal, Said
from pgsched.model import Claim
from pgsched.worker.kit import Kit

BATCH = 1 << 20  # characters in one statement
_PART = Journal.LIMIT  # characters of one attempt in a statement, at most

Speaking = tuple[Claim, Journal]


class Scribe:
    """A worker's writer of journals."""

    def __init__(self, kit: Kit) -> None:
        self._statements = kit.store.runs
        self._session = kit.writes
        self._worker = kit.worker
        self._log = log.get()

    async def write_some(self, speaking: Sequence[Speaking]) -> None:
        """Writes one batch. The next call writes the rest, and the lines of rows that somebody has locked."""
        if speaking:
            await self._send(speaking)

    async def write_all(self, speaking: Sequence[Speaking]) -> set[tuple[int, int]]:
        """Writes all lines and progress. Returns the (run id, token) of each attempt that it could not write for: its
        claim is lost, or somebody has locked its row."""
        missed: set[tuple[int, int]] = set()
        left = list(speaking)
        while left := [(c, j) for c, j in left if j.unwritten and (c.run_id, c.token) not in missed]:
            missed |= await self._send(left)
        return missed

    async def _send(self, speaking: Sequence[Speaking]) -> set[tuple[int, int]]:
        """Sends one batch. Returns the (run id, token) of each attempt whose lines did not land."""
        missed: set[tuple[int, int]] = set()
        read: dict[int, Said] = {}

        async def write(part: Sequence[Speaking]) -> tuple[()]:
            # Before anything can fail: refuse() needs it.
            batch = _batch(part)
            read.update({id(journal): said for _, journal, said in batch})
            async with self._session.use() as connection:
                held = await self._statements.write_journals(
                    connection, self._worker, [(c, said) for c, _, said in batch]
                )
            for claim, journal, said in batch:
                key = (claim.run_id, claim.token)
                if key in held:
                    journal.wrote(said)
                else:
                    missed.add(key)
            return ()

        async def refuse(one: Speaking, error: BaseException) -> None:
            # Its lines must not keep a run from ending.
            claim, journal = one
            said = read[id(journal)]
            self._log.error("lines_not_kept", run=claim.run_id, lines=len(said.lines), error=one_line(error))
            journal.wrote(said)

        await Apart(write, refuse, patience=0).all(speaking)
        return missed


def _batch(speaking: Sequence[Speaking]) -> list[tuple[Claim, Journal, Said]]:
    """The unwritten lines and progress of these attempts, as far as they fit into one statement."""
    batch: list[tuple[Claim, Journal, Said]] = []
    room = BATCH
    for claim, journal in speaking:
        said = journal.read(min(room, _PART))
        batch.append((claim, journal, said))
        room -= sum(len(line.text) + 1 for line in said.lines)
        if room <= 0:
            break
    return batch
