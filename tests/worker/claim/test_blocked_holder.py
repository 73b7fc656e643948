"""A worker's event loop is blocked around the start of a run while others go on: one call, and the rows say why.

`anna` claims a fire time ahead of it, and her loop is blocked before the run has begun. `ben` is another worker, and a
client changes the schedule. Anna has a thread of her own, so that the test and ben go on beside her.
"""

import asyncio
import contextlib
import threading

import pytest
from support.workers import passed, until, working

from pgsched import Scheduler

LONG = 30  # seconds; nothing takes so long unless it is broken
SETTINGS = {"stall_timeout": "1s", "lookahead": "10s"}
CHANGES = {
    "alter": "select pgsched.alter('s', '{\"args\": {\"v\": 1}}')",
    "pause": "select pgsched.pause('s', 'audit')",
    "retime": "select pgsched.alter('s', '{\"starts_at\": \"2020-01-01T00:00:00Z\"}')",
}
CALLED = {"alter": [1], "pause": [], "retime": [0]}  # the argument of each call
ROWS = """
    select status, reason, args ->> 'v', attempt, withdrawn_at is not null, errors -> 0 ->> 'type'
    from pgsched.runs where entrypoint = 'job' order by id
"""
BY_HOLDER = {
    "alter": [("succeeded", None, "1", 1, False, None)],
    "pause": [("skipped", "paused", None, 0, False, None)],
    "retime": [("succeeded", None, None, 1, False, None)],
}
TAKEN_AWAY = ("cancelled", "its schedule was changed, and its worker is dead", None, 1, True, "WorkerLost")
BY_REAPER = {
    "alter": [("succeeded", None, "1", 2, False, "WorkerLost")],
    "pause": [TAKEN_AWAY, ("skipped", "paused", None, 0, False, None)],
    "retime": [TAKEN_AWAY, ("succeeded", None, None, 1, False, None)],
}


class Held(threading.Thread):
    """A worker whose loop the test blocks and lets go."""

    def __init__(self, settings, calls):
        super().__init__(daemon=True)
        self.blocked, self.go = threading.Event(), threading.Event()
        self.worker, self.error = None, None
        self._settings, self._calls = settings, calls
        self._ready, self._over = threading.Event(), asyncio.Event()

    def run(self):
        try:
            asyncio.run(self._work())
        except BaseException as error:
            self.error = error

    async def _work(self):
        self._loop = asyncio.get_running_loop()
        async with working(application("anna", self._calls, self), self._settings, **SETTINGS) as self.worker:
            self._ready.set()
            await self._over.wait()

    def block(self):
        """Holds up the loop in which this is called."""
        self.blocked.set()
        assert self.go.wait(LONG)

    def block_after_claim(self):
        """Holds up the loop once, when the next claim is committed and before its runs are known here."""
        real = self.worker.runner.take

        def take(runs, asked_at=None):
            if runs and not self.blocked.is_set():
                self.block()
            real(runs, asked_at)

        self.worker.runner.take = take

    async def __aenter__(self):
        self.start()
        await until(self._ready.is_set, LONG)
        return self

    async def __aexit__(self, *_):
        self.go.set()
        self._loop.call_soon_threadsafe(self._over.set)
        await until(lambda: not self.is_alive(), LONG)
        assert self.error is None


def application(name, calls, held=None):
    sc = Scheduler(app="blocked")

    @sc.entrypoint("job")
    async def job(v: int = 0):
        calls.append((name, v))

    if held is not None:

        @sc.entrypoint("blocker")
        async def blocker():
            held.block()

    return sc


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("moment", ["between claim and start", "before it hears of the change"])
async def test_a_blocked_holder_calls_nothing_that_it_cannot_be_sure_of(settings, db, change, moment):
    calls = []
    async with Held(settings, calls) as anna, contextlib.AsyncExitStack() as stack:
        stack.callback(anna.go.set)
        taken_away = moment == "between claim and start"  # nobody beats for a claim that its process does not know yet
        if taken_away:
            anna.block_after_claim()
        await db.all(
            "insert into pgsched.schedules (name, entrypoint, expression) select 's', 'job', '@at ' || to_char("
            "clock_timestamp() at time zone 'UTC' + interval '2500 ms', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
        )
        first = await db.until("select id from pgsched.runs where entrypoint = 'job' and status = 'running'")
        if not taken_away:
            await db.all("select pgsched.enqueue('blocker')")
        await until(anna.blocked.is_set)
        ben = await stack.enter_async_context(working(application("ben", calls), settings, **SETTINGS))
        assert await db.value("select fire_time > clock_timestamp() from pgsched.runs where id = %s", first)
        await db.all(CHANGES[change])
        if taken_away:
            await db.until(
                "select worker is distinct from %s from pgsched.runs where id = %s", anna.worker.kit.worker, first
            )
        await db.until("select fire_time <= clock_timestamp() from pgsched.runs where id = %s", first)
        await passed(ben)
        if not taken_away:
            assert calls == [], "the guard keeps the claim, and nobody plans beside it"
            assert await db.one("select status, worker from pgsched.runs where id = %s", first) == (
                "running", anna.worker.kit.worker,
            )  # fmt: skip
        anna.go.set()
        await db.until(
            "select not exists (select from pgsched.runs where status = 'running')"
            " and (select status <> 'active' from pgsched.schedules)"
        )
        if change == "pause":
            await db.all("select pgsched.resume('s')")
        await db.until("select status = 'finished' from pgsched.schedules")
        await db.until("select not exists (select from pgsched.runs where status in ('queued', 'running'))")
        await until(lambda: not anna.worker.roster.attempts)
    assert [v for _, v in calls] == CALLED[change]
    assert await db.all(ROWS) == (BY_REAPER if taken_away else BY_HOLDER)[change]
