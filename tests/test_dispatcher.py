"""The claim pass, and who else may be there at each of its statements."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from pgsched import Scheduler
from pgsched.dispatcher import Dispatcher
from pgsched.finisher import Finisher
from pgsched.machine import Machine
from pgsched.runner import Runner
from pgsched.store import Store, in_schema

DUE = (
    "insert into pgsched.schedules (name, entrypoint, expression, next_run)"
    " select 'd' || n, 'job', '@yearly', now() - interval '1 second' from generate_series(1, %s) n"
)


class Parts:
    """A dispatcher whose passes a test calls, and whose claims nobody starts."""

    def __init__(self, settings, **changes):
        scheduler = Scheduler()

        @scheduler.entrypoint("job")
        async def job(): ...

        self.machine = Machine.build(scheduler, settings.merged(changes, "test"))
        self.runner = Runner(self.machine, Finisher(self.machine), ThreadPoolExecutor(1))
        self.taken = []
        self.runner.take = lambda runs: self.taken.extend(runs)
        self.dispatcher = Dispatcher(self.machine, self.runner)
        self.dispatcher.listening = True

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.machine.control.discard()
        await self.machine.writes.discard()


STATEMENTS = ["resume_paused", "lock_due_schedules", "count_live_runs", "write_plans", "claim_due_runs", "read_outlook"]


@pytest.mark.parametrize("statement", STATEMENTS)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_pass_that_dies_at_any_statement_neither_loses_nor_doubles(settings, db, monkeypatch, statement, when):
    await db.all(DUE, 1)
    await db.all("select pgsched.enqueue('job')")
    state = (
        "select (select array_agg((id, next_run, last_run)) from pgsched.schedules)::text,"
        " (select array_agg((id, status, attempt)) from pgsched.runs)::text"
    )
    before = await db.one(state)
    real = getattr(Store, statement)

    async def dies(self, connection, *args, **kwargs):
        if when == "after":
            await real(self, connection, *args, **kwargs)
        connection.pgconn.finish()  # as if the network, or this process, were gone
        raise psycopg.OperationalError("gone")

    async with Parts(settings) as parts:
        with monkeypatch.context() as patch:
            patch.setattr(Store, statement, dies)
            with pytest.raises(psycopg.OperationalError):
                await parts.dispatcher.claim_pass()
        assert parts.taken == []
        await db.until(
            "select not exists (select from pg_stat_activity where application_name = %s and state <> 'idle')",
            f"pgsched {parts.machine.worker}",
        )
        assert await db.one(state) == before
        assert await parts.dispatcher.claim_pass() == 2
        assert await parts.dispatcher.claim_pass() == 0
    assert await db.value("select count(*) from pgsched.runs") == 2


async def test_a_schedule_locked_by_another_worker_is_passed_over_and_not_forgotten(settings, db, dsn):
    await db.all(DUE, 2)
    async with Parts(settings) as parts, await psycopg.AsyncConnection.connect(dsn) as other:
        lock = "select from pgsched.schedules where name = 'd1' for update"
        await other.execute(in_schema(lock.encode(), settings.schema, parametrised=False))
        assert await parts.dispatcher.claim_pass() == 1, "the free one is taken without waiting for the other"
        assert parts.dispatcher._next is not None, "it looks again, since nobody would tell if the other died"
        await other.rollback()
        assert await parts.dispatcher.claim_pass() == 1
    assert len({run.schedule_id for run in parts.taken}) == 2


async def test_a_run_that_another_worker_committed_after_the_lock_statements_snapshot_is_counted(
    settings, db, monkeypatch
):
    await db.all(DUE, 1)
    real = Store.lock_due_schedules

    async def overtaken(self, connection, *args):
        locked = await real(self, connection, *args)
        await db.all(
            "insert into pgsched.runs (schedule_id, entrypoint, fire_time, status, heartbeat_at)"
            " select id, 'job', now() - interval '1 day', 'running', now() from pgsched.schedules"
        )
        return locked

    monkeypatch.setattr(Store, "lock_due_schedules", overtaken)
    async with Parts(settings) as parts:
        assert await parts.dispatcher.claim_pass() == 0
    assert await db.value("select reason from pgsched.runs where status = 'skipped'") == "overlap"


async def test_ten_workers_at_once_claim_each_fire_time_once(settings, db):
    await db.all(DUE, 200)
    workers = [Parts(settings, max_running=30) for _ in range(10)]

    async def drain(parts):
        while await parts.dispatcher.claim_pass():
            await asyncio.sleep(0)

    await asyncio.gather(*(drain(parts) for parts in workers))
    for parts in workers:
        await parts.__aexit__()
    claimed = [run.schedule_id for parts in workers for run in parts.taken]
    assert len(claimed) == len(set(claimed)) == 200
    assert await db.value("select count(*) from pgsched.runs") == 200


async def test_a_fire_time_that_has_its_run_gets_no_second_one(settings, db):
    await db.all(DUE, 1)
    async with Parts(settings) as parts:
        assert await parts.dispatcher.claim_pass() == 1
        fire_time = parts.taken[0].fire_time
        await db.all("update pgsched.runs set status = 'succeeded', finished_at = now()")
        await db.all("update pgsched.schedules set next_run = %s", fire_time)
        assert await parts.dispatcher.claim_pass() == 0
        assert await db.value("select next_run > now() from pgsched.schedules"), "and it goes on all the same"
    assert await db.value("select count(*) from pgsched.runs") == 1


async def test_at_most_the_free_slots_are_claimed(settings, db):
    await db.all(DUE, 10)
    await db.all("select pgsched.enqueue('job') from generate_series(1, 10)")
    async with Parts(settings, max_running=4) as parts:
        parts.runner.slots_used = 1
        assert await parts.dispatcher.claim_pass() == 3
        parts.runner.slots_used = 4
        assert await parts.dispatcher.claim_pass() == 0
        left = parts.dispatcher._next - asyncio.get_running_loop().time()
        assert left > 60, "with no slot free it waits for one, and does not look at what is due meanwhile"


async def test_priority_then_age(settings, db):
    for priority, entrypoint in ((0, "job"), (5, "job"), (-5, "job"), (5, "unknown")):
        await db.all("select pgsched.enqueue(%s, priority => %s)", entrypoint, priority)
    await db.all("select pgsched.enqueue('job', due_at => now() - interval '1 hour')")
    await db.all("select pgsched.enqueue('job', due_at => now() + interval '1 hour', priority => 9)")
    async with Parts(settings, max_running=1) as parts:
        order = []
        for _ in range(4):
            await parts.dispatcher.claim_pass()
            order.append(parts.taken[-1].id)
        assert order == [2, 5, 1, 3]
        assert await parts.dispatcher.claim_pass() == 0
        left = parts.dispatcher._next - asyncio.get_running_loop().time()
        assert 3500 < left < 3600, "it wakes for the one that is due in an hour"


async def test_a_wake_up_while_looking_is_not_lost(settings, db):
    async with Parts(settings) as parts:
        real = parts.dispatcher.claim_pass
        passes = 0

        async def counted():
            nonlocal passes
            passes += 1
            if passes == 1:
                parts.dispatcher.wake()  # as a notification that arrives in the middle of a pass
            else:
                parts.dispatcher.stop()
            return await real()

        parts.dispatcher.claim_pass = counted
        parts.dispatcher.wake()
        async with asyncio.timeout(10):
            await parts.dispatcher.run()
        assert passes == 2


async def test_nothing_in_the_table_stops_the_others(settings, db):
    await db.all(DUE, 1)
    for name, expression, zone in (
        ("broken", "61 * * * *", "UTC"), ("never", "0 0 30 2 *", "UTC"), ("zone", "* * * * *", "Mars/Base"),
        ("path", "* * * * *", "../../etc/passwd"), ("nul", "@every -1s", "UTC"), ("long", "*" * 900, "UTC"),
    ):  # fmt: skip
        await db.all("select pgsched.create_schedule(%s, 'job', %s, timezone => %s)", name, expression, zone)
    await db.all(
        "insert into pgsched.schedules (name, entrypoint, expression, overlap) values ('q', 'job', '@daily', 'queue')"
    )
    async with Parts(settings) as parts:
        assert await parts.dispatcher.claim_pass() == 1
        invalid = dict(await db.all("select name, note from pgsched.schedules where status = 'invalid'"))
        assert set(invalid) == {"broken", "never", "zone", "path", "nul", "long", "q"}
        assert all(invalid.values())
        # Mended by plain SQL, it is planned again.
        await db.all("update pgsched.schedules set expression = '@daily' where name = 'broken'")
        await parts.dispatcher.claim_pass()
    assert await db.one("select status, note, next_run > now() from pgsched.schedules where name = 'broken'") == (
        "active", None, True,
    )  # fmt: skip
