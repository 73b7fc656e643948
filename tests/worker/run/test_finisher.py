"""Ends are written under their claims, until the database has them, and none holds up another."""

import asyncio
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from structlog.testing import capture_logs
from support.claims import ROW, finish, running
from support.refusals import OWN_STATE, STATES, events, plain, refuse, relent
from support.workers import until, working

from pgsched import Retry, Scheduler
from pgsched.db.statements.parameters import claim_of
from pgsched.db.statements.queries import in_schema
from pgsched.db.statements.values import EntrypointDefaults, Share
from pgsched.model import Claim, Outcome, RunError, RunStatus
from pgsched.worker.run.finisher import Finisher


async def test_a_finish_lands_only_under_its_very_claim(kit, db):
    run, = await running(db, kit.worker, attempt=2)  # fmt: skip
    good = Outcome(Claim(run, 2, kit.worker), RunStatus.SUCCEEDED, result_json="1")
    before = await db.all(ROW)
    assert await finish(kit, replace(good, claim=Claim(run, 1, kit.worker))) == set()
    other = replace(kit, worker=uuid.uuid4())
    assert await finish(other, good) == set()
    assert await db.all(ROW) == before
    assert await finish(kit, good) == {run}
    after = await db.all(ROW)
    failed = replace(good, status=RunStatus.FAILED, result_json="2", error=RunError("E", "m"))
    assert await finish(other, failed) == set()
    assert await db.all(ROW) == after


@pytest.mark.parametrize("status", [RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.QUEUED])
@pytest.mark.parametrize("refund", [False, True])
async def test_a_finish_whose_answer_was_lost_counts_as_landed_when_sent_again(kit, db, status, refund):
    run, = await running(db, kit.worker)  # fmt: skip
    outcome = Outcome(Claim(run, 1, kit.worker), status, refund=refund)
    assert await finish(kit, outcome) == {run}
    after = await db.all(ROW)
    assert await finish(kit, outcome) == {run}
    assert await db.all(ROW) == after


async def test_an_end_is_written_in_no_way_while_its_commit_is_unknown_to_the_database(kit, db):
    ends = {RunStatus.SUCCEEDED: None, RunStatus.FAILED: RunError("E", "m"), RunStatus.QUEUED: RunError("E", "m")}
    for status, error in ends.items():
        run, = await running(db, kit.worker)  # fmt: skip
        before = await db.one("select status, result, errors from pgsched.runs where id = %s", run)
        outcome = Outcome(Claim(run, 1, kit.worker), status, result_json="1", error=error, transacted=True)
        assert await finish(kit, outcome) == {run}, "it is answered"
        assert await db.one("select status, result, errors from pgsched.runs where id = %s", run) == before


async def test_a_give_back_that_is_sent_again_does_not_land_on_a_later_claim_of_the_same_worker(kit, db):
    """The answer to the first is lost. Meanwhile the worker claims the run again: with the same attempt number."""
    await db.all("select pgsched.enqueue('job')")
    rules = [EntrypointDefaults("job", 3, timedelta(0), timedelta(0), None)]

    async def claim():
        async with kit.control.use() as connection:
            [run], _ = await kit.store.claims.claim_due_runs(
                connection, kit.worker, rules, [Share([rules[0].entrypoint], 1)], lookahead=timedelta(0), limit=1
            )
        return run

    first = await claim()
    back = Outcome(claim_of(first, kit.worker), RunStatus.QUEUED, refund=True)
    assert await finish(kit, back) == {first.id}
    second = await claim()
    assert (second.id, second.attempt, first.attempt) == (first.id, 1, 1)
    assert second.token > first.token > 0
    assert await finish(kit, back) == set()
    assert await db.one("select status, attempt from pgsched.runs") == ("running", 1)
    assert await finish(kit, Outcome(claim_of(second, kit.worker), RunStatus.SUCCEEDED)) == {first.id}


async def test_a_finish_does_not_wait_for_a_client_that_holds_the_schedule(kit, db, dsn):
    schedule = await db.value("select pgsched.create_schedule('s', 'job', '@daily')")
    run, = await running(db, kit.worker, schedule_id=schedule, fire_time=datetime.now(UTC))  # fmt: skip
    async with await psycopg.AsyncConnection.connect(dsn) as other:
        lock = b"update pgsched.schedules set args = '{\"a\": 1}'"
        await other.execute(in_schema(lock, kit.settings.schema, parametrised=False))
        async with asyncio.timeout(5):
            assert await finish(kit, Outcome(Claim(run, 1, kit.worker), RunStatus.SUCCEEDED)) == {run}
        await other.rollback()


async def test_one_outcome_that_cannot_be_stored_does_not_hold_up_the_others(kit, db):
    ids = await running(db, kit.worker, 3)
    finisher = Finisher(kit)
    answers = {}
    for run, result in zip(ids, ("1", '"\\u0000"', "3"), strict=True):
        outcome = Outcome(Claim(run, 1, kit.worker), RunStatus.SUCCEEDED, result_json=result)
        finisher.put(outcome, lambda o, landed: answers.update({o.claim.run_id: landed}))
    task = asyncio.create_task(finisher.run())
    assert await finisher.flush(10)
    task.cancel()
    assert answers == dict.fromkeys(ids, True)
    rows = await db.all("select status, result, reason from pgsched.runs order by id")
    assert rows == [
        ("succeeded", 1, None), ("succeeded", None, "the result could not be stored"), ("succeeded", 3, None),
    ]  # fmt: skip


async def test_an_end_whose_row_a_client_holds_lands_later_and_holds_up_no_other(kit, db, dsn):
    held, free = await running(db, kit.worker, 2)
    finisher, answers = Finisher(kit), {}
    writing = asyncio.create_task(finisher.run())
    async with await psycopg.AsyncConnection.connect(dsn) as other:
        # As `begin; select pgsched.cancel(...)`, left open.
        cancel = f"select pgsched.cancel({held})".encode()
        await other.execute(in_schema(cancel, kit.settings.schema, parametrised=False))
        for run in (held, free):
            outcome = Outcome(Claim(run, 1, kit.worker), RunStatus.SUCCEEDED)
            finisher.put(outcome, lambda o, landed: answers.update({o.claim.run_id: landed}))
        await until(lambda: answers == {free: True}, 5)
        assert not await finisher.flush(0.3), "it is not done while one is held"
        await other.commit()
    assert await finisher.flush(5)
    writing.cancel()
    assert answers == {free: True, held: True}


async def test_ends_that_are_refused_in_every_form_stop_no_other_and_their_runs_are_executed_once(settings, db):
    calls = []
    sc = Scheduler()

    @sc.entrypoint("bad", retry=Retry(attempts=1))
    async def bad(state: str):
        calls.append(state)
        return "done"

    @sc.entrypoint("good")
    async def good(): ...

    await refuse(db, "new.entrypoint = 'bad' and new.status <> 'running'", state=OWN_STATE)
    with capture_logs() as logs:
        async with working(sc, settings, stall_timeout="1s") as worker:
            for state in STATES:
                await db.all("select pgsched.enqueue('bad', jsonb_build_object('state', %s::text))", state)
                await db.all("select pgsched.enqueue('good')")
            good_ones = "select count(*) = %s from pgsched.runs where entrypoint = 'good' and status = 'succeeded'"
            await db.until(good_ones, len(STATES))
            await db.until("select count(*) = %s from pgsched.resting where kind = 'end'", len(STATES))
            reasons = await db.all("select distinct reason from pgsched.resting")
            assert {reason for (reason,) in reasons} == {f"not this one (SQLSTATE {state})" for state in STATES}
            beat = await db.value("select max(heartbeat_at) from pgsched.runs")
            await db.until("select bool_and(heartbeat_at > %s) from pgsched.runs where entrypoint = 'bad'", beat)
            await relent(db)
            assert await worker.finisher.flush(20)  # which tries them once more, as half a minute later
            await db.until("select bool_and(status = 'succeeded') from pgsched.runs")
            assert await db.value("select count(*) from pgsched.runs where result = '\"done\"'") == len(STATES)
            await db.until("select not exists (select from pgsched.set_aside)")
            assert worker.finisher.pending == 0
    assert sorted(calls) == sorted(STATES)
    assert len(events(logs, "row_set_aside")) == len(events(logs, "row_taken_back")) == len(STATES)
    assert not events(logs, "database_lost")


@pytest.mark.parametrize(
    ("borne", "kind"), [("new.errors::text not like '%%bear%%'", "Unstorable"), ("new.errors = '[]'", None)]
)
async def test_an_end_is_written_in_its_barest_form_as_failed(settings, db, borne, kind):
    """First without what the error says, at last without any error."""
    sc = Scheduler()

    @sc.entrypoint("bad", retry=Retry(attempts=5))
    async def bad():
        raise ValueError("an error that somebody's trigger cannot bear")

    await refuse(db, f"new.status not in ('running', 'failed') or not ({borne})")
    with capture_logs() as logs:
        async with working(sc, settings):
            await db.all("select pgsched.enqueue('bad')")
            await db.until("select status = 'failed' and attempt = 1 from pgsched.runs")
        told = await db.one("select reason, errors -> 0 ->> 'type' from pgsched.runs")
    assert told == ("its end could not be stored", kind)
    assert [line["error"] for line in events(logs, "run_failed_for_good")] == ["Unstorable"]


async def test_a_drain_says_that_an_end_could_not_be_written(settings, db):
    sc = Scheduler()

    @sc.entrypoint("bad")
    async def bad(): ...

    await refuse(db, "new.status <> 'running'")
    with capture_logs() as logs:
        async with working(sc, settings) as worker:
            await db.all("select pgsched.enqueue('bad')")
            await db.until("select exists (select from pgsched.set_aside)")
    assert worker.given_back == 1 and events(logs, "outcomes_not_written")


@pytest.mark.parametrize("how", ["waits for a lock", "takes for ever"])
async def test_an_end_that_waits_for_somebody_keeps_no_other_from_landing(settings, db, dsn, schema, how):
    await db.all("create table pgsched.orders (id int primary key)")
    await db.all("insert into pgsched.orders values (1)")
    does = "perform 1 from pgsched.orders for update" if how == "waits for a lock" else "perform pg_sleep(3600)"
    await db.all(
        f"create function pgsched.counted() returns trigger language plpgsql as $$ begin {does}; return new; end $$"
    )
    await db.all(
        "create trigger counted before update on pgsched.runs for each row"
        " when (new.args ? 'bad' and old.status = 'running' and new.status <> 'running')"
        " execute function pgsched.counted()"
    )
    lock = in_schema(b"select 1 from pgsched.orders for update", schema, parametrised=False)
    async with await psycopg.AsyncConnection.connect(dsn) as client:
        await client.execute(lock)
        async with working(plain(), settings, stall_timeout=timedelta(seconds=5), cancel_timeout="100ms"):
            bad = "case n when 3 then '{\"bad\": 1}'::jsonb end"
            await db.all(f"select pgsched.enqueue('job', {bad}) from generate_series(1, 8) n")
            await db.until("select count(*) = 7 from pgsched.runs where finished_at is not null", limit=30)
            await db.until("select exists (select from pgsched.resting where kind = 'end')", limit=60)
            await db.all("select pgsched.enqueue('job') from generate_series(1, 3)")
            await db.until("select count(*) = 10 from pgsched.runs where finished_at is not null", limit=30)
            await db.all("alter table pgsched.runs disable trigger counted")
            await client.rollback()
            await db.until("select count(*) = 11 from pgsched.runs where finished_at is not null", limit=30)
    assert await db.value("select max(attempt) from pgsched.runs") == 1
