"""`pgsched runs cancel` reaches a run on another machine over NOTIFY; one that does not listen holds nobody up."""

import os
import signal
import subprocess
import sys

import pytest

BEGAN = "select count(*) = 1 from pgsched.marks where what = 'began'"
# With such beats only the notification can bring the request.
FAR = {"heartbeat_interval": "30s", "stall_timeout": "1h", "resync_interval": "0"}


def cancel(daemons, run_id: int) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PGSCHED_")}
    command = [sys.executable, "-m", "pgsched", "runs", "cancel", str(run_id), "--dsn", daemons.dsn]
    done = subprocess.run(
        [*command, "--schema", daemons.schema], cwd=daemons.folder, env=environment, capture_output=True, text=True,
        timeout=60, check=True,
    )  # fmt: skip
    return done.stdout


@pytest.mark.parametrize(
    "function",
    [
        """
async def job(run: Run):
    mark(run, "began")
    try:
        await asyncio.sleep(3600)
    finally:
        mark(run, "stopped")
""",
        """
def job(run: Run):
    mark(run, "began")
    while not run.cancelled:
        time.sleep(0.01)
    mark(run, "stopped")
""",
    ],
    ids=["coroutine", "thread"],
)
async def test_a_cancellation_does_not_wait_for_the_beat(daemons, db, function):
    daemons.app(f'@sc.entrypoint("job"){function}')
    daemon = await daemons.ready(**FAR, cancel_timeout="1h")
    run_id = await db.value("select pgsched.enqueue('job')")
    await db.until(BEGAN)
    assert cancel(daemons, run_id) == f"{run_id} requested\n"
    await db.until("select status = 'cancelled' from pgsched.runs", limit=15)
    assert await db.one("select reason, errors from pgsched.runs") == ("cancelled on request", [])
    assert await db.all("select what, pid from pgsched.marks order by id") == [
        ("began", daemon.pid), ("stopped", daemon.pid),
    ]  # fmt: skip
    assert await daemon.stop() == 0


async def test_a_run_that_does_not_listen_is_reported_and_ends_with_the_drain(daemons, db):
    daemons.app("""
@sc.entrypoint("job")
async def job(run: Run):
    mark(run, "began")
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
""")
    daemon = await daemons.ready(**FAR, drain_timeout="300ms")
    run_id = await db.value("select pgsched.enqueue('job')")
    await db.until(BEGAN)
    cancel(daemons, run_id)
    await daemon.event("run_ignores_cancellation", run=run_id, entrypoint="job", times=1)
    daemon.send(signal.SIGTERM)
    assert await daemon.exit_code() == 75
    assert daemon.events("run_left_behind", run=run_id)
    # It was to be cancelled, so it is not given back to run somewhere else.
    status, reason, attempt = await db.one("select status, reason, attempt from pgsched.runs")
    assert (status, attempt) == ("cancelled", 1)
    assert reason.startswith("cancelled on request, having swallowed its cancellation ")


async def test_a_hook_that_does_not_listen_does_not_hold_up_a_drain(daemons, db):
    daemons.app("""
@sc.after_run
async def stubborn(run, end):
    mark(run, "after")
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)

@sc.after_run
def blocks(run, end):
    time.sleep(3600)

@sc.entrypoint("job")
async def job(run: Run): ...
""")
    daemon = await daemons.ready(hook_timeout="300ms")
    await db.value("select pgsched.enqueue('job')")
    await db.until("select count(*) = 1 from pgsched.marks")
    assert await daemon.stop() == 0
    assert daemon.events("drain_finished", given_back=0)
    assert await db.value("select status from pgsched.runs") == "succeeded"
