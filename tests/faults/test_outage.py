"""The database goes away, its connections die or freeze: what runs goes on, and nothing is lost or done twice."""

import asyncio
import contextlib

import psycopg
import pytest
from support.proxies import Proxy

PER_SECOND = """
    select count(distinct schedule_id) = 1,
        sum(coalesce(skipped_count, 1)) =
            extract(epoch from max(coalesce(skipped_through, fire_time)) - min(fire_time)) + 1
    from pgsched.runs where entrypoint = 'tick'
"""
APP = """
@sc.schedule("tick", "* * * * * *", name="tick", retry=Retry(attempts=1))
async def tick(run: Run):
    note(run, "tick")

@sc.entrypoint("long", retry=Retry(attempts=1))
async def long(run: Run):
    note(run, "began")
    try:
        await opened("gate")
    except asyncio.CancelledError:
        note(run, "cancelled")
        raise
    note(run, "ended")
    return "done"

@sc.entrypoint("sync", retry=Retry(attempts=1))
def sync(run: Run):
    note(run, "sync-began")
    while not (FOLDER / "gate").exists():
        time.sleep(0.02)
    note(run, "sync-ended")
    return run.cancelled
"""


@pytest.fixture
def dsn(server):
    """These tests do violence to a server of their own."""
    return server.dsn


@pytest.fixture
async def again(db, dsn, server):
    """Gives the test's own connection back, which went with the others; and the server, should the test fail."""
    async with contextlib.AsyncExitStack() as stack:

        async def connect() -> None:
            connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
            db.connection = await stack.enter_async_context(connection)

        try:
            yield connect
        finally:
            if not server.up:
                server.start()


async def noted(daemons, what):
    async with asyncio.timeout(20):
        while not daemons.notes(what):
            await asyncio.sleep(0.02)


async def accounted(db, daemons):
    """Every second is there once, as a run or as a recorded skip, and no run was executed twice."""
    assert await db.one(PER_SECOND) == (True, True)
    for what in ("tick", "began", "ended", "sync-began", "sync-ended"):
        runs = [note["run"] for note in daemons.notes(what)]
        assert len(runs) == len(set(runs)), what
    assert await db.value("select count(*) from pgsched.runs where attempt > 1 or status = 'failed'") == 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_restart_of_the_server_cancels_nothing_and_loses_nothing(daemons, db, server, again, mode):
    daemons.app(APP)
    daemon = await daemons.ready()
    await db.all("select pgsched.enqueue('long'), pgsched.enqueue('sync')")
    await noted(daemons, "began")
    await noted(daemons, "sync-began")
    await db.until("select count(*) >= 1 from pgsched.runs where entrypoint = 'tick' and status = 'succeeded'")

    await asyncio.to_thread(server.stop, mode)
    await daemon.event("database_lost")
    daemons.open("gate")  # both end while there is no database to tell
    await noted(daemons, "ended")
    await noted(daemons, "sync-ended")
    await asyncio.to_thread(server.start)
    await again()

    await db.until(
        "select count(*) = 2 from pgsched.runs where status = 'succeeded' and entrypoint in ('long', 'sync')"
    )
    assert await db.all(
        "select entrypoint, attempt, result, errors from pgsched.runs where entrypoint <> 'tick' order by 1"
    ) == [("long", 1, "done", []), ("sync", 1, False, [])]
    assert daemons.notes("cancelled") == []
    await daemon.event("database_back")
    back_at = await db.value("select now()")
    await db.until(
        "select count(*) >= 2 from pgsched.runs where entrypoint = 'tick' and status = 'succeeded' and fire_time > %s",
        back_at,
    )
    assert await daemon.stop() == 0
    await accounted(db, daemons)


@pytest.mark.slow
async def test_terminated_sessions_again_and_again(daemons, db):
    daemons.app(APP)
    # No resync: after the last blow notifications alone must work.
    daemon = await daemons.ready(resync_interval="0")
    await db.all("select pgsched.enqueue('long')")
    await noted(daemons, "began")
    mine = "application_name = 'pgsched ' || %s"
    worker = await daemon.worker_id()
    for _ in range(6):
        await db.until(f"select count(*) >= 1 from pg_stat_activity where {mine}", worker)
        killed = await db.value(f"select count(pg_terminate_backend(pid)) from pg_stat_activity where {mine}", worker)
        assert killed >= 1
        seen = await db.value("select coalesce(max(id), 0) from pgsched.runs where entrypoint = 'tick'")
        await db.until("select max(id) > %s from pgsched.runs where entrypoint = 'tick'", seen)
    assert daemon.events("database_lost") and daemon.process.poll() is None
    # It listens again.
    listens = "(query ilike 'listen%%' or query like '-- The outlook%%')"  # the resync comes after it
    await db.until(f"select count(*) >= 1 from pg_stat_activity where {listens} and {mine}", worker)
    await db.all("update pgsched.schedules set status = 'paused'")
    await db.until("select count(*) = 1 from pgsched.runs where status = 'running'")
    run = await db.value("select pgsched.trigger('tick')")
    await db.until("select status = 'succeeded' from pgsched.runs where id = %s", run, limit=10)
    await db.all("update pgsched.schedules set status = 'active'")
    daemons.open("gate")
    await db.until("select status = 'succeeded' from pgsched.runs where entrypoint = 'long'")
    await db.all("delete from pgsched.runs where id = %s", run)  # it has no place among the seconds
    assert await daemon.stop() == 0
    await accounted(db, daemons)


@pytest.mark.slow
async def test_frozen_connections_are_given_up_and_made_again(daemons, db, dsn):
    daemons.app(APP)
    async with Proxy(dsn) as proxy:
        daemon = await daemons.ready(dsn=proxy.dsn, resync_interval="4s")
        worker = await daemon.worker_id()
        await db.all("select pgsched.enqueue('long')")
        await noted(daemons, "began")
        await db.until("select count(*) >= 1 from pgsched.runs where entrypoint = 'tick' and status = 'succeeded'")
        proxy.freeze()
        frozen_at = await db.value("select clock_timestamp()")
        await daemon.event("database_lost", limit=60)
        proxy.thaw(old=False)
        daemons.open("gate")
        await db.until("select status = 'succeeded' from pgsched.runs where entrypoint = 'long'", limit=60)
        # All three connections are new ones: the one that listens too, which nothing but the resync can miss.
        await db.until(
            "select count(*) >= 3 from pg_stat_activity "
            "where application_name = 'pgsched ' || %s and backend_start > %s",
            worker, frozen_at, limit=60,
        )  # fmt: skip
        await db.until(
            "select count(*) >= 2 from pgsched.runs "
            "where entrypoint = 'tick' and status = 'succeeded' and fire_time > clock_timestamp() - interval '3 s'",
            limit=60,
        )
        # And it listens: with nothing else to wake it, each of these would wait for its resync.
        await db.all("update pgsched.schedules set status = 'paused'")
        for _ in range(3):
            await db.until("select count(*) = 0 from pgsched.runs where status = 'running'")
            run = await db.value("select pgsched.enqueue('sync')")
            await db.until("select status = 'succeeded' from pgsched.runs where id = %s", run)
            assert await db.value("select claimed_at - due_at < interval '1.5 s' from pgsched.runs where id = %s", run)
        assert await db.value("select bool_and(attempt = 1) from pgsched.runs where status = 'succeeded'")
        assert daemons.notes("cancelled") == []
        assert await daemon.stop() == 0
    await accounted(db, daemons)
