"""A worker that dies takes its processes and commands with it, and their runs go on elsewhere."""

import signal

from daemons import until
from support.workers import alive

APP = """
sc.command("backup", 'echo "$$ $PGSCHED_ATTEMPT" >> command-pids; sleep 1000 & echo "$! $PGSCHED_ATTEMPT" '
           '>> command-pids; if [ "$PGSCHED_ATTEMPT" = 1 ]; then wait; else kill $!; fi', shell=True)

def crunch(run: Run) -> int:
    mark(run, "began")
    with (FOLDER / "process-pids").open("a") as file:
        file.write(f"{os.getpid()} {run.attempt}\\n")
    while run.attempt == 1:  # busy, and deaf
        sum(range(1000))
    return run.attempt

sc.entrypoint("crunch", executor=ProcessExecutor)(crunch)
"""


def pids(folder, attempt: int) -> list[int]:
    found = []
    for name in ("command-pids", "process-pids"):
        text = (folder / name).read_text() if (folder / name).exists() else ""
        found += [int(line.split()[0]) for line in text.splitlines() if line.split()[1] == str(attempt)]
    return found


async def began(daemons, db, **settings):
    """A daemon with a command and a process that go on, and the ids of all processes of these."""
    daemons.app(APP)
    first = await daemons.ready(**settings)
    await db.all("select pgsched.enqueue('backup'), pgsched.enqueue('crunch')")
    await until(lambda: len(pids(daemons.folder, 1)) == 3, "three processes")
    return first, pids(daemons.folder, 1)


async def test_a_killed_workers_children_are_gone_and_their_runs_go_on_elsewhere(daemons, db):
    first, children = await began(daemons, db)
    assert all(map(alive, children))
    await daemons.ready()
    await first.kill()
    await until(lambda: not any(map(alive, children)), "end of the children")
    await db.until("select count(*) = 2 from pgsched.runs where status = 'succeeded' and attempt = 2")
    assert len(pids(daemons.folder, 2)) == 3


async def test_a_drain_that_is_overdue_ends_them_and_gives_their_runs_back(daemons, db):
    first, children = await began(daemons, db, drain_timeout="500ms")
    first.send(signal.SIGTERM)
    await first.event("drain_started")
    assert all(map(alive, children))  # they have until drain_timeout
    assert await first.exit_code() == 75
    assert not any(map(alive, children))
    assert not first.events("run_left_behind") and not first.events("run_ignores_cancellation")
    assert await db.all("select status, attempt from pgsched.runs") == [("queued", 0)] * 2


async def test_a_second_signal_ends_them_too(daemons, db):
    first, children = await began(daemons, db)
    first.send(signal.SIGTERM)
    await first.event("drain_started")
    first.send(signal.SIGTERM)
    assert await first.exit_code() == 128 + signal.SIGTERM
    await until(lambda: not any(map(alive, children)), "end of the children")
