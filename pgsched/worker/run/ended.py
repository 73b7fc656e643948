"""Remembers the last ends that the database has recorded. After a failover to a standby that lagged behind, it may have
lost some: these are written again, because their functions have been called."""

from __future__ import annotations

import dataclasses

from pgsched.model import Outcome
from pgsched.worker.run.surroundings import Key

_ENDS = 10_000  # a standby lags behind by seconds
_CHARACTERS = 16 * 2**20  # of their results and errors


class Ended:
    """The last ends, as they were recorded."""

    def __init__(self) -> None:
        self._outcomes: dict[Key, Outcome] = {}
        self._characters = 0

    def remember(self, outcome: Outcome) -> None:
        """Remembers an end that has landed, and forgets the oldest ones."""
        key = outcome.claim.run_id, outcome.claim.token
        self._forget(key)
        self._outcomes[key] = outcome
        self._characters += _size(outcome)
        while len(self._outcomes) > _ENDS or self._characters > _CHARACTERS:
            self._forget(next(iter(self._outcomes)))

    def take(self, key: Key) -> Outcome | None:
        """The end of a claim, which is forgotten by that. None if it is not known."""
        outcome = self._forget(key)
        if outcome is None:
            return None
        # Its lines are recorded. If its own transaction had committed, the failover may have undone that, too.
        return dataclasses.replace(outcome, journal=None, transacted=outcome.transacted or outcome.committed)

    def _forget(self, key: Key) -> Outcome | None:
        outcome = self._outcomes.pop(key, None)
        if outcome is not None:
            self._characters -= _size(outcome)
        return outcome


def _size(outcome: Outcome) -> int:
    error = outcome.error
    return len(outcome.result_json or "") + (len(error.message) + len(error.traceback) if error is not None else 0)
