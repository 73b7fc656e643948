"""What a start writes of the schedules that the code declares, and what it leaves as it is."""

import inspect
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from support.declarations import EPOCH, V1, V2, as_of, declares, named, start, stored, versions
from support.workers import working

from pgsched import Retry, Scheduler
from pgsched.db.statements.queries import in_schema
from pgsched.errors import DatabaseUnavailable
from pgsched.worker.worker import Worker

OPTIONS = {
    "expression": "@hourly",
    "timezone": "Europe/Berlin",
    "args": {"x": 1},
    "overlap": 3,
    "catch_up": "all",
    "catch_up_limit": 7,
    "grace": timedelta(hours=1),
    "timeout": timedelta(minutes=5),
    "retry": Retry(7, timedelta(seconds=2), timedelta(minutes=1)),
    "jitter": timedelta(seconds=1.5),
    "starts_at": EPOCH,
    "ends_at": EPOCH,
    "max_runs": 9,
    "priority": -5,
}


RETIMING = {"expression", "timezone", "starts_at", "ends_at", "max_runs"}


def with_option(**option) -> Scheduler:
    sc = Scheduler(app="app")

    async def job(x: int = 0): ...

    sc.schedule("job", option.pop("expression", "@yearly"), name="n", **option)(job)
    sc.schedule("job", "@daily", name="beside")(job)
    return sc


def test_every_option_is_among_those_tried():
    taken = set(inspect.signature(Scheduler.schedule).parameters) - {"self", "entrypoint", "name", "executor"}
    assert set(OPTIONS) == taken, "a new option: let its change be seen by a start, and by `pgsched check`"


@pytest.mark.parametrize("option", OPTIONS)
async def test_a_changed_option_is_written_and_nothing_else(settings, db, option):
    await start(with_option(), settings)
    id_, next_run = await db.one("select id, next_run from pgsched.schedules where name = 'n'")
    beside = await db.one("select xmin::text from pgsched.schedules where name = 'beside'")
    changed = with_option(**{option: OPTIONS[option]})
    events = await start(changed, settings)
    (event,) = named(events, "schedule_changed")
    assert event["schedule"] == "n" and set(event["options"]) <= {option, "max_attempts", "backoff", "max_backoff"}
    after = await db.one("select id, status, next_run from pgsched.schedules where name = 'n'")
    assert after[:2] == (id_, "active")
    assert after[2] == next_run or option in RETIMING
    assert await db.one("select xmin::text from pgsched.schedules where name = 'beside'") == beside
    assert not named(await start(changed, settings), "schedule_changed"), "written once, it is equal"
    assert named(await start(with_option(), settings), "schedule_changed"), "and back"


async def test_a_changed_expression_is_planned_anew_and_the_history_stays(settings, db):
    await start(declares({"n": "* * * * *"}), settings)
    (id_,) = await db.one("select id from pgsched.schedules")
    await db.all(
        "insert into pgsched.runs (schedule_id, entrypoint, fire_time, status, finished_at)"
        " values (%s, 'job', '2020-01-01Z', 'succeeded', now())",
        id_,
    )
    await start(declares({"n": "0 0 1 1 *"}), settings)
    assert await db.one("select id, next_run from pgsched.schedules") == (
        id_,
        datetime((await db.value("select now()")).year + 1, 1, 1, tzinfo=UTC),
    )
    assert await db.value("select count(*) from pgsched.runs where schedule_id = %s and status = 'succeeded'", id_) >= 1


async def test_a_renamed_one_is_retired_with_its_history_and_begins_anew(settings, db):
    await start(declares({"old": "@yearly"}), settings)
    (id_,) = await db.one("select id from pgsched.schedules")
    await db.all(
        "insert into pgsched.runs (schedule_id, entrypoint, fire_time, status, finished_at)"
        " values (%s, 'job', now(), 'succeeded', now())", id_
    )  # fmt: skip
    events = await start(declares({"new": "@yearly"}), settings)
    assert [event["schedule"] for event in named(events, "schedule_retired")] == ["old"]
    rows = await db.all("select name, status, retired_at is null, next_run is null from pgsched.schedules order by id")
    assert rows == [("old", "finished", False, True), ("new", "active", True, False)]
    assert await db.all("select schedule_id from pgsched.runs") == [(id_,)]


async def test_a_removed_one_comes_back_as_the_same(settings, db):
    await start(declares(V1), settings)
    before = await db.one("select id, next_run from pgsched.schedules where name = 'dropped'")
    await start(declares({"kept": "@yearly"}), settings)
    assert await db.one("select id, status, next_run from pgsched.schedules where name = 'dropped'") == (
        before[0], "finished", None,
    )  # fmt: skip
    await start(declares(V1), settings)
    after = await db.one("select id, next_run, status, note, retired_at from pgsched.schedules where name = 'dropped'")
    assert after == (*before, "active", None, None)


@pytest.mark.parametrize("until", [None, "2031-01-01T00:00:00Z"])
async def test_what_was_paused_comes_back_paused(settings, db, until):
    await start(declares(V1), settings)
    await db.all("select pgsched.pause('dropped', 'until the audit is over', %s)", until)
    await start(declares({"kept": "@yearly"}), settings)
    assert await db.one("select status, note from pgsched.schedules where name = 'dropped'") == (
        "finished", "no longer declared by its application",
    )  # fmt: skip
    await start(declares(V1), settings)
    status, note, back, kept = await db.one(
        "select status, note, paused_until, paused_note from pgsched.schedules where name = 'dropped'"
    )
    assert (status, note, kept) == ("paused", "until the audit is over", None)
    assert back == (EPOCH if until else None)
    await db.all("select pgsched.resume('dropped')")
    await start(declares({"kept": "@yearly"}), settings)
    await start(declares(V1), settings)
    assert await db.one("select status, note from pgsched.schedules where name = 'dropped'") == ("active", None)


async def test_a_pause_that_ended_while_it_was_retired_ends_when_it_is_back(settings, db):
    await start(declares(V1), settings)
    await db.all("select pgsched.pause('dropped', null, now() + interval '1 hour')")
    await start(declares({"kept": "@yearly"}), settings)
    await db.all("update pgsched.schedules set paused_until = now() - interval '1 second' where name = 'dropped'")
    async with working(declares(V1), settings):
        await db.until("select status = 'active' and next_run > now() from pgsched.schedules where name = 'dropped'")


async def test_a_retired_one_loses_what_was_claimed_ahead(settings, db):
    async with working(declares(V1), settings, lookahead="10s"):
        await db.all("update pgsched.schedules set next_run = now() + interval '8 seconds' where name = 'dropped'")
        await db.until("select count(*) = 1 from pgsched.runs where status = 'running'")
        async with working(declares({"kept": "@yearly"}), settings):
            await db.until("select count(*) = 0 from pgsched.runs")  # its holder has heard of it
            assert await db.value("select next_run from pgsched.schedules where name = 'dropped'") is None


async def test_a_retirement_tells_what_was_due(settings, db, store):
    await start(declares(V1), settings)
    await db.all("update pgsched.schedules set next_run = '2020-01-01Z', planned_at = now() where name = 'dropped'")
    (retired,) = await store.declarations.retire_schedules(db.connection, "code:app", ["kept"])
    assert (retired.name, retired.status, retired.next_run) == ("dropped", "active", datetime(2020, 1, 1, tzinfo=UTC))
    assert await store.declarations.retire_schedules(db.connection, "code:app", ["kept"]) == []


async def test_what_was_due_when_it_was_retired_is_recorded_and_what_it_missed_until_it_is_back(settings, db):
    """Ten minutes without a worker, then a version that lacks it, then one that has it again."""
    v1 = {"kept": "@yearly", "dropped": "* * * * *"}
    await start(declares(v1), settings)
    await db.all(
        "update pgsched.schedules set next_run = date_trunc('minute', now()) - interval '9 minutes',"
        " accounted_through = now() - interval '10 minutes', planned_at = clock_timestamp() where name = 'dropped'"
    )
    await start(declares({"kept": "@yearly"}), settings)
    skips = "select reason, detail, skipped_count from pgsched.runs where status = 'skipped' order by id"
    assert await db.all(skips) == [("missed", "no worker claimed it before the schedule was retired", 10)]
    assert await db.one(
        "select status, next_run, interruptions, accounted_through > now() - interval '1 minute'"
        " from pgsched.schedules where name = 'dropped'"
    ) == ("finished", None, [], True)
    # As if all that had been ten minutes earlier.
    await db.all("delete from pgsched.runs")
    await db.all(
        "update pgsched.schedules set retired_at = retired_at - interval '10 minutes', planned_at = clock_timestamp(),"
        " accounted_through = accounted_through - interval '10 minutes' where name = 'dropped'"
    )
    async with working(declares(v1), settings):
        await db.until("select count(*) = 1 from pgsched.runs where status = 'skipped'")
    ((reason, detail, count),) = await db.all(skips)
    assert (reason, detail) == ("retired", "its application did not declare the schedule then")
    assert 10 <= count <= 11


async def test_a_pause_that_a_retirement_ended_is_recorded(settings, db):
    v1 = {"kept": "@yearly", "dropped": "* * * * *"}
    await start(declares(v1), settings)
    await db.all("select pgsched.pause('dropped', 'audit')")
    await db.all(
        "update pgsched.schedules set next_run = date_trunc('minute', now()) - interval '9 minutes',"
        " paused_at = date_trunc('minute', now()) - interval '4 minutes 30 seconds', planned_at = clock_timestamp()"
        " where name = 'dropped'"
    )
    await start(declares({"kept": "@yearly"}), settings)
    assert await db.all("select reason, detail, skipped_count from pgsched.runs order by fire_time") == [
        ("missed", "no worker claimed it before the schedule was paused", 5), ("paused", "audit", 5),
    ]  # fmt: skip


async def test_a_restart_writes_nothing_locks_nothing_and_wakes_nobody(settings, db, dsn, schema):
    await db.all("select pgsched.create_schedule('api', 'job', '@yearly')")
    await start(declares(V1), settings)
    before = await versions(db)
    declared = await db.all("select *, xmin::text from pgsched.declarations")
    statement = in_schema(b"select from pgsched.schedules for update", schema, parametrised=False)
    async with (
        await psycopg.AsyncConnection.connect(dsn) as other,
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as listening,
    ):
        await listening.execute(psycopg.sql.SQL("listen {}").format(psycopg.sql.Identifier(schema)))
        await other.execute(statement)  # somebody at work on every one of them
        await start(declares(V1), settings)
        await listening.execute("select 1")
        assert listening.pgconn.notifies() is None
        await other.rollback()
    assert [row[:2] + row[3:] for row in await versions(db)] == [row[:2] + row[3:] for row in before]
    assert await db.all("select *, xmin::text from pgsched.declarations") == declared


async def test_what_the_api_changed_is_set_back_by_the_next_start(settings, db):
    await start(declares(V1), settings)
    await db.all("update pgsched.schedules set expression = '@daily', overlap = 'allow' where name = 'kept'")
    await db.all("update pgsched.schedules set grace = interval '1 day' where name = 'dropped'")
    await start(declares(V1), settings)
    assert await stored(db) == as_of(V1)
    assert await db.all("select distinct overlap, grace from pgsched.schedules") == [("skip", None)]


async def test_equal_values_written_otherwise_are_equal(settings, db):
    sc = declares({"n": "@yearly"}, grace=timedelta(days=1), starts_at=EPOCH)
    await start(sc, settings)
    await db.all("update pgsched.schedules set grace = '1 day', starts_at = '2031-01-01 01:00+01', args = '{  }'")
    before = await versions(db)
    await start(sc, settings)
    assert await versions(db) == before


async def test_an_invalid_one_is_planned_again(settings, db):
    await start(declares(V1), settings)
    await db.all("update pgsched.schedules set status = 'invalid', note = 'x', next_run = null where name = 'kept'")
    await start(declares(V1), settings)
    assert await db.one("select status, note, next_run > now() from pgsched.schedules where name = 'kept'") == (
        "active", None, True,
    )  # fmt: skip


@pytest.mark.parametrize("step", ["compare_schedules", "upsert_schedules", "retire_schedules", "record_declarations"])
async def test_a_start_that_fails_halfway_leaves_everything_as_it_was(settings, db, step, monkeypatch):
    await start(declares(V1), settings)
    before = await stored(db), await db.all("select * from pgsched.declarations")
    worker = Worker(declares(V2), settings)

    async def dies(self, connection, *args):
        await db.all("select pg_terminate_backend(%s)", connection.info.backend_pid)
        await connection.execute("select 1")

    with monkeypatch.context() as patch:
        patch.setattr(f"pgsched.db.statements.declarations.DeclarationStatements.{step}", dies)
        with pytest.raises(DatabaseUnavailable):
            await worker.run()
    assert (await stored(db), await db.all("select * from pgsched.declarations")) == before
    await start(declares(V2), settings)
    assert (await stored(db))["dropped"][1] == "finished"
