"""A stop is never lost and never leaves anything behind, at whatever moment it comes."""

import asyncio
import random
import signal

import pytest

ROUNDS = 10


@pytest.mark.slow
async def test_start_and_stop_at_random_moments(daemons, db):
    daemons.app("""
@sc.schedule("quick", "* * * * * *", overlap="allow")
async def quick(run: Run):
    await asyncio.sleep(random.uniform(0, 0.2))

@sc.schedule("sync", "* * * * * *")
def sync(run: Run):
    time.sleep(random.uniform(0, 0.2))
""")
    dice = random.Random(20261123)
    codes = []
    for _ in range(ROUNDS):
        daemon = daemons.start()
        # Half of the moments lie in the start itself, from the instant at which the worker's row appears.
        known = "select exists (select from pgsched.workers where pid = %s)"
        if dice.random() < 0.5:
            await db.until(known, daemon.pid)
            await asyncio.sleep(dice.uniform(0, 0.1))
        else:
            await daemon.event("worker_ready")
            await asyncio.sleep(dice.uniform(0, 0.5))
        codes.append(await daemon.stop(dice.choice([signal.SIGTERM, signal.SIGINT])))
        assert await db.value("select count(*) from pgsched.workers") == 0, daemon.tail()
        assert await db.value("select count(*) from pgsched.runs where status = 'running'") == 0, daemon.tail()
    assert set(codes) == {0}, codes
    # And each fire time is still accounted for.
    await daemons.ready()
    await db.until("select count(*) = 0 from pgsched.runs where status = 'queued' and due_at < clock_timestamp()")
    assert await db.value("select count(*) from pgsched.runs where attempt > 1 or status = 'failed'") == 0
    for made, spanned in await db.all("""
        select sum(coalesce(skipped_count, 1)), extract(epoch from max(coalesce(skipped_through, fire_time))
                                                        - min(fire_time)) + 1
        from pgsched.runs group by schedule_id
    """):
        assert made == spanned


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_that_comes_in_the_middle_of_the_start_is_a_stop_too(daemons, db, dsn, number):
    daemons.app("@sc.schedule('job', '@hourly')\nasync def job(): ...\n")
    # The start waits for this lock, in the middle of what it has to do.
    await db.all("begin")
    await db.all("lock table pgsched.schedules in access exclusive mode")
    daemon = daemons.start()
    await db.until("select count(*) = 1 from pgsched.workers")
    await db.until("select exists (select from pg_locks where not granted)")
    daemon.send(number)
    await asyncio.sleep(0.1)  # that it waits for the lock must not be needed, but is allowed
    await db.all("rollback")
    assert await daemon.exit_code() == 0
    assert await db.value("select count(*) from pgsched.workers") == 0
