"""What a change of a schedule or a look at anything reads does not grow with history: in a plain session with the
server's defaults, as psql has it, beside 10^5 ended runs of the very schedule that is changed and looked at."""

import asyncio
import itertools
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from psycopg import sql
from support.explain import Watch

from pgsched.client import client as clients
from pgsched.client import looks
from pgsched.client.client import Client
from pgsched.client.connections import Pooled
from pgsched.client.runs import REACH
from pgsched.db import migrate
from pgsched.db.statements.queries import Queries, in_schema
from pgsched.db.statements.store import Store

MANY = 100_000
PAGES = 400  # for fifty rows at most; the table has ten thousand, and its indexes as many again
FILL = """
insert into pgsched.schedules (name, entrypoint, expression, next_run, planned_at, accounted_through, last_run)
values ('busy', 'job', '@yearly', now() + interval '1 day', now(), now(), now() - interval '1 second');
insert into pgsched.workers (id, app, host, pid, version, entrypoints, direct, heartbeat_interval, stall_timeout)
values (gen_random_uuid(), 'app', 'host', 1, '1', '{{job}}', false, '1 s', '30 s');
insert into pgsched.runs (schedule_id, entrypoint, fire_time, due_at, status, attempt, claimed_at, started_at,
    finished_at, result, reason, skipped_count, skipped_through)
select 1, 'job', t, t, status, 1, t, t, t, '"ok"', case status when 'skipped' then 'overlap' end,
    case status when 'skipped' then 1 end, case status when 'skipped' then t end
from generate_series(1, {many}) n, lateral (select now() - n * interval '1 second' as t,
    (array['succeeded', 'succeeded', 'skipped', 'failed'])[n %% 4 + 1] as status) x;
insert into pgsched.runs (schedule_id, entrypoint, fire_time, due_at, gated, origin)
select 1, 'job', now() + n * interval '1 second', now() + interval '1 hour', true, 'trigger'
from generate_series(1, 3) n;
insert into pgsched.runs (entrypoint, due_at) select 'mail', now() + interval '1 hour' from generate_series(1, 3) n;
"""
MIXED = """
insert into pgsched.schedules (name, entrypoint, expression, next_run, planned_at)
select 's' || n, 'a', '@yearly', now() + interval '1 day', now() from generate_series(1, 2) n;
insert into pgsched.runs (schedule_id, entrypoint, fire_time, due_at, status, finished_at, gated, reason,
    skipped_count, skipped_through, worker, claimed_at, heartbeat_at)
select case when n % 3 > 0 then n % 3 end, case n % 5 when 0 then 'b' else 'a' end,
    case when n % 3 > 0 then now() - n * interval '1 minute' end, now(), status,
    case when status not in ('queued', 'running') then now() - (n * 7 % 300) * interval '1 minute' end,
    status = 'queued' and n % 2 = 0,
    case status when 'skipped' then 'overlap' end, case status when 'skipped' then 1 end,
    case status when 'skipped' then now() end, gen_random_uuid(), now(), now()
from generate_series(1, 300) n, lateral (
    select (array['queued', 'running', 'succeeded', 'failed', 'cancelled', 'skipped'])[n * 11 % 13 % 6 + 1]
        as status) x
where status <> 'skipped' or n % 3 > 0
"""
QUEUED = """
insert into pgsched.workers (id, app, host, pid, version, entrypoints, direct, heartbeat_interval, stall_timeout)
values (gen_random_uuid(), 'app', 'host', 1, '1', '{job}', false, '1 s', '30 s');
insert into pgsched.runs (entrypoint, due_at, priority)
select 'job', now() + interval '1 hour', n % 3 from generate_series(1, 40000) n;
insert into pgsched.runs (entrypoint, due_at, priority, app, gated)
values ('first', now() - interval '9 minutes', -100, null, false),
    ('job', now() - interval '8 minutes', 0, null, false),
    ('job', now() - interval '8 minutes', 1, 'app', false), ('third', now() - interval '4 minutes', 0, null, false),
    ('second', now() - interval '5 minutes', 100, 'other', true), ('late', now() - interval '1 minute', 0, null, false);
"""


@pytest.fixture(scope="module")
def full(root) -> Iterator[str]:
    """A schema that holds a lot, analysed."""
    name = f"looks {os.getpid()}"

    async def made() -> None:
        async with await psycopg.AsyncConnection.connect(root, autocommit=True) as connection:
            await migrate.migrate(connection, name)

    asyncio.run(made())
    with psycopg.connect(root, autocommit=True) as connection:
        text = FILL.format(many=MANY).replace("%%", "%")
        connection.execute(in_schema(text.encode(), name, parametrised=False))
        connection.execute(in_schema(b"analyze pgsched.runs, pgsched.schedules", name, parametrised=False))
    yield name
    with psycopg.connect(root, autocommit=True) as connection:
        connection.execute(sql.SQL("drop schema {} cascade").format(sql.Identifier(name)))


@pytest.fixture
async def looking(dsn, full, monkeypatch):
    """A client over a plain session, what it sent, and the session."""
    monkeypatch.setattr(looks, "REACH", 1000)
    store = Store(full)
    watch = Watch({store.claims.query(name): name for name in Queries.texts()}, generic=False)
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        connection.cursor_factory = watch.cursor()
        yield Client(Pooled(dsn), Queries(full)), watch, connection, store


def checked(watch: Watch, *names: str, pages: int = PAGES) -> None:
    assert {one.name for one in watch.seen} >= set(names)
    assert not {(one.name, one.pages) for one in watch.seen if one.pages > pages}
    assert not {one.name for one in watch.seen if "runs" in one.scans("Seq Scan")}


async def test_lists_and_looks_read_the_newest_end_of_history(looking):
    client, watch, on, store = looking
    now = datetime.now(UTC)
    last = (await client.list_runs(limit=1, connection=on))[0]["id"]
    lists = [
        {}, {"schedule": "busy"}, {"entrypoint": "job"}, {"entrypoint": "nothing"},
        {"since": now - timedelta(minutes=1)}, {"since": now + timedelta(days=1)},
        {"since": now, "entrypoint": "nothing"},
        *({"status": s} for s in ("queued", "running", "succeeded", "failed", "cancelled", "skipped")),
        *({"status": s, "schedule": "busy"} for s in ("queued", "running", "succeeded", "failed", "cancelled")),
        {"schedule": "busy", "since": now}, {"schedule": "busy", "entrypoint": "nothing"},
    ]  # fmt: skip
    for wanted in lists:
        await client.list_runs(limit=50, connection=on, **wanted)
    await client.list_runs_between("busy", now - timedelta(seconds=60), now, connection=on)
    await client.situation("busy", connection=on)
    await client.list_schedules(connection=on)
    await client.get_run(last, connection=on)
    await client.list_workers(connection=on)
    await client.runs.list_dead(since=now - timedelta(minutes=1), connection=on)
    await store.claims.rows(on, "read_health", {})
    await store.claims.rows(on, "read_waits", {})
    checked(watch, "list_runs", "list_runs_between", "read_situation", "list_schedules", "get_run", "list_workers",
            "list_dead_runs", "read_health", "read_waits")  # fmt: skip


async def test_the_lists_find_what_the_filters_ask_for(looking):
    client, _, on, _ = looking
    everything = await client.list_runs(limit=50, connection=on)
    for wanted in (
        {"status": "failed"}, {"status": "skipped", "schedule": "busy"}, {"status": "queued"}, {"entrypoint": "mail"},
        {"schedule": "busy"}, {"since": everything[40]["finished_at"] or datetime.now(UTC)},
    ):  # fmt: skip
        found = await client.list_runs(limit=20, connection=on, **wanted)
        assert found
        assert [r["id"] for r in found] == sorted((r["id"] for r in found), reverse=True)
        for row in found:
            assert wanted.get("status", row["status"]) == row["status"]
            assert wanted.get("schedule", row["schedule"]) == row["schedule"]
            assert wanted.get("entrypoint", row["entrypoint"]) == row["entrypoint"]
            assert row["finished_at"] is None or row["finished_at"] >= wanted.get("since", row["finished_at"])


async def test_no_pair_of_filters_fetches_history_row_by_row(looking, monkeypatch):
    """With the real reach, which is all of this history. Its rows lie side by side in 2,500 pages; fetched one by one
    from the schedule's index or by when they ended they are 100,000."""
    monkeypatch.setattr(looks, "REACH", REACH)
    client, watch, on, _ = looking
    future = datetime.now(UTC) + timedelta(days=1)
    for wanted in (
        {"schedule": "busy", "since": future}, {"schedule": "busy", "entrypoint": "nothing"},
        {"schedule": "busy", "status": "succeeded", "since": future}, {"entrypoint": "nothing"},
        {"entrypoint": "nothing", "since": future - timedelta(days=3650)},
        {"entrypoint": "nothing", "status": "succeeded"},
    ):  # fmt: skip
        await client.list_runs(limit=50, connection=on, **wanted)
    checked(watch, "list_runs", pages=10_000)


@pytest.mark.parametrize("plans", ["force_custom_plan", "force_generic_plan"])
async def test_filters_that_have_an_index_search_no_history(looking, monkeypatch, plans):
    """With the real reach, and with a plan for these filters or for all of them."""
    monkeypatch.setattr(looks, "REACH", REACH)
    client, watch, on, _ = looking
    await on.execute(f"set plan_cache_mode = {plans}")
    future = datetime.now(UTC) + timedelta(days=1)
    for status in ("queued", "running", "failed", "cancelled"):
        for wanted in ({}, {"schedule": "busy"}, {"entrypoint": "job"}, {"entrypoint": "nothing"}):
            await client.list_runs(limit=50, connection=on, status=status, **wanted)
            await client.list_runs(limit=50, connection=on, status=status, since=future, **wanted)
    for status in ("succeeded", "skipped"):
        await client.list_runs(limit=50, connection=on, status=status, since=future)
        await client.list_runs(limit=50, connection=on, status=status, schedule="busy")
    checked(watch, "list_runs")


async def test_every_combination_of_filters_finds_what_it_says(dsn, db, schema):
    await db.connection.execute(in_schema(MIXED.encode(), schema, parametrised=False))
    async with clients.connect(dsn, schema=schema) as client:
        every = {row["id"]: row for row in await client.list_runs(limit=1000, connection=db.connection)}
        statuses = {row["status"] for row in every.values()}
        assert len(statuses) == 6
        since = (await client.now()) - timedelta(minutes=100)
        for schedule, entrypoint, status, after in itertools.product(
            (None, "s1", "s2"), (None, "a", "b", "nothing"), (None, *statuses), (None, since)
        ):
            given = {"schedule": schedule, "entrypoint": entrypoint, "status": status}
            meant = [
                row["id"]
                for row in every.values()
                if all(value is None or row[name] == value for name, value in given.items())
                and (after is None or row["finished_at"] is None or row["finished_at"] >= after)
            ]
            found = await client.list_runs(limit=1000, since=after, connection=db.connection, **given)
            assert [row["id"] for row in found] == meant, (given, after)
            few = await client.list_runs(limit=3, since=after, connection=db.connection, **given)
            assert len(few) == min(3, len(meant)) and {row["id"] for row in few} <= {*meant}, (given, after)


async def test_health_reads_no_job_that_is_not_due(db, schema, store):
    # A backlog was analysed, and is gone: the planner expects all that is queued to be due.
    await db.all(
        "insert into pgsched.runs (entrypoint, due_at) select 'job', now() - n * interval '1 hour'"
        " from generate_series(1, 40000) n"
    )
    await db.all("analyze pgsched.runs")
    await db.all("delete from pgsched.runs")
    await db.all("vacuum pgsched.runs")
    await db.connection.execute(in_schema(QUEUED.encode(), schema, parametrised=False))
    watch = Watch({store.claims.query("read_health"): "read_health"}, generic=False)
    db.connection.cursor_factory = watch.cursor()
    [row] = await store.claims.rows(db.connection, "read_health", {})
    checked(watch, "read_health")
    assert row["unserved_names"] == ["first", "second of other", "third"]


@pytest.mark.parametrize("change", [{"overlap": "allow"}, {"entrypoint": "other"}], ids=["overlap", "entrypoint"])
async def test_a_change_of_what_waits_reads_no_runs_of_others(dsn, db, schema, store, change):
    """Half of history is the schedule's, and many other runs are queued: a planner expects half of these to be, too."""
    await db.all(
        "insert into pgsched.schedules (name, entrypoint, expression, next_run, planned_at)"
        " values ('busy', 'job', '@yearly', now() + interval '1 day', now())"
    )
    await db.all(
        "insert into pgsched.runs (schedule_id, entrypoint, fire_time, due_at, status, finished_at)"
        " select 1, 'job', now() - n * interval '1 s', now() - n * interval '1 s', 'succeeded', now()"
        " from generate_series(1, 30000) n"
    )
    await db.all(
        "insert into pgsched.runs (entrypoint, due_at) select 'mail', now() + interval '1 hour'"
        " from generate_series(1, 30000) n"
    )
    await db.all("analyze pgsched.runs")
    watch = Watch({store.claims.query("alter_schedule"): "alter_schedule"}, generic=False)
    client = Client(Pooled(dsn), Queries(schema))
    for _ in range(3):
        await client.trigger("busy", connection=db.connection)
    await client.alter("busy", overlap=2, entrypoint="first", connection=db.connection)  # reads the catalogue, too
    db.connection.cursor_factory = watch.cursor()
    await client.alter("busy", connection=db.connection, **change)
    checked(watch, "alter_schedule")
    assert await db.value("select count(*) from pgsched.runs where schedule_id = 1 and status = 'queued'") == 3


async def test_a_pause_of_a_finished_schedule_and_an_adoption_read_no_history(looking):
    client, watch, on, store = looking
    job = b"insert into pgsched.runs (entrypoint, app, unique_key, due_at) values ('mail', 'old', 'k', '2199-01-01Z')"
    last = (
        b"update pgsched.schedules set status = 'finished', last_run = (select max(fire_time) from pgsched.runs"
        b" where origin is null and status <> 'skipped')"
    )
    async with on.transaction(force_rollback=True):
        await on.execute(in_schema(last, store.claims.schema))
        await on.execute(in_schema(job, store.claims.schema))
        # Its last fire time is live and still to come: only then is the pause allowed, and can be explained.
        live = (
            b"update pgsched.runs r set status = 'queued', attempt = 0, started_at = null, claimed_at = null,"
            b" finished_at = null, result = null, due_at = now() + interval '1 hour'"
            b" from pgsched.schedules s where s.name = 'busy' and r.schedule_id = s.id and r.fire_time = s.last_run"
        )
        await on.execute(in_schema(live, store.claims.schema))
        await store.claims.rows(on, "adopt_runs", {"old": "nobody", "new": "new"})  # the catalogue is read, too
        async with on.transaction(force_rollback=True):
            await client.pause("busy", connection=on)
        watch.seen.clear()
        await client.pause("busy", connection=on)
        await store.claims.rows(on, "adopt_runs", {"old": "old", "new": "new"})
    checked(watch, "pause_schedule", "adopt_runs")


async def test_changes_read_what_they_change(looking):
    client, watch, on, _ = looking
    await client.pause("busy", connection=on)  # the session's first ones read the catalogue, too
    first = await client.enqueue("mail", connection=on)
    await client.cancel(first, connection=on)
    await client.retry(first, connection=on)
    await client.trigger("busy", connection=on)
    watch.seen.clear()
    await client.pause("busy", connection=on)
    await client.alter("busy", expression="@monthly", connection=on)
    await client.resume("busy", connection=on)
    run = await client.trigger("busy", connection=on)
    await client.cancel(run, connection=on)
    await client.retry(run, connection=on)
    dead = await client.list_runs(status="failed", limit=5, connection=on)
    await client.runs.retry_many([row["id"] for row in dead], connection=on)
    await client.backfill("busy", datetime.now(UTC) - timedelta(days=60), datetime.now(UTC), connection=on)
    await client.enqueue("mail", unique_key="k", connection=on)
    await client.enqueue_many("mail", [None] * 10, connection=on)
    await client.create_schedule("new", "job", "@yearly", connection=on)
    await client.remove("new", connection=on)
    await client.remove("busy", connection=on)
    checked(watch, "pause_schedule", "alter_schedule", "resume_schedule", "trigger_schedule", "cancel_run",
            "retry_run", "retry_runs", "backfill_runs", "enqueue_run", "enqueue_runs", "create_schedule",
            "remove_schedule")  # fmt: skip
