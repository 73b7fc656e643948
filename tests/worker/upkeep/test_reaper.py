"""Whose runs a reaper takes away, and whose not: sessions that end and rows that somebody locks are no deaths."""

import asyncio
import contextlib
import uuid
from dataclasses import replace
from datetime import timedelta

import psycopg
import pytest
from support.claims import dead_worker, running
from support.proxies import Proxy
from support.refusals import OWN_STATE, held, refuse, relent
from support.workers import Parts, reap, until, working

from pgsched import Retry, Run, Scheduler
from pgsched.db.statements.queries import in_schema
from pgsched.db.statements.runs import RunStatements
from pgsched.db.statements.upkeep import SILENT_PAGE, UpkeepStatements
from pgsched.model import Process
from pgsched.worker.run.roster import Roster
from pgsched.worker.upkeep.reaper import Reaper


def app():
    sc = Scheduler(app="evidence")
    sc.gate = asyncio.Event()
    sc.calls = []

    @sc.entrypoint("job")
    async def job(run: Run):
        sc.calls.append(run.attempt)
        await sc.gate.wait()

    return sc


@contextlib.asynccontextmanager
async def reaping(settings, db, **changes):
    """A second worker, whose reaper has long been looking at a server that has not just started."""
    other = app()
    other.gate.set()
    async with working(other, settings, **changes) as worker:
        worker.kit.elapsed.advance(3600)
        yield other


@pytest.mark.parametrize("process", ["elsewhere", "here"])
async def test_a_balancer_that_goes_away_for_a_while_costs_nobody_a_run(settings, db, dsn, process):
    first, changes = app(), {"stall_timeout": "1h"}
    async with Proxy(dsn) as proxy, working(first, settings.merged({"dsn": proxy.dsn}, "test"), **changes) as worker:
        if process == "elsewhere":  # so that nothing is known of it
            await db.all("update pgsched.workers set machine = 'another'")
        await db.all("select pgsched.enqueue('job')")
        await until(lambda: first.calls)
        async with reaping(settings, db) as second:
            proxy.cut()
            gone = "not exists (select from pg_stat_activity where application_name = %s)"
            silent = "select clock_timestamp() - heartbeat_at > interval '1 second'"  # ten beats
            await db.until(f"{silent} and {gone} from pgsched.runs", f"pgsched {worker.kit.worker}")
            proxy.mend()
            await db.until("select clock_timestamp() - heartbeat_at < interval '200 ms' from pgsched.runs")
            first.gate.set()
            await db.until("select status = 'succeeded' and attempt = 1 from pgsched.runs")
            assert (first.calls, second.calls) == ([1], [])


async def test_the_run_of_a_process_that_ended_is_taken_though_the_stall_timeout_is_long(settings, db, dsn):
    first, changes = app(), {"stall_timeout": "1h"}
    async with Proxy(dsn) as proxy, working(first, settings.merged({"dsn": proxy.dsn}, "test"), **changes):
        await db.all("update pgsched.workers set process_started = '1'")  # as if this process were another one
        await db.all("select pgsched.enqueue('job')")
        await until(lambda: first.calls)
        async with reaping(settings, db) as second:
            proxy.cut()
            await db.until("select status = 'succeeded' and attempt = 2 from pgsched.runs")
            proxy.mend()
            assert (first.calls, second.calls) == ([1], [2])
            first.gate.set()


async def test_a_clients_lock_far_longer_than_the_stall_timeout_costs_nobody_a_run(settings, db, dsn):
    first, changes = app(), {"stall_timeout": "1200ms"}
    # Its beats come more seldom than the other's looks, so that one of these comes first when the lock is gone.
    async with working(first, settings, **changes, heartbeat_interval="300ms"):
        await db.all("select pgsched.enqueue('job')")
        await until(lambda: first.calls)
        async with reaping(settings, db, **changes) as second, await psycopg.AsyncConnection.connect(dsn) as client:
            lock = in_schema(b"select from pgsched.runs for update", settings.schema, parametrised=False)
            for _ in range(3):
                await client.execute(lock)
                await db.until("select clock_timestamp() - heartbeat_at > interval '1.5 s' from pgsched.runs")
                await client.rollback()
                await db.until("select clock_timestamp() - heartbeat_at < interval '1 s' from pgsched.runs")
            await client.execute(lock)
            first.gate.set()  # its end finds the row locked, too
            await db.until("select clock_timestamp() - heartbeat_at > interval '1.5 s' from pgsched.runs")
            await client.rollback()
            await db.until("select status = 'succeeded' and attempt = 1 from pgsched.runs")
            assert (first.calls, second.calls) == ([1], [])


async def status_after_pass(kit, db, reaper=None, *, rested=True):
    await reap(reaper or Reaper(kit, Roster(kit.settings)), kit, rested=rested)
    return await db.value("select status from pgsched.runs")


@pytest.mark.parametrize("winner", ["beat", "finish", "next attempt"])
async def test_what_comes_between_the_reapers_look_and_its_write_wins(kit, db, monkeypatch, winner):
    dead = await dead_worker(db)
    run, = await running(db, dead, silent=60)  # fmt: skip
    real = UpkeepStatements.reap_runs
    between = {
        "beat": "update pgsched.runs set heartbeat_at = clock_timestamp()",
        "finish": "update pgsched.runs set status = 'succeeded', finished_at = now()",
        "next attempt": "update pgsched.runs set attempt = 2, token = 2",
    }

    async def overtaken(self, connection, verdicts):
        await db.all(between[winner])
        return await real(self, connection, verdicts)

    monkeypatch.setattr(UpkeepStatements, "reap_runs", overtaken)
    await reap(Reaper(kit, Roster(kit.settings)), kit)
    assert await db.value("select worker from pgsched.runs where id = %s", run) == dead
    assert await db.value("select errors from pgsched.runs where id = %s", run) == []


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
    dead = await dead_worker(db)
    async with await psycopg.AsyncConnection.connect(dsn, application_name=f"pgsched {dead}"):
        await running(db, dead, silent=3600)
        reaper = Reaper(kit, Roster(kit.settings))
        kit.elapsed.advance(3600)  # it has got over its own start
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
    for process in Process:
        await running(db, await dead_worker(db, process=process), silent=3600)
    reaper = Reaper(kit, Roster(kit.settings))
    await reaper.reap_pass()
    kit.elapsed.advance(10)
    await reaper.reap_pass()
    assert await db.all("select status from pgsched.runs order by id") == [("running",), ("running",), ("queued",)]


async def test_a_run_that_was_made_running_by_hand_is_silent_since_it_was_made(kit, db):
    await db.all("alter table pgsched.runs drop constraint runs_claim_check")  # as a version before had it
    await db.all(
        "insert into pgsched.runs (entrypoint, status, attempt, max_attempts, created_at)"
        " values ('job', 'running', 1, 3, now() - interval '1 minute'), ('job', 'running', 1, 3, now())"
    )
    await reap(Reaper(kit, Roster(kit.settings)), kit)
    assert await db.all("select status from pgsched.runs order by id") == [("queued",), ("running",)]


async def test_claims_of_a_worker_that_stands_still_do_not_hide_those_of_a_dead_one(kit, db, dsn, monkeypatch):
    """Nor are they read: a page holds only what may be taken soon."""
    pages, real = [], UpkeepStatements.find_silent_runs

    async def find_silent_runs(*args, **kwargs):
        found = await real(*args, **kwargs)
        pages.append([run.id for run in found[-1]])
        return found

    monkeypatch.setattr(UpkeepStatements, "find_silent_runs", find_silent_runs)
    still = await dead_worker(db)
    async with await psycopg.AsyncConnection.connect(dsn, application_name=f"pgsched {still}"):
        await running(db, still, SILENT_PAGE, silent=20)
        run, = await running(db, await dead_worker(db), silent=3.1)  # fmt: skip
        await reap(Reaper(kit, Roster(kit.settings)), kit)
    assert await db.all("select id from pgsched.runs where status = 'queued'") == [(run,)]
    assert pages == [[run], [run]]


async def test_the_reaper_looks_behind_a_full_page(kit, db):
    """As many that may not be taken yet, and must be watched."""
    await running(db, await dead_worker(db, process=Process.ALIVE), 2 * SILENT_PAGE, silent=20)
    run, = await running(db, await dead_worker(db), silent=3.1)  # fmt: skip
    await reap(Reaper(kit, Roster(kit.settings)), kit)
    assert await db.all("select id from pgsched.runs where status = 'queued'") == [(run,)]


async def test_a_beat_that_finds_the_row_locked_is_a_sign_of_life(kit, db, dsn):
    """Neither a client's lock, however long, nor its end makes the run another worker's."""
    owner = await dead_worker(db)
    run, = await running(db, owner, silent=31)  # fmt: skip
    reaper = Reaper(kit, Roster(kit.settings))
    async with await psycopg.AsyncConnection.connect(dsn) as client, kit.writes.use() as connection:
        assert await kit.store.runs.beat(connection, owner, [(run, 1, None)]) == {(run, 1): False}
        assert await db.value("select passed_at from pgsched.workers") is None, "nobody was in the way"
        await db.all("update pgsched.runs set heartbeat_at = clock_timestamp() - interval '31 seconds'")
        await client.execute(in_schema(b"select from pgsched.runs for update", kit.settings.schema, parametrised=False))
        assert await kit.store.runs.beat(connection, owner, [(run, 1, None)]) == {(run, 1): False}
        await client.rollback()
        # The reaper comes first, before the beat that can write again.
        assert await status_after_pass(kit, db, reaper) == "running"
        # A worker that died beats no more, not even in vain.
        await db.all("update pgsched.workers set passed_at = clock_timestamp() - interval '31 seconds'")
        assert await status_after_pass(kit, db, reaper) == "queued"


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
        patch.setattr(UpkeepStatements, "find_silent_runs", lost)
        await reaper.reap_pass()
    assert await status_after_pass(kit, db, reaper, rested=False) == "running"
    assert await status_after_pass(kit, db, reaper) == "queued"


async def test_a_look_that_the_server_refuses_is_no_outage(kit, db, monkeypatch):
    """Whoever can have a statement refused again and again must not keep all reapers from their work."""
    await running(db, await dead_worker(db, process=Process.UNKNOWN), silent=60)
    reaper = Reaper(kit, Roster(kit.settings))
    for error, status in (
        (psycopg.OperationalError("gone"), "running"),
        (psycopg.errors.RaiseException("no"), "queued"),
    ):
        kit.elapsed.advance(3600)  # it has got over what came before

        async def failing(*_, error=error, **__):
            raise error

        with monkeypatch.context() as patch, pytest.raises(type(error)):
            patch.setattr(UpkeepStatements, "find_silent_runs", failing)
            await reaper.reap_pass()
        assert await status_after_pass(kit, db, reaper, rested=False) == status


async def lost(*_, **__):
    raise psycopg.OperationalError("gone")


async def test_a_gap_between_looks_counts_as_an_outage(kit, db, monkeypatch):
    reaper = Reaper(kit, Roster(kit.settings))
    await running(db, await dead_worker(db, process=Process.UNKNOWN))
    assert await status_after_pass(kit, db, reaper) == "running"
    real = UpkeepStatements.find_silent_runs

    async def later(self, *args, **named):  # as if this machine, or the server, had stood still
        now, *found = await real(self, *args, **named)
        return now + timedelta(seconds=60), *found

    monkeypatch.setattr(UpkeepStatements, "find_silent_runs", later)
    await db.all("update pgsched.runs set heartbeat_at = clock_timestamp() - interval '60 seconds'")
    assert await status_after_pass(kit, db, reaper, rested=False) == "running"


class Failover:
    """A reaper that has looked for an hour, and then meets another server, or its own again."""

    def __init__(self, kit, db):
        self.kit, self.db = kit, db
        self.reaper = Reaper(kit, Roster(kit.settings))

    async def look(self, after=2.0):
        self.kit.elapsed.advance(after)
        await self.reaper.reap_pass()
        return await self.db.value("select status from pgsched.runs")

    async def looks(self, seconds):
        for _ in range(seconds // 2):
            status = await self.look()
        return status


async def promoted(failover, monkeypatch):
    """Its session is another one, on a server that has long been up, as a standby has."""
    await failover.kit.control.discard()


async def promoted_behind_a_pooler(failover, monkeypatch):
    """Its session is the same."""
    real = UpkeepStatements.find_silent_runs

    async def another(self, *args, **named):
        now, started, *found = await real(self, *args, **named)
        return now, started - timedelta(days=1), *found

    monkeypatch.setattr(UpkeepStatements, "find_silent_runs", another)


async def promoted_while_it_rested(failover, monkeypatch):
    failover.reaper._silences.rest()
    await failover.kit.control.discard()


@pytest.mark.parametrize("change", [promoted, promoted_behind_a_pooler, promoted_while_it_rested])
async def test_on_another_server_every_owner_gets_a_fresh_stall_timeout(kit, db, monkeypatch, change):
    """Whatever the beats on it say: they are as old as the outage, or by another machine's clock."""
    failover = Failover(kit, db)
    await running(db, await dead_worker(db, process=Process.UNKNOWN))
    await failover.look(after=3600)
    await change(failover, monkeypatch)
    await db.all("update pgsched.runs set heartbeat_at = clock_timestamp() - interval '1 hour'")
    await failover.look()
    assert await failover.looks(28) == "running"
    await db.all("update pgsched.runs set heartbeat_at = clock_timestamp() - interval '59 minutes'")
    assert await failover.looks(28) == "queued", "it has had its time, and is silent"


@pytest.mark.parametrize("cause", ["read-only", "locked"])
async def test_a_time_in_which_nobody_could_beat_is_no_silence(kit, db, dsn, cause):
    """Its looks read, and could: the beats are what failed."""
    failover = Failover(kit, db)
    await running(db, await dead_worker(db, process=Process.UNKNOWN))
    await failover.look(after=3600)
    async with await psycopg.AsyncConnection.connect(dsn) as operator:
        if cause == "locked":  # as create index does
            lock = in_schema(b"lock table pgsched.runs in share mode", kit.settings.schema, parametrised=False)
            await operator.execute(lock)
        else:
            async with kit.control.use() as connection:
                await connection.execute("set default_transaction_read_only = on")
        with pytest.raises((psycopg.errors.ReadOnlySqlTransaction, psycopg.errors.LockNotAvailable)):
            await failover.look()
        await operator.rollback()
    if not kit.control.direct:
        await kit.control.discard()
    await db.all("update pgsched.runs set heartbeat_at = clock_timestamp() - interval '1 hour'")
    await failover.look()
    assert await failover.looks(28) == "running"
    assert await failover.looks(2) == "queued"


async def test_a_server_that_restarts_again_and_again_puts_no_reaping_off_for_ever(kit, db):
    failover = Failover(kit, db)
    await running(db, await dead_worker(db, process=Process.UNKNOWN), silent=3600)
    for _ in range(4):
        await failover.look()
        assert await failover.looks(12) == "running"
        await kit.control.discard()
    await failover.look()
    assert await failover.looks(8) == "running"
    assert await failover.looks(2) == "queued", "two stall timeouts in pieces"


async def test_an_own_claim_that_nobody_here_knows_of_is_given_to_somebody(kit, db):
    # The answer to the commit that made it was lost.
    await running(db, kit.worker, silent=3.1)
    assert await status_after_pass(kit, db) == "queued"


async def test_ten_thousand_healthy_runs_do_not_hide_the_stalled_one(kit, db):
    await running(db, kit.worker, 10_000)
    await running(db, await dead_worker(db), silent=60)
    await reap(Reaper(kit, Roster(kit.settings)), kit)
    assert await db.value("select count(*) from pgsched.runs where status = 'queued'") == 1


async def test_a_claim_of_our_own_that_began_here_costs_an_attempt_and_one_that_never_did_does_not(settings, db):
    async with Parts(settings, heartbeat_interval="100ms") as parts:
        me = parts.kit.worker
        reaper = Reaper(parts.kit, parts.roster)
        make = (
            "insert into pgsched.runs"
            " (entrypoint, status, attempt, token, max_attempts, worker, claimed_at, heartbeat_at)"
            " values ('job', 'running', 1, 1, 1, %s, now(), now() - interval '1 minute') returning id"
        )  # fmt: skip
        began, never = await db.value(make, me), await db.value(make, me)
        parts.roster.unlanded[began, 1] = None
        await reap(reaper, parts.kit)
    statuses = dict(await db.all("select id, status from pgsched.runs"))
    assert statuses == {began: "failed", never: "queued"}


LAGGED = (
    "update pgsched.runs set (status, attempt, finished_at, result, errors, worker, heartbeat_at, reason)"
    " = ('running', 1, null, null, '[]', %s, now() - interval '1 minute', null) where id = any(%s)"
)


async def test_an_end_that_a_failover_has_undone_is_written_again_and_its_function_is_not_called_again(settings, db):
    """The promoted server has the claim, and not its end. Only the worker that called the function knows of it."""
    calls, sc = [], Scheduler()

    @sc.entrypoint("pay", retry=Retry(attempts=1))
    async def pay(run: Run):
        calls.append(run.id)
        return {"paid": 100}

    @sc.entrypoint("fail", retry=Retry(attempts=2, backoff=timedelta(hours=1)))
    async def fail(run: Run):
        calls.append(run.id)
        raise ValueError("no")

    async with working(sc, settings) as worker:
        ids = [await db.value("select pgsched.enqueue(%s)", name) for name in ("pay", "fail")]
        await db.until("select count(*) = 2 from pgsched.runs where finished_at is not null or errors <> '[]'")
        seen = "select status, attempt, result, jsonb_array_length(errors) from pgsched.runs order by id"
        before = await db.all(seen)
        await db.all("alter table pgsched.runs disable trigger user")
        await db.all(LAGGED, worker.kit.worker, ids)
        assert await db.all(seen) != before
        worker.kit.wakeups.reap.ask()
        await db.until("select count(*) = 0 from pgsched.runs where status = 'running'")
    assert await db.all(seen) == before == [("succeeded", 1, {"paid": 100}, 0), ("queued", 1, None, 1)]
    assert sorted(calls) == ids


async def test_a_look_while_an_end_is_being_written_again_does_not_take_its_claim_away(settings, db, monkeypatch):
    calls, sc, real, hold = [], Scheduler(), RunStatements.finish_runs, asyncio.Event()
    hold.set()

    @sc.entrypoint("pay")
    async def pay(run: Run):
        calls.append(run.id)

    async def held_up(*args):
        await hold.wait()
        return await real(*args)

    monkeypatch.setattr(RunStatements, "finish_runs", held_up)
    async with working(sc, settings) as worker:
        run = await db.value("select pgsched.enqueue('pay')")
        await db.until("select status = 'succeeded' from pgsched.runs")
        hold.clear()
        await db.all("alter table pgsched.runs disable trigger user")
        await db.all(LAGGED, worker.kit.worker, [run])
        worker.kit.wakeups.reap.ask()
        await until(lambda: worker.finisher.pending)
        await worker.reaper.reap_pass()
        await worker.reaper.reap_pass()
        assert await db.value("select status from pgsched.runs") == "running"
        hold.set()
        await db.until("select status = 'succeeded' from pgsched.runs")
    assert calls == [run]


async def test_a_claim_of_our_own_that_nobody_remembers_costs_an_attempt_if_it_had_begun(settings, db):
    async with Parts(settings, heartbeat_interval="100ms") as parts:
        make = (
            "insert into pgsched.runs"
            " (entrypoint, status, attempt, token, max_attempts, worker, claimed_at, started_at, heartbeat_at)"
            " values ('job', 'running', 1, 1, 1, %s, now(), now(), now() - interval '1 minute')"
        )  # fmt: skip
        await db.all(make, parts.kit.worker)
        await reap(Reaper(parts.kit, parts.roster, parts.finisher.write_again), parts.kit)
    assert await db.value("select status from pgsched.runs") == "failed"


async def test_runs_that_cannot_be_reaped_keep_no_other_from_it(settings, db):
    async with Parts(settings) as parts:
        reaper = Reaper(parts.kit, parts.roster)
        _, bad = await held(db, uuid.uuid4())
        await refuse(db, "new.args ? 'state'", state=OWN_STATE)
        await reap(reaper, parts.kit)
        running = "select array_agg(id order by id) from pgsched.runs where status = 'running'"
        assert await db.value(running) == bad
        assert await db.value("select array_agg(id order by id) from pgsched.resting where kind = 'reap'") == bad
        await relent(db)
        await reap(reaper, parts.kit)
        assert await db.value(running) == bad, "they rest"
        await db.all("update pgsched.runs set args = '{}' where id = any(%s)", bad)
        await reap(reaper, parts.kit)
        assert await db.value(running) is None
        assert await db.all("select * from pgsched.set_aside") == []
