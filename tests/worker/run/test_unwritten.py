"""While ends cannot be written, nothing begins whose end would be lost; and they are written over any connection that
the worker has."""

import asyncio

import psycopg
import pytest
from support.odd_roles import OddRoles
from support.workers import until, working

from pgsched import Run, Scheduler
from pgsched.db.statements.runs import RunStatements


@pytest.fixture
def odd(dsn, schema):
    made = OddRoles(dsn)
    yield made
    made.close()


def held() -> tuple[Scheduler, list[int], asyncio.Event]:
    """A scheduler whose jobs go on until the event is set, and the attempts that have begun."""
    sc, begun, go_on = Scheduler(), list[int](), asyncio.Event()

    @sc.entrypoint("job")
    async def job(run: Run):
        begun.append(run.attempt)
        await go_on.wait()

    return sc, begun, go_on


async def test_an_end_goes_over_the_claims_connection_while_the_server_has_no_place_for_another(dsn, settings, db, odd):
    mine = odd.role()
    name = psycopg.conninfo.conninfo_to_dict(mine)["user"]
    sc, begun, go_on = held()
    async with working(sc, settings.merged({"dsn": mine}, "test")) as worker:
        await db.all("select pgsched.enqueue('job')")
        await until(lambda: begun)
        writes = worker.kit.writes
        await until(lambda: writes.connected)  # it has sent a beat
        await db.all(f'alter role "{name}" connection limit 1')
        async with writes.use() as connection:
            pid = connection.info.backend_pid
        await db.all("select pg_terminate_backend(%s)", pid)
        await db.until("select count(*) = 0 from pg_stat_activity where pid = %s", pid)
        seen = await db.value("select heartbeat_at from pgsched.runs")
        await db.until("select heartbeat_at > %s from pgsched.runs", seen)
        go_on.set()
        await db.until("select status = 'succeeded' from pgsched.runs")
        assert not writes.connected, "or the test proves nothing"
        await db.all("select pgsched.enqueue('job')")
        await db.until("select count(*) = 2 from pgsched.runs where status = 'succeeded'")
        await db.all(f'alter role "{name}" connection limit -1')
        await db.all("select pgsched.enqueue('job')")
        await db.until("select count(*) = 3 from pgsched.runs where status = 'succeeded'")
    assert begun == [1, 1, 1]


async def test_no_run_is_claimed_while_no_end_can_be_written(settings, db, monkeypatch):
    real, broken = RunStatements.finish_runs, [True]

    async def fails(self, *args):
        if broken:
            raise psycopg.OperationalError("gone")
        return await real(self, *args)

    monkeypatch.setattr(RunStatements, "finish_runs", fails)
    sc, begun, go_on = held()
    go_on.set()
    async with working(sc, settings) as worker:
        await db.all("select pgsched.enqueue('job')")
        await until(lambda: worker.kit.outage.unwritten)
        await db.all("select pgsched.enqueue('job')")
        for _ in range(3):
            worker.dispatcher.passed.clear()
            worker.kit.wakeups.due.ask()
            await until(worker.dispatcher.passed.is_set)
        assert await db.value("select count(*) from pgsched.runs where status = 'queued'") == 1
        broken.clear()  # nobody asks it to look again
        await db.until("select count(*) = 2 from pgsched.runs where status = 'succeeded'")
    assert begun == [1, 1]
