"""The guard: a claim whose event loop is blocked does not keep its schedules from others."""

import contextlib
import threading
from datetime import timedelta
from types import SimpleNamespace

import psycopg
import pytest
from support.workers import Parts

from pgsched.db.mishaps import Failures
from pgsched.db.statements.claims import ClaimStatements
from pgsched.db.statements.queries import in_schema
from pgsched.model import Claim
from pgsched.worker import kit as kit_module
from pgsched.worker.run import guard as guards
from pgsched.worker.run.guard import Guard

DUE = "insert into pgsched.schedules (name, entrypoint, expression, next_run) values ('s', 'job', '@daily', now())"


LOCK = b"select from pgsched.schedules for update"


class Other(threading.Thread):
    """Another worker, as far as it matters here: it wants the schedules' locks, and says when it has them."""

    def __init__(self, settings):
        super().__init__(daemon=True)
        self._settings = settings
        self.locked = threading.Event()
        self.done = threading.Event()

    def run(self):
        with psycopg.connect(self._settings.dsn) as connection, contextlib.suppress(psycopg.Error):
            connection.execute("set lock_timeout = '8s'")
            connection.execute(in_schema(LOCK, self._settings.schema, parametrised=False))
            self.locked.set()
        self.done.set()


@pytest.mark.parametrize("by", ["server", "guard"])
async def test_the_locks_of_a_claim_whose_loop_is_blocked_go_to_others(settings, db, monkeypatch, by):
    await db.all(DUE)
    real, other = ClaimStatements.count_live_runs, Other(settings)

    async def blocked(self, *args):
        # Between the lock and the plan. Nothing else of this process gets a turn.
        monkeypatch.setattr(ClaimStatements, "count_live_runs", real)
        other.start()
        if by == "guard":
            parts.roster.add(
                SimpleNamespace(
                    key=(1, 1),
                    place=None,
                    threaded=False,
                    task=None,
                    started_at=None,
                    claim=Claim(1, 1, parts.kit.worker),
                    thread_call=SimpleNamespace(busy=False),
                )
            )
        other.done.wait(20)
        return await real(self, *args)

    monkeypatch.setattr(ClaimStatements, "count_live_runs", blocked)
    if by == "guard":  # as behind a pooler, where no session is set up
        monkeypatch.setattr(kit_module, "LOCKED_FOR", timedelta(minutes=1))
    async with Parts(settings, heartbeat_interval="100ms") as parts:
        guard = Guard(parts.kit, parts.roster)
        if by == "guard":
            monkeypatch.setattr(guards, "LOCKED_FOR", timedelta(milliseconds=300))
            guard.start()
        with pytest.raises(Failures):
            await parts.dispatcher.claim_pass()
        guard.stop()
        assert other.locked.is_set()
        assert parts.kit.control.was_severed() is (by == "guard")
        assert await parts.dispatcher.claim_pass() == 1, "a new connection, a new claim"
