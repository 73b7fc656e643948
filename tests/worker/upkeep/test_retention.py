"""Old history goes: by status and age, in small transactions, in nobody's way, and nothing that is needed."""

import asyncio
import uuid
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from structlog.testing import capture_logs
from support.workers import working

from pgsched import Scheduler, connect
from pgsched.config import Settings, load
from pgsched.db.statements.queries import in_schema
from pgsched.db.statements.upkeep import UpkeepStatements
from pgsched.model import RunStatus
from pgsched.worker.kit import Kit
from pgsched.worker.upkeep.retention import Retention, Sizes

DAY = timedelta(days=1)
OLD = datetime(2001, 1, 1, tzinfo=UTC)


@pytest.fixture
async def keeper(settings):
    """A worker's retention with small batches; rounds are the test's to call."""
    kit = Kit.build(Scheduler(), settings)
    yield Retention(kit, asyncio.Event(), Sizes(10, 10))
    await kit.control.discard()


@pytest.fixture
def batches(monkeypatch):
    """What each batch did, in order."""
    found = []
    real = UpkeepStatements.prune_runs

    async def noted(self, connection, *which, **options):
        batch = await real(self, connection, *which, **options)
        status, _, limit, _ = which
        found.append((status, limit, batch.seen, batch.gone))
        return batch

    monkeypatch.setattr(UpkeepStatements, "prune_runs", noted)
    return found


async def ended(db, status, days, count=1, **columns):
    """Runs that ended so many days ago, a second apart; returns their ids."""
    names = "".join(f", {name}" for name in columns)
    rows = await db.all(
        f"insert into pgsched.runs (entrypoint, status, finished_at{names}) select 'job', %s,"
        f" now() - %s * interval '1 day' - n * interval '1 s'{', %s' * len(columns)} from generate_series(1, %s) n"
        " returning id",
        status, days, *columns.values(), count,
    )  # fmt: skip
    return [row[0] for row in rows]


async def left(db):
    return [row[0] for row in await db.all("select id from pgsched.runs order by id")]


def test_how_long_what_is_kept():
    assert Settings().ages == {"succeeded": 7 * DAY, "failed": 30 * DAY, "cancelled": 30 * DAY, "skipped": 30 * DAY}
    ended = {status.value for status in RunStatus} - {"queued", "running"}
    assert Settings().ages.keys() == ended
    shorter = load({"retention": "2h"}, environment={})
    assert set(shorter.ages.values()) == {timedelta(hours=2)}
    each = {f"PGSCHED_RETENTION_{status.upper()}": f"{n + 1}h" for n, status in enumerate(sorted(ended))}
    ages = load(environment={"PGSCHED_RETENTION": "9h"} | each).ages
    assert [ages[status] for status in sorted(ended)] == [timedelta(hours=n) for n in (1, 2, 3, 4)]


async def test_each_status_goes_at_its_age_and_nothing_live_goes(db, keeper):
    kept = await ended(db, "succeeded", 6.9)
    for status in ("failed", "cancelled", "skipped"):
        kept += await ended(db, status, 29)
        await ended(db, status, 31)
    await ended(db, "succeeded", 7.1)
    for status in ("queued", "running"):
        claim = {"worker": uuid.uuid4(), "claimed_at": OLD, "heartbeat_at": OLD, "created_at": OLD, "due_at": OLD}
        kept += await ended(db, status, 400, **claim)  # a stray finished_at makes no history of it
        kept += await ended(db, status, None, **claim)
    with capture_logs() as events:
        assert await keeper.round() == 4
    assert await left(db) == sorted(kept)
    assert [(e["event"], e["runs"]) for e in events] == [("history_deleted", 4)]
    with capture_logs() as events:
        assert await keeper.round() == 0
    assert events == []


async def test_batches_are_small_and_walk_on_from_where_the_last_one_stopped(db, keeper, batches):
    await ended(db, "succeeded", 8, 16)
    await ended(db, "succeeded", 10, 9)
    schedule = await db.value(
        "insert into pgsched.schedules (name, entrypoint, expression, last_run) values ('s', 'job', '@daily',"
        " '2020-01-01Z') returning id"
    )
    needed = await ended(db, "succeeded", 9, 1, schedule_id=schedule, fire_time=datetime(2020, 1, 1, tzinfo=UTC))
    assert await keeper.round() == 25
    assert [batch for batch in batches if batch[0] == "succeeded"] == [
        ("succeeded", 10, 10, 9), ("succeeded", 10, 10, 10), ("succeeded", 10, 6, 6),
    ]  # fmt: skip
    assert await left(db) == needed
    assert [batch[0] for batch in batches if batch[0] != "succeeded"] == ["failed", "cancelled", "skipped"]


async def test_a_batch_that_takes_too_long_is_made_smaller(db, keeper, monkeypatch):
    await ended(db, "succeeded", 8, 12)
    sizes = []
    real = UpkeepStatements.prune_runs

    async def slow(self, connection, *which, **options):
        limit = which[2]
        sizes.append(limit)
        if limit > 1:
            raise psycopg.errors.QueryCanceled("canceling statement due to statement timeout")
        return await real(self, connection, *which, **options)

    monkeypatch.setattr(UpkeepStatements, "prune_runs", slow)
    with capture_logs():
        await keeper.round()
    assert sizes[:2] == [10, 1]


async def test_a_locked_row_is_passed_over_and_goes_with_the_next_round(db, keeper, dsn, schema):
    ids = await ended(db, "succeeded", 8, 25)
    locked = ids[12]
    async with await psycopg.AsyncConnection.connect(dsn) as locker:
        await locker.execute(in_schema(b"select from pgsched.runs where id = %s for update", schema), [locked])
        assert await keeper.round() == 24
        assert await left(db) == [locked]
    assert await keeper.round() == 1


async def test_one_worker_at_a_time(db, keeper, dsn, schema, batches):
    await ended(db, "succeeded", 8, 3)
    async with await psycopg.AsyncConnection.connect(dsn) as other:
        await other.execute(in_schema(b"select from pgsched.turns for update", schema, parametrised=False))
        assert await keeper.round() == 0
        assert batches == [("succeeded", 10, 0, 0)]  # and it does not try the others either
    assert await keeper.round() == 3


async def test_runs_go_on_while_a_batch_stands_still(settings, db, client_of, dsn, schema):
    sc = Scheduler()

    @sc.entrypoint("job")
    async def job() -> None: ...

    old = await ended(db, "succeeded", 8)
    await db.all(
        "insert into pgsched.logs (run_id, attempt, worker, number, at, level, text)"
        " values (%s, 1, gen_random_uuid(), 1, now(), 'info', 'x')", old[0]
    )  # fmt: skip
    async with working(sc, settings) as worker, client_of(settings) as client:
        async with await psycopg.AsyncConnection.connect(dsn) as locker:
            # The batch comes to wait for this row, with its own locks held.
            await locker.execute(in_schema(b"select from pgsched.logs for update", schema, parametrised=False))
            round_ = asyncio.create_task(worker.retention.round())
            await db.until(
                "select count(*) > 0 from pg_stat_activity where application_name = %s and wait_event_type = 'Lock'",
                f"pgsched {worker.kit.worker}",
            )
            run_id = await client.enqueue("job")
            assert (await client.runs.wait(run_id, 20))["status"] == "succeeded"
            assert not round_.done()
            await locker.rollback()
        assert await round_ == 1
    assert await left(db) == [run_id]


@pytest.fixture
def client_of():
    return lambda settings: connect(settings.dsn, schema=settings.schema)


async def test_what_a_schedule_still_needs_is_kept(db, keeper):
    def day(n):
        return datetime(2020, 1, n, tzinfo=UTC)

    schedule = await db.value(
        "insert into pgsched.schedules (name, entrypoint, expression, last_run, accounted_through, next_run, status)"
        " values ('s', 'job', '@daily', %s, %s, %s, 'paused') returning id", day(3), day(4), day(6)
    )  # fmt: skip

    async def run(fire_time, status="succeeded", **columns):
        return (await ended(db, status, 40, 1, schedule_id=schedule, fire_time=fire_time, **columns))[0]

    kept = [
        await run(day(3)),  # its last
        await run(day(5)),  # beyond what is accounted for: a drop of an earlier one has set that back
        await run(day(7), "failed"),
        await run(day(9), origin="backfill"),
    ]
    await run(day(2))
    await run(day(4))
    await run(day(8), origin="trigger")  # no fire time of its own
    await run(day(1), "skipped")
    await run(day(7), "skipped")
    assert await keeper.round() == 5
    assert await left(db) == kept
    await db.all("update pgsched.schedules set last_run = %s, accounted_through = %s, next_run = %s, planned_at ="
                 " clock_timestamp()", day(9), day(9), day(10))  # fmt: skip
    assert await keeper.round() == 3
    await db.all("delete from pgsched.schedules")
    assert await keeper.round() == 1
    schedule = await db.value(  # planned by a client, and nothing is accounted for
        "insert into pgsched.schedules (name, entrypoint, expression, next_run) values ('t', 'job', '@daily', %s)"
        " returning id", day(6)
    )  # fmt: skip
    kept = [await run(day(6))]
    await run(day(5))
    assert await keeper.round() == 1 and await left(db) == kept


async def test_rounds_come_while_runs_end_and_start_spread(settings, db, monkeypatch):
    from pgsched.worker.upkeep import retention

    kit = Kit.build(Scheduler(), settings)
    event, rounds, slept = asyncio.Event(), [], []
    keeper = Retention(kit, event)

    async def sleep(seconds):
        slept.append(seconds)

    async def one():
        rounds.append(event.is_set())
        return 0

    monkeypatch.setattr(kit.watch, "sleep", sleep)
    monkeypatch.setattr(keeper, "round", one)
    task = asyncio.create_task(keeper.run())
    try:
        for n in range(3):
            assert len(rounds) == n, "without an end there is no round"
            event.set()
            async with asyncio.timeout(10):
                while len(rounds) == n:
                    await asyncio.sleep(0)
        assert 0 <= slept[0] <= 300 and all(2880 <= each <= 4320 for each in slept[1:])
        task.cancel()
        monkeypatch.setattr(retention, "_IDLE", 0.01)
        task = asyncio.create_task(keeper.run())
        async with asyncio.timeout(10):
            while len(rounds) < 4:  # what is there grows older, though nothing ends
                await asyncio.sleep(0.005)
    finally:
        task.cancel()


async def test_a_database_that_is_gone_is_told_and_ends_nothing(settings):
    kit = Kit.build(Scheduler(), settings.merged({"dsn": "host=/nowhere"}, "test"))
    with capture_logs() as events:
        assert await Retention(kit, asyncio.Event()).round() == 0
    assert [e["event"] for e in events] == ["retention_failed"]


async def test_a_run_that_the_applications_own_table_refers_to_keeps_no_other_status(db, keeper):
    ids = [(await ended(db, status, 40))[0] for status in ("succeeded", "failed", "skipped")]
    await db.all("create table pgsched.invoices (run_id bigint references pgsched.runs)")
    await db.all("insert into pgsched.invoices values (%s)", ids[0])
    with capture_logs() as events:
        assert await keeper.round() == 2
    assert await left(db) == ids[:1]
    told = [e for e in events if e["event"] == "history_kept"]
    assert [e["status"] for e in told] == ["succeeded"] and "invoices" in told[0]["reason"], told


async def test_a_batch_goes_by_the_index(db, dsn, store):
    await ended(db, "succeeded", 1, 2000)
    await ended(db, "failed", 20, 2000)
    await db.all("analyze pgsched.runs")
    text = store.claims.query("prune_runs").decode().replace("%%", "%")
    kinds = {
        "key": "text",
        "status": "text",
        "age": "interval",
        "limit": "int",
        "after": "timestamptz",
        "after_id": "int",
        "look": "boolean",
    }
    for number, name in enumerate(kinds, 1):
        text = text.replace(f"%({name})s", f"${number}")
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        # After some executions the server plans for any parameters: it must know of the index then, too.
        await connection.execute("set plan_cache_mode = force_generic_plan")
        await connection.execute(f"prepare prune ({', '.join(kinds.values())}) as {text}")
        cursor = await connection.execute("explain execute prune ('k', 'failed', '30 days', 10, null, null, false)")
        plan = "\n".join(row[0] for row in await cursor.fetchall())
    assert "runs_ended" in plan and "Seq Scan on runs" not in plan, plan


async def test_a_run_that_somebody_refers_to_stays_and_keeps_no_younger_one(db, keeper):
    ids = await ended(db, "succeeded", 8, 40)
    await db.all("create table pgsched.shown (run bigint references pgsched.runs (id))")
    wanted = [ids[-1], ids[20], ids[0]]
    for run in wanted:
        await db.all("insert into pgsched.shown values (%s)", run)
    with capture_logs() as logs:
        assert await keeper.round() == 37
    assert await left(db) == sorted(wanted)
    kept = [(line["status"], line["runs"]) for line in logs if line["event"] == "history_kept"]
    assert kept == [("succeeded", 3)]
    assert not [line for line in logs if line["event"] == "retention_failed"]


async def test_notes_of_what_is_gone_go_too_whoever_has_made_them(db, keeper):
    """A worker that has ended looks for its entries no more, and the last schedule to be removed has no next one."""
    await db.all(
        "insert into pgsched.removed (schedule_id, name, accounted_through, removed_at)"
        " select n, 's' || n, now(), now() - n * interval '10 hours' from generate_series(1, 4) n"
    )
    await db.all(
        "insert into pgsched.left_behind (run_id, token, worker, entrypoint, args, counts_until)"
        " select n, 1, gen_random_uuid(), 'job', '{}', now() - n * interval '10 hours' from generate_series(1, 4) n"
    )
    await db.all("insert into pgsched.runs (entrypoint) select 'job' from generate_series(1, 2)")
    await db.all("update pgsched.runs set status = 'cancelled', finished_at = now() where id = 2")
    await db.all(
        "insert into pgsched.set_aside (kind, id, row_version, reason, until)"
        " select k, n, '0', 'no', now() + interval '1 minute' from unnest('{run,end,reap,beat,schedule}'::text[]) k,"
        " generate_series(2, 3) n"
        " union all select 'run', 1, '0', 'no', now()"
    )
    with capture_logs() as events:
        await keeper.round()
    assert await db.all("select schedule_id from pgsched.removed order by 1") == [(1,), (2,)]
    assert await db.all("select run_id from pgsched.left_behind order by 1") == [(1,), (2,)]
    assert await db.all("select kind, id from pgsched.set_aside") == [("run", 1)]
    assert {e["event"] for e in events} == {"row_taken_back"} and len(events) == 10
