"""Notifications: sent only when something may be due earlier than was thought, and never missed."""

import asyncio
import socket
from datetime import timedelta

import psycopg
import pytest
from psycopg import sql
from support.workers import until, working

from pgsched import Retry, Scheduler, every
from pgsched.worker.listener import Listener


class Ear:
    """A listener of the test's own, that counts."""

    def __init__(self, connection):
        self.connection = connection
        self.count = 0
        connection.add_notify_handler(self._hear)

    def _hear(self, _):
        self.count += 1

    async def heard(self) -> int:
        """Notifications since the last time it was asked: a round trip brings all that were committed before."""
        await self.connection.execute("select 1")
        count, self.count = self.count, 0
        return count


@pytest.fixture
async def ear(dsn, schema):
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute(sql.SQL("listen {}").format(sql.Identifier(schema)))
        yield Ear(connection)


async def test_a_workers_own_doings_notify_nobody(settings, db, ear):
    sc = Scheduler()
    gate = asyncio.Event()

    @sc.schedule("tick", every(timedelta(seconds=1)))
    async def tick(): ...

    @sc.entrypoint("long")
    async def long():
        await gate.wait()

    async with working(sc, settings) as worker:
        await db.all("select pgsched.enqueue('long')")
        await db.until("select count(*) = 1 from pgsched.runs where status = 'running' and entrypoint = 'long'")
        await ear.heard()
        # Claims, advances, finishes and beats go by.
        await db.until("select count(*) >= 2 from pgsched.runs where status = 'succeeded'")
        await db.until(
            "select heartbeat_at > claimed_at + interval '300 ms' from pgsched.runs where entrypoint = 'long'"
        )
        gate.set()
        await until(lambda: not any(live.claimed.entrypoint == "long" for live in worker.roster.attempts.values()))
        assert await ear.heard() == 0


@pytest.mark.parametrize(
    ("statement", "count"),
    [
        ("select pgsched.create_schedule(n::text, 'x', '@daily') from generate_series(1, 99) n", 1),
        ("update pgsched.schedules set next_run = now() where name = 's'", 1),
        ("update pgsched.schedules set status = 'paused' where name = 's'", 1),
        ("update pgsched.schedules set name = name", 0),
        ("delete from pgsched.schedules where name = 's'", 1),
        ("select pgsched.enqueue('x') from generate_series(1, 99)", 1),
        ("select pgsched.trigger('s')", 1),
        ("update pgsched.runs set heartbeat_at = now()", 0),
        ("update pgsched.runs set status = 'succeeded', finished_at = now()", 0),
        ("select pgsched.cancel(id) from pgsched.runs", 1),
    ],
)  # fmt: skip
async def test_a_client_notifies_once_a_transaction(db, ear, statement, count):
    await db.all("select pgsched.create_schedule('s', 'x', '@daily')")
    await db.all(
        "insert into pgsched.runs (entrypoint, status, worker, claimed_at, heartbeat_at)"
        " values ('x', 'running', gen_random_uuid(), now(), now())"
    )
    await ear.heard()
    await db.all(statement)
    assert await ear.heard() == count


async def test_a_change_takes_effect_though_no_timer_could_help(settings, db):
    sc = Scheduler()

    @sc.entrypoint("job")
    async def job(): ...

    async with working(sc, settings, resync_interval="0") as worker:
        assert worker.dispatcher.next.at is None, "nothing to wake up for"
        await db.all("select pgsched.create_schedule('s', 'job', '@yearly')")
        await db.until("select next_run is not null from pgsched.schedules")
        await db.all("update pgsched.schedules set next_run = now()")
        await db.until("select count(*) = 1 from pgsched.runs where status = 'succeeded'")
        await db.all("select pgsched.pause('s')")
        await db.all("update pgsched.schedules set next_run = now()")
        await db.all("select pgsched.enqueue('job')")
        await db.until("select count(*) = 2 from pgsched.runs where status = 'succeeded'")
        assert await db.value("select count(*) from pgsched.runs where schedule_id is not null") == 1
        await db.all("update pgsched.schedules set status = 'active'")
        await db.until("select count(*) = 1 from pgsched.runs where reason = 'paused'")


async def test_a_pause_ends_by_itself(settings, db):
    sc = Scheduler()

    @sc.entrypoint("job")
    async def job(): ...

    async with working(sc, settings, resync_interval="0"):
        # In one transaction: between two, a second may begin, whose run is no sign that the pause has ended.
        await db.all(
            "select pgsched.create_schedule('s', 'job', '* * * * * *'),"
            " pgsched.pause('s', 'why', now() + interval '1 second')"
        )
        await db.until("select count(*) >= 1 from pgsched.runs where status = 'succeeded'")
        assert await db.one("select status, note from pgsched.schedules") == ("active", None)


async def test_notifications_are_heard_again_after_the_connection_was_lost(settings, db):
    sc = Scheduler()

    @sc.entrypoint("job")
    async def job(): ...

    async with working(sc, settings, resync_interval="0") as worker:
        for round_ in range(1, 4):
            name = f"pgsched {worker.kit.worker}"
            await db.all("select pg_terminate_backend(pid) from pg_stat_activity where application_name = %s", name)
            # At whichever moment of the reconnect this commits: it is notified, or seen by the look after LISTEN.
            await db.all("select pgsched.enqueue('job')")
            await db.until("select count(*) = %s from pgsched.runs where status = 'succeeded'", round_)


async def test_failed_attempts_wake_everybody_for_the_retry(settings, db, ear):
    sc = Scheduler()

    @sc.entrypoint("bad", retry=Retry(attempts=2, backoff=timedelta(hours=1)))
    async def bad():
        raise ValueError

    async with working(sc, settings):
        await db.all("select pgsched.enqueue('bad')")
        await db.until("select count(*) = 1 from pgsched.runs where status = 'queued' and attempt = 1")
        assert await ear.heard() == 2


async def test_a_connection_that_the_server_closes_takes_no_other_sockets_reader_with_it(settings, db, monkeypatch):
    """libpq closes the descriptor as it reads the end; the next socket that anybody opens gets its number."""
    sc = Scheduler()

    @sc.entrypoint("job")
    async def job(): ...

    loop = asyncio.get_running_loop()
    real, readers = Listener._read, []

    async def another(number):
        mine, its = socket.socketpair()
        mine.setblocking(False)
        with mine, its:
            same = mine.fileno() == number
            loop.call_later(0.1, its.send, b"hello")
            async with asyncio.timeout(5):
                return same, await loop.sock_recv(mine, 10)

    def read(self, descriptor, connection):
        task = loop.create_task(another(descriptor))  # which runs before the listener hears of it
        real(self, descriptor, connection)
        if self._gone is not None:
            readers.append(task)
        else:
            task.cancel()

    monkeypatch.setattr(Listener, "_read", read)
    async with working(sc, settings, resync_interval="0") as worker:
        pid = await db.until(
            "select max(pid) from pg_stat_activity where application_name = %s and query like 'listen %%'",
            f"pgsched {worker.kit.worker}",
        )
        await db.all("select pg_terminate_backend(%s)", pid)
        await until(lambda: readers)
        assert await readers[0] == (True, b"hello")
        await until(worker.listener.listening.is_set)
