"""A worker that stood still and lost its claims writes nothing when it comes back."""

import signal

ALL = "select r::text from pgsched.runs r"


async def test_a_stopped_worker_that_goes_on_after_it_was_replaced_changes_nothing(daemons, db):
    daemons.app("""
@sc.schedule("job", at(PAST))
async def job(run: Run):
    mark(run, "began")
    if run.attempt == 1:
        try:
            await opened("gate")
        except asyncio.CancelledError:
            mark(run, "cancelled")
            raise
        mark(run, "ended")
    return run.attempt
""")
    zombie = await daemons.ready()
    await db.until("select count(*) = 1 from pgsched.marks")
    other = await daemons.ready()
    zombie.send(signal.SIGSTOP)
    await db.until("select status = 'succeeded' from pgsched.runs")
    status, attempt, result, errors = await db.one("select status, attempt, result, errors from pgsched.runs")
    assert (status, attempt, result) == ("succeeded", 2, 2)
    assert [(e["attempt"], e["type"]) for e in errors] == [(1, "WorkerLost")]
    assert other.events("run_reaped", attempt=1)
    before = await db.value(ALL)

    zombie.send(signal.SIGCONT)
    await zombie.event("claim_lost", attempt=1)
    await db.until("select exists (select from pgsched.marks where what = 'cancelled')")
    assert await zombie.stop() == 0
    assert await db.value(ALL) == before
    assert await db.all("select what, attempt, pid from pgsched.marks order by id") == [
        ("began", 1, zombie.pid), ("began", 2, other.pid), ("cancelled", 1, zombie.pid),
    ]  # fmt: skip


async def test_an_outcome_that_comes_after_the_claim_was_taken_is_not_recorded(daemons, db):
    """The function has ended before anybody could cancel it: its finish itself must be refused."""
    daemons.app("""
@sc.entrypoint("job")
async def job(run: Run):
    mark(run, "began")
    if run.attempt == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
        return "late"
    return "in time"
""")
    zombie = await daemons.ready()
    await db.all("select pgsched.enqueue('job')")
    await db.until("select count(*) = 1 from pgsched.marks")
    await daemons.ready()
    await db.until("select status = 'succeeded' from pgsched.runs")
    before = await db.value(ALL)
    zombie.send(signal.SIGCONT)
    await zombie.event("claim_lost", attempt=1)
    assert await zombie.stop() == 0
    assert await db.value(ALL) == before
    assert await db.one("select attempt, result from pgsched.runs") == (2, "in time")
