"""Whose sessions end, or whose rows somebody locks, is not dead: workers in this process, one behind a proxy."""

import asyncio
import contextlib

import psycopg
import pytest
from support.proxies import Proxy
from support.workers import until, working

from pgsched import Run, Scheduler
from pgsched.db.statements.statements import in_schema


def app():
    sc = Scheduler(app="evidence")
    sc.gate = asyncio.Event()
    sc.calls = []

    @sc.entrypoint("job")
    async def job(run: Run):
        sc.calls.append(run.attempt)
        await sc.gate.wait()

    return sc


@contextlib.asynccontextmanager
async def reaping(settings, **changes):
    """A second worker, whose reaper has long been looking."""
    other = app()
    other.gate.set()
    async with working(other, settings, **changes) as worker:
        worker.reaper._in_grace = lambda _: False
        yield other


@pytest.mark.parametrize("process", ["elsewhere", "here"])
async def test_a_balancer_that_goes_away_for_a_while_costs_nobody_a_run(settings, db, dsn, process):
    first, changes = app(), {"stall_timeout": "1h"}
    async with Proxy(dsn) as proxy, working(first, settings.merged({"dsn": proxy.dsn}, "test"), **changes) as worker:
        if process == "elsewhere":  # so that nothing is known of it
            await db.all("update pgsched.workers set machine = 'another'")
        await db.all("select pgsched.enqueue('job')")
        await until(lambda: first.calls)
        async with reaping(settings, **changes) as second:
            proxy.cut()
            gone = "not exists (select from pg_stat_activity where application_name = %s)"
            silent = "select clock_timestamp() - heartbeat_at > interval '1 second'"  # ten beats
            await db.until(f"{silent} and {gone} from pgsched.runs", f"pgsched {worker.kit.worker}")
            proxy.mend()
            await db.until("select clock_timestamp() - heartbeat_at < interval '200 ms' from pgsched.runs")
            first.gate.set()
            await db.until("select status = 'succeeded' and attempt = 1 from pgsched.runs")
            assert (first.calls, second.calls) == ([1], [])


async def test_the_run_of_a_process_that_ended_is_taken_though_the_stall_timeout_is_long(settings, db, dsn):
    first, changes = app(), {"stall_timeout": "1h"}
    async with Proxy(dsn) as proxy, working(first, settings.merged({"dsn": proxy.dsn}, "test"), **changes):
        await db.all("update pgsched.workers set process_started = '1'")  # as if this process were another one
        await db.all("select pgsched.enqueue('job')")
        await until(lambda: first.calls)
        async with reaping(settings, **changes) as second:
            proxy.cut()
            await db.until("select status = 'succeeded' and attempt = 2 from pgsched.runs")
            proxy.mend()
            assert (first.calls, second.calls) == ([1], [2])
            first.gate.set()


async def test_a_clients_lock_far_longer_than_the_stall_timeout_costs_nobody_a_run(settings, db, dsn):
    first, changes = app(), {"stall_timeout": "1200ms"}
    # Its beats come more seldom than the other's looks, so that one of these comes first when the lock is gone.
    async with working(first, settings, **changes, heartbeat_interval="300ms"):
        await db.all("select pgsched.enqueue('job')")
        await until(lambda: first.calls)
        async with reaping(settings, **changes) as second, await psycopg.AsyncConnection.connect(dsn) as client:
            lock = in_schema(b"select from pgsched.runs for update", settings.schema, parametrised=False)
            for _ in range(3):
                await client.execute(lock)
                await db.until("select clock_timestamp() - heartbeat_at > interval '1.5 s' from pgsched.runs")
                await client.rollback()
                await db.until("select clock_timestamp() - heartbeat_at < interval '1 s' from pgsched.runs")
            await client.execute(lock)
            first.gate.set()  # its end finds the row locked, too
            await db.until("select clock_timestamp() - heartbeat_at > interval '1.5 s' from pgsched.runs")
            await client.rollback()
            await db.until("select status = 'succeeded' and attempt = 1 from pgsched.runs")
            assert (first.calls, second.calls) == ([1], [])
