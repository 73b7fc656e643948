"""So many runs, threads and other places a worker has, and no more are claimed than fit."""

import threading

from support.workers import working

from pgsched import Scheduler


async def test_threads_are_claimed_no_further_than_there_are(settings, db):
    sc = Scheduler()
    gate = threading.Event()

    @sc.entrypoint("slow")
    def slow():
        assert gate.wait(20)

    async with working(sc, settings, max_threads=2):
        await db.all("select pgsched.enqueue('slow') from generate_series(1, 5)")
        await db.until("select count(*) = 2 from pgsched.runs where status = 'running'")
        await db.all("select pgsched.enqueue('slow')")  # wakes the worker, which must not take more
        assert await db.value("select count(*) from pgsched.runs where status = 'running'") == 2
        gate.set()
        await db.until("select count(*) = 6 from pgsched.runs where status = 'succeeded'")


async def test_a_free_thread_is_used_at_once_beside_async_entrypoints(settings, db):
    sc = Scheduler()

    @sc.entrypoint("async")
    async def other(): ...

    @sc.entrypoint("sync")
    def sync(): ...

    async with working(sc, settings, max_threads=1) as worker:
        await db.all("select pgsched.enqueue('sync') from generate_series(1, 50)")
        await db.until("select count(*) = 50 from pgsched.runs where status = 'succeeded'", limit=8)
        assert worker.roster.threads_used == 0
