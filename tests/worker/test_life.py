"""A cancelled worker drains, and a second cancellation ends it at once."""

import asyncio

import pytest
from support.workers import QUICK, until

from pgsched import Scheduler
from pgsched.worker.worker import Worker


@pytest.fixture
async def busy(settings, db):
    """A worker with a run that waits for a gate: its task, the worker and the gate."""
    sc, began, gate = Scheduler(), asyncio.Event(), asyncio.Event()

    @sc.entrypoint("job")
    async def job():
        began.set()
        await gate.wait()

    worker = Worker(sc, settings.merged(QUICK, "test"))
    task = asyncio.create_task(worker.run())
    await asyncio.wait_for(sc.ready.wait(), 20)
    await db.all("select pgsched.enqueue('job')")
    await asyncio.wait_for(began.wait(), 20)
    yield task, worker, gate
    gate.set()
    await asyncio.wait([task], timeout=20)


async def test_a_cancellation_drains_and_is_raised_after_that(busy, db):
    task, worker, gate = busy
    task.cancel()
    await until(lambda: worker.listener.draining)
    assert not task.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 20)
    assert await db.value("select status from pgsched.runs") == "succeeded"
    assert await db.value("select count(*) from pgsched.workers") == 0


async def test_a_timeout_around_it_is_a_cancellation(busy):
    task, worker, gate = busy

    async def limited():
        async with asyncio.timeout(0):
            await task

    with pytest.raises(TimeoutError):
        waiting = asyncio.create_task(limited())
        await until(lambda: worker.listener.draining)
        gate.set()
        await asyncio.wait_for(waiting, 20)
    assert task.cancelled()


async def test_a_second_cancellation_writes_nothing_more(busy, db):
    task, worker, gate = busy
    task.cancel()
    await until(lambda: worker.listener.draining)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 20)
    assert await db.value("select status from pgsched.runs") == "running", "left to the reaper of another worker"
    assert not gate.is_set() and worker.roster.running() == []
