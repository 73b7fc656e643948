"""A row that the server refuses to change decides only for itself: somebody's trigger, constraint, or odd value."""

import asyncio
from datetime import timedelta

import psycopg
import pytest
from psycopg import sql
from structlog.testing import capture_logs
from support.refusals import OWN_STATE, STATES, events, plain, refuse, relent
from support.workers import Parts, passed, working

from pgsched import Limits, Run, Scheduler
from pgsched.db import migrate
from pgsched.db.statements.queries import Queries, in_schema

# --- claims -----------------------------------------------------------------------------------------------------


def claimers(calls) -> Scheduler:
    """Entrypoints whose runs are claimed by each kind of claim."""
    sc = Scheduler()

    @sc.entrypoint("job")
    async def job(state: str | None = None):
        calls.append(state)

    @sc.entrypoint("limited", limits=Limits(concurrency=100))
    async def limited(state: str | None = None):
        calls.append(state)

    return sc


async def queue(db, kind, state):
    """One run, or one due fire time, that is claimed in its own way."""
    args = "jsonb_build_object('state', %s::text)" if state else "'{}'::jsonb"
    given = [state] if state else []
    if kind in ("job", "limited"):
        await db.all(f"select pgsched.enqueue('{kind}', {args})", *given)
        return
    name = f"{kind} {state}"
    await db.all(
        "insert into pgsched.schedules (name, entrypoint, expression, next_run, args, overlap)"
        f" values (%s, 'job', '@at 2020-01-01T00:00:00Z', '2099-01-01Z', {args}, %s)",
        name, *given, "queue" if kind == "waiting" else "allow",
    )  # fmt: skip
    if kind == "waiting":
        await db.all("select pgsched.trigger(%s)", name)
    else:
        await db.all(
            "update pgsched.schedules set next_run = '2020-01-01Z', accounted_through = '2019-01-01Z' where name = %s",
            name,
        )


@pytest.mark.parametrize("kind", ["job", "limited", "waiting", "fire time"])
async def test_a_claim_that_is_refused_costs_others_nothing_and_the_row_waits_and_says_why(settings, db, kind):
    calls = []
    sc = claimers(calls)
    when = "insert or update"
    await refuse(db, "new.args ? 'state' and new.status = 'running'", when=when, state=OWN_STATE)
    with capture_logs() as logs:
        async with working(sc, settings) as worker:
            async with db.connection.transaction():
                for state in STATES:
                    await queue(db, kind, state)
                await queue(db, kind, None)
                for other in {"job", "limited", "waiting", "fire time"} - {kind}:
                    await queue(db, other, None)
            await db.until("select count(*) = 4 from pgsched.runs where status = 'succeeded'")
            if kind == "fire time":
                notes = "select array_agg(note) from pgsched.schedules where status = 'invalid'"
                await db.until(f"select cardinality(({notes})) = %s", len(STATES))
                reasons = await db.value(notes)
            else:
                rest = "from pgsched.resting a join pgsched.runs r on r.id = a.id where a.kind = 'run'"
                await db.until(f"select count(*) = %s {rest} and r.status = 'queued'", len(STATES))
                reasons = await db.value(f"select array_agg(a.reason) {rest}")
            assert all(any(f"not this one (SQLSTATE {state})" in reason for reason in reasons) for state in STATES)
            await queue(db, "job", None)
            await db.until("select count(*) = 5 from pgsched.runs where status = 'succeeded'")
            assert calls == [None] * 5
            await relent(db)
            if kind == "fire time":
                await db.all(
                    "update pgsched.schedules set status = 'active', next_run = '2020-01-01Z' where status = 'invalid'"
                )
            else:
                await db.all("update pgsched.runs set due_at = now() - interval '1 minute' where status = 'queued'")
            await db.until("select count(*) = %s from pgsched.runs where status = 'succeeded'", 5 + len(STATES))
            assert await db.all("select * from pgsched.resting") == []
            worker.kit.elapsed.advance(2)
            worker.kit.wakeups.due.ask()
            await db.until("select not exists (select from pgsched.set_aside)")
    assert not events(logs, "database_lost") and not events(logs, "worker_failed")
    assert sorted(filter(None, calls)) == sorted(STATES)


async def test_a_schedule_that_refuses_even_to_be_invalid_is_set_aside(settings, db):
    calls = []
    async with working(claimers(calls), settings):
        await refuse(db, "new.args ? 'state' and new.planned_at is distinct from old.planned_at", table="schedules")
        async with db.connection.transaction():
            await queue(db, "fire time", "P0001")
            await queue(db, "fire time", None)
        await db.until("select exists (select from pgsched.runs where status = 'succeeded')")
        await db.until("select exists (select from pgsched.resting where kind = 'schedule')")
        await relent(db, "schedules")
        assert calls == [None]
        await db.all("update pgsched.schedules set note = 'mended' where args <> '{}'")
        await db.until("select count(*) = 2 from pgsched.runs where status = 'succeeded'")


async def test_a_pause_that_cannot_end_keeps_no_other_paused(settings, db):
    async with working(claimers([]), settings):
        await refuse(db, "new.args ? 'state' and new.status = 'active'", table="schedules")
        async with db.connection.transaction():
            for name, args in (("bad", '{"state": "x"}'), ("good", "{}")):
                await db.all(
                    "insert into pgsched.schedules (name, entrypoint, expression, next_run, args, status, paused_until)"
                    " values (%s, 'job', '@yearly', '2099-01-01Z', %s::jsonb, 'paused', now())",
                    name, args,
                )  # fmt: skip
        await db.until("select status = 'active' from pgsched.schedules where name = 'good'")
        await db.until("select exists (select from pgsched.resting where kind = 'schedule')")
        assert await db.value("select status from pgsched.schedules where name = 'bad'") == "paused"


async def test_a_constraint_that_speaks_at_the_commit_stops_no_other(settings, db):
    calls = []
    await refuse(db, "new.args ? 'state' and new.status = 'running'", when="update")
    await db.all("drop trigger hostile on pgsched.runs")
    await db.all(
        "create constraint trigger hostile after insert or update on pgsched.runs deferrable initially deferred"
        " for each row execute function pgsched.hostile()"
    )
    async with working(claimers(calls), settings):
        async with db.connection.transaction():
            for kind in ("job", "fire time"):
                await queue(db, kind, "P0001")
                await queue(db, kind, None)
        await db.until("select count(*) = 2 from pgsched.runs where status = 'succeeded'")
        await db.until("select status = 'invalid' from pgsched.schedules where args <> '{}'")
        await db.until("select exists (select from pgsched.resting where kind = 'run')")
    assert calls == [None, None]


async def test_a_fire_time_whose_row_a_client_holds_is_left_for_later_and_others_run(settings, db):
    """The unique index makes a plan wait for a client's open transaction."""
    calls = []
    async with await psycopg.AsyncConnection.connect(settings.dsn) as client:
        await queue(db, "fire time", "held")
        insert = (
            "insert into pgsched.runs (schedule_id, entrypoint, fire_time, status, finished_at)"
            " select id, 'job', '2020-01-01Z', 'succeeded', now() from pgsched.schedules"
        )
        await client.execute(in_schema(insert.encode(), settings.schema, parametrised=False))
        with capture_logs():
            async with working(claimers(calls), settings) as worker:
                await queue(db, "fire time", None)
                await db.until("select exists (select from pgsched.runs where status = 'succeeded')", limit=8)
                assert calls == [None]
                await db.until("select exists (select from pgsched.resting where kind = 'schedule')")
                await client.rollback()
                await db.all("update pgsched.set_aside set until = now()")
                worker.kit.wakeups.due.ask()
                await db.until("select count(*) = 2 from pgsched.runs where status = 'succeeded'")
    assert calls == [None, "held"]


async def test_limits_that_refuse_to_be_written_hold_up_only_their_own_runs_and_careful_passes_come_to_rest(
    settings, db, monkeypatch
):
    calls, sent = [], []
    sc = claimers(calls)

    @sc.entrypoint("rated", limits=Limits(starts=100, period=timedelta(hours=1)))
    async def rated():
        calls.append("rated")

    real = Queries.query
    monkeypatch.setattr(Queries, "query", lambda self, name: (sent.append(name), real(self, name))[1])
    with capture_logs() as logs:
        async with working(sc, settings) as worker:
            await refuse(db, "new.entrypoint = 'rated'", table="limits")
            async with db.connection.transaction():
                for kind in ("job", "limited", "waiting", "fire time"):
                    await queue(db, kind, None)
                await db.all("select pgsched.enqueue('rated', priority => 10) from generate_series(1, 3)")
            await db.until("select count(*) = 4 from pgsched.runs where status = 'succeeded'")
            await db.until("select exists (select from pgsched.resting where kind = 'limits')")
            async with asyncio.timeout(20):
                while "find_due_runs" in sent:  # as long as passes are careful
                    sent.clear()
                    await passed(worker)
            sent.clear()
            await queue(db, "job", None)
            await db.until("select count(*) = 5 from pgsched.runs where status = 'succeeded'")
            assert "claim_due_runs" in sent and "find_due_runs" not in sent
            assert await db.value("select count(*) from pgsched.runs where status = 'queued'") == 3
            [row] = await worker.kit.store.claims.rows(db.connection, "read_health", {})
            assert row["refused_rows"] == ["the starts at the limits of rated: not this one (SQLSTATE P0001)"]
            await relent(db, "limits")
            await db.all("update pgsched.limits set updated_at = now() where entrypoint = 'rated'")
            await db.all("select pgsched.enqueue('rated')")
            await db.until("select count(*) = 9 from pgsched.runs where status = 'succeeded'")
            worker.kit.elapsed.advance(2)
            worker.kit.wakeups.due.ask()
            await db.until("select not exists (select from pgsched.set_aside)")
    assert [line["kind"] for line in events(logs, "row_set_aside")] == ["limits"]
    assert calls.count("rated") == 4


# --- prepared statements ----------------------------------------------------------------------------------------


async def test_a_schema_that_is_made_anew_finds_the_worker_at_work_again(settings, db):
    calls = []
    async with working(claimers(calls), settings) as worker:
        for _ in range(8):  # often enough for every statement to be prepared
            await db.all("select pgsched.enqueue('job')")
            await db.until("select bool_and(status = 'succeeded') from pgsched.runs")
        await db.connection.execute(sql.SQL("drop schema {} cascade").format(sql.Identifier(settings.schema)))
        await migrate.migrate(db.connection, settings.schema)
        await db.all("select pgsched.enqueue('job')")
        worker.kit.wakeups.due.ask()
        await db.until("select bool_and(status = 'succeeded') from pgsched.runs")
        await db.until("select exists (select from pgsched.workers where id = %s)", worker.kit.worker)
    assert len(calls) == 9


# --- whatever the code, whatever the value --------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["08001", "08006", "53100", "58030", "57014", "40001", "55P03"])
@pytest.mark.parametrize("what", ["claim", "end"])
async def test_a_trigger_may_raise_the_code_of_an_outage_and_stops_no_other(settings, db, state, what):
    status = {"claim": "'running'", "end": "'succeeded', 'failed'"}[what]
    await refuse(db, f"new.args ? 'bad' and new.status in ({status}) and new.status <> old.status", state=f"'{state}'")
    async with working(plain(), settings):
        bad = await db.value("""select pgsched.enqueue('job', '{"bad": 1}', priority => 9)""")
        await db.until("select exists (select from pgsched.set_aside where id = %s)", bad)
        others = await db.value("select array_agg(pgsched.enqueue('job')) from generate_series(1, 5)")
        await db.until("select bool_and(status = 'succeeded') from pgsched.runs where id = any(%s)", others)
        await relent(db)
        await db.all("update pgsched.runs set due_at = due_at - interval '1 s' where id = %s", bad)
        await db.until("select status in ('succeeded', 'failed') from pgsched.runs where id = %s", bad)


@pytest.mark.parametrize(
    "interruptions",
    [
        '[{"kind": "changed", "since": "x", "through": 5}]',
        '[{"kind": "changed", "since": []}]',
        '[{"kind": "paused", "since": "2020-01-01T00:00:00Z", "accounted_through": "99999999-01-01"}]',
        '[5, null]', '[{}]',
    ],
)  # fmt: skip
async def test_a_schedule_whose_history_cannot_be_read_becomes_invalid_and_stops_no_other(settings, db, interruptions):
    insert = "insert into pgsched.schedules (name, entrypoint, expression, interruptions) values (%s, 'job', %s, %s)"
    await db.all(insert, "odd", "* * * * * *", interruptions)
    await db.all(insert, "good", "@at 2020-01-01T00:00:00Z", "[]")
    async with working(plain(), settings):
        run = await db.value("select pgsched.enqueue('job')")
        await db.until("select status = 'succeeded' from pgsched.runs where id = %s", run)
        await db.until("select status = 'finished' from pgsched.schedules where name = 'good'")
        await db.until("select status = 'invalid' from pgsched.schedules where name = 'odd'")


@pytest.mark.parametrize(
    ("table", "column"),
    [("schedules", "accounted_wall"), ("schedules", "next_wall"), ("schedules", "planned_at"), ("runs", "created_at"),
     ("runs", "committed_at"), ("runs", "reported_at"), ("runs", "progressed_at")],
)  # fmt: skip
@pytest.mark.parametrize("instant", ["infinity", "-infinity", "4713-01-01 BC"])
async def test_no_row_holds_an_instant_that_nobody_can_read(db, table, column, instant):
    names, values = {
        "schedules": ("name, entrypoint, expression", "'s', 'job', '@daily'"),
        "runs": ("entrypoint", "'job'"),
    }[table]
    with pytest.raises(psycopg.errors.CheckViolation):
        await db.all(f"insert into pgsched.{table} ({names}, {column}) values ({values}, %s)", instant)


async def test_a_job_that_says_it_waits_for_an_overlap_or_in_a_line_is_queued_like_any_other(settings, db):
    async with working(plain(), settings):
        insert = "insert into pgsched.runs (entrypoint, gated, line, limited_by) values"
        await db.all(f"{insert} ('job', true, null, null), ('job', true, 'zz', 'two'), ('job', false, null, 'two')")
        await db.until("select count(*) = 3 from pgsched.runs where status = 'succeeded'")


async def keeps_runs(db, why):
    """No row of a run is deleted any more."""
    if why.endswith("foreign key"):
        deferred = "deferrable initially deferred" if why.startswith("deferred") else ""
        await db.all(f"create table pgsched.notes (run bigint references pgsched.runs (id) {deferred})")
        await db.all(
            "create function pgsched.noted() returns trigger language plpgsql as"
            " $$ begin insert into pgsched.notes values (new.id); return null; end $$"
        )
        await db.all("create trigger noted after insert on pgsched.runs for each row execute function pgsched.noted()")
        return
    state = "using errcode = '42501'" if why.endswith("42501") else ""
    refuses = "return null;" if why == "silent trigger" else f"raise exception 'runs are kept' {state};"
    await db.all(f"create function pgsched.kept() returns trigger language plpgsql as $$ begin {refuses} end $$")
    await db.all("create trigger kept before delete on pgsched.runs for each row execute function pgsched.kept()")


@pytest.mark.parametrize("why", ["trigger", "silent trigger", "foreign key"])
async def test_a_withdrawn_run_that_must_not_be_deleted_stays_and_its_schedule_goes_on(settings, db, why):
    """An application refers to runs, or keeps them all. A claim is held as its schedule changes."""
    calls = []
    scheduler = Scheduler(app="kept")

    @scheduler.entrypoint("job")
    async def job(run: Run):
        calls.append((run.fire_time, run.id))

    await keeps_runs(db, why)
    async with working(scheduler, settings, lookahead=timedelta(seconds=3)):
        await db.all("select pgsched.create_schedule('s', 'job', '* * * * * */2')")
        held = await db.until(
            "select min(id) from pgsched.runs where status = 'running' and started_at is null"
            " and due_at > clock_timestamp() + interval '0.5 s'"
        )
        await db.all("update pgsched.schedules set priority = 3")
        await db.until("select withdrawn_at is not null from pgsched.runs where id = %s", held)
        await db.until("select count(*) >= 2 from pgsched.runs where status = 'succeeded' and id > %s", held)
    assert held not in [run for _, run in calls]
    assert len({at for at, _ in calls}) == len(calls)
    assert await db.all("select status, attempt from pgsched.runs where id = %s", held) == [("cancelled", 0)]


@pytest.mark.parametrize("change", ["alter('s', '{\"priority\": 3}')", "pause('s')", "remove('s')"])
@pytest.mark.parametrize("why", ["trigger", "trigger 42501", "silent trigger", "foreign key", "deferred foreign key"])
async def test_a_schedule_changes_though_its_queued_run_must_not_be_deleted(settings, db, why, change):
    """Its jitter puts the run off, so that it waits in the queue, and an application refers to it."""
    await keeps_runs(db, why)
    async with Parts(settings, lookahead="10s") as anna:
        at = await db.value(
            "select '@at ' || to_char(now() at time zone 'UTC' + interval '8 s', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')"
        )
        await db.all(
            "insert into pgsched.schedules (name, entrypoint, expression, jitter) values ('s', 'job', %s, '10 days')",
            at,
        )
        assert await anna.dispatcher.claim_pass() == 0
        kept = await db.value("select id from pgsched.runs where status = 'queued'")
        await db.all("select pgsched." + change)
        assert await db.value("select status from pgsched.runs where id = %s", kept) == "cancelled"
        assert await anna.dispatcher.claim_pass() == 0
        queued = await db.all("select fire_time > now(), priority from pgsched.runs where status = 'queued'")
        assert queued == ([(True, 3)] if change.startswith("alter") else [])


async def test_a_plan_that_the_database_refuses_makes_only_its_own_schedule_invalid(settings, db):
    sc = Scheduler()

    @sc.entrypoint("job")
    async def job(): ...

    # PostgreSQL counts a month as 30 days here, and Python writes it back as longer than it may be.
    make = "select pgsched.create_schedule(%s, 'job', '@at 2020-01-01T00:00:00Z', options => %s)"
    await db.all(make, "bad", '{"backoff": "101 years"}')
    await db.all(make, "good", "{}")
    async with working(sc, settings):
        await db.until("select status = 'succeeded' from pgsched.runs")
        await db.until("select note like '%%refused%%' from pgsched.schedules where status = 'invalid'")
