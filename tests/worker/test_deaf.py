"""A worker that cannot listen: it looks over its other connection, says so, and hears again when that is possible."""

import asyncio
import json
from datetime import timedelta

import pytest
from structlog.testing import capture_logs
from support.proxies import Door, Proxy
from support.shell import Shell, isolate
from support.workers import until, working

from pgsched import Scheduler
from pgsched.worker import listener, systemd, worker

REFUSED = "host=127.0.0.1 port=1"
FAR = {"heartbeat_interval": "30s", "stall_timeout": "1h", "resync_interval": "1h"}  # nothing else looks
IN_EARNEST = (listener.DEAF_RESYNC, listener.ANSWER)
QUICK = timedelta(milliseconds=300)
TROUBLE = "not listening for "


def app():
    sc = Scheduler()

    @sc.entrypoint("job")
    async def job(): ...

    return sc


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The worker looks more often than in earnest, and waits less long for an answer."""
    assert max(IN_EARNEST) <= timedelta(seconds=5)
    monkeypatch.setattr(listener, "DEAF_RESYNC", QUICK)
    monkeypatch.setattr(listener, "ANSWER", QUICK)


@pytest.fixture(autouse=True)
def logs():
    """The events of the worker, which must not get into the output of a command in this process."""
    with capture_logs() as logs:
        yield logs


@pytest.fixture
def shell(monkeypatch, tmp_path, settings):
    isolate(monkeypatch, tmp_path)
    return Shell(settings)


@pytest.fixture
def statuses(monkeypatch):
    """The status lines that the service manager got. A start does not wait long for LISTEN."""
    monkeypatch.setattr(worker, "LISTENS", 0.1)
    lines = []
    monkeypatch.setattr(systemd, "notify", lambda **fields: lines.append(fields) or True)
    return lines


async def job_done(db):
    run = await db.value("select pgsched.enqueue('job')")
    await db.until("select status = 'succeeded' from pgsched.runs where id = %s", run)


async def end_session(session, db):
    async with session.use() as connection:
        pid = connection.info.backend_pid
    await db.all("select pg_terminate_backend(%s)", pid)


async def reported(shell):
    """What `health` and `workers` say: the state of the connections, and each worker's trouble."""
    health = json.loads((await asyncio.to_thread(shell, "health", "--json")).stdout)
    workers = json.loads((await asyncio.to_thread(shell, "workers", "--json")).stdout)
    [check] = [check for check in health["checks"] if check["name"] == "connections"]
    return health["healthy"], check, [each["trouble"] for each in workers]


async def test_it_starts_without_listen_finds_work_and_says_so(settings, db, shell, statuses, logs):
    async with working(app(), settings, listen_dsn=REFUSED, **FAR) as one:
        assert not one.listener.listening.is_set()
        await job_done(db)
        await db.until("select trouble like %s from pgsched.workers", f"{TROUBLE}%")
        healthy, check, [trouble] = await reported(shell)
        assert (healthy, check["status"]) == (False, "failed") and TROUBLE in check["message"]
        assert trouble.startswith(TROUBLE)
        assert TROUBLE in one.status()
    [ready] = [fields["STATUS"] for fields in statuses if "READY" in fields]
    assert TROUBLE in ready
    events = [line["event"] for line in logs if line["event"] in ("not_listening", "worker_ready")]
    assert events == ["not_listening", "worker_ready"]


async def test_an_idle_worker_that_loses_listen_finds_work_and_hears_again(settings, db, dsn, shell):
    async with Proxy(dsn) as proxy, working(app(), settings, listen_dsn=proxy.dsn, **FAR) as one:
        assert (await reported(shell))[2] == [None]
        proxy.cut(Door.REFUSE)
        await until(lambda: not one.listener.listening.is_set())
        await job_done(db)
        await db.until("select trouble like %s from pgsched.workers", f"{TROUBLE}%")
        assert (await reported(shell))[0] is False
        proxy.mend()
        await until(one.listener.listening.is_set, 20)
        await db.until("select trouble is null from pgsched.workers")
        assert (await reported(shell))[:2] == (
            True, {"name": "connections", "status": "ok", "message": "the database answers every worker fully"}
        )  # fmt: skip


async def test_a_deaf_connection_is_given_up_when_its_resync_is_not_answered(settings, db, dsn):
    """Nothing else happens in an idle worker: LISTEN alone is frozen, and a job comes."""
    async with Proxy(dsn) as proxy, working(app(), settings, listen_dsn=proxy.dsn, **FAR) as one:
        [deaf] = proxy.links
        deaf.freeze()
        run = await db.value("select pgsched.enqueue('job')")
        one.kit.wakeups.resync.ask()  # its time has come
        await db.until("select status = 'succeeded' from pgsched.runs where id = %s", run, limit=10)
        await until(lambda: one.listener.listening.is_set() and len(proxy.links) == 2)
        await job_done(db)


@pytest.mark.parametrize("event", ["lost", "remade"])
async def test_listen_is_asked_as_soon_as_another_connection_is_lost_or_remade(settings, db, dsn, event):
    """Its own connection is open and deaf: only a question tells."""
    async with Proxy(dsn) as proxy, working(app(), settings, listen_dsn=proxy.dsn, **FAR) as one:
        resyncs = one.listener.resyncs
        proxy.freeze()
        run = await db.value("select pgsched.enqueue('job')")  # of which it hears nothing
        if event == "lost":
            await end_session(one.kit.control, db)
            one.kit.wakeups.due.ask()  # a pass fails
        else:
            async with one.kit.control.use():
                await one.kit.control.discard()
            async with one.kit.control.use() as connection:  # for any purpose but a claim
                await connection.execute("select 1")
        await until(lambda: not one.listener.listening.is_set())
        await db.until("select status = 'succeeded' from pgsched.runs where id = %s", run)
        assert one.listener.resyncs == resyncs
        proxy.thaw()
        await until(one.listener.listening.is_set, 20)


async def test_a_silent_connection_has_the_others_asked_at_once(settings, db, dsn):
    """After a failover all are silent together, and a claim would wait 15 s for the old server."""
    async with Proxy(dsn) as proxy, working(app(), settings.merged({"dsn": proxy.dsn}, "test"), **FAR) as one:
        for link in proxy.links:
            link.freeze()
        run = await db.value("select pgsched.enqueue('job')")
        one.kit.wakeups.resync.ask()  # its time has come
        await db.until("select status = 'succeeded' from pgsched.runs where id = %s", run, limit=10)


async def test_claims_are_reported_again_once_a_look_is_answered(settings, db, statuses):
    """While it cannot listen and nothing is due, no pass clears the report."""
    async with working(app(), settings, listen_dsn=REFUSED, **FAR) as one:
        await end_session(one.kit.control, db)
        await until(lambda: "no claims" in one.kit.outage.trouble())
        await until(lambda: "no claims" not in one.kit.outage.trouble())
        await db.until("select trouble not like '%%no claims%%' from pgsched.workers")
