"""A worker that cannot listen: it looks over its other connection, says so, and hears again when that is possible."""

import asyncio

from structlog.testing import capture_logs
from support.proxies import Proxy
from support.workers import until, working

from pgsched import Scheduler
from pgsched.worker import listener, worker

REFUSED = "host=127.0.0.1 port=1"
FAR = {"heartbeat_interval": "30s", "stall_timeout": "1h", "resync_interval": "1h"}  # nothing else looks


def app():
    sc = Scheduler()

    @sc.entrypoint("job")
    async def job(): ...

    return sc


async def test_it_starts_without_listen_and_finds_work(settings, db, monkeypatch):
    monkeypatch.setattr(worker, "_LISTENS", 0.1)
    with capture_logs() as logs:
        async with working(app(), settings, listen_dsn=REFUSED, **FAR) as one:
            assert not one.listener.listening.is_set()
            await db.all("select pgsched.enqueue('job')")
            await db.until("select status = 'succeeded' from pgsched.runs")
            await db.until("select trouble like 'not listening for %% s' from pgsched.workers")
    assert [line["event"] for line in logs if line["event"] in ("not_listening", "worker_ready")] == [
        "not_listening", "worker_ready",
    ]  # fmt: skip


async def test_an_idle_worker_that_loses_listen_finds_work_and_hears_again(settings, db, dsn):
    async with Proxy(dsn) as proxy, working(app(), settings, listen_dsn=proxy.dsn, **FAR) as one:
        proxy.cut()
        await until(lambda: not one.listener.listening.is_set())
        await db.all("select pgsched.enqueue('job')")
        await db.until("select status = 'succeeded' from pgsched.runs")
        await db.until("select trouble is not null from pgsched.workers")
        proxy.mend()
        await until(one.listener.listening.is_set, 20)
        await db.until("select trouble is null from pgsched.workers")


async def test_listen_is_asked_as_soon_as_another_connection_is_lost(settings, db, dsn, monkeypatch):
    """Its own connection is open and deaf: only a question tells."""
    monkeypatch.setattr(listener, "ANSWER", listener.DEAF_RESYNC / 5)
    async with Proxy(dsn) as proxy, working(app(), settings, listen_dsn=proxy.dsn, **FAR) as one:
        resyncs = one.listener.resyncs
        proxy.freeze()
        await db.all("select pgsched.enqueue('job')")  # of which it hears nothing
        await asyncio.sleep(0)
        pid = "select pid from pg_stat_activity where application_name = %s and query not ilike 'listen%%' limit 1"
        await db.all(f"select pg_terminate_backend(({pid}))", f"pgsched {one.kit.worker}")
        one.kit.wakeups.due.ask()  # a pass fails
        await until(lambda: not one.listener.listening.is_set(), 20)
        await db.until("select status = 'succeeded' from pgsched.runs")
        assert one.listener.resyncs == resyncs
        proxy.thaw()
        await until(one.listener.listening.is_set, 20)
