"""Declared schedules are reconciled at the start: whose they are, whose word counts, and who waits for whom."""

import asyncio
import contextlib
import json
from datetime import UTC, timedelta

import psycopg
import pytest
from structlog.testing import capture_logs
from support.declarations import V1, V2, as_of, declares, in_force, named, start, stored, versions
from support.workers import working

from pgsched import Scheduler
from pgsched.db.session import STATEMENT_LIMIT
from pgsched.db.statements.queries import in_schema
from pgsched.errors import DatabaseUnavailable
from pgsched.worker.kit import Kit
from pgsched.worker.upkeep import reconciler as reconciler_module
from pgsched.worker.upkeep.reconciler import Reconciler
from pgsched.worker.worker import Worker

# --- whose they are -------------------------------------------------------------------------------------


async def test_two_applications_with_names_of_their_own_do_not_see_each_other(settings, db):
    async with working(declares(V1), settings), working(declares({"x": "@daily"}, app="other"), settings):
        pass
    await start(declares({"kept": "@yearly"}), settings)
    rows = await stored(db)
    assert rows["x"] == ("@daily", "active", "code:other") and rows["dropped"][1] == "finished"


async def test_a_name_belongs_to_the_application_that_declared_it_first(settings, db):
    await start(declares({"n": "@yearly"}), settings)
    before = await versions(db)
    events = await start(declares({"n": "@daily", "m": "@daily"}, app="other"), settings)
    assert [event["schedule"] for event in named(events, "schedule_not_ours")] == ["n"]
    assert await stored(db) == {"n": ("@yearly", "active", "code:app"), "m": ("@daily", "active", "code:other")}
    await start(declares({}, app="other"), settings)
    assert (await versions(db))[0] == before[0]


async def test_what_an_application_has_let_go_of_another_may_declare(settings, db):
    await start(declares({"n": "@yearly"}), settings)
    await start(declares({}), settings)
    assert not named(await start(declares({"n": "@daily"}, app="other"), settings), "schedule_not_ours")
    assert await stored(db) == {"n": ("@daily", "active", "code:other")}
    events = await start(declares({"n": "@yearly"}), settings)
    assert named(events, "schedule_not_ours") and await stored(db) == {"n": ("@daily", "active", "code:other")}


async def test_a_name_that_is_taken_while_the_start_looks_is_left_alone(settings, db, dsn, schema):
    taken = in_schema(
        b"insert into pgsched.schedules (name, entrypoint, expression) values ('n', 'job', '@daily')", schema
    )
    async with await psycopg.AsyncConnection.connect(dsn) as other:
        await other.execute(taken, ())
        starting = asyncio.create_task(start(declares({"n": "@yearly"}), settings))
        # It has compared, saw nothing, and waits for the name.
        await db.until("select exists (select from pg_locks where locktype = 'transactionid' and not granted)")
        await other.commit()
        events = await starting
    assert await stored(db) == {"n": ("@daily", "active", "api")}
    assert named(events, "schedule_not_ours")


async def test_what_the_api_made_is_never_touched(settings, db):
    await db.all("select pgsched.create_schedule(n, 'job', '@yearly') from unnest(array['api', 'kept']) n")
    await db.all("update pgsched.schedules set next_run = '2031-01-01Z', planned_at = now()")
    before = await versions(db)
    for version in (V1, V2, {}):
        await start(declares(version), settings)
    assert (await versions(db))[:2] == before


# --- whose word counts ----------------------------------------------------------------------------------


async def test_an_old_process_that_starts_again_leaves_the_new_versions_schedules_alone(settings, db):
    new = declares(V2)
    async with working(declares(V1), settings), working(new, settings):
        expected = {**as_of(V2), "dropped": ("@yearly", "finished", "code:app")}
        assert await stored(db) == expected
        events = await start(declares(V1), settings)
        (event,) = named(events, "declarations_deferred")
        assert event["log_level"] == "warning" and event["workers"] == 1
        assert await stored(db) == expected and await in_force(db, new)
        # And one of the new version does as ever.
        assert not named(await start(declares(V2), settings), "declarations_deferred")
        assert await stored(db) == expected


async def test_a_new_version_is_applied_whoever_is_alive(settings, db):
    async with working(declares(V1), settings), working(declares(V1), settings):
        await start(declares(V2), settings)
        assert (await stored(db))["added"] == ("@yearly", "active", "code:app")


async def test_a_roll_back_after_all_have_stopped_is_applied_at_once(settings, db):
    for version in (V1, V2, V1):
        events = await start(declares(version), settings)
    assert [event["version"] for event in named(events, "declarations_applied")] == ["back"]
    assert await stored(db) == {**as_of(V1), "added": ("@yearly", "finished", "code:app")}


@contextlib.asynccontextmanager
async def impatient(scheduler: Scheduler, settings, restart: float = 0.2):
    async with working(scheduler, settings, resync_interval="50ms") as worker:
        worker.reconciler.restart = restart
        yield worker


async def test_a_deferral_ends_when_the_newer_version_goes(settings, db):
    async with contextlib.AsyncExitStack() as stack:
        await start(declares(V1), settings)
        newer = await stack.enter_async_context(working(declares(V2), settings))
        old = declares(V1)
        await stack.enter_async_context(impatient(old, settings))
        await stack.enter_async_context(impatient(declares(V1), settings))
        await asyncio.sleep(0.5)
        assert (await stored(db))["dropped"][1] == "finished", "the newer one is still there"
        newer.stop()
        await db.until("select status = 'active' and next_run > now() from pgsched.schedules where name = 'dropped'")
        assert await in_force(db, old)
        assert await stored(db) == {**as_of(V1), "added": ("@yearly", "finished", "code:app")}


async def test_a_version_that_never_stopped_takes_over_again_when_the_newer_one_goes(settings, db):
    async with impatient(declares(V1), settings):
        await start(declares(V2), settings)  # a deploy that was given up
        await db.until("select status = 'active' from pgsched.schedules where name = 'dropped'")
        # The newer one is an older one now.
        assert named(await start(declares(V2), settings), "declarations_deferred")
        assert (await stored(db))["kept"][0] == "@yearly"


async def test_a_restart_of_the_newer_versions_only_worker_costs_it_nothing(settings, db):
    async with impatient(declares(V1), settings, restart=60) as old:
        await start(declares(V2), settings)
        async with asyncio.timeout(10):
            while old.reconciler._orphaned_since is None:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)  # a few more looks, all of which find nobody
        async with working(declares(V2), settings):  # back in time
            async with asyncio.timeout(10):
                while old.reconciler._orphaned_since is not None:
                    await asyncio.sleep(0.01)
            assert (await stored(db))["dropped"][1] == "finished"


async def test_only_an_absence_without_a_break_counts(settings):
    now = 1000.0
    reconciler = Reconciler(Kit.build(declares(V1), settings, elapsed=lambda: now))
    told = []
    for seconds, orphaned in [(0, True), (40, True), (60, False), (65, True), (105, True), (115, True)]:
        now = 1000.0 + seconds
        reconciler.saw_orphaned(orphaned)
        told.append(reconciler._due.is_set())
    assert told == [False, False, False, False, False, True]


@pytest.mark.parametrize(("seen", "deferred"), [("2 minutes", True), ("4 minutes", False)])
async def test_a_worker_that_crashed_counts_for_three_minutes(settings, db, seen, deferred):
    await start(declares(V1), settings)
    async with working(declares(V2), settings):
        await db.all(
            "insert into pgsched.workers select (jsonb_populate_record(w, jsonb_build_object("
            "'id', gen_random_uuid(), 'seen_at', now() - %s::interval))).* from pgsched.workers w",
            seen,
        )
    assert bool(named(await start(declares(V1), settings), "declarations_deferred")) is deferred


async def test_a_worker_of_a_version_without_fingerprints_stands_in_nobodys_way(settings, db):
    await start(declares(V1), settings)
    async with working(declares(V1), settings):
        await db.all("delete from pgsched.declarations")
        await db.all("update pgsched.workers set fingerprint = null")
        events = await start(declares(V2), settings)
    assert [event["version"] for event in named(events, "declarations_applied")] == ["first"]


async def test_the_memory_of_versions_is_short(settings, db, store):
    for number in range(50):
        await store.declarations.record_declarations(db.connection, "app", f"f{number}")
    await store.declarations.record_declarations(db.connection, "app", "f40")
    former = await db.value("select former from pgsched.declarations")
    assert former == [f"f{n}" for n in range(49, 28, -1) if n != 40]
    assert len(former) == 20


# --- locks of others ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lock", ["select from pgsched.schedules where name = 'kept' for update", "lock pgsched.schedules"]
)
async def test_a_start_that_waits_for_somebodys_lock_names_the_session(settings, db, dsn, schema, lock):
    await start(declares(V1), settings)
    worker = Worker(declares({**V1, "kept": "@hourly"}), settings)
    worker.reconciler.patience = timedelta(seconds=0.5)
    async with await psycopg.AsyncConnection.connect(dsn) as holder:
        await holder.execute(in_schema(lock.encode(), schema, parametrised=False))
        pid = holder.info.backend_pid
        with pytest.raises(DatabaseUnavailable) as told:
            await worker.run()
        since = await db.value("select xact_start from pg_stat_activity where pid = %s", pid)
    what = "The table schedules" if lock.startswith("lock") else 'Schedule "kept"'
    assert str(told.value) == (
        f"{what} is locked by session pid {pid} since {since.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}: "
        "the start needs it, and has waited for 500ms. End that transaction, or start again once it is over."
    )
    async with working(declares({**V1, "kept": "@hourly"}), settings):
        assert (await stored(db))["kept"][0] == "@hourly"


# --- at the same time -----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def starts_held(dsn: str, schema: str, db):
    """Keeps every start of the application waiting for its turn. Yields a way to wait until so many do."""
    waiting = (
        "select count(*) = %s from pg_stat_activity"
        " where wait_event_type = 'Lock' and application_name like 'pgsched %%'"
    )
    async with await psycopg.AsyncConnection.connect(dsn) as holder:
        lock = b"select from pgsched.declarations where app = 'app' for update"
        assert (await holder.execute(in_schema(lock, schema, parametrised=False))).rowcount == 1
        yield lambda count: db.until(waiting, count)
        await holder.rollback()


@pytest.mark.parametrize("order", [(V1, V2), (V2, V1), (V2, V2), (V2, V1, V2)])
async def test_starts_at_the_same_time_take_turns_and_the_new_version_stands(settings, db, dsn, schema, order):
    await start(declares(V1), settings)
    async with contextlib.AsyncExitStack() as stack:
        with capture_logs() as events:
            async with starts_held(dsn, schema, db) as waiting:
                entering = []
                for number, version in enumerate(order, 1):
                    context = working(declares(version), settings)
                    entering.append(asyncio.create_task(context.__aenter__()))
                    stack.push_async_exit(context)
                    await waiting(number)  # the server's queue is the order in which they get their turn
            await asyncio.gather(*entering)
        assert await stored(db) == {**as_of(V2), "dropped": ("@yearly", "finished", "code:app")}
        assert len(named(events, "declarations_applied")) == 1
        assert len(named(events, "schedule_retired")) == 1


async def test_two_that_take_over_at_once_do_it_once(settings, db, dsn, schema):
    async with impatient(declares(V1), settings), impatient(declares(V1), settings):
        await start(declares(V2), settings)
        with capture_logs() as events:
            async with starts_held(dsn, schema, db) as waiting:
                await waiting(2)
            await db.until("select status = 'active' from pgsched.schedules where name = 'dropped'")
            held = "select from pg_locks where relation = 'pgsched.declarations'::regclass and mode = 'RowShareLock'"
            await db.until(f"select not exists ({held})")
        assert len(named(events, "declarations_applied")) == 1


async def test_a_newer_one_that_comes_back_while_the_take_over_waits_keeps_its_schedules(settings, db, dsn, schema):
    async with impatient(declares(V1), settings):
        await start(declares(V2), settings)
        newer = working(declares(V2), settings)
        async with starts_held(dsn, schema, db) as waiting:
            await waiting(1)
            back = asyncio.create_task(newer.__aenter__())
            await waiting(2)
        await back
        try:
            assert (await stored(db))["dropped"][1] == "finished"
        finally:
            await newer.__aexit__(None, None, None)


# --- the plan -------------------------------------------------------------------------------------------


async def test_the_comparison_reads_arguments_whatever_they_are(store, db):
    args = {"deep": [[[{"ü": None}]]], "n": 1.0, "text": '"quoted"'}
    sc = declares({"n": "@yearly"})
    row = {**sc.rows()[0], "args": args}
    (new,) = await store.declarations.compare_schedules(db.connection, "code:app", [row])
    assert new.id is None and not new.changes
    await store.declarations.upsert_schedules(db.connection, [{**row, "args": {}, "grace": "36:00:00"}])
    (changed,) = await store.declarations.compare_schedules(db.connection, "code:app", [row])
    assert changed.changes == {"args": ({}, args), "grace": (timedelta(hours=36), None)}
    await store.declarations.upsert_schedules(db.connection, [row])
    (same,) = await store.declarations.compare_schedules(db.connection, "code:app", [json.loads(json.dumps(row))])
    assert not same.changes


# --- starts that declare a lot ------------------------------------------------------------------------------


async def test_all_that_is_declared_is_written_however_many_statements_it_takes(settings, db, monkeypatch):
    monkeypatch.setattr(reconciler_module, "_BATCH", 2)
    await start(declares({f"s{n}": "@yearly" for n in range(5)}), settings)
    assert await db.value("select count(*) from pgsched.schedules") == 5


async def test_a_start_may_take_longer_the_more_it_declares(settings, store, db):
    kit = Kit.build(declares({"a": "@yearly", "b": "@daily"}), settings)
    assert Reconciler(kit).patience > STATEMENT_LIMIT
    before = await db.one("select current_setting('statement_timeout'), current_setting('lock_timeout')")
    async with db.connection.transaction():
        await store.declarations.set_patience(db.connection, timedelta(seconds=42))
        limits = "select current_setting('statement_timeout'), current_setting('lock_timeout')"
        assert await db.one(limits) == ("42s", "42s")
    assert await db.one(limits) == before, "of its own transaction only"
