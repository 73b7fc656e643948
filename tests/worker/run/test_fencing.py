"""Writes under a claim: a finish, a beat or a reap that comes too late changes nothing and says so."""

import asyncio
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from support.claims import dead_worker, finish, old_enough, running
from support.workers import reap, until

from pgsched.db.fence.fence import session_name
from pgsched.db.statements.parameters import claim_of
from pgsched.db.statements.statements import in_schema
from pgsched.db.statements.values import EntrypointDefaults, Share
from pgsched.model import Claim, Outcome, RunError, RunStatus
from pgsched.worker.run.finisher import Finisher
from pgsched.worker.run.roster import Roster
from pgsched.worker.upkeep.reaper import Reaper

ROW = "select status, attempt, worker, result, errors, heartbeat_at, finished_at from pgsched.runs order by id"


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


async def test_a_give_back_that_is_sent_again_does_not_land_on_a_later_claim_of_the_same_worker(kit, db):
    """The answer to the first is lost. Meanwhile the worker claims the run again: with the same attempt number."""
    await db.all("select pgsched.enqueue('job')")
    rules = [EntrypointDefaults("job", 3, timedelta(0), timedelta(0), None)]

    async def claim():
        async with kit.control.use() as connection:
            [run], _ = await kit.store.claim_due_runs(
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


def test_the_names_of_attempts_sessions_differ_for_the_largest_ids_and_tokens():
    worker, ids, tokens = uuid.uuid4(), (1, 2**63 - 2, 2**63 - 1), (1, 2**63 - 2, 2**63 - 1)
    names = {session_name(Claim(run, token, worker)) for run in ids for token in tokens}
    assert len(names) == len(tokens), "a token is one claim's alone"
    assert all(len(name) <= 63 for name in names)


async def test_a_finish_that_comes_after_the_reaper_has_lost(kit, db):
    dead = await dead_worker(db)
    run, = await running(db, dead, silent=60)  # fmt: skip
    await old_enough(db)
    await reap(Reaper(kit, Roster(kit.settings)))
    before = await db.all(ROW)
    assert before[0][0] == "queued"
    late = Outcome(Claim(run, 1, dead), RunStatus.SUCCEEDED)
    assert await finish(replace(kit, worker=dead), late) == set()
    assert await db.all(ROW) == before


async def test_a_beat_tells_lost_cancelled_and_held_apart(kit, db):
    held, lost, asked, done = await running(db, kit.worker, 4)
    await db.all("update pgsched.runs set worker = %s where id = %s", uuid.uuid4(), lost)
    await db.all("update pgsched.runs set status = 'succeeded', finished_at = now() where id = %s", done)
    await db.all("select pgsched.cancel(%s)", asked)
    beats = dict(await db.all("select id, heartbeat_at from pgsched.runs"))
    async with kit.writes.use() as connection:
        claims = [(run, 1, None) for run in (held, lost, asked, done)]
        assert await kit.store.beat(connection, kit.worker, claims) == {(held, 1): False, (asked, 1): True}
    now = dict(await db.all("select id, heartbeat_at from pgsched.runs"))
    assert now[held] > beats[held] and now[lost] == beats[lost] and now[done] == beats[done]


async def test_beat_and_reap_pass_over_a_row_that_a_finish_has_locked(kit, db, dsn):
    dead = await dead_worker(db)
    mine, theirs = (await running(db, kit.worker, silent=60))[0], (await running(db, dead, silent=60))[0]
    async with await psycopg.AsyncConnection.connect(dsn) as other:
        await other.execute(in_schema(b"select from pgsched.runs for update", kit.store.schema, parametrised=False))
        async with asyncio.timeout(5), kit.writes.use() as connection:
            held = await kit.store.beat(connection, kit.worker, [(mine, 1, None)])
            assert held == {(mine, 1): False}, "a locked row is not a lost one"
        async with asyncio.timeout(5):
            await reap(Reaper(kit, Roster(kit.settings)))
        await other.rollback()
    assert await db.value("select status from pgsched.runs where id = %s", theirs) == "running"


async def test_a_finish_does_not_wait_for_a_client_that_holds_the_schedule(kit, db, dsn):
    schedule = await db.value("select pgsched.create_schedule('s', 'job', '@daily')")
    run, = await running(db, kit.worker, schedule_id=schedule, fire_time=datetime.now(UTC))  # fmt: skip
    async with await psycopg.AsyncConnection.connect(dsn) as other:
        lock = b"update pgsched.schedules set args = '{\"a\": 1}'"
        await other.execute(in_schema(lock, kit.store.schema, parametrised=False))
        async with asyncio.timeout(5):
            assert await finish(kit, Outcome(Claim(run, 1, kit.worker), RunStatus.SUCCEEDED)) == {run}
        await other.rollback()


async def test_a_beat_waits_for_nobody_though_the_workers_row_is_locked_as_well(kit, db, dsn):
    owner = await dead_worker(db)
    run, = await running(db, owner)  # fmt: skip
    async with await psycopg.AsyncConnection.connect(dsn) as client:
        lock = b"select from pgsched.runs, pgsched.workers for update"
        await client.execute(in_schema(lock, kit.store.schema, parametrised=False))
        async with asyncio.timeout(5), kit.writes.use() as connection:
            assert await kit.store.beat(connection, owner, [(run, 1, None)]) == {(run, 1): False}


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


async def test_beats_finishes_and_reaps_at_once_never_deadlock(kit, db):
    dead = await dead_worker(db)
    ids = await running(db, kit.worker, 300)
    await running(db, dead, 300, silent=60)
    claims = [(run, 1, None) for run in ids]
    await old_enough(db)
    before = await db.value("select deadlocks from pg_stat_database where datname = current_database()")

    async def beats():
        for _ in range(20):
            async with kit.control.use() as connection:
                await kit.store.beat(connection, kit.worker, claims[::-1])

    async def finishes():
        for start in range(0, 300, 20):
            left = [Outcome(Claim(r, 1, kit.worker), RunStatus.SUCCEEDED) for r in ids[start : start + 20][::-1]]
            while left:  # a row that a beat has locked just now is passed over
                landed = await finish(kit, *left)
                left = [outcome for outcome in left if outcome.claim.run_id not in landed]

    second = replace(kit, control=kit.session("second"))
    third = replace(kit, control=kit.session("third"))
    await asyncio.gather(
        beats(), finishes(), reap(Reaper(second, Roster(kit.settings))), reap(Reaper(third, Roster(kit.settings)))
    )
    for each in (second, third):
        await each.control.discard()
    assert await db.value("select deadlocks from pg_stat_database where datname = current_database()") == before
    assert dict(await db.all("select status, count(*) from pgsched.runs group by 1")) == {
        "succeeded": 300,
        "queued": 300,
    }


async def test_an_end_whose_row_a_client_holds_lands_later_and_holds_up_no_other(kit, db, dsn):
    held, free = await running(db, kit.worker, 2)
    finisher, answers = Finisher(kit), {}
    writing = asyncio.create_task(finisher.run())
    async with await psycopg.AsyncConnection.connect(dsn) as other:
        # As `begin; select pgsched.cancel(...)`, left open.
        cancel = f"select pgsched.cancel({held})".encode()
        await other.execute(in_schema(cancel, kit.store.schema, parametrised=False))
        for run in (held, free):
            outcome = Outcome(Claim(run, 1, kit.worker), RunStatus.SUCCEEDED)
            finisher.put(outcome, lambda o, landed: answers.update({o.claim.run_id: landed}))
        await until(lambda: answers == {free: True}, 5)
        assert not await finisher.flush(0.3), "it is not done while one is held"
        await other.commit()
    assert await finisher.flush(5)
    writing.cancel()
    assert answers == {free: True, held: True}


@pytest.mark.parametrize("by", ["drain", "failure", "reaper"])
async def test_a_request_to_cancel_outlives_the_attempt(kit, db, by):
    worker = await dead_worker(db) if by == "reaper" else kit.worker
    run, = await running(db, worker, silent=60)  # fmt: skip
    await db.all("select pgsched.cancel(%s)", run)
    if by == "reaper":
        await old_enough(db)
        await reap(Reaper(kit, Roster(kit.settings)))
    else:
        assert await finish(kit, Outcome(Claim(run, 1, worker), RunStatus.QUEUED, refund=by == "drain")) == {run}
    assert await db.one("select status, reason, finished_at is not null from pgsched.runs") == (
        "cancelled", "cancelled on request", True,
    )  # fmt: skip
