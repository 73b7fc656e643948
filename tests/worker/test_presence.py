"""The row of a worker: written again if somebody deletes it, and gone after its goodbye."""

import asyncio

import pytest
from support.declarations import named, start
from support.moves import active, declares, retired, stored
from support.workers import until, working

from pgsched import connect
from pgsched.db.statements.upkeep import UpkeepStatements


@pytest.mark.parametrize("how", ["delete from pgsched.workers", "truncate pgsched.workers"])
async def test_an_idle_worker_without_a_resync_whose_row_is_deleted_writes_it_again(settings, db, how):
    async with working(declares("kept", app="svc"), settings, resync_interval="0s") as worker:
        await db.all(how)
        await db.until("select count(*) = 1 from pgsched.workers where id = %s", worker.kit.worker)
        assert await db.value("select app from pgsched.workers") == "svc"
    assert await db.all("select id from pgsched.workers") == [], "its goodbye is the last word"


async def test_a_goodbye_is_the_last_word_though_the_row_is_being_written_again(settings, db, monkeypatch):
    writing, going_on = asyncio.Event(), asyncio.Event()
    real = UpkeepStatements.insert_worker

    async def held(self, connection, **values):
        writing.set()
        await going_on.wait()
        await real(self, connection, **values)

    async with working(declares("kept", app="svc"), settings) as worker:
        monkeypatch.setattr(UpkeepStatements, "insert_worker", held)
        await db.all("delete from pgsched.workers")
        await writing.wait()
        worker.stop()
        await until(lambda: worker.presence.leaving)
        going_on.set()
    assert await db.all("select id from pgsched.workers") == []


async def test_a_resync_that_finds_no_row_has_it_written_again(settings, db):
    async with working(declares("kept", app="svc"), settings) as worker:
        await db.all("alter table pgsched.workers disable trigger user")
        await db.all("delete from pgsched.workers")
        await worker.listener.resync()
        await db.until("select count(*) = 1 from pgsched.workers")


async def test_a_goodbye_forgets_only_who_has_no_session_and_was_not_seen_for_a_day(settings, db):
    """A worker with the resync off is not seen for as long as it is idle; its schedules must not go to an older one."""
    v1, v2 = declares("kept", "dropped", app="svc"), declares("kept", app="svc")
    await start(v1, settings)
    async with working(v2, settings, resync_interval="0s") as worker:
        await db.all(
            "insert into pgsched.workers (id, app, host, pid, version, entrypoints, direct, heartbeat_interval,"
            " stall_timeout) values (gen_random_uuid(), 'dead', 'h', 7, '1', '{}', true, '1s', '9s')"
        )
        await db.all("update pgsched.workers set seen_at = now() - interval '25 hours'")
        await start(declares(app="another"), settings)  # comes and goes
        assert await db.all("select id from pgsched.workers") == [(worker.kit.worker,)]
        assert named(await start(declares("kept", "dropped", app="svc"), settings), "declarations_deferred")
        assert await stored(db) == {"kept": active("svc"), "dropped": retired("svc")}
        async with connect(settings.dsn, schema=settings.schema) as client:
            assert len(await client.list_workers()) == 1
