"""Plans of the statements that a worker sends all the time: each given row is found by its id, whatever the server's
statistics say. What is running grows from nothing to thousands, and back, between two looks of autovacuum."""

import asyncio
import os
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from psycopg import sql
from support.explain import Watch
from support.worker_statements import all_of_a_worker
from support.workers import Parts

from pgsched import Scheduler
from pgsched.config import Settings
from pgsched.db import migrate
from pgsched.db import session as connections
from pgsched.db.statements import queries as stores
from pgsched.db.statements.queries import Numbered, Queries, in_schema
from pgsched.db.statements.store import Store
from pgsched.db.statements.values import Due, Share, Withheld
from pgsched.journal import Line, Said
from pgsched.model import Claim, Outcome, RunStatus

RUNNING, GIVEN, OTHERS = 3000, 1000, 20_000


class Recorded(Exception):
    """The statement was sent."""


class Recorder:
    """Takes a statement instead of a connection, or of a cursor for numbered parameters."""

    cursor_factory = psycopg.AsyncCursor
    sent: tuple[type, bytes, object]

    def __init__(self, connection=None, **options):
        self.raw = connection is not None

    async def execute(self, query, params):
        Recorder.sent = (psycopg.AsyncRawCursor if self.raw else psycopg.AsyncCursor), query, params
        raise Recorded


def thrown_away(node) -> float:
    """How many rows a plan has looked at in vain."""
    names = ("Rows Removed by Filter", "Rows Removed by Join Filter", "Rows Removed by Index Recheck")
    here = sum(node.get(name, 0) for name in names) * node["Actual Loops"]
    return here + sum(thrown_away(child) for child in node.get("Plans", []))


async def waste(connection, call, *, whole: bool) -> float:
    with pytest.raises(Recorded), pytest.MonkeyPatch.context() as patch:
        patch.setattr(stores, "AsyncRawCursor", Recorder)
        await call(Recorder())
    kind, query, params = Recorder.sent
    async with connection.transaction(force_rollback=True):
        cursor = kind(connection)
        await cursor.execute(b"explain (analyze, format json) " + query, params)
        plan = (await cursor.fetchone())[0][0]["Plan"]
        if whole:  # a hash join over all of the table throws nothing away that would be counted
            assert "Seq Scan" not in str(plan)
        return thrown_away(plan)


@pytest.mark.parametrize("prepared", [True, False], ids=["worker's session", "session as behind a pooler"])
async def test_what_runs_is_found_by_its_id_though_nothing_ran_when_the_table_was_analysed(settings, db, prepared):
    worker, store = uuid.uuid4(), Store(settings.schema)
    await db.all("insert into pgsched.runs (entrypoint) select 'job' from generate_series(1, %s::int)", OTHERS)
    await db.all("vacuum analyze pgsched.runs")
    ids = [
        row[0]
        for row in await db.all(
            "update pgsched.runs set status = 'running', attempt = 1, token = 1, worker = %s, max_attempts = 3,"
            " claimed_at = now(), heartbeat_at = now()"
            " where id in (select id from pgsched.runs order by id limit %s) returning id",
            worker, RUNNING,
        )
    ][:GIVEN]  # fmt: skip
    now = datetime.now(UTC)
    ends = [Outcome(Claim(run, 1, worker), RunStatus.SUCCEEDED, now, now) for run in ids]
    said = Said(1, [Line(now, "info", "a line")], None)
    async with await psycopg.AsyncConnection.connect(settings.dsn, autocommit=True) as connection:
        if prepared:
            await connections.prepare(connection)
        for call in (
            lambda c: store.runs.finish_runs(c, worker, ends),
            lambda c: store.runs.look_after_ends(c, worker, ends),
            lambda c: store.runs.beat(c, worker, [(run, 1, now) for run in ids]),
            lambda c: store.runs.write_journals(c, worker, [(Claim(run, 1, worker), said) for run in ids]),
        ):
            assert await waste(connection, call, whole=prepared) <= GIVEN, "each once at most, not each against each"


@pytest.mark.parametrize("analysed", ["while nothing ran", "with all that runs", None])
async def test_a_herd_is_looked_at_without_reading_all_that_runs_for_each_schedule(settings, db, analysed):
    store, share = Store(settings.schema, "app"), Share(["job"], GIVEN)
    if analysed == "while nothing ran":
        await db.all("vacuum analyze pgsched.runs")
    await db.all(
        "insert into pgsched.schedules (name, entrypoint, expression, planned_at, next_run)"
        " select 's' || n, 'job', '@daily', now(), now() - interval '1 s' from generate_series(1, %s::int) n", RUNNING,
    )  # fmt: skip
    await db.all(
        "insert into pgsched.runs (schedule_id, entrypoint, fire_time, status, attempt, token, worker, claimed_at,"
        " heartbeat_at, schedule_version) select id, 'job', now() - interval '1 h', 'running', 1, id,"
        " gen_random_uuid(), now(), now(), 1 from pgsched.schedules where id <= %s",
        GIVEN,
    )
    if analysed == "with all that runs":
        await db.all("vacuum analyze pgsched.runs")
    due = Due(False, GIVEN, 0, False, 0)
    async with await psycopg.AsyncConnection.connect(settings.dsn, autocommit=True) as connection:
        await connections.prepare(connection)
        for call in (
            lambda c: store.claims.lock_due_schedules(c, [share], timedelta(seconds=1)),
            lambda c: store.claims.read_candidates(
                c, [share], lookahead=timedelta(seconds=1), limit=GIVEN, due=due, leave=Withheld()
            ),
        ):
            assert await waste(connection, call, whole=False) <= 2 * RUNNING


async def test_the_overlap_rule_is_a_part_of_each_plan_and_no_call(db, store):
    """A function that is called for each row would cost a herd more than all else that a claim asks of a schedule."""
    named = {name: text for name, text in Queries.texts().items() if b"overlap_limit(" in text}
    assert len(named) == 5
    await db.all("set plan_cache_mode = force_generic_plan")
    for name in named:
        statement = Numbered.of(store.claims.query(name))
        cursor = psycopg.AsyncCursor(db.connection)
        await cursor.execute(b"prepare watched as " + statement.text)
        await cursor.execute(
            f"explain (verbose) execute watched({', '.join(['null'] * len(statement.names))})".encode()
        )
        plan = "\n".join(line for (line,) in await cursor.fetchall())
        await cursor.execute(b"deallocate watched")
        assert "overlap_limit" not in plan, name
        assert "1000000" in plan, name


# --- what a worker sends, beside 10^5 schedules and 10^5 finished runs -----------------------------------------

MANY = 100_000
PAGES = 500  # for some fifty runs and schedules at once; the tables have 7,000, and their indexes as many again
FILL = """
insert into pgsched.schedules (name, entrypoint, expression, next_run, planned_at, accounted_through)
select 'far ' || n, 'job', '@yearly', now() + interval '1 day' + n * interval '1 second', now(), now()
from generate_series(1, {many}) n;
insert into pgsched.runs (schedule_id, entrypoint, fire_time, status, attempt, claimed_at, started_at, finished_at)
select n, 'job', now() - n * interval '1 second', 'succeeded', 1, now(), now(), now() - n * interval '1 second'
from generate_series(1, {many}) n
"""
STATISTICS = ["never analysed", "analysed while empty", "analysed full"]
# What no running worker sends: clients, people, and starts, which compare all that is declared.
NOT_A_WORKERS = """
    add_declarations forget_transaction forget_workers keep_left_behind
    adopt_runs adopt_schedules forget_declarations list_applications read_holders read_owners
    alter_schedule backfill_runs begin_transaction cancel_run commit_run compare_limits compare_schedules
    count_runs_by_status create_schedule declare_limits delete_worker end_transactions enqueue_run enqueue_runs
    find_row_lock find_table_lock get_run insert_worker list_dead_runs list_fire_times list_runs list_runs_between
    list_schedules list_workers lock_declarations look_after_commit note_zone pause_schedule read_clock
    read_declarations read_health read_keepers read_log read_reach read_situation read_status read_transaction
    read_zones record_declarations remove_schedule replan_zone resume_schedule retire_schedules retry_run retry_runs
    find_replans set_patience read_waits settle_constraints
    trigger_schedule upsert_schedules wait_for_transaction withhold_zones
"""


@pytest.fixture(scope="module")
def full(root) -> Iterator[Callable[[str], str]]:
    """Schemas that hold a lot, by what the server's statistics know of it."""
    made: dict[str, str] = {}

    def sent(connection, text: str, schema: str) -> None:
        connection.execute(in_schema(text.format(many=MANY).encode(), schema, parametrised=False))

    async def migrated(schema: str) -> None:
        async with await psycopg.AsyncConnection.connect(root, autocommit=True) as connection:
            await migrate.migrate(connection, schema)

    def schema(statistics: str) -> str:
        name = f"plans {os.getpid()} {'empty' if 'empty' in statistics else 'never'}"
        with psycopg.connect(root, autocommit=True) as connection:
            if name not in made:
                asyncio.run(migrated(name))
                for table in ("schedules", "runs"):
                    sent(connection, f"alter table pgsched.{table} set (autovacuum_enabled = off)", name)
                    sent(connection, f"alter table pgsched.{table} disable trigger user", name)
                if "empty" in statistics:
                    sent(connection, "analyze pgsched.schedules, pgsched.runs", name)
                sent(connection, FILL, name)
                made[name] = statistics
            for table in ("schedules", "runs"):  # what an earlier test has left
                sent(connection, f"delete from pgsched.{table} where id > {MANY}", name)
            sent(connection, "truncate pgsched.limits, pgsched.limit_members, pgsched.workers", name)
            if statistics == "analysed full":
                sent(connection, "analyze pgsched.schedules, pgsched.runs", name)
        return name

    yield schema
    with psycopg.connect(root, autocommit=True) as connection:
        for name in made:
            connection.execute(sql.SQL("drop schema {} cascade").format(sql.Identifier(name)))


@pytest.mark.parametrize("generic", [False, True], ids=["planned for the values", "planned for any value"])
@pytest.mark.parametrize("statistics", STATISTICS)
def test_no_statement_of_a_running_worker_grows_with_the_tables(dsn, full, monkeypatch, statistics, generic):
    schema = full(statistics)
    store = Store(schema)
    # What is no query cannot be explained.
    watch = Watch({store.claims.query(name): name for name in Queries.texts() if name != "settle_constraints"}, generic)
    monkeypatch.setattr(connections, "prepare", watch.over(connections.prepare))
    monkeypatch.setattr(stores, "AsyncRawCursor", watch.raw_cursor())
    asyncio.run(all_of_a_worker(Settings(dsn=dsn, schema=schema)))
    touched = {(one.name, one.pages) for one in watch.seen if one.pages > PAGES}
    assert not touched
    assert not {(one.name, table) for one in watch.seen for table in one.scans("Seq Scan") & {"runs", "schedules"}}
    assert set(Queries.texts()) - set(NOT_A_WORKERS.split()) <= {one.name for one in watch.seen}


# Without triggers it is made in a third of the time. Those of LINES give each run its line.
BACKLOG = """
alter table pgsched.runs disable trigger user;
insert into pgsched.runs (entrypoint, status, attempt, finished_at)
select 'job', 'succeeded', 1, '2020-01-01Z'::timestamptz + n * interval '1 second' from generate_series(1, {many}) n;
insert into pgsched.runs (entrypoint) select 'job' from generate_series(1, {many});
alter table pgsched.runs enable trigger user;
"""
LINES = """
insert into pgsched.limits (gate, app, entrypoint, owner, concurrency, concurrency_key, per_key)
values ('["app", "limited"]', 'app', 'limited', 'code:app', 1, '{{n}}', 1);
insert into pgsched.limit_members values ('limited', 'app', '["app", "limited"]', true);
insert into pgsched.runs (entrypoint) select 'job' from generate_series(1, 20);
insert into pgsched.runs (entrypoint, args, due_at)
select 'limited', jsonb_build_object('n', n % 100), '2026-01-02Z' from generate_series(1, {many}) n
"""
WAITING = """
alter table pgsched.runs disable trigger user;
insert into pgsched.schedules (name, entrypoint, expression, next_run, overlap)
select 'w' || n, 'job', '@yearly', '2099-01-01Z', 'queue' from generate_series(1, 20) n;
insert into pgsched.runs (schedule_id, entrypoint, fire_time, gated, due_at)
select s.id, 'job', now() - n * interval '1 second', true, '2026-01-01Z'
from pgsched.schedules s, generate_series(1, {many} / 20) n;
alter table pgsched.runs enable trigger user
"""


@pytest.mark.parametrize("generic", [False, True], ids=["planned for the values", "planned for any value"])
async def test_a_claim_reads_little_more_than_it_claims_though_a_backlog_was_analysed(
    settings, db, monkeypatch, generic
):
    store = Store(settings.schema)
    watch = Watch({store.claims.query(name): name for name in Queries.texts()}, generic)
    monkeypatch.setattr(connections, "prepare", watch.over(connections.prepare))
    monkeypatch.setattr(stores, "AsyncRawCursor", watch.raw_cursor())
    sc = Scheduler(app="app")
    for name in ("job", "limited"):
        sc.entrypoint(name)(nothing)
    async with Parts(settings, sc, max_running=50) as parts:
        for backlog, claimed in ((BACKLOG, 50), (LINES, 50), (WAITING, 50)):
            text = backlog.format(many=MANY) + "; analyze pgsched.runs, pgsched.schedules"
            await db.connection.execute(in_schema(text.encode(), settings.schema, parametrised=False))
            assert await parts.dispatcher.claim_pass() == claimed
        async with parts.kit.control.use() as connection:
            assert (await store.upkeep.prune_runs(connection, "succeeded", timedelta(days=1), 20, None)).gone == 20
    assert {"claim_due_runs", "claim_runs", "lock_gated_runs", "prune_runs"} <= {one.name for one in watch.seen}
    assert not {(one.name, one.pages) for one in watch.seen if one.pages > 4 * PAGES}


async def nothing() -> None: ...
