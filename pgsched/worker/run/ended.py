"""Remembers the last ends that the database has recorded. After a failover to a standby that lagged behind, it may have
lost some: these are written again, because their functions have been called."""

from __future__ import annotations

import dataclasses

from pgsched.model import Outcome
from pgsched.worker.run.surroundings import Key

_ENDS = 10_000  # a standby lags behind by seconds
_CHARACTERS = 16 * 2**20  # of their results


class Ended:
    """The last ends, as they were recorded."""

    def __init__(self) -> None:
        self._outcomes: dict[Key, Outcome] = {}
        self._characters = 0

    def remember(self, outcome: Outcome) -> None:
        """Remembers an end that has landed, and forgets the oldest ones."""
        self.take((outcome.claim.run_id, outcome.claim.token))
        self._outcomes[outcome.claim.run_id, outcome.claim.token] = outcome
        self._characters += len(outcome.result_json or "")
        while len(self._outcomes) > _ENDS or self._characters > _CHARACTERS:
            self.take(next(iter(self._outcomes)))

    def take(self, key: Key) -> Outcome | None:
        """The end of a claim, which is forgotten by that. None if it is not known."""
        outcome = self._outcomes.pop(key, None)
        if outcome is None:
            return None
        self._characters -= len(outcome.result_json or "")
        # Its lines are recorded. If its own transaction had committed, a failover has undone that, too, or not.
        return dataclasses.replace(outcome, journal=None, transacted=outcome.transacted or outcome.committed)
