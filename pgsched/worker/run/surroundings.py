"""The objects that all attempts of a worker share, and the states of an attempt."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from pgsched.db.fence.fence import Transactions
from pgsched.model import Outcome
from pgsched.scheduler import Scheduler
from pgsched.worker.clocks import ServerClock, Watch
from pgsched.worker.run.hook_calls import Caller
from pgsched.worker.run.tasks import Group

Key: TypeAlias = tuple[int, int]  # run id, token
A = TypeVar("A")  # the attempt, whose module stands above this one


class State(enum.Enum):
    """The state of a claimed run in this process."""

    HELD = "held"  # claimed ahead of its instant, not started
    RUNNING = "running"
    ENDED = "ended"  # has an outcome that is not written yet


@dataclass(frozen=True, slots=True)
class Surroundings(Generic[A]):
    """Shared by the attempts of one worker.

    grace: seconds that a cancelled run has to end.
    group: the task group of their tasks.
    threads: the pool for synchronous functions.
    ended: called once for each attempt with its outcome, or with None if its claim is lost.
    committed: called in the event loop when a run's own transaction has committed its success.
    outlives: called when a claim is lost while its function goes on in its thread.
    ends: whether the event loop ends, and has cancelled all its tasks: then runs are given back.
    raised: gets the exceptions of functions; for tests.
    """

    worker: uuid.UUID
    scheduler: Scheduler
    clock: ServerClock
    watch: Watch
    grace: float
    group: Group
    threads: futures.Executor
    caller: Caller
    transactions: Transactions
    ended: Callable[[A, Outcome | None], None]
    committed: Callable[[A], None]
    outlives: Callable[[], None]
    ends: Callable[[], bool] = lambda: False
    raised: Callable[[A, Outcome, BaseException | None], None] = lambda attempt, outcome, error: None
