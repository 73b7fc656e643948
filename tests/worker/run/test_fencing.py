"""Writes under a claim: a finish, a beat or a reap that comes too late changes nothing and says so."""

import asyncio
import uuid
from dataclasses import replace

import psycopg
import pytest
from support.claims import ROW, dead_worker, finish, running
from support.workers import Parts, reap

from pgsched.db.fence.fence import session_name
from pgsched.db.statements import claims
from pgsched.db.statements.queries import in_schema
from pgsched.model import Claim, Outcome, RunStatus
from pgsched.worker.run.roster import Roster
from pgsched.worker.upkeep.reaper import Reaper


def test_the_names_of_attempts_sessions_differ_for_the_largest_ids_and_tokens():
    worker, ids, tokens = uuid.uuid4(), (1, 2**63 - 2, 2**63 - 1), (1, 2**63 - 2, 2**63 - 1)
    names = {session_name(Claim(run, token, worker)) for run in ids for token in tokens}
    assert len(names) == len(tokens), "a token is one claim's alone"
    assert all(len(name) <= 63 for name in names)


async def test_a_finish_that_comes_after_the_reaper_has_lost(kit, db):
    dead = await dead_worker(db)
    run, = await running(db, dead, silent=60)  # fmt: skip
    await reap(Reaper(kit, Roster(kit.settings)), kit)
    before = await db.all(ROW)
    assert before[0][0] == "queued"
    late = Outcome(Claim(run, 1, dead), RunStatus.SUCCEEDED)
    assert await finish(replace(kit, worker=dead), late) == set()
    assert await db.all(ROW) == before


async def test_beat_and_reap_pass_over_a_row_that_a_finish_has_locked(kit, db, dsn):
    dead = await dead_worker(db)
    mine, theirs = (await running(db, kit.worker, silent=60))[0], (await running(db, dead, silent=60))[0]
    async with await psycopg.AsyncConnection.connect(dsn) as other:
        await other.execute(in_schema(b"select from pgsched.runs for update", kit.settings.schema, parametrised=False))
        async with asyncio.timeout(5), kit.writes.use() as connection:
            held = await kit.store.runs.beat(connection, kit.worker, [(mine, 1, None)])
            assert held == {(mine, 1): False}, "a locked row is not a lost one"
        async with asyncio.timeout(5):
            await reap(Reaper(kit, Roster(kit.settings)), kit)
        await other.rollback()
    assert await db.value("select status from pgsched.runs where id = %s", theirs) == "running"


async def test_beats_finishes_and_reaps_at_once_never_deadlock(kit, db):
    dead = await dead_worker(db)
    ids = await running(db, kit.worker, 300)
    await running(db, dead, 300, silent=60)
    claims = [(run, 1, None) for run in ids]
    before = await db.value("select deadlocks from pg_stat_database where datname = current_database()")

    async def beats():
        for _ in range(20):
            async with kit.control.use() as connection:
                await kit.store.runs.beat(connection, kit.worker, claims[::-1])

    async def finishes():
        for start in range(0, 300, 20):
            left = [Outcome(Claim(r, 1, kit.worker), RunStatus.SUCCEEDED) for r in ids[start : start + 20][::-1]]
            while left:  # a row that a beat has locked just now is passed over
                landed = await finish(kit, *left)
                left = [outcome for outcome in left if outcome.claim.run_id not in landed]

    second = replace(kit, control=kit.session("second"))
    third = replace(kit, control=kit.session("third"))
    await asyncio.gather(
        beats(),
        finishes(),
        reap(Reaper(second, Roster(kit.settings)), second),
        reap(Reaper(third, Roster(kit.settings)), third),
    )
    for each in (second, third):
        await each.control.discard()
    assert await db.value("select deadlocks from pg_stat_database where datname = current_database()") == before
    assert dict(await db.all("select status, count(*) from pgsched.runs group by 1")) == {
        "succeeded": 300,
        "queued": 300,
    }


@pytest.mark.parametrize("by", ["drain", "failure", "reaper"])
async def test_a_request_to_cancel_outlives_the_attempt(kit, db, by):
    worker = await dead_worker(db) if by == "reaper" else kit.worker
    run, = await running(db, worker, silent=60)  # fmt: skip
    await db.all("select pgsched.cancel(%s)", run)
    if by == "reaper":
        await reap(Reaper(kit, Roster(kit.settings)), kit)
    else:
        assert await finish(kit, Outcome(Claim(run, 1, worker), RunStatus.QUEUED, refund=by == "drain")) == {run}
    assert await db.one("select status, reason, finished_at is not null from pgsched.runs") == (
        "cancelled", "cancelled on request", True,
    )  # fmt: skip


@pytest.mark.parametrize("way", ["direct", "pooled"])
async def test_a_claim_that_a_failover_has_undone_shares_its_token_with_no_later_one(settings, db, way):
    """The standby that was promoted lacks a claim, and gives its run's id and its token out again."""
    async with Parts(settings) as parts:
        kit = parts.kit
        sequences = "select pg_get_serial_sequence('pgsched.runs', 'id')::regclass, 'pgsched.tokens'::regclass"
        ids, tokens = await db.one(sequences)
        taken = []
        for _ in range(2):
            await db.all("select pgsched.enqueue('job') from generate_series(1, 3)")
            while len(parts.taken) < 3:
                await parts.dispatcher.claim_pass()
            taken.append(parts.taken[:])
            parts.taken.clear()
            await db.all("delete from pgsched.runs")
            await db.all("select setval(%s, 1, false), setval(%s, 1, false)", ids, tokens)
            if way == "direct":
                await kit.control.discard()
            else:
                kit.control.direct = False
        before, after = taken
        assert [run.id for run in before] == [run.id for run in after]
        assert max(run.token for run in before) < min(run.token for run in after)


async def test_drawing_tokens_up_to_one_is_bounded_and_reaches_it(kit, db, monkeypatch):
    monkeypatch.setattr(claims, "TOKENS", 10)
    async with kit.control.use() as connection:
        await kit.store.claims.pass_tokens(connection, 35)
        assert await db.value("select pgsched.next_token()") > 35
        before = await db.value("select pgsched.next_token()")
        await kit.store.claims.pass_tokens(connection, 35)
        assert await db.value("select pgsched.next_token()") == before + 2
