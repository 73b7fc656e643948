"""What ends the processes of runs when their worker is gone, and that a run goes on where it cannot be had."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest
from support.commands import Attempt, children_states
from support.workers import alive, until

from pgsched import Command, CommandFailed
from pgsched.executors.warden import Orphans


async def test_a_command_that_nobody_could_end_is_not_run(tmp_path, monkeypatch):
    """Where no warden can be started, or no thread: there is one sentence, and nothing is left, in no list either."""
    lonely = Orphans()
    monkeypatch.setattr("pgsched.executors.child.ORPHANS", lonely)
    monkeypatch.setattr(lonely, "_start", lambda: (_ for _ in ()).throw(BlockingIOError(11, "Too few processes")))
    with pytest.raises(CommandFailed, match="cannot be started: Too few processes"):
        await Attempt(["sleep", "1000"]).execute()
    assert not lonely.groups and "Z" not in children_states() and "sleep" not in children_states("comm")


async def test_an_end_is_noticed_though_its_warden_cannot_be_told(tmp_path, monkeypatch):
    mine = Orphans()
    monkeypatch.setattr("pgsched.executors.child.ORPHANS", mine)
    task = asyncio.create_task(
        Attempt(Command(f"until test -e {tmp_path}/gate; do sleep 0.02; done", shell=True)).execute()
    )
    await until(lambda: mine.groups)
    warden = mine.warden
    warden.kill()
    warden.wait()
    monkeypatch.setattr(mine, "_start", lambda: (_ for _ in ()).throw(BlockingIOError(11, "Too few processes")))
    (tmp_path / "gate").touch()
    async with asyncio.timeout(10):
        assert (await task)["exit_code"] == 0
    assert not mine.groups
    mine.close()


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="only where a process can be watched")
def test_a_fork_that_outlives_the_worker_does_not_keep_its_commands_alive():
    """As the processes of a multiprocessing pool do: they hold all that the worker held."""
    script = """
import os, signal, subprocess, sys, time
from pgsched.executors.warden import ORPHANS
child = subprocess.Popen(["sleep", "1000"], start_new_session=True, stdout=subprocess.DEVNULL)
ORPHANS.watch(child.pid)
fork = os.fork()
if not fork:
    os.close(1)
    time.sleep(1000)
print(fork, child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=False)
    fork, child = map(int, done.stdout.split())
    try:
        deadline = time.monotonic() + 20
        while alive(child):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert alive(fork)
    finally:
        os.kill(fork, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def test_a_second_warden_is_told_of_everything_when_the_first_is_ended():
    """Somebody may kill it; what is started after that must be looked after all the same, and what was there before."""
    script = """
import os, signal, subprocess, sys
from pgsched.executors.warden import ORPHANS
deaf = "trap '' TERM; echo ready; while :; do sleep 1; done"
children = [
    subprocess.Popen(["sh", "-c", deaf], start_new_session=True, stdout=subprocess.PIPE) for _ in range(2)
]
for child in children:
    child.stdout.readline()
ORPHANS.watch(children[0].pid)
ORPHANS.warden.kill(); ORPHANS.warden.wait()
ORPHANS.watch(children[1].pid)
print(*[child.pid for child in children], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    deadline = time.monotonic() + 20
    while any(alive(int(pid)) for pid in done.stdout.split()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
