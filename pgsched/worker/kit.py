"""The objects that all parts of one worker share: its id, its scheduler, clocks, statements, connections and hints."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from pgsched.config import Settings
from pgsched.db.mishaps import Outage
from pgsched.db.session import LOCKED_FOR, STATEMENT_LIMIT, Session, application_name, conninfo_for
from pgsched.db.statements.queries import Rewrite
from pgsched.db.statements.store import Store
from pgsched.scheduler import Scheduler
from pgsched.worker.aside import Aside
from pgsched.worker.clocks import DatabaseClock, ServerClock, Watch
from pgsched.worker.wakeups import Wakeups
from pgsched.worker.whereabouts import Whereabouts

# How long a write about runs waits for a lock that a client holds. Beats and ends never wait for a row lock: only an
# application's own trigger or index makes them wait. Such a row is found by halving the batch, and each half waits this
# long.
WRITES_WAIT = timedelta(milliseconds=200)


@dataclass(frozen=True, slots=True)
class Kit:
    """Worker passes it to every part. `control` claims and reaps; `writes` carries beats and outcomes.

    elapsed: the clock by which parts judge how long ago they did or saw something, in seconds; sleeps are watch's.
    """

    worker: uuid.UUID
    scheduler: Scheduler
    settings: Settings
    store: Store
    control: Session
    writes: Session
    aside: Aside
    clock: ServerClock = field(default_factory=DatabaseClock)
    watch: Watch = field(default_factory=Watch)
    outage: Outage = field(default_factory=Outage)
    whereabouts: Whereabouts = field(default_factory=Whereabouts.own)
    wakeups: Wakeups = field(default_factory=Wakeups)
    elapsed: Callable[[], float] = time.monotonic

    @classmethod
    def build(
        cls,
        scheduler: Scheduler,
        settings: Settings,
        watch: Watch | None = None,
        elapsed: Callable[[], float] = time.monotonic,
        *,
        clock: ServerClock | None = None,
        rewrite: Rewrite | None = None,
    ) -> Kit:
        """The kit of a new worker, with a new id. Raises ConfigurationError if the DSN cannot be read.

        clock, rewrite: the database's clock and a change of each statement, for tests that have a clock of their own.
        """
        worker = uuid.uuid4()
        info = conninfo_for(settings.dsn, application_name(worker))
        store = Store(settings.schema, scheduler.app_name, rewrite)
        # A frozen connection must be given up early enough for a beat over a new one to save the claims.
        limit = max(timedelta(seconds=1), min(STATEMENT_LIMIT, settings.stall_timeout / 4))
        control = Session(info, "control", idle=LOCKED_FOR, lock=timedelta(seconds=1))
        # A run whose end cannot be written would run again, although its claim came over a connection that works.
        writes = Session(info, "writes", limit, lock=WRITES_WAIT, spare=control)
        aside = Aside(store.trials, elapsed)
        wakeups = Wakeups()
        # A connection that was lost or made again is a hint that the one that listens may be deaf. After a resync, the
        # dispatcher looks again: nothing is claimed while no end can be written.
        outage = Outage(changed=wakeups.resync.ask)
        kit = cls(
            worker, scheduler, settings, store, control, writes, aside,
            clock=clock or DatabaseClock(), watch=watch or Watch(), outage=outage, wakeups=wakeups, elapsed=elapsed,
        )  # fmt: skip
        for session in (control, writes):
            session.subscribe(remade=wakeups.resync.ask, silent=kit.doubt)
        return kit

    def doubt(self) -> None:
        """A connection has fallen silent, and the others may be silent, too: has them asked now. An idle worker that
        waited for their limits would come late to a failover."""
        self.control.doubt()
        self.writes.doubt()
        self.wakeups.due.ask()
        self.wakeups.resync.ask()

    def session(self, purpose: str, dsn: str | None = None, *, lock: timedelta = timedelta(seconds=10)) -> Session:
        """One more session, on a connection of its own.

        dsn: another address of the database.
        lock: how long its statements wait for locks.
        """
        return Session(conninfo_for(dsn or self.settings.dsn, application_name(self.worker)), purpose, lock=lock)
