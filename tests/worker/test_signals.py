"""Signals: an owner takes them and puts the old handlers back, a guest takes only those that nobody handles."""

import asyncio
import os
import signal
import threading

import pytest
from support.workers import QUICK, until

from pgsched import Scheduler
from pgsched.worker.signals import SIGNALS
from pgsched.worker.worker import Worker

TERM = signal.SIGTERM


@pytest.fixture
def mine():
    """A handler of the host's for SIGTERM, and what it has received."""
    received = []
    before = signal.signal(TERM, lambda number, frame: received.append(number))
    yield received
    signal.signal(TERM, before)


@pytest.mark.parametrize("owner", [True, False])
async def test_a_worker_leaves_the_handlers_as_they_were(settings, mine, owner):
    handler, hangup = signal.getsignal(TERM), signal.getsignal(signal.SIGHUP)
    sc = Scheduler()
    worker = Worker(sc, settings.merged(QUICK, "test"), owns_process=owner)
    task = asyncio.create_task(worker.run())
    await asyncio.wait_for(sc.ready.wait(), 20)
    assert (signal.getsignal(TERM) is handler) is not owner
    os.kill(os.getpid(), TERM)
    if owner:
        await asyncio.wait_for(task, 20)
        assert mine == []
    else:
        await until(lambda: mine == [TERM])
        assert not task.done() and not worker.stopping.is_set()
        worker.stop()
        await asyncio.wait_for(task, 20)
    assert signal.getsignal(TERM) is handler and signal.getsignal(signal.SIGHUP) is hangup


async def test_a_handler_that_replaces_ours_stays():
    before = signal.getsignal(TERM)
    try:
        with SIGNALS.heard(lambda number, again: None, owner=True):
            theirs = signal.signal(TERM, lambda number, frame: None) and signal.getsignal(TERM)
        assert signal.getsignal(TERM) is theirs
    finally:
        signal.signal(TERM, before)


async def test_a_guest_in_another_thread_hears_what_the_main_threads_guest_has_taken():
    heard, inside, leave = [], threading.Event(), asyncio.Event()

    async def elsewhere():
        with SIGNALS.heard(lambda number, again: (heard.append("there"), leave.set()), owner=False):
            inside.set()
            await asyncio.wait_for(leave.wait(), 20)

    thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
    with SIGNALS.heard(lambda number, again: heard.append("here"), owner=False):
        thread.start()
        assert await asyncio.to_thread(inside.wait, 10)
        os.kill(os.getpid(), TERM)
        await until(lambda: len(heard) == 2)
        assert signal.getsignal(TERM) is signal.SIG_DFL, "a second one would end the process"
        SIGNALS.forgive()
    await asyncio.to_thread(thread.join, 10)
    assert sorted(heard) == ["here", "there"]
