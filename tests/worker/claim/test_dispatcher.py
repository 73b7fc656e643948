"""The claim pass, and who else may be there at each of its statements."""

import asyncio
import time
from datetime import timedelta
from types import SimpleNamespace

import psycopg
import pytest
from support.workers import Parts, until

from pgsched import Limits, Scheduler
from pgsched.db.statements import claims as stores
from pgsched.db.statements.statements import in_schema
from pgsched.db.statements.store import Store
from pgsched.worker.claim import dispatcher as dispatcher_module
from pgsched.worker.claim import limiter

DUE = (
    "insert into pgsched.schedules (name, entrypoint, expression, next_run)"
    " select 'd' || n, 'job', '@yearly', now() - interval '1 second' from generate_series(1, %s) n"
)


WAITING = (
    "with far as (insert into pgsched.schedules (name, entrypoint, expression, next_run)"
    " values ('far', 'job', '@yearly', '2099-01-01Z') returning id)"
    " insert into pgsched.runs (schedule_id, entrypoint, fire_time, origin, gated)"
    " select id, 'job', now(), 'trigger', true from far"
)
STATEMENTS = [
    "read_clock", "lock_due_schedules", "count_live_runs", "write_plans", "claim_gated_runs", "claim_due_runs",
]  # fmt: skip


@pytest.mark.parametrize("statement", STATEMENTS)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_pass_that_dies_at_any_statement_neither_loses_nor_doubles(settings, db, monkeypatch, statement, when):
    await db.all(DUE, 1)
    await db.all(WAITING)
    await db.all("select pgsched.enqueue('job')")
    state = (
        "select (select array_agg((id, next_run, last_run)) from pgsched.schedules)::text,"
        " (select array_agg((id, status, attempt)) from pgsched.runs)::text"
    )
    before = await db.one(state)
    real = getattr(Store, statement)

    async def dies(self, connection, *args, **kwargs):
        if kwargs.get("alone"):
            return await real(self, connection, *args, **kwargs)
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
            f"pgsched {parts.kit.worker}",
        )
        assert await db.one(state) == before
        assert await parts.dispatcher.claim_pass() == 3
        assert await parts.dispatcher.claim_pass() == 0
    assert await db.value("select count(*) from pgsched.runs") == 3


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_claim_in_one_statement_whose_answer_is_lost_starts_nothing_and_doubles_nothing(
    settings, db, monkeypatch, when
):
    await db.all("select pgsched.enqueue('job')")
    real = Store.claim_due_runs

    async def dies(self, connection, *args, **kwargs):
        if when == "after":
            await real(self, connection, *args, **kwargs)
        connection.pgconn.finish()
        raise psycopg.OperationalError("gone")

    async with Parts(settings) as parts:
        with monkeypatch.context() as patch:
            patch.setattr(Store, "claim_due_runs", dies)
            with pytest.raises(psycopg.OperationalError):
                await parts.dispatcher.claim_pass()
        assert parts.taken == []
        assert await parts.dispatcher.claim_pass() == (1 if when == "before" else 0), "it is the reaper's by then"
    assert await db.value("select attempt from pgsched.runs where status = 'running'") == 1


@pytest.mark.parametrize("other", ["fire time", "waiting run", "run in line", "nothing"])
async def test_what_is_due_beside_queued_runs_goes_first_and_these_alone_take_one_statement(
    settings, db, monkeypatch, other
):
    scheduler = Scheduler(app="app")
    for name in ("job", "limited"):
        scheduler.entrypoint(name)(nothing)
    await db.all("select pgsched.enqueue('job', priority => -1) from generate_series(1, 60)")
    if other == "fire time":
        await db.all(DUE, 1)
    elif other == "waiting run":
        await db.all(WAITING)
    elif other == "run in line":
        await db.all(
            "insert into pgsched.limits (gate, app, entrypoint, owner, concurrency)"
            " values ('[\"app\", \"limited\"]', 'app', 'limited', 'code:app', 1)"
        )
        await db.all("insert into pgsched.limit_members values ('limited', 'app', '[\"app\", \"limited\"]', true)")
        await db.all("select pgsched.enqueue('limited')")
    blocks = []
    real = psycopg.AsyncConnection.transaction
    monkeypatch.setattr(psycopg.AsyncConnection, "transaction", lambda c: blocks.append(c) or real(c))
    async with Parts(settings, scheduler, max_running=60) as parts:
        assert await parts.dispatcher.claim_pass() == 60
    others = [run for run in parts.taken if run.schedule_id is not None or run.entrypoint == "limited"]
    assert len(others) == len(blocks) == (other != "nothing")


async def nothing() -> None: ...


async def test_a_pass_that_follows_at_once_goes_by_priority_and_looks_ahead_now_and_then(settings, db, monkeypatch):
    monkeypatch.setattr(dispatcher_module, "MOST", 100)
    looks = []
    real = Store.read_outlook

    async def seen(*args, **kwargs):
        looks.append(len(parts.taken))
        return await real(*args, **kwargs)

    monkeypatch.setattr(Store, "read_outlook", seen)
    async with Parts(settings) as parts:
        await parts.dispatcher.claim_pass()
        parts.dispatcher._looked += 3600  # however slow this machine is
        await db.all("select pgsched.enqueue('job') from generate_series(1, 500)")
        await parts.dispatcher.claim_pass()
        await parts.dispatcher.claim_pass()
        assert looks == [0] and parts.dispatcher.next.at <= time.monotonic(), "the next one comes at once"
        await db.all(DUE, 100)
        await db.all("select pgsched.enqueue('job', priority => 5) from generate_series(1, 50)")
        await parts.dispatcher.claim_pass()
        assert sum(run.schedule_id is None for run in parts.taken[200:300]) == 50, "the urgent ones first"
        parts.dispatcher._looked -= 7200
        await parts.dispatcher.claim_pass()
        assert looks == [0, 400], "not without a look for long"


@pytest.mark.parametrize("when", ["before", "after"])
async def test_what_is_committed_is_started_though_the_look_at_what_is_next_dies(settings, db, monkeypatch, when):
    await db.all(DUE, 1)
    await db.all("select pgsched.enqueue('job')")
    real = Store.read_outlook

    async def dies(self, connection, *args, **kwargs):
        assert len(parts.taken) == 2, "it need not wait for that look"
        if when == "after":
            await real(self, connection, *args, **kwargs)
        connection.pgconn.finish()
        raise psycopg.OperationalError("gone")

    async with Parts(settings) as parts:
        with monkeypatch.context() as patch:
            patch.setattr(Store, "read_outlook", dies)
            with pytest.raises(psycopg.OperationalError):
                await parts.dispatcher.claim_pass()
        assert await parts.dispatcher.claim_pass() == 0
    assert len(parts.taken) == 2
    assert await db.value("select count(*) from pgsched.runs where status = 'running' and attempt = 1") == 2


async def test_a_schedule_locked_by_another_worker_is_passed_over_and_not_forgotten(settings, db, dsn):
    await db.all(DUE, 2)
    async with Parts(settings) as parts, await psycopg.AsyncConnection.connect(dsn) as other:
        lock = "select from pgsched.schedules where name = 'd1' for update"
        await other.execute(in_schema(lock.encode(), settings.schema, parametrised=False))
        assert await parts.dispatcher.claim_pass() == 1, "the free one is taken without waiting for the other"
        assert parts.dispatcher.next.at is not None, "it looks again, since nobody would tell if the other died"
        await other.rollback()
        assert await parts.dispatcher.claim_pass() == 1
    assert len({run.schedule_id for run in parts.taken}) == 2


async def test_a_run_that_another_worker_committed_after_the_lock_statements_snapshot_is_counted(
    settings, db, monkeypatch
):
    await db.all(DUE, 1)
    real = Store.lock_due_schedules

    async def overtaken(self, connection, *args, **kwargs):
        locked = await real(self, connection, *args, **kwargs)
        await db.all(
            "insert into pgsched.runs (schedule_id, entrypoint, fire_time, status, worker, claimed_at, heartbeat_at)"
            " select id, 'job', now() - interval '1 day', 'running', gen_random_uuid(), now(), now()"
            " from pgsched.schedules"
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
        parts.roster.slots_used = 1
        assert await parts.dispatcher.claim_pass() == 3
        parts.roster.slots_used = 4
        assert await parts.dispatcher.claim_pass() == 0
        left = parts.dispatcher.next.at - asyncio.get_running_loop().time()
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
        left = parts.dispatcher.next.at - asyncio.get_running_loop().time()
        assert 3500 < left < 3600, "it wakes for the one that is due in an hour"


async def test_a_wake_up_while_looking_is_not_lost(settings, db):
    async with Parts(settings) as parts:
        real = parts.dispatcher.claim_pass
        passes = 0

        async def counted():
            nonlocal passes
            passes += 1
            if passes == 1:
                parts.kit.wakeups.due.ask()  # as a notification that arrives in the middle of a pass
            else:
                parts.dispatcher.stop()
            return await real()

        parts.dispatcher.claim_pass = counted
        parts.kit.wakeups.due.ask()
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
    async with Parts(settings) as parts:
        assert await parts.dispatcher.claim_pass() == 1
        invalid = dict(await db.all("select name, note from pgsched.schedules where status = 'invalid'"))
        assert set(invalid) == {"broken", "never", "zone", "path", "nul", "long"}
        assert all(invalid.values())
        # Mended by plain SQL, it is planned again.
        await db.all("update pgsched.schedules set expression = '@daily' where name = 'broken'")
        await parts.dispatcher.claim_pass()
    assert await db.one("select status, note, next_run > now() from pgsched.schedules where name = 'broken'") == (
        "active", None, True,
    )  # fmt: skip


async def test_a_run_that_ends_while_a_pass_is_under_way_is_looked_at_again(settings, db, monkeypatch):
    # The pass saw it live and leaves its schedule for the instant; the end comes before it has said so.
    await db.all(
        "insert into pgsched.schedules (name, entrypoint, expression, next_run)"
        " values ('d', 'job', '@yearly', now() + interval '5 seconds')"
    )
    await db.all(
        "insert into pgsched.runs (schedule_id, entrypoint, fire_time, status, worker, claimed_at, heartbeat_at)"
        " select id, 'job', now(), 'running', gen_random_uuid(), now(), now() from pgsched.schedules"
    )
    real = Store.read_outlook

    async def overtaken(self, connection, *args, **kwargs):
        outlook = await real(self, connection, *args, **kwargs)
        if not passes:
            passes.append(1)
            await db.all("update pgsched.runs set status = 'succeeded', finished_at = now()")
            parts.roster.changed(ended)
        else:
            parts.dispatcher.stop()
        return outlook

    passes: list[int] = []
    monkeypatch.setattr(Store, "read_outlook", overtaken)
    async with Parts(settings, lookahead="10s") as parts:
        ended = SimpleNamespace(claimed=SimpleNamespace(entrypoint="job", schedule_id=1))
        parts.kit.wakeups.due.ask()
        async with asyncio.timeout(4):
            await parts.dispatcher.run()
        assert [run.schedule_id for run in parts.taken] == [1], "claimed ahead, seconds before it is due"


async def test_a_resync_moves_the_alarm_and_asks_nothing_more(settings, db):
    await db.all(
        "insert into pgsched.schedules (name, entrypoint, expression, next_run)"
        " values ('d', 'job', '@yearly', now() + interval '1 hour')"
    )
    async with Parts(settings) as parts:
        passes = 0
        real = parts.dispatcher.claim_pass

        async def counted():
            nonlocal passes
            passes += 1
            return await real()

        parts.dispatcher.claim_pass = counted
        parts.kit.wakeups.due.ask()
        running = asyncio.create_task(parts.dispatcher.run())
        await until(parts.dispatcher.passed.is_set)
        store, kit = parts.kit.store, parts.kit
        for _ in range(20):  # the clock's bounds move a little each time
            async with kit.writes.use() as connection:
                before = time.monotonic()
                outlook = await store.read_outlook(connection, kit.worker, ["job"], kit.settings.lookahead)
                kit.clock.observe(outlook.now, before, time.monotonic())
            parts.dispatcher.review(outlook)
            await asyncio.sleep(0)
        assert passes == 1
        await db.all("update pgsched.schedules set next_run = now()")  # no listener here: the resync brings it
        async with kit.writes.use() as connection:
            outlook = await store.read_outlook(connection, kit.worker, ["job"], kit.settings.lookahead)
        parts.dispatcher.review(outlook)
        await until(lambda: parts.taken)
        parts.dispatcher.stop()
        await running


async def test_new_schedules_are_all_planned_without_a_wait_in_between(settings, db, monkeypatch):
    """A thousand at a time: a hundred thousand took as many pauses as there were passes."""
    monkeypatch.setattr(dispatcher_module, "MOST", 10)
    await db.all("select pgsched.create_schedule('n' || n, 'job', '@yearly') from generate_series(1, 25) n")
    async with Parts(settings) as parts:
        for planned, more in ((10, True), (20, True), (25, False)):
            assert await parts.dispatcher.claim_pass() == 0
            assert await db.value("select count(*) from pgsched.schedules where next_run is not null") == planned
            assert (parts.dispatcher.next.at <= time.monotonic()) is more


async def test_schedules_that_cannot_advance_make_no_pass_follow_the_other(settings, db, dsn, monkeypatch):
    """Each has to make way for its next fire time, and somebody has its run locked."""
    monkeypatch.setattr(dispatcher_module, "MOST", 10)
    await db.all(
        "insert into pgsched.schedules (name, entrypoint, expression, next_run, overlap)"
        " select 'b' || n, 'job', '@yearly', now() - interval '1 second', 'cancel' from generate_series(1, 10) n"
    )
    await db.all(
        "insert into pgsched.runs (schedule_id, entrypoint, fire_time, status, attempt, gated, worker, claimed_at,"
        " heartbeat_at) select id, 'job', next_run - interval '1 day', 'running', 1, true,"
        " gen_random_uuid(), now(), now() from pgsched.schedules"
    )
    async with Parts(settings) as parts, await psycopg.AsyncConnection.connect(dsn) as other:
        await other.execute(in_schema(b"select from pgsched.runs for update", settings.schema, parametrised=False))
        assert await parts.dispatcher.claim_pass() == 0
        assert await db.value("select count(*) from pgsched.schedules where next_run <= now()") == 10
        assert parts.dispatcher.next.at > time.monotonic(), "it would spin until the run is let go"


async def test_more_than_one_pass_takes_is_all_claimed_ahead(settings, db, monkeypatch):
    monkeypatch.setattr(dispatcher_module, "MOST", 10)
    await db.all(
        "insert into pgsched.schedules (name, entrypoint, expression, next_run)"
        " select 'd' || n, 'job', '@yearly', now() + interval '8 seconds' from generate_series(1, 35) n"
    )
    async with Parts(settings, lookahead="10s") as parts:
        parts.kit.wakeups.due.ask()
        running = asyncio.create_task(parts.dispatcher.run())
        await until(lambda: len(parts.taken) == 35, 5)
        parts.dispatcher.stop()
        await running


async def passes_for(parts, monkeypatch, instants, claims=lambda: 0) -> int:
    """Runs the dispatcher's loop on a clock that goes by itself from one wake-up to the next. Returns how many passes
    there were."""
    now, left, count = 0.0, list(instants), 0
    monkeypatch.setattr(dispatcher_module, "time", SimpleNamespace(monotonic=lambda: now))
    part = parts.dispatcher

    async def wait(event, until):
        nonlocal now
        if left and (until is None or left[0] <= until):
            now = left.pop(0)
            parts.kit.wakeups.due.ask()
        elif until is not None:
            now = until
        else:
            part.stop()

    async def passed():
        nonlocal count
        count += 1
        return claims()

    monkeypatch.setattr(parts.kit.watch, "wait", wait)
    part.claim_pass = passed
    await part.run()
    return count


@pytest.mark.parametrize(
    ("wakes", "claims", "expected"),
    [
        ([n / 300 for n in range(300)], 0, range(35, 46)),
        ([n / 300 for n in range(300)], 1, range(300, 301)),
        ([n * 0.03 for n in range(100)], 0, range(100, 101)),
    ],
    ids=["a storm in vain is paced", "a storm of work is not", "one after a quiet moment is served at once"],
)
async def test_wake_ups(settings, monkeypatch, wakes, claims, expected):
    async with Parts(settings) as parts:
        with monkeypatch.context() as patch:
            count = await passes_for(parts, patch, wakes, lambda: claims)
    assert count in expected


@pytest.mark.parametrize("waits", ["for nothing", "for an overlap", "in line"])
async def test_a_claim_takes_so_many_bytes_of_arguments_at_most_and_the_next_one_comes_at_once(
    settings, db, monkeypatch, waits
):
    monkeypatch.setattr(stores, "CLAIM_BYTES", 50_000)
    monkeypatch.setattr(limiter, "CLAIM_BYTES", 50_000)
    sc = Scheduler(app="app")

    @sc.entrypoint("job", limits=Limits(starts=100, period=timedelta(hours=1)) if waits == "in line" else Limits())
    async def job(): ...

    waiting = waits == "for an overlap"
    if waits == "in line":
        await db.all(
            "insert into pgsched.limits (gate, app, entrypoint, owner, starts, period)"
            " values ('g', 'app', 'job', 'code:app', 100, '1 hour')"
        )
        await db.all("insert into pgsched.limit_members values ('job', 'app', 'g', true)")
    if waiting:
        await db.all(
            "insert into pgsched.schedules (name, entrypoint, expression, next_run, overlap)"
            " select 's' || n, 'job', '@yearly', '2099-01-01Z', 'queue' from generate_series(1, 20) n"
        )
    await db.all(
        "insert into pgsched.runs (entrypoint, args, schedule_id, fire_time, origin, due_at, gated)"
        " select 'job', jsonb_build_object('text', (select string_agg(md5(random()::text || n || g), '')"
        " from generate_series(1, case n when 20 then 5000 else 400 end) g)),"
        " case when %s then n end, case when %s then '2020-01-01Z'::timestamptz end, 'trigger',"
        " now() - n * interval '1 minute', %s"
        " from generate_series(1, 20) n",
        waiting, waiting, waiting,
    )  # fmt: skip
    async with Parts(settings, sc) as parts:
        counts = [await parts.dispatcher.claim_pass()]
        while sum(counts) < 20 and len(counts) < 20:
            assert parts.dispatcher.next.at <= time.monotonic()
            counts.append(await parts.dispatcher.claim_pass())
    assert counts == [1, 4, 4, 4, 4, 3], "the first one is larger than all that a claim may take"
    assert {run.id for run in parts.taken[1:9]} == set(range(12, 20)), "and the order stays"
    assert waits != "in line" or await db.value("select sum(s) from pgsched.limits, unnest(started) s") == 20
