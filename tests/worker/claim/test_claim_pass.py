"""A claim pass, and who else may be there at each of its statements."""

import asyncio
import time
from datetime import timedelta

import psycopg
import pytest
from support.workers import Parts

from pgsched import Limits, Scheduler
from pgsched.db.statements import claims as stores
from pgsched.db.statements.claims import ClaimStatements
from pgsched.db.statements.queries import in_schema
from pgsched.db.statements.runs import RunStatements
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
    of = RunStatements if statement == "read_clock" else ClaimStatements
    real = getattr(of, statement)

    async def dies(self, connection, *args, **kwargs):
        if kwargs.get("alone"):
            return await real(self, connection, *args, **kwargs)
        if when == "after":
            await real(self, connection, *args, **kwargs)
        connection.pgconn.finish()  # as if the network, or this process, were gone
        raise psycopg.OperationalError("gone")

    async with Parts(settings) as parts:
        with monkeypatch.context() as patch:
            patch.setattr(of, statement, dies)
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
    real = ClaimStatements.claim_due_runs

    async def dies(self, connection, *args, **kwargs):
        if when == "after":
            await real(self, connection, *args, **kwargs)
        connection.pgconn.finish()
        raise psycopg.OperationalError("gone")

    async with Parts(settings) as parts:
        with monkeypatch.context() as patch:
            patch.setattr(ClaimStatements, "claim_due_runs", dies)
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


@pytest.mark.parametrize("when", ["before", "after"])
async def test_what_is_committed_is_started_though_the_look_at_what_is_next_dies(settings, db, monkeypatch, when):
    await db.all(DUE, 1)
    await db.all("select pgsched.enqueue('job')")
    real = ClaimStatements.read_outlook

    async def dies(self, connection, *args, **kwargs):
        assert len(parts.taken) == 2, "it need not wait for that look"
        if when == "after":
            await real(self, connection, *args, **kwargs)
        connection.pgconn.finish()
        raise psycopg.OperationalError("gone")

    async with Parts(settings) as parts:
        with monkeypatch.context() as patch:
            patch.setattr(ClaimStatements, "read_outlook", dies)
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
    real = ClaimStatements.lock_due_schedules

    async def overtaken(self, connection, *args, **kwargs):
        locked = await real(self, connection, *args, **kwargs)
        await db.all(
            "insert into pgsched.runs (schedule_id, entrypoint, fire_time, status, worker, claimed_at, heartbeat_at)"
            " select id, 'job', now() - interval '1 day', 'running', gen_random_uuid(), now(), now()"
            " from pgsched.schedules"
        )
        return locked

    monkeypatch.setattr(ClaimStatements, "lock_due_schedules", overtaken)
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
        parts.taker.allowed = 3
        assert await parts.dispatcher.claim_pass() == 3
        parts.taker.allowed = 0
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
