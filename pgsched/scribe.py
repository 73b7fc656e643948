"""Writes what attempts say, lines and progress, in batches, each under its claim.

What is said is the journal's to keep until it is written. When it is: with a beat while the attempt runs, and before
its end; without anything said there is no statement.
"""

from __future__ import annotations

from collections.abc import Sequence

import psycopg

from pgsched import log
from pgsched.db import describe, refused
from pgsched.machine import Machine
from pgsched.model import Claim, Journal, Said

BATCH = 1 << 20  # characters in one statement
_PART = Journal.LIMIT  # of these at most so many of one attempt

Speaking = tuple[Claim, Journal]


class Scribe:
    """A worker's."""

    def __init__(self, machine: Machine) -> None:
        self._store = machine.store
        self._session = machine.writes
        self._worker = machine.worker
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
        reason = ""
        async with self._session.use() as connection:
            batch: list[tuple[Claim, Journal, Said]] = []
            room = BATCH
            for claim, journal in speaking:
                said = journal.read(min(room, _PART))
                batch.append((claim, journal, said))
                room -= sum(len(line.text) + 1 for line in said.lines)
                if room <= 0:
                    break
            try:
                held: set[tuple[int, int]] | None
                held = await self._store.write_journals(connection, self._worker, [(c, said) for c, _, said in batch])
            except psycopg.Error as error:
                if not _for_good(error):
                    raise
                held = None
                reason = describe(error)
        if held is None and len(batch) > 1:  # one of them must not cost the others theirs
            missed = set()
            for claim, journal, _ in batch:
                missed |= await self._send([(claim, journal)])
            return missed
        missed = set()
        for claim, journal, said in batch:
            key = (claim.run_id, claim.token)
            if held is None:
                self._log.error("lines_not_kept", run=claim.run_id, lines=len(said.lines), error=reason)
            if held is None or key in held:
                journal.wrote(said)
            else:
                missed.add(key)
        return missed


def _for_good(error: psycopg.Error) -> bool:
    """Whether the database will not take it: for what it is, or because the worker may not write there. A run must not
    be kept from ending by what it said."""
    return refused(error) or (error.sqlstate or "").startswith("42")
