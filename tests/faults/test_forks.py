"""A child that a job makes never holds what is the worker's: its sockets, its signals, its warden's pipe."""

import signal

import pytest
from daemons import until
from support.workers import alive

SESSIONS = "select count(*) from pg_stat_activity where strpos(application_name, %s) > 0"
APP = """
import multiprocessing, subprocess
fork = multiprocessing.get_context("fork")

def child(run):
    note(run, "child")
    for _ in range(3000):  # outlives the worker
        if (FOLDER / "gate").exists():
            break
        time.sleep(0.02)

@sc.entrypoint("thread")
def in_thread(run: Run):
    if run.attempt > 1:
        return
    with run.transaction() as connection:  # its session is kept for later runs
        connection.execute("select 1")
        if not os.fork():
            try:
                child(run)
            finally:
                os._exit(0)
        while not (FOLDER / "gate").exists():
            time.sleep(0.02)

@sc.entrypoint("loop")
async def in_loop(run: Run):
    if run.attempt > 1:
        return
    async with run.transaction() as connection:
        await connection.execute("select 1")
        fork.Process(target=child, args=(run,)).start()
        await opened("gate")

@sc.entrypoint("multiprocessing")
def processes(run: Run):
    with fork.Pool(2) as pool:  # its end terminates the processes
        found = pool.map(abs, [-1, -2])
    one = fork.Process(target=time.sleep, args=(60,))
    one.start()
    one.terminate()
    one.join(20)
    return found + [one.exitcode]

LIST = '''
import os
for number in sorted(map(int, os.listdir("/proc/self/fd"))):
    if number > 2 and os.path.lexists(f"/proc/self/fd/{number}"):
        print(number, os.readlink(f"/proc/self/fd/{number}"))
'''

@sc.entrypoint("program")
def program():
    listing = [sys.executable, "-S", "-c", LIST]
    return subprocess.run(listing, close_fds=False, capture_output=True, text=True, check=True).stdout

sc.command("held", "sleep 1000", shell=True)
"""


@pytest.mark.parametrize("job", ["thread", "loop"])
async def test_a_fork_that_outlives_the_worker_does_not_keep_it_alive(daemons, db, job):
    daemons.app(APP)
    first = await daemons.ready()
    worker = await first.worker_id()
    await db.all("select pgsched.enqueue(%s)", job)
    [noted] = await until(lambda: daemons.notes("child"), "child")
    child = noted["pid"]
    assert await db.value(SESSIONS, worker) >= 3
    await daemons.ready()
    await first.kill()
    await db.until(SESSIONS.replace("count(*)", "count(*) = 0"), worker)
    await db.until("select status = 'succeeded' and attempt = 2 from pgsched.runs")
    assert alive(child)
    daemons.open("gate")
    await until(lambda: not alive(child), "end of the child")


async def test_children_end_by_their_signals_and_with_no_word_to_the_server(daemons, db):
    daemons.app(APP)
    daemon = await daemons.ready()
    pids = SESSIONS.replace("count(*)", "array_agg(pid order by pid)")
    own = f"pgsched {await daemon.worker_id()}"
    await db.all("select pgsched.enqueue('held')")
    await db.until(SESSIONS.replace("count(*)", "count(*) = 3"), own)  # the third one beats
    before = await db.value(pids, own)
    await db.all("select pgsched.enqueue('multiprocessing')")
    result = await db.until("select result from pgsched.runs where status = 'succeeded'")
    assert result == [1, 2, -signal.SIGTERM]
    assert await db.value(pids, own) == before
    assert not daemon.events("signal_received") and not daemon.events("database_lost")
    assert await db.value("select status from pgsched.runs where entrypoint = 'held'") == "running"


async def test_a_program_gets_nothing_even_if_its_job_closes_nothing(daemons, db):
    daemons.app(APP)
    await daemons.ready()
    await db.all("select pgsched.enqueue('held'), pgsched.enqueue('thread')")
    daemons.open("gate")
    await db.until("select status = 'succeeded' from pgsched.runs where entrypoint = 'thread'")
    await db.all("select pgsched.enqueue('program')")
    await db.until("select status = 'succeeded' from pgsched.runs where entrypoint = 'program'")
    listed = await db.value("select result from pgsched.runs where entrypoint = 'program'")
    assert "socket" not in listed and "pipe" not in listed and "event" not in listed, listed
