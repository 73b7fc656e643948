"""Threads that outlive their runs, and workers that outlive their rows."""

import asyncio
import threading
import uuid
from datetime import timedelta

import psycopg
import pytest
from structlog.testing import capture_logs
from support.workers import Parts, until, working

from pgsched import Limits, Run, Scheduler
from pgsched.cli.health import judged
from pgsched.db.statements.queries import Queries, in_schema
from pgsched.db.statements.runs import RunStatements
from pgsched.executors.threads import DaemonThreads
from pgsched.model import Claim, Outcome, RunStatus
from pgsched.worker import worker as worker_module


def hanging():
    sc = Scheduler(app="left")
    sc.gate = threading.Event()
    sc.calls = []

    @sc.entrypoint("hangs", timeout=timedelta(milliseconds=100))
    def hangs(run: Run):
        sc.calls.append(run.id)
        sc.gate.wait(60)

    @sc.entrypoint("quick")
    async def quick(): ...

    return sc


async def test_threads_that_are_left_behind_are_named_and_when_none_is_left_that_too(settings, db):
    sc = hanging()
    with capture_logs() as events:
        async with working(sc, settings, max_threads=2, cancel_timeout="50ms") as worker:
            first = await db.value("select pgsched.enqueue('hangs')")
            await db.until("select status = 'failed' from pgsched.runs where id = %s", first)
            [left] = [e for e in events if e["event"] == "thread_left_behind"]
            assert left["run"] == first and left["function"].endswith("hanging.<locals>.hangs")
            assert not [e for e in events if e["event"] == "threads_exhausted"]
            await db.all("select pgsched.enqueue('hangs')")
            await until(lambda: [e for e in events if e["event"] == "threads_exhausted"])
            sc.gate.set()
            await until(lambda: not worker.roster.left_behind)
            assert [e for e in events if e["event"] == "threads_free_again"]
            assert worker.roster.threads_used == 0


@pytest.mark.parametrize("kind", ["daemon", "host program"])
async def test_a_drain_ends_though_a_thread_hangs_whose_run_has_ended(settings, db, monkeypatch, kind):
    """It counts on: in a daemon until the process has ended, in a host program for as long as anybody can know."""
    sc, codes = hanging(), []
    build = worker_module.Worker.__init__

    def with_exit(self, *args, **kwargs):
        build(self, *args, **{**kwargs, "hard_exit": codes.append})

    if kind == "daemon":
        monkeypatch.setattr(worker_module.Worker, "__init__", with_exit)
    with capture_logs() as events:
        async with working(sc, settings, cancel_timeout="50ms", stall_timeout="1m"):
            await db.all("select pgsched.enqueue('hangs')")
            await db.until("select status = 'failed' from pgsched.runs")
    assert codes == ([0] if kind == "daemon" else []), "nothing was given back"
    [told] = [e for e in events if e["event"] in ("threads_end_with_process", "threads_go_on")]
    assert told["event"] == ("threads_end_with_process" if kind == "daemon" else "threads_go_on")
    assert told["functions"][0]["entrypoint"] == "hangs"
    assert not await db.value("select count(*) from pgsched.workers")
    lasts = "select counts_until > since + %s * interval '1 s' from pgsched.left_behind"
    assert await db.value(lasts, 20) is (kind == "host program")
    sc.gate.set()


async def test_what_a_hanging_thread_left_is_given_back_after_the_hooks(settings, db, monkeypatch):
    """A hook that takes its time must not see another worker execute the run beside the thread."""
    sc, hook = hanging(), asyncio.Event()
    sc.entrypoints["hangs"].timeout = None
    entered = asyncio.Event()

    @sc.after_run
    async def slow(run: Run, end):
        entered.set()
        await hook.wait()

    timeouts = {"cancel_timeout": "50ms", "drain_timeout": "50ms"}
    async with working(sc, settings, hard_exit=lambda code: None, **timeouts) as worker:
        run = await db.value("select pgsched.enqueue('hangs')")
        await until(lambda: sc.calls)
        await db.all("select pgsched.enqueue('quick')")
        await entered.wait()
        worker.stop()
        await until(lambda: worker.roster.attempts and worker.listener.draining)
        held = "select status = 'running' and clock_timestamp() - heartbeat_at < interval '1 s' from pgsched.runs"
        silent = "select clock_timestamp() - claimed_at > interval '1.2 s' from pgsched.runs where id = %s"
        await db.until(silent, run)
        assert await db.value(f"{held} where id = %s", run), "not given back yet"
        hook.set()
        await db.until("select status = 'queued' and attempt = 0 from pgsched.runs where id = %s", run)
    sc.gate.set()


def test_the_pool_calls_in_as_many_threads_as_it_may_and_none_holds_up_the_interpreter():
    pool, gate, names = DaemonThreads(2), threading.Event(), []

    def work(number):
        names.append(threading.current_thread())
        gate.wait(20)
        return number

    futures = [pool.submit(work, n) for n in range(5)]
    gate.set()
    assert [each.result(20) for each in futures] == list(range(5))
    assert len(set(names)) == 2 and all(thread.daemon for thread in names)
    failing = pool.submit(int, "x")
    assert isinstance(failing.exception(20), ValueError)
    pool.shutdown()
    for thread in set(names):
        thread.join(20)
        assert not thread.is_alive()


async def test_a_start_forgets_workers_that_crashed(settings, db):
    keep = await db.value("select gen_random_uuid()")
    await db.all(
        "insert into pgsched.runs (entrypoint, status, attempt, worker, claimed_at, heartbeat_at)"
        " values ('other', 'running', 1, %s, now(), now())", keep,
    )  # fmt: skip
    await db.all(
        "insert into pgsched.workers (id, app, host, pid, version, entrypoints, direct, heartbeat_interval,"
        " stall_timeout, seen_at)"
        " select case n when 1 then %s else gen_random_uuid() end, 'a', 'h', n, '0', '{}', true, '1s', '30s',"
        " now() - interval '11 minutes' from generate_series(1, 20000) n", keep,
    )  # fmt: skip
    async with working(hanging(), settings, stall_timeout="1h") as worker:
        rows = {row[0] for row in await db.all("select id from pgsched.workers")}
        assert rows == {keep, worker.kit.worker}


async def test_a_thread_counts_for_the_overlap_until_it_ends_though_its_run_has(settings, db):
    sc = hanging()
    async with working(sc, settings, cancel_timeout="50ms"):
        await db.all("select pgsched.create_schedule('s', 'hangs', '@every 1s')")
        await db.until("select status = 'failed' from pgsched.runs where status <> 'skipped'")
        first = sc.calls[0]
        assert await db.value("select run_id from pgsched.left_behind") == first
        await db.until("select sum(skipped_count) >= 2 from pgsched.runs where status = 'skipped'")
        assert sc.calls == [first]
        sc.gate.set()
        await db.until("select count(*) = 0 from pgsched.left_behind")
        await until(lambda: len(sc.calls) > 1)


async def test_a_thread_counts_for_a_limit_until_it_ends_and_health_names_it(settings, db, store):
    sc = Scheduler(app="left")
    gate, calls = threading.Event(), []

    @sc.entrypoint("one", timeout=timedelta(milliseconds=100), limits=Limits(concurrency=1))
    def one(run: Run):
        calls.append(run.id)
        if len(calls) == 1:
            gate.wait(60)

    @sc.entrypoint("free")
    async def free(): ...

    async with working(sc, settings, cancel_timeout="50ms"):
        first = await db.value("select pgsched.enqueue('one')")
        await db.until("select status = 'failed' from pgsched.runs")
        second = await db.value("select pgsched.enqueue('one')")
        quick = await db.value("select pgsched.enqueue('one')")
        [row] = await store.claims.rows(db.connection, "read_health", {})
        assert (row["left_behind"], row["left_behind_runs"]) == (1, [f"{first} (one)"])
        [check] = [check for check in judged(row) if check.name == "threads"]
        assert check.status == "failed" and f"{first} (one)" in check.message
        [worker] = await store.claims.rows(db.connection, "list_workers", {})
        assert worker["left_behind"] == 1
        # What is queued later runs, so somebody has looked at these.
        later = await db.value("select pgsched.enqueue('free')")
        await db.until("select status = 'succeeded' from pgsched.runs where id = %s", later)
        assert await db.value("select count(*) from pgsched.runs where status = 'queued'") == 2
        gate.set()
        await db.until("select count(*) = 2 from pgsched.runs where status = 'succeeded' and entrypoint = 'one'")
    assert calls == [first, second, quick]


async def test_what_a_dead_worker_left_behind_counts_no_more(settings, db):
    """Nobody puts off until when it counts."""
    sc = hanging()
    schedule = await db.value("select pgsched.create_schedule('s', 'quick', '@every 1s')")
    await db.all(
        "insert into pgsched.left_behind (run_id, token, worker, schedule_id, entrypoint, args, counts_until)"
        " values (1, 1, gen_random_uuid(), %s, 'quick', '{}', clock_timestamp() + interval '1.5 s')", schedule,
    )  # fmt: skip
    async with working(sc, settings):
        await db.until("select count(*) > 0 from pgsched.runs where status = 'succeeded'")
        assert await db.value(
            "select min(started_at) > (select counts_until from pgsched.left_behind) from pgsched.runs"
        )


BESIDE = {
    "a hung thread": "insert into pgsched.left_behind"
    " (run_id, token, worker, schedule_id, entrypoint, args, counts_until)"
    " select 1000, 1, gen_random_uuid(), id, 'job', '{}', now() + interval '1 minute' from pgsched.schedules",
    "a running run": "insert into pgsched.runs"
    " (schedule_id, entrypoint, fire_time, status, attempt, worker, claimed_at, heartbeat_at)"
    " select id, 'job', '2020-01-01Z', 'running', 1, gen_random_uuid(), now(), now()"
    " from pgsched.schedules",
}
DUE = {
    "a run that waits": ("skip", "latest", "1 hour"),
    "a fire time that comes soon": ("skip", "latest", "300 ms"),
    "a backlog": ("queue", "all", "-1 hour"),
    "a backlog beside jobs": ("queue", "all", "-1 hour"),
}


@pytest.mark.parametrize("due", DUE)
async def test_a_pass_beside_a_hung_thread_sends_what_it_sends_beside_a_running_run(settings, db, monkeypatch, due):
    """All statements count the same: none locks a schedule whose overlap leaves no room, to find that out later."""
    sent: list[str] = []
    real = Queries.query
    monkeypatch.setattr(Queries, "query", lambda self, name: (sent.append(name), real(self, name))[1])
    overlap, catch_up, comes = DUE[due]
    passes = {}
    for beside, insert in BESIDE.items():
        await db.all("delete from pgsched.schedules")
        await db.all("delete from pgsched.runs")
        await db.all(
            "insert into pgsched.schedules (name, entrypoint, expression, next_run, planned_at, accounted_through,"
            " overlap, catch_up) select 's', 'job', '@hourly', n, now(), n - interval '1 second', %s, %s"
            " from (select now() + %s::interval as n) x",
            overlap, catch_up, comes,
        )  # fmt: skip
        await db.all(insert)
        if due == "a run that waits":
            await db.all("select pgsched.trigger('s')")
        if due == "a backlog beside jobs":
            await db.all("select pgsched.enqueue('job')")
        async with Parts(settings, max_running=2) as parts:
            parts.gated(False)  # a look at runs of removed schedules, now and then
            sent.clear()
            await parts.dispatcher.claim_pass()
            passes[beside] = list(sent)
    assert passes["a hung thread"] == passes["a running run"]
    assert not {"lock_gated_runs", "count_live_runs"} & set(passes["a hung thread"])


# --- a run never executes beside itself --------------------------------------------------------------------------


async def test_a_retried_run_waits_for_the_thread_of_its_earlier_attempt_and_says_so(settings, db, client):
    sc = hanging()
    async with working(sc, settings, cancel_timeout="50ms", resync_interval=0) as worker:
        run = await client.enqueue("hangs")
        await db.until("select status = 'failed' from pgsched.runs where id = %s", run)
        await client.retry(run)
        other = await client.enqueue("hangs")
        await until(lambda: sc.calls == [run, other])
        quick = await client.enqueue("quick", priority=-1)
        # What is due later runs, so somebody has looked at the retried run.
        await db.until("select status = 'succeeded' from pgsched.runs where id = %s", quick)
        row = await client.get_run(run)
        assert row["status"] == "queued"
        assert f"goes on in a thread of worker {worker.kit.worker}" in row["detail"]
        assert "restart the worker" in row["detail"]
        sc.gate.set()
        await db.until("select status = 'succeeded' and attempt = 2 from pgsched.runs where id = %s", run)
        assert (await client.get_run(run))["detail"] is None
    assert sc.calls == [run, other, run]


async def test_a_retried_run_of_a_dead_worker_starts_when_its_thread_counts_no_more(settings, db, client):
    """Without a resync nobody but the last look knows when that is."""
    run = await client.enqueue("quick")
    await db.all("update pgsched.runs set status = 'failed', attempt = 1, finished_at = now()")
    await db.all(
        "insert into pgsched.left_behind (run_id, token, worker, entrypoint, args, counts_until)"
        " values (%s, 1, gen_random_uuid(), 'quick', '{}', clock_timestamp() + interval '2 s')", run,
    )  # fmt: skip
    await client.retry(run)
    async with working(hanging(), settings, resync_interval=0) as worker:
        passes, real = [], worker.dispatcher.claim_pass

        async def counted():
            passes.append(1)
            return await real()

        worker.dispatcher.claim_pass = counted
        await db.until("select status = 'succeeded' from pgsched.runs")
        late = "select started_at - (select counts_until from pgsched.left_behind) from pgsched.runs"
        assert timedelta(0) <= await db.value(late) < timedelta(seconds=1)
        assert len(passes) < 20, "nor is it asked again and again"


TAKEN = (
    "update pgsched.runs set status = 'queued', worker = null, due_at = due_at + %s::interval, token = token + 1000"
    " where id = %s and status = 'running'"
)


async def test_the_beat_that_finds_a_claim_lost_says_that_its_thread_goes_on(settings, db, monkeypatch):
    """As a reaper takes it from a worker that stood still. Until the thread is over its run waits, and so do others."""
    sc, seen = hanging(), []
    sc.entrypoints["hangs"].timeout = None
    real = RunStatements.beat

    async def beat(self, connection, worker, claims, *rest):
        held = await real(self, connection, worker, claims, *rest)
        if any((run, token) not in held for run, token, _ in claims):
            seen.append(await db.all("select run_id, worker from pgsched.left_behind"))
        return held

    monkeypatch.setattr(RunStatements, "beat", beat)
    async with working(sc, settings, cancel_timeout="500ms", resync_interval=0) as worker:
        run = await db.value("select pgsched.enqueue('hangs')")
        await until(lambda: sc.calls)
        await db.all(TAKEN, "0 s", run)
        await until(lambda: seen)
        assert seen[0] == [(run, worker.kit.worker)], "at once"
        await until(lambda: worker.roster.left_behind)
        quick = await db.value("select pgsched.enqueue('quick', priority => -1)")
        await db.until("select status = 'succeeded' from pgsched.runs where id = %s", quick)
        assert sc.calls == [run]
        sc.gate.set()
        await db.until("select status = 'succeeded' from pgsched.runs where id = %s", run)
        await db.until("select count(*) = 0 from pgsched.left_behind")
    assert sc.calls == [run, run]


async def test_a_thread_that_ends_after_its_claim_was_lost_counts_no_more(settings, db):
    sc = hanging()
    sc.entrypoints["hangs"].timeout = None
    async with working(sc, settings, cancel_timeout="1m", resync_interval=0):
        run = await db.value("select pgsched.enqueue('hangs')")
        await until(lambda: sc.calls)
        await db.all(TAKEN, "1 hour", run)
        await db.until("select count(*) = 1 from pgsched.left_behind")
        sc.gate.set()
        await db.until("select count(*) = 0 from pgsched.left_behind")


async def test_an_end_that_finds_its_claim_lost_says_that_its_thread_goes_on(settings, db, store):
    worker, other = uuid.uuid4(), uuid.uuid4()
    insert = (
        "insert into pgsched.runs (entrypoint, status, attempt, token, worker, claimed_at, heartbeat_at)"
        " values ('job', 'running', 1, %s, %s, now(), now()) returning id"
    )
    mine, lost, locked = [await db.value(insert, *claim) for claim in ((1, worker), (22, other), (3, worker))]
    ends = [
        Outcome(Claim(run, token, worker), RunStatus.FAILED, left_behind=True)
        for run, token in ((mine, 1), (lost, 2), (locked, 3))
    ]
    lease = timedelta(seconds=30)
    async with await psycopg.AsyncConnection.connect(settings.dsn) as client:
        await client.execute(
            in_schema(b"select from pgsched.runs where id = %s for update", settings.schema), (locked,)
        )
        await store.runs.finish_runs(db.connection, worker, ends, lease)
        assert await db.all("select run_id, token from pgsched.left_behind order by 1") == [(mine, 1), (lost, 2)]
        # While its run is running it counts by itself, and once.
        await store.runs.keep_left_behind(db.connection, worker, [(locked, 3)], [1, 2, 3], lease)
        assert await db.value("select count(*) from pgsched.left_behind") == 2
    await store.runs.finish_runs(db.connection, worker, ends[2:], lease)
    assert await db.value("select count(*) from pgsched.left_behind") == 3
    await store.runs.keep_left_behind(db.connection, worker, [(lost, 2)], [2], lease)
    assert await db.all("select run_id from pgsched.left_behind") == [(lost,)]


async def test_a_worker_that_claims_its_own_lost_run_before_it_hears_of_the_loss_does_not_start_it(settings, db):
    sc, hears = hanging(), asyncio.Event()
    sc.entrypoints["hangs"].timeout = None
    async with working(sc, settings, cancel_timeout="100ms") as worker:
        beat = worker.heartbeat.beat

        async def held():
            await hears.wait()
            await beat()

        run = await db.value("select pgsched.enqueue('hangs')")
        await until(lambda: sc.calls)
        worker.heartbeat.beat = held
        await asyncio.sleep(0.2)  # what was on its way has come
        await db.all(TAKEN, "0 s", run)
        await db.until("select count(*) = 1 from pgsched.left_behind")
        await until(lambda: worker.roster.left_behind)
        quick = await db.value("select pgsched.enqueue('quick', priority => -1)")
        await db.until("select status = 'succeeded' from pgsched.runs where id = %s", quick)
        assert sc.calls == [run]
        assert await db.value("select status = 'queued' and attempt = 1 from pgsched.runs where id = %s", run)
        hears.set()
        sc.gate.set()
        await db.until("select status = 'succeeded' from pgsched.runs where id = %s", run)
    assert sc.calls == [run, run]
