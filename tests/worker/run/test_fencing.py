"""Writes under a claim: a finish, a beat or a reap that comes too late changes nothing and says so."""

import asyncio
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from support.workers import reap, until

from pgsched import Scheduler
from pgsched.db.fence.fence import session_name
from pgsched.db.statements.parameters import claim_of
from pgsched.db.statements.statements import in_schema
from pgsched.db.statements.store import Store
from pgsched.db.statements.upkeep import SILENT_PAGE
from pgsched.db.statements.values import EntrypointDefaults, Share
from pgsched.model import Claim, Outcome, Process, RunError, RunStatus
from pgsched.worker.kit import Kit
from pgsched.worker.run.finisher import Finisher
from pgsched.worker.run.roster import Roster
from pgsched.worker.upkeep.reaper import Reaper
from pgsched.worker.whereabouts import Whereabouts

ROW = "select status, attempt, worker, result, errors, heartbeat_at, finished_at from pgsched.runs order by id"


@pytest.fixture
async def kit(settings):
    made = Kit.build(Scheduler(), settings.merged({"heartbeat_interval": "1s", "stall_timeout": "30s"}, "test"))
    yield made
    await made.control.discard()
    await made.writes.discard()


async def running(db, worker, count=1, *, attempt=1, silent=0.0, **values):
    """Runs that a worker has claimed; returns their ids."""
    names = "".join(f", {name}" for name in values)
    rows = await db.all(
        "insert into pgsched.runs (entrypoint, status, attempt, token, max_attempts, worker, claimed_at, heartbeat_at"
        f"{names})"
        " select 'job', 'running', %s, %s, 3, %s, now(), clock_timestamp() - %s * interval '1 second'"
        f"{', %s' * len(values)} from generate_series(1, %s) returning id",
        attempt, attempt, worker, silent, *values.values(), count,
    )  # fmt: skip
    return [row[0] for row in rows]


async def dead_worker(db, *, direct=True, process=Process.ENDED, route=""):
    """A worker that is registered and has no session. Of its process this one can see as much as is given."""
    worker, own = uuid.uuid4(), Whereabouts.own()
    machine = "another" if process is Process.UNKNOWN else own.machine
    started = own.started if process is Process.ALIVE else "1"
    await db.all(
        "insert into pgsched.workers (id, app, host, pid, version, entrypoints, direct, heartbeat_interval,"
        " stall_timeout, machine, process_started, route)"
        " values (%s, 'a', 'h', %s, '0', '{}', %s, '1s', '30s', %s, %s, %s)",
        worker, own.pid, direct, machine, started, route,
    )  # fmt: skip
    return worker


async def finish(kit, *outcomes):
    answers = await Finisher(kit).send(outcomes)
    return {run_id for (run_id, _), landed in answers.items() if landed}


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


@pytest.mark.parametrize("winner", ["beat", "finish", "next attempt"])
async def test_what_comes_between_the_reapers_look_and_its_write_wins(kit, db, monkeypatch, winner):
    dead = await dead_worker(db)
    run, = await running(db, dead, silent=60)  # fmt: skip
    real = Store.reap_runs
    between = {
        "beat": "update pgsched.runs set heartbeat_at = clock_timestamp()",
        "finish": "update pgsched.runs set status = 'succeeded', finished_at = now()",
        "next attempt": "update pgsched.runs set attempt = 2, token = 2",
    }

    async def overtaken(self, connection, verdicts):
        await db.all(between[winner])
        return await real(self, connection, verdicts)

    monkeypatch.setattr(Store, "reap_runs", overtaken)
    await old_enough(db)
    await reap(Reaper(kit, Roster(kit.settings)))
    assert await db.value("select worker from pgsched.runs where id = %s", run) == dead
    assert await db.value("select errors from pgsched.runs where id = %s", run) == []


async def old_enough(db):
    """The reaper trusts nothing until the server has been up for a stall timeout."""
    await db.until("select now() - pg_postmaster_start_time() > interval '31 seconds'", limit=40)


async def status_after_pass(kit, db, reaper=None, *, rested=True):
    await old_enough(db)
    await reap(reaper or Reaper(kit, Roster(kit.settings)), rested=rested)
    return await db.value("select status from pgsched.runs")


async def test_gone_and_silent_for_three_beats_is_reaped(kit, db):
    await running(db, await dead_worker(db), silent=3.1)
    assert await status_after_pass(kit, db) == "queued"
    attempt, worker, errors = await db.one("select attempt, worker, errors from pgsched.runs")
    assert (attempt, worker) == (1, None)
    assert errors[0]["type"] == "WorkerLost" and "is gone" in errors[0]["message"]


async def test_silent_but_connected_is_not(kit, db, dsn):
    dead = await dead_worker(db)
    async with await psycopg.AsyncConnection.connect(dsn, application_name=f"pgsched {dead}"):
        await running(db, dead, silent=20)
        assert await status_after_pass(kit, db) == "running"
        await db.all("update pgsched.runs set heartbeat_at = clock_timestamp() - interval '31 seconds'")
        assert await status_after_pass(kit, db) == "queued"


async def test_behind_a_pooler_the_stall_timeout_alone_decides(kit, db):
    await running(db, await dead_worker(db, direct=False, process=Process.UNKNOWN), silent=20)
    assert await status_after_pass(kit, db) == "running"


@pytest.mark.parametrize("process", [Process.UNKNOWN, Process.ALIVE])
async def test_a_worker_without_sessions_is_not_known_to_be_dead(kit, db, process):
    await running(db, await dead_worker(db, process=process), silent=20)
    assert await status_after_pass(kit, db) == "running"
    await db.all("update pgsched.runs set heartbeat_at = clock_timestamp() - interval '31 seconds'")
    assert await status_after_pass(kit, db) == "queued"


@pytest.mark.parametrize(
    "case",
    [
        ("here", "before", "queued"),
        # Whatever ended the sessions of the one may have ended those of the other, which is back.
        ("here", "after", "running"),
        ("there", "before", "running"),
    ],
)
async def test_a_worker_without_sessions_is_dead_if_its_route_serves_another_well(kit, db, dsn, case):
    route, since, status = case
    await old_enough(db)
    witness, silence = await dead_worker(db, route=route), 20.0 if since == "after" else 0.31
    dead = await dead_worker(db, process=Process.UNKNOWN, route="here")
    await db.all("update pgsched.workers set heartbeat_interval = '100 milliseconds'")
    async with await psycopg.AsyncConnection.connect(dsn, application_name=f"pgsched {witness}") as other:
        await db.until(
            "select clock_timestamp() - backend_start > interval '0.35 s' from pg_stat_activity"
            " where application_name = %s", f"pgsched {witness}",
        )  # fmt: skip
        await running(db, dead, silent=silence)
        await other.execute("select 1")
        quick = replace(kit, settings=kit.settings.merged({"heartbeat_interval": "100ms"}, "test"))
        assert await status_after_pass(quick, db) == status


async def test_a_silence_is_judged_only_after_it_was_watched(kit, db, dsn):
    """A step of the database's clock makes all beats old, and the owners' next ones are still to come."""
    await old_enough(db)
    dead = await dead_worker(db)
    async with await psycopg.AsyncConnection.connect(dsn, application_name=f"pgsched {dead}"):
        await running(db, dead, silent=3600)
        reaper = Reaper(kit, Roster(kit.settings))
        reaper._distrust_until = 0.0
        await reaper.reap_pass()
        assert await db.value("select status from pgsched.runs") == "running"
        await db.all("update pgsched.runs set heartbeat_at = heartbeat_at + interval '1 second'")
        await reap_twice_at_once(reaper)
        assert await db.value("select status from pgsched.runs") == "running", "it has beaten in between"
        assert await status_after_pass(kit, db, reaper) == "queued"


async def reap_twice_at_once(reaper):
    await reaper.reap_pass()
    await reaper.reap_pass()


async def test_a_reaper_that_has_just_started_takes_only_from_processes_that_ended(kit, db):
    """After a failover a fresh worker may be there before the owners are back."""
    await old_enough(db)
    for process in Process:
        await running(db, await dead_worker(db, process=process), silent=3600)
    reaper = Reaper(kit, Roster(kit.settings))
    await reaper.reap_pass()
    reaper._watched = {key: (sign, at - 10) for key, (sign, at) in reaper._watched.items()}
    await reaper.reap_pass()
    assert await db.all("select status from pgsched.runs order by id") == [("running",), ("running",), ("queued",)]


async def test_a_run_that_was_made_running_by_hand_is_silent_since_it_was_made(kit, db):
    await old_enough(db)
    await db.all("alter table pgsched.runs drop constraint runs_claim_check")  # as a version before had it
    await db.all(
        "insert into pgsched.runs (entrypoint, status, attempt, max_attempts, created_at)"
        " values ('job', 'running', 1, 3, now() - interval '1 minute'), ('job', 'running', 1, 3, now())"
    )
    await reap(Reaper(kit, Roster(kit.settings)))
    assert await db.all("select status from pgsched.runs order by id") == [("queued",), ("running",)]


async def test_claims_of_a_worker_that_stands_still_do_not_hide_those_of_a_dead_one(kit, db, dsn, monkeypatch):
    """Nor are they read: a page holds only what may be taken soon."""
    pages, real = [], Store.find_silent_runs

    async def find_silent_runs(*args, **kwargs):
        found = await real(*args, **kwargs)
        pages.append([run.id for run in found[-1]])
        return found

    monkeypatch.setattr(Store, "find_silent_runs", find_silent_runs)
    still = await dead_worker(db)
    async with await psycopg.AsyncConnection.connect(dsn, application_name=f"pgsched {still}"):
        await running(db, still, SILENT_PAGE, silent=20)
        run, = await running(db, await dead_worker(db), silent=3.1)  # fmt: skip
        await old_enough(db)
        await reap(Reaper(kit, Roster(kit.settings)))
    assert await db.all("select id from pgsched.runs where status = 'queued'") == [(run,)]
    assert pages == [[run], [run]]


async def test_the_reaper_looks_behind_a_full_page(kit, db):
    """As many that may not be taken yet, and must be watched."""
    await running(db, await dead_worker(db, process=Process.ALIVE), 2 * SILENT_PAGE, silent=20)
    run, = await running(db, await dead_worker(db), silent=3.1)  # fmt: skip
    await old_enough(db)
    await reap(Reaper(kit, Roster(kit.settings)))
    assert await db.all("select id from pgsched.runs where status = 'queued'") == [(run,)]


async def test_a_beat_that_finds_the_row_locked_is_a_sign_of_life(kit, db, dsn):
    """Neither a client's lock, however long, nor its end makes the run another worker's."""
    await old_enough(db)
    owner = await dead_worker(db)
    run, = await running(db, owner, silent=31)  # fmt: skip
    reaper = Reaper(kit, Roster(kit.settings))
    async with await psycopg.AsyncConnection.connect(dsn) as client, kit.writes.use() as connection:
        assert await kit.store.beat(connection, owner, [(run, 1, None)]) == {(run, 1): False}
        assert await db.value("select passed_at from pgsched.workers") is None, "nobody was in the way"
        await db.all("update pgsched.runs set heartbeat_at = clock_timestamp() - interval '31 seconds'")
        await client.execute(in_schema(b"select from pgsched.runs for update", kit.store.schema, parametrised=False))
        assert await kit.store.beat(connection, owner, [(run, 1, None)]) == {(run, 1): False}
        await client.rollback()
        # The reaper comes first, before the beat that can write again.
        assert await status_after_pass(kit, db, reaper) == "running"
        # A worker that died beats no more, not even in vain.
        await db.all("update pgsched.workers set passed_at = clock_timestamp() - interval '31 seconds'")
        assert await status_after_pass(kit, db, reaper) == "queued"


async def test_a_beat_waits_for_nobody_though_the_workers_row_is_locked_as_well(kit, db, dsn):
    owner = await dead_worker(db)
    run, = await running(db, owner)  # fmt: skip
    async with await psycopg.AsyncConnection.connect(dsn) as client:
        lock = b"select from pgsched.runs, pgsched.workers for update"
        await client.execute(in_schema(lock, kit.store.schema, parametrised=False))
        async with asyncio.timeout(5), kit.writes.use() as connection:
            assert await kit.store.beat(connection, owner, [(run, 1, None)]) == {(run, 1): False}


async def test_a_run_whose_worker_row_was_pruned_is_reaped_after_the_stall_timeout(kit, db):
    await running(db, uuid.uuid4(), silent=31)
    assert await status_after_pass(kit, db) == "queued"


async def test_a_poison_run_ends_as_failed(kit, db):
    await running(db, await dead_worker(db), silent=60, attempt=3)
    assert await status_after_pass(kit, db) == "failed"


async def test_after_an_outage_every_owner_gets_a_fresh_stall_timeout(kit, db, monkeypatch):
    await running(db, await dead_worker(db, process=Process.UNKNOWN), silent=60)
    reaper = Reaper(kit, Roster(kit.settings))
    with monkeypatch.context() as patch, pytest.raises(psycopg.OperationalError):
        patch.setattr(Store, "find_silent_runs", lost)
        await reaper.reap_pass()
    assert await status_after_pass(kit, db, reaper, rested=False) == "running"
    assert await status_after_pass(kit, db, reaper) == "queued"


async def test_a_look_that_the_server_refuses_is_no_outage(kit, db, monkeypatch):
    """Whoever can have a statement refused again and again must not keep all reapers from their work."""
    await running(db, await dead_worker(db, process=Process.UNKNOWN), silent=60)
    reaper = Reaper(kit, Roster(kit.settings))
    reaper._distrust_until -= 3600
    trusted = reaper._distrust_until
    for error, goes_on in ((psycopg.errors.RaiseException("no"), True), (psycopg.OperationalError("gone"), False)):

        async def failing(*_, error=error, **__):
            raise error

        with monkeypatch.context() as patch, pytest.raises(type(error)):
            patch.setattr(Store, "find_silent_runs", failing)
            await reaper.reap_pass()
        assert (reaper._distrust_until == trusted) is goes_on


async def lost(*_, **__):
    raise psycopg.OperationalError("gone")


async def test_a_gap_between_looks_counts_as_an_outage(kit, db):
    reaper = Reaper(kit, Roster(kit.settings))
    await running(db, await dead_worker(db, process=Process.UNKNOWN))
    assert await status_after_pass(kit, db, reaper) == "running"
    reaper._looked_at -= timedelta(seconds=60)  # as if this machine, or the server, had stood still
    await db.all("update pgsched.runs set heartbeat_at = clock_timestamp() - interval '60 seconds'")
    assert await status_after_pass(kit, db, reaper, rested=False) == "running"


async def test_a_freshly_started_server_is_given_time(kit, db, monkeypatch):
    await running(db, await dead_worker(db, process=Process.UNKNOWN), silent=60)
    real = Store.find_silent_runs

    async def fresh(self, *args, **named):
        now, _, elsewhere, silent = await real(self, *args, **named)
        return now, timedelta(seconds=5), elsewhere, silent

    monkeypatch.setattr(Store, "find_silent_runs", fresh)
    assert await status_after_pass(kit, db) == "running"


async def test_an_own_claim_that_nobody_here_knows_of_is_given_to_somebody(kit, db):
    # The answer to the commit that made it was lost.
    await running(db, kit.worker, silent=3.1)
    assert await status_after_pass(kit, db) == "queued"


async def test_ten_thousand_healthy_runs_do_not_hide_the_stalled_one(kit, db):
    await running(db, kit.worker, 10_000)
    await running(db, await dead_worker(db), silent=60)
    await old_enough(db)
    await reap(Reaper(kit, Roster(kit.settings)))
    assert await db.value("select count(*) from pgsched.runs where status = 'queued'") == 1


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
