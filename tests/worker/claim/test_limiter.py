"""Limits, kept by the claim: who may run beside whom, whatever workers, clients and schedules there are."""

import asyncio
from collections import Counter
from datetime import timedelta

import psycopg
import pytest
from support.limits import END, JOBS, claims
from support.workers import Parts, working

from pgsched import Limits, RegistrationError, Run, Scheduler, connect
from pgsched.db.statements.claims import ClaimStatements
from pgsched.db.statements.queries import in_schema
from pgsched.worker.upkeep.reconciler import Reconciler

STATES = "select status, count(*) from pgsched.runs group by 1 order by 1"


def limited(**limits) -> Scheduler:
    scheduler = Scheduler(app="limits")

    @scheduler.entrypoint("job", limits=Limits(**limits))
    async def job(tenant: str = ""): ...

    @scheduler.entrypoint("free")
    async def free(): ...

    return scheduler


class Pair:
    """Two workers whose claims nobody starts, with the limits declared."""

    def __init__(self, settings, scheduler, **changes):
        self.parts = [Parts(settings, scheduler, **changes), Parts(settings, scheduler, **changes)]

    async def __aenter__(self):
        async with self.parts[0].kit.control.use() as connection:
            await Reconciler(self.parts[0].kit).start(connection)
        return self.parts

    async def __aexit__(self, *_):
        for parts in self.parts:
            await parts.__aexit__()


async def states(db) -> dict[str, int]:
    return dict(await db.all(STATES))


async def test_concurrency_counts_what_runs_on_all_workers(settings, db):
    async with Pair(settings, limited(concurrency=3)) as (one, two):
        await db.all(JOBS, "a", 0, 5)
        assert await claims(one) == 3
        assert await claims(two) == 0
        await db.all(END, one.taken[0].id)
        assert await claims(two) == 1
        assert await claims(one) == 0


async def test_of_two_workers_one_holds_the_limits_and_the_other_passes_over_them(settings, db):
    async with Pair(settings, limited(concurrency=3)) as (one, two):
        await db.all(JOBS, "a", 0, 5)
        await db.all("select pgsched.enqueue('free')")
        async with await psycopg.AsyncConnection.connect(settings.dsn) as other:
            await other.execute(
                in_schema(b"select 1 from pgsched.limits for no key update", settings.schema, parametrised=False)
            )
            assert await claims(one) == 1
            assert one.taken[0].entrypoint == "free", "nobody waits for the lock"
        assert await claims(two) == 3


async def test_a_run_claimed_after_the_look_and_before_the_lock_is_counted(settings, db, monkeypatch):
    """Another worker claims two runs and commits while this one is between its lock and its count."""
    real = ClaimStatements.lock_limits

    async def overtaken(self, connection, *args):
        gates = await real(self, connection, *args)
        await db.all(
            "update pgsched.runs set status = 'running', attempt = 1, worker = gen_random_uuid(), claimed_at = now(),"
            " heartbeat_at = now() where id in (select id from pgsched.runs order by id limit 2)"
        )
        return gates

    async with Pair(settings, limited(concurrency=3)) as (one, _):
        await db.all(JOBS, "a", 0, 5)
        monkeypatch.setattr(ClaimStatements, "lock_limits", overtaken)
        assert await claims(one) == 1


async def test_two_workers_that_claim_at_once_stay_below_the_limit_together(settings, db, monkeypatch):
    """The first is held between its claim and its commit; the second comes then, and once more after the commit."""
    claimed, commit = asyncio.Event(), asyncio.Event()
    real = ClaimStatements.read_outlook

    async with Pair(settings, limited(concurrency=3)) as (one, two):
        await db.all(JOBS, "a", 0, 5)

        async def held(self, connection, worker, *args, **kwargs):
            if worker == one.kit.worker:
                claimed.set()
                await commit.wait()
            return await real(self, connection, worker, *args, **kwargs)

        monkeypatch.setattr(ClaimStatements, "read_outlook", held)
        first = asyncio.create_task(claims(one))
        await asyncio.wait_for(claimed.wait(), 10)
        assert await claims(two) == 0
        commit.set()
        assert await first == 3
        assert await claims(two) == 0


async def test_per_key_lets_others_pass_a_busy_key(settings, db):
    async with Pair(settings, limited(concurrency_key="tenant")) as (one, two):
        await db.all(JOBS, "a", 0, 2000)
        await db.all(JOBS, "b", 0, 2)
        await db.all("select pgsched.enqueue('job')")  # no tenant: a key of its own
        assert await claims(one) == 3
        assert sorted(run.args_json for run in one.taken) == ['{"tenant": "a"}', '{"tenant": "b"}', "{}"]
        assert await claims(two) == 0
        await db.all(END, one.taken[0].id)
        assert await claims(two) == 1
        assert two.taken[0].args_json == one.taken[0].args_json


async def pages(settings, statement: bytes) -> tuple[int, int]:
    """How many runs the look at the lines finds for ten places, and how many pages it touches."""
    wanted = {"app": "limits", "entrypoints": ["job"], "gates": ['["limits", "job"]'], "rooms": [10]}
    wanted |= {"limit": 10, "priority": None}
    async with await psycopg.AsyncConnection.connect(settings.dsn) as other:
        cursor = await other.execute(b"explain (analyze, buffers, format json) " + statement, wanted)
        plan = (await cursor.fetchone())[0][0]["Plan"]
        return plan["Actual Rows"], plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]


async def test_ten_thousand_behind_a_busy_key_cost_no_more_than_a_thousand(settings, db):
    seen = []
    async with Pair(settings, limited(concurrency_key="tenant")) as (one, _):
        await db.all("select pgsched.enqueue('job', '{\"tenant\": \"a\"}')")
        assert await claims(one) == 1
        for jobs in (1_000, 9_000):
            await db.all(JOBS, "a", 0, jobs)
            await db.all("analyze pgsched.runs")
            await db.all(JOBS, "b", 0, 1)
            seen.append(await pages(settings, one.kit.store.claims.query("read_queues")))
            await db.all("delete from pgsched.runs where args ->> 'tenant' = 'b'")
    assert [found for found, _ in seen] == [1, 1], "that of the other key"
    assert seen[1][1] < seen[0][1] + 40, seen


async def test_ten_thousand_keys_are_not_walked_to_fill_ten_places(settings, db):
    async with Pair(settings, limited(concurrency_key="tenant")) as (one, _):
        await db.all(
            "select pgsched.enqueue('job', jsonb_build_object('tenant', n), '2026-01-01'::timestamptz"
            " + n * interval '1 s') from generate_series(1, 10000) n"
        )
        await db.all("analyze pgsched.runs")
        found, touched = await pages(settings, one.kit.store.claims.query("read_queues"))
    assert (found, touched < 1000) == (10, True), touched


@pytest.mark.parametrize("key", ["tenant", ("tenant", "kind")])
async def test_a_key_may_be_made_of_several_arguments(settings, db, key):
    scheduler = Scheduler(app="limits")

    @scheduler.entrypoint("job", limits=Limits(concurrency_key=key, per_key=2))
    async def job(tenant: str, kind: str): ...

    async with Pair(settings, scheduler) as (one, _):
        for kind in ("x", "y"):
            await db.all(
                "select pgsched.enqueue('job', jsonb_build_object('tenant', 1, 'kind', %s::text))"
                " from generate_series(1, 3)",
                kind,
            )
        assert await claims(one) == (2 if key == "tenant" else 4)


async def test_a_rate_lets_so_many_start_and_says_when_the_next_may(settings, db):
    async with Pair(settings, limited(starts=3, period=timedelta(hours=1))) as (one, two):
        await db.all(JOBS, "a", 0, 5)
        assert await claims(two) == 3
        noted = "(select started_at[cardinality(started_at)] from pgsched.limits)"
        assert await db.value(f"select max(claimed_at) <= {noted} from pgsched.runs"), "or the next come too early"
        assert await claims(one) == 0
        await db.all("update pgsched.runs set status = 'succeeded', finished_at = now() where status = 'running'")
        assert await claims(one) == 0, "an end gives no start back"
        opens = one.dispatcher.opens
        assert opens == await db.value("select started_at[1] + interval '1 hour' from pgsched.limits")
        await db.all(
            "update pgsched.limits set started_at = array(select at - interval '1 hour' from unnest(started_at) at)"
        )
        assert await claims(one) == 2
        assert await db.one("select cardinality(started_at), started from pgsched.limits") == (1, [2])


async def test_per_worker_leaves_the_rest_to_others(settings, db):
    async with Pair(settings, limited(per_worker=2)) as (one, two):
        for parts in (one, two):
            parts.holds = True  # it should count them as its own
        await db.all(JOBS, "a", 0, 7)
        await db.all("select pgsched.enqueue('free') from generate_series(1, 3)")
        assert await claims(one) == 5
        assert await claims(one) == 0
        assert await claims(two) == 2
        assert await states(db) == {"queued": 3, "running": 7}


@pytest.mark.parametrize("limits", [{}, {"concurrency": 50}], ids=["free", "limited"])
async def test_the_highest_priority_gets_the_only_slot_whatever_kind_it_is(settings, db, limits):
    """Fire times, jobs that stand in line, queued jobs and runs that wait for an overlap."""
    scheduler = limited(**limits)
    async with Pair(settings, scheduler, max_running=1) as (one, _):
        await db.all(
            "insert into pgsched.schedules (name, entrypoint, expression, next_run, priority, overlap)"
            " select 's' || p, 'free', '@yearly', now() - interval '1 second', p, o"
            " from (values (1, 'allow'), (4, 'skip')) s (p, o)"
        )
        await db.all(
            "insert into pgsched.schedules (name, entrypoint, expression, next_run, priority)"
            " values ('later', 'free', '@yearly', now() + interval '1 hour', 6)"
        )
        await db.all("select pgsched.trigger('later')")
        for priority in (2, 5):
            await db.all(JOBS, "a", priority, 1)
            await db.all("select pgsched.enqueue('free', priority => %s)", priority - 2)
        order = []
        while await claims(one):
            run = one.taken.pop()
            order.append(await db.value("select priority from pgsched.runs where id = %s", run.id))
            await db.all(END, run.id)
        assert order == [6, 5, 4, 3, 2, 1, 0]


async def test_a_fire_time_waits_in_line_and_overlap_counts_it(settings, db):
    async with Pair(settings, limited(concurrency=1)) as (one, two):
        await db.all(JOBS, "a", 0, 1)
        assert await claims(one) == 1
        await db.all(
            "insert into pgsched.schedules (name, entrypoint, expression, next_run)"
            " values ('s', 'job', '@yearly', now() - interval '1 second')"
        )
        assert await claims(two) == 0
        assert await states(db) == {"queued": 1, "running": 1}
        await db.all("update pgsched.schedules set next_run = now() - interval '1 ms', planned_at = clock_timestamp()")
        assert await claims(two) == 0
        assert await states(db) == {"queued": 1, "running": 1, "skipped": 1}, "the one in line is live"
        await db.all(END, one.taken[0].id)
        assert await claims(two) == 1
        assert two.taken[0].schedule is not None


async def test_a_schedules_backlog_in_line_keeps_its_overlap_and_holds_up_nobody(settings, db):
    async with Pair(settings, limited(concurrency=5)) as (one, two):
        await db.all(
            "insert into pgsched.schedules (name, entrypoint, expression, next_run)"
            " values ('s', 'job', '@yearly', now() + interval '1 hour')"
        )
        await db.all("select pgsched.trigger('s') from generate_series(1, 20)")
        await db.all(JOBS, "a", -5, 2)
        assert await claims(one) == 3
        assert Counter(run.schedule_id is None for run in one.taken) == {True: 2, False: 1}
        async with await psycopg.AsyncConnection.connect(settings.dsn) as other:
            await db.all(END, next(run.id for run in one.taken if run.schedule_id))
            await other.execute(
                in_schema(b"select 1 from pgsched.schedules for update", settings.schema, parametrised=False)
            )
            assert await claims(two) == 0, "somebody changes the schedule just now"
        assert await claims(two) == 1


async def test_pausing_a_schedule_holds_back_its_runs_in_line_and_no_others(settings, db):
    async with Pair(settings, limited(concurrency=1)) as (one, two):
        await db.all(JOBS, "a", 0, 1)
        assert await claims(one) == 1
        await db.all(
            "insert into pgsched.schedules (name, entrypoint, expression, next_run, overlap)"
            " values ('s', 'job', '@yearly', now() - interval '1 second', 'allow')"
        )
        assert await claims(two) == 0
        await db.all("select pgsched.pause('s')")
        await db.all(JOBS, "a", -1, 1)
        await db.all(END, one.taken[0].id)
        assert await claims(two) == 1
        assert two.taken[0].schedule_id is None
        await db.all(END, two.taken[0].id)
        await db.all("select pgsched.resume('s')")
        two.gated(True)  # as the loop does where a notification woke it
        assert await claims(two) == 1


async def test_limits_hold_for_what_was_queued_before_they_were_declared(settings, db):
    await db.all(JOBS, "a", 0, 4)
    await db.all(
        "insert into pgsched.schedules (name, entrypoint, expression, next_run)"
        " values ('s', 'job', '@yearly', now() + interval '1 hour')"
    )
    await db.all("select pgsched.trigger('s')")
    async with Pair(settings, limited(concurrency=2)) as (one, _):
        assert await claims(one) == 0, "they go and stand in line"
        assert await claims(one) == 2
        assert await claims(one) == 0


async def test_lifted_limits_let_those_in_line_go(settings, db):
    async with Pair(settings, limited(concurrency=1)) as (one, _):
        await db.all(JOBS, "a", 0, 4)
        assert await claims(one) == 1
    async with Pair(settings, limited()) as (two, _):
        assert await claims(two) == 3
        await db.all(JOBS, "a", 0, 1)
        assert await db.value("select not gated and line is null from pgsched.runs where status = 'queued'")
        assert await claims(two) == 1


async def test_a_start_that_changes_no_limits_writes_none_and_a_changed_one_is_written(settings, db):
    version = "select xmin::text, concurrency, per_key, concurrency_key from pgsched.limits"
    async with Pair(settings, limited(concurrency=1, concurrency_key="tenant")):
        first = await db.one(version)
        assert first[1:] == (1, 1, ["tenant"])
    async with Pair(settings, limited(concurrency=1, concurrency_key="tenant")):
        assert await db.one(version) == first
    async with Pair(settings, limited(concurrency=2)):
        assert (await db.one(version))[1:] == (2, None, None)


async def test_retries_wait_in_line_like_others(settings, db):
    async with Pair(settings, limited(concurrency=1)) as (one, _):
        await db.all(JOBS, "a", 0, 2)
        assert await claims(one) == 1
        failed = one.taken.pop().id
        await db.all("update pgsched.runs set status = 'failed', finished_at = now() where id = %s", failed)
        await db.all("select pgsched.retry(%s)", failed)
        assert await claims(one) == 1
        assert await claims(one) == 0
        assert await states(db) == {"queued": 1, "running": 1}


async def test_real_workers_never_run_more_at_once_and_run_all(settings, db):
    """Three limits at once, two workers, many short jobs: what overlaps is counted by the functions themselves."""
    running: Counter[str] = Counter()
    most: Counter[str] = Counter()
    scheduler = Scheduler(app="limits")

    @scheduler.entrypoint("job", limits=Limits(concurrency=4, concurrency_key="tenant", per_key=2))
    async def job(run: Run, tenant: str) -> None:
        for name in ("all", tenant):
            running[name] += 1
            most[name] = max(most[name], running[name])
        await asyncio.sleep(0)
        for name in ("all", tenant):
            running[name] -= 1

    async with (
        connect(settings.dsn, schema=settings.schema) as client,
        working(scheduler, settings),
        working(scheduler, settings),
    ):
        await client.enqueue_many("job", [{"tenant": str(n % 5)} for n in range(100)])
        await db.until("select count(*) = 100 from pgsched.runs where status = 'succeeded'")
    assert most.pop("all") <= 4
    assert max(most.values()) <= 2


def test_a_key_that_is_no_argument_is_refused():
    with pytest.raises(RegistrationError, match="concurrency_key names 'client', but the function has no such"):
        limited(concurrency_key="client")
    with pytest.raises(RegistrationError, match=r"limits must be a Limits\(...\), not 3"):
        Scheduler().entrypoint("job", limits=3)
