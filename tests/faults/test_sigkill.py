"""A worker that died is told from one that only stands still."""

import signal


async def test_a_killed_workers_runs_go_on_elsewhere_long_before_the_stall_timeout(daemons, db):
    daemons.app("""
@sc.schedule("async-job", at(PAST))
async def async_job(run: Run):
    mark(run, "began")
    if run.attempt == 1:
        await asyncio.sleep(3600)

@sc.schedule("sync-job", at(PAST))
def sync_job(run: Run):
    mark(run, "began")
    if run.attempt == 1:
        time.sleep(3600)
""")
    defaults = {"heartbeat_interval": "1s", "stall_timeout": "30s"}
    first = await daemons.ready(**defaults)
    await db.until("select count(*) = 2 from pgsched.marks")
    other = await daemons.ready(**defaults)
    await first.kill()
    await db.until("select count(*) = 2 from pgsched.runs where status = 'succeeded'", limit=15)
    for attempt, errors in await db.all("select attempt, errors from pgsched.runs"):
        assert attempt == 2
        assert [e["type"] for e in errors] == ["WorkerLost"] and "is gone" in errors[0]["message"]
    assert await db.all("select attempt, pid, count(*) from pgsched.marks group by 1, 2 order by 1") == [
        (1, first.pid, 2), (2, other.pid, 2),
    ]  # fmt: skip


async def test_a_worker_that_stands_still_for_a_few_seconds_keeps_its_runs(daemons, db):
    daemons.app("""
async def job(run: Run):
    mark(run, "began")
    if run.attempt == 1:
        await opened("gate")

sc.entrypoint("quiet")(job)

@sc.entrypoint("dead")
async def dead(run: Run):
    await job(run)
""")
    defaults = {"heartbeat_interval": "200ms", "stall_timeout": "30s"}
    quiet = await daemons.ready(**defaults)
    await db.all("select pgsched.enqueue('quiet')")
    await db.until("select count(*) = 1 from pgsched.marks")
    quiet.send(signal.SIGSTOP)
    dead = await daemons.ready(**defaults)
    await db.all("select pgsched.enqueue('dead')")
    await db.until("select count(*) = 2 from pgsched.marks")
    other = await daemons.ready(**defaults)
    # Many beats are missing now; then a worker dies, and that one's run is taken by the same look that
    # must leave this one alone.
    await db.until(
        "select clock_timestamp() - heartbeat_at > interval '4 s' from pgsched.runs where entrypoint = 'quiet'"
    )
    await dead.kill()
    await db.until("select status = 'succeeded' and attempt = 2 from pgsched.runs where entrypoint = 'dead'", limit=15)
    assert other.events("run_reaped", entrypoint="dead") and not other.events("run_reaped", entrypoint="quiet")
    quiet.send(signal.SIGCONT)
    daemons.open("gate")
    await db.until("select status = 'succeeded' from pgsched.runs where entrypoint = 'quiet'")
    assert await db.one("select attempt, errors from pgsched.runs where entrypoint = 'quiet'") == (1, [])
    assert quiet.events("claim_lost") == []
