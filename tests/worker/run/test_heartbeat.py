"""Beats keep claims alive and tell what became of them, whoever has rows locked or refuses to have them written."""

import asyncio
import uuid
from datetime import UTC, datetime
from types import SimpleNamespace

import psycopg
import pytest
from structlog.testing import capture_logs
from support.claims import dead_worker, running
from support.refusals import OWN_STATE, events, held, refuse, relent
from support.workers import Parts, reap

from pgsched.db.statements.queries import in_schema
from pgsched.journal import Journal
from pgsched.model import Claim
from pgsched.worker.run.heartbeat import Heartbeat
from pgsched.worker.run.surroundings import State
from pgsched.worker.upkeep.reaper import Reaper


async def test_a_beat_tells_lost_cancelled_and_held_apart(kit, db):
    held, lost, asked, done = await running(db, kit.worker, 4)
    await db.all("update pgsched.runs set worker = %s where id = %s", uuid.uuid4(), lost)
    await db.all("update pgsched.runs set status = 'succeeded', finished_at = now() where id = %s", done)
    await db.all("select pgsched.cancel(%s)", asked)
    beats = dict(await db.all("select id, heartbeat_at from pgsched.runs"))
    async with kit.writes.use() as connection:
        claims = [(run, 1, None) for run in (held, lost, asked, done)]
        assert await kit.store.runs.beat(connection, kit.worker, claims) == {(held, 1): False, (asked, 1): True}
    now = dict(await db.all("select id, heartbeat_at from pgsched.runs"))
    assert now[held] > beats[held] and now[lost] == beats[lost] and now[done] == beats[done]


async def test_a_beat_waits_for_nobody_though_the_workers_row_is_locked_as_well(kit, db, dsn):
    owner = await dead_worker(db)
    run, = await running(db, owner)  # fmt: skip
    async with await psycopg.AsyncConnection.connect(dsn) as client:
        lock = b"select from pgsched.runs, pgsched.workers for update"
        await client.execute(in_schema(lock, kit.settings.schema, parametrised=False))
        async with asyncio.timeout(5), kit.writes.use() as connection:
            assert await kit.store.runs.beat(connection, owner, [(run, 1, None)]) == {(run, 1): False}


def hold(parts, ids):
    """Has the roster hold the claims of runs that go on."""
    for run in ids:
        parts.roster.attempts[run, 1] = SimpleNamespace(
            claim=Claim(run, 1, parts.kit.worker), started_at=None, state=State.RUNNING, keeper=object(),
            thread_call=SimpleNamespace(busy=False), journal=Journal(),
        )  # fmt: skip


async def test_beats_that_are_refused_keep_others_alive_and_say_nothing_of_their_claims(settings, db):
    async with Parts(settings) as parts:
        heartbeat = Heartbeat(parts.kit, parts.roster, parts.runner, asyncio.TaskGroup())
        parts.kit.clock.observe(datetime.now(UTC), 0, 0)
        ids, bad = await held(db, parts.kit.worker)
        await refuse(db, "new.args ? 'state'", state=OWN_STATE)
        hold(parts, ids)
        with capture_logs() as logs:
            await heartbeat.beat()
        verdicts = heartbeat._answers
        assert set(verdicts) == {(run, 1) for run in ids if run not in bad} and not any(verdicts.values())
        silent = await db.all("select id from pgsched.runs where heartbeat_at < now() - interval '1 minute' order by 1")
        assert [row[0] for row in silent] == bad
        assert [line["id"] for line in events(logs, "row_set_aside")] == bad
        assert await db.value("select count(*) from pgsched.resting where kind = 'beat'") == len(bad)
        await relent(db)
        await heartbeat.beat()
        assert set(heartbeat._answers) == set(verdicts), "the refused ones are not sent again at once"
        parts.kit.elapsed.advance(10)
        await heartbeat.beat()
        with capture_logs() as logs:
            await parts.kit.aside.review(await parts.kit.control.connect())
        assert len(events(logs, "row_taken_back")) == len(bad)


@pytest.mark.parametrize("how", ["raises 55P03", "waits for a lock"])
async def test_a_row_that_waits_for_somebody_keeps_no_other_from_beats_and_reaps(settings, db, dsn, schema, how):
    """An application's trigger locks a row of its own with NOWAIT, or waits for it; a client has it for long."""
    await db.all("create table pgsched.orders (id int primary key)")
    await db.all("insert into pgsched.orders values (1)")
    nowait = "nowait" if how == "raises 55P03" else ""
    await db.all(
        "create function pgsched.counted() returns trigger language plpgsql as $$ begin"
        f" perform 1 from pgsched.orders for update {nowait}; return new; end $$"
    )
    await db.all(
        "create trigger counted before update on pgsched.runs for each row when (new.args ? 'state')"
        " execute function pgsched.counted()"
    )
    lock = in_schema(b"select 1 from pgsched.orders for update", schema, parametrised=False)
    running = "select array_agg(id order by id) from pgsched.runs where status = 'running'"
    async with Parts(settings) as parts, await psycopg.AsyncConnection.connect(dsn) as client:
        await client.execute(lock)
        heartbeat = Heartbeat(parts.kit, parts.roster, parts.runner, asyncio.TaskGroup())
        parts.kit.clock.observe(datetime.now(UTC), 0, 0)
        ids, bad = await held(db, parts.kit.worker)
        hold(parts, ids)
        await heartbeat.beat()
        silent = "select array_agg(id order by id) from pgsched.runs where heartbeat_at < now() - interval '1 minute'"
        assert await db.value(silent) == bad
        await heartbeat.beat()
        assert set(heartbeat._answers) == {(run, 1) for run in ids if run not in bad}, "it waits for them no more"
        await db.all("alter table pgsched.runs disable trigger counted")
        await db.all("delete from pgsched.runs")
        await db.all("alter table pgsched.runs enable trigger counted")
        reaper = Reaper(parts.kit, parts.roster)
        _, bad = await held(db, uuid.uuid4())
        await reap(reaper, parts.kit)
        assert await db.value(running) == bad
