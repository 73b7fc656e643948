"""Unique keys: what they keep apart, that a run with one can wait while another runs, and that an enqueue says so."""

import asyncio
import itertools
import uuid
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import psycopg
import pytest
from support.workers import working

from pgsched import PgschedError, Retry, Run, Scheduler, connect, connect_sync
from pgsched.db.statements.queries import in_schema
from pgsched.model import Claim, Outcome, RunError, RunStatus
from pgsched.worker.kit import Kit
from pgsched.worker.run.finisher import Finisher, Landing

NOW = datetime.now(UTC)
ROWS = "select id, status, reason, jsonb_array_length(errors) from pgsched.runs order by id"


@pytest.fixture
async def kit(settings):
    made = Kit.build(Scheduler(app="unique"), settings)
    yield made
    await made.control.discard()
    await made.writes.discard()


async def running(db, kit, count=1, key="k", **values) -> list[Claim]:
    """Claims of runs whose key counts while a run waits."""
    names = "".join(f", {name}" for name in values)
    rows = await db.all(
        "insert into pgsched.runs (entrypoint, unique_key, unique_while, status, attempt, token, max_attempts, worker,"
        f" claimed_at, heartbeat_at{names}) select 'job', %s, 'waiting', 'running', 1, 7, 3, %s, now(), now()"
        f"{', %s' * len(values)} from generate_series(1, %s) returning id",
        key, kit.worker, *values.values(), count,
    )  # fmt: skip
    return [Claim(row[0], 7, kit.worker) for row in rows]


def failed(claim: Claim, status: RunStatus = RunStatus.QUEUED) -> Outcome:
    """An attempt that failed; by default there is another one."""
    return Outcome(claim, status, NOW, NOW, error=RunError("Oops", "it failed"))


async def send(kit, *outcomes: Outcome) -> dict[int, Landing]:
    answers = await Finisher(kit).send(list(outcomes))
    return {key[0]: landing for key, landing in answers.items()}


WAITING = "select * from pgsched.enqueue_unique('job', unique_key => 'k', unique_while => 'waiting')"


# --- what an enqueue says ---------------------------------------------------------------------------------


async def test_an_enqueue_says_whether_it_queued_a_run(dsn, schema, db):
    async with connect(dsn, schema=schema) as client:
        first = await client.enqueue("job", unique_key="k")
        again = await client.enqueue("job", unique_key="k")
        assert (first == again, first.queued, again.queued) == (True, True, False)
        assert (await client.enqueue("job")).queued
        many = await client.enqueue_many("job", [{}, {}, {}, {}], unique_keys=["k", "l", None, "l"])
        assert [each.queued for each in many] == [False, True, True, False] and many[1] == many[3]
        assert all(each.queued for each in await client.enqueue_many("job", [{}, {}]))
        assert await client.cancel(first) == "cancelled", "it can be given wherever an id can"
        assert repr(first) == repr(int(first))
    with connect_sync(dsn, schema=schema) as client:
        assert (client.enqueue("job", unique_key="k").queued, client.enqueue("job", unique_key="k").queued) == (
            True,
            False,
        )
        assert [each.queued for each in client.enqueue_many("job", [{}], unique_keys=["k"])] == [False]


async def test_one_waits_while_another_runs(db, kit):
    [held] = await running(db, kit)
    made, queued = await db.one(WAITING)
    assert queued and made != held.run_id
    assert await db.one(WAITING) == (made, False)
    many = await db.all(
        "select run_id, queued from pgsched.enqueue_many_unique('job', array['{}', '{}']::jsonb[],"
        " unique_keys => array['k', 'm'], unique_while => 'waiting')"
    )
    assert many == [(made, False), (many[1][0], True)]


async def test_keys_of_applications_and_of_none_are_apart(db):
    ids = [
        await db.value("select pgsched.enqueue('job', unique_key => 'k', app => %s, unique_while => %s)", app, while_)
        for while_ in ("live", "waiting")
        for app in (None, "a", "b", None, "a", "b")
    ]
    assert ids[:3] == ids[3:6] and ids[6:9] == ids[9:12] and len(set(ids)) == 6


async def test_a_job_that_enqueues_its_own_next_round_is_not_lost(settings, db):
    scheduler = Scheduler(app="unique")
    rounds = []

    @scheduler.entrypoint("round", retry=Retry(attempts=1))
    async def round_(run: Run, n: int) -> bool:
        rounds.append(n)
        async with connect(settings.dsn, schema=settings.schema) as client:
            return n < 3 and (await client.enqueue("round", {"n": n + 1}, unique_key="me", unique="waiting")).queued

    async with working(scheduler, settings), connect(settings.dsn, schema=settings.schema) as client:
        await client.enqueue("round", {"n": 1}, unique_key="me", unique="waiting")
        await db.until("select count(*) = 3 from pgsched.runs where status = 'succeeded'")
    assert rounds == [1, 2, 3]


# --- a run that would go back to the queue ----------------------------------------------------------------


async def test_a_run_that_failed_ends_if_another_one_waits(db, kit):
    [held] = await running(db, kit)
    waiting, _ = await db.one(WAITING)
    assert await send(kit, failed(held)) == {held.run_id: Landing.LANDED}
    reason = f"run {waiting} with its unique key is waiting"
    assert await db.all(ROWS) == [(held.run_id, "failed", reason, 1), (waiting, "queued", None, 0)]
    assert await db.value("select finished_at is not null from pgsched.runs where id = %s", held.run_id)


async def test_a_run_that_is_given_back_ends_if_another_one_waits(db, kit):
    [held] = await running(db, kit)
    waiting, _ = await db.one(WAITING)
    assert await send(kit, Outcome(held, RunStatus.QUEUED, NOW, NOW, refund=True)) == {held.run_id: Landing.LANDED}
    reason = f"run {waiting} with its unique key is waiting"
    assert (await db.all(ROWS))[0] == (held.run_id, "cancelled", reason, 0)


async def test_it_goes_back_if_none_waits_and_then_holds_the_key(db, kit):
    [held] = await running(db, kit)
    assert await send(kit, failed(held)) == {held.run_id: Landing.LANDED}
    assert await db.one(WAITING) == (held.run_id, False)


async def test_of_two_in_one_batch_one_goes_back(db, kit):
    """And neither that nor a run of another key keeps the others from landing."""
    first, second, third = await running(db, kit, 3)
    [other] = await running(db, kit, key="other")
    outcomes = [failed(third), failed(second), failed(other), failed(first, RunStatus.FAILED)]
    assert set((await send(kit, *outcomes)).values()) == {Landing.LANDED}
    assert [row[1:3] for row in await db.all(ROWS)] == [
        ("failed", None),
        ("queued", None),
        ("failed", f"run {second.run_id} with its unique key is waiting"),
        ("queued", None),
    ]


@pytest.mark.parametrize("commits", [True, False])
async def test_an_enqueue_that_is_not_committed_decides_and_nobody_waits_for_it(db, dsn, schema, kit, commits):
    """The enqueue has the key; the end of the running run comes before its commit or rollback."""
    [held], [other] = await running(db, kit), await running(db, kit, key="other")
    async with await psycopg.AsyncConnection.connect(dsn) as client:
        await client.execute(in_schema(WAITING.encode(), schema, parametrised=False))
        assert await send(kit, failed(held), failed(other)) == {
            held.run_id: Landing.LOCKED, other.run_id: Landing.LANDED,
        }  # fmt: skip
        async with kit.writes.use() as connection:
            beaten = await kit.store.runs.beat(connection, kit.worker, [(held.run_id, held.token, NOW)])
        assert len(beaten) == 1
        assert await db.value("select heartbeat_at > claimed_at from pgsched.runs where id = %s", held.run_id)
        await (client.commit() if commits else client.rollback())
    assert await send(kit, failed(held)) == {held.run_id: Landing.LANDED}
    assert (await db.all(ROWS))[0][1] == ("failed" if commits else "queued")


@pytest.mark.parametrize("commits", [True, False])
@pytest.mark.parametrize("case", list(itertools.product(["retry", "old snapshot", "new key"], ["holder", "reaper"])))
async def test_an_end_waits_for_no_transaction_that_has_queued_another_run_in_any_other_way(
    db, dsn, kit, case, commits
):
    """None of these leaves a lock on the running run; each has a row in the unique index that is not committed."""
    way, by = case
    if way == "new key":
        await db.all(
            "insert into pgsched.runs (entrypoint, unique_key, unique_while) values ('job', 'free', 'waiting')"
        )
    async with await psycopg.AsyncConnection.connect(dsn) as client:
        await client.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        await client.execute("select count(*) from pg_class")  # it has its snapshot
        [before] = await running(db, kit)
        if way == "retry":
            await send(kit, failed(before, RunStatus.FAILED))
        else:
            await send(kit, Outcome(before, RunStatus.SUCCEEDED, NOW, NOW))
        [held], [other] = await running(db, kit), await running(db, kit, key="other")
        if way == "retry":
            await client.rollback()  # a newer snapshot
        statement = {
            "retry": f"select pgsched.retry({before.run_id})",
            "old snapshot": WAITING,
            "new key": "update pgsched.runs set unique_key = 'k' where unique_key = 'free'",
        }[way]
        await client.execute(in_schema(statement.encode(), db.schema, parametrised=False))
        if by == "holder":
            assert await send(kit, failed(held), failed(other)) == {
                held.run_id: Landing.LOCKED, other.run_id: Landing.LANDED,
            }  # fmt: skip
        else:
            assert await reaped(db, kit, held, other) == {other.run_id}
        await (client.commit() if commits else client.rollback())
    if by == "holder":
        assert await send(kit, failed(held)) == {held.run_id: Landing.LANDED}
    else:
        assert await reaped(db, kit, held) == {held.run_id}
    status, reason = await db.one("select status, reason from pgsched.runs where id = %s", held.run_id)
    assert status == ("failed" if commits else "queued"), reason


async def reaped(db, kit, *claims: Claim) -> set[int]:
    """Which of these a reaper takes away, with an attempt left."""
    beats = dict(await db.all("select id, heartbeat_at from pgsched.runs"))
    seen = [SimpleNamespace(id=c.run_id, token=c.token, heartbeat_at=beats[c.run_id]) for c in claims]
    verdicts = [(each, RunStatus.QUEUED, timedelta(0), "gone") for each in seen]
    async with kit.control.use() as connection:
        return set(await kit.store.upkeep.reap_runs(connection, verdicts))


async def test_an_enqueue_that_commits_between_the_look_and_the_lock_is_seen(db, dsn, schema, kit):
    """The statement has its snapshot; then the enqueue commits; then the statement comes to the run."""
    [held] = await running(db, kit)
    look = (
        "select pgsched.waiting_instead(r.id, '{}') from (select pg_advisory_xact_lock(4711) offset 0) l,"
        f" pgsched.runs r where r.id = {held.run_id}"
    )
    async with (
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as gate,
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as worker,
    ):
        await gate.execute("select pg_advisory_lock(4711)")
        looking = asyncio.create_task(worker.execute(in_schema(look.encode(), schema, parametrised=False)))
        await db.until("select exists (select from pg_locks where pid = %s and not granted)", worker.info.backend_pid)
        waiting, _ = await db.one(WAITING)
        await gate.execute("select pg_advisory_unlock(4711)")
        assert await (await looking).fetchone() == (waiting,)


async def test_an_enqueue_that_waited_for_a_claim_holds_up_the_end_of_that_run(db, dsn, schema, kit):
    """The enqueue waits at the index for a claim of the waiting run, and then finds it running."""
    first, _ = await db.one(WAITING)
    claim = (
        "update pgsched.runs set status = 'running', attempt = 1, token = 7, worker = %s, claimed_at = now(),"
        " heartbeat_at = now()"
    )
    async with (
        await psycopg.AsyncConnection.connect(dsn) as claiming,
        await psycopg.AsyncConnection.connect(dsn) as client,
    ):
        await claiming.execute(in_schema(claim.encode(), schema), (kit.worker,))
        enqueuing = asyncio.create_task(client.execute(in_schema(WAITING.encode(), schema, parametrised=False)))
        await db.until("select exists (select from pg_locks where pid = %s and not granted)", client.info.backend_pid)
        await claiming.commit()
        assert (await (await enqueuing).fetchone())[1]
        held = Claim(first, 7, kit.worker)
        assert await send(kit, failed(held)) == {first: Landing.LOCKED}
        await client.commit()
    assert await send(kit, failed(held)) == {first: Landing.LANDED}
    assert [row[1] for row in await db.all(ROWS)] == ["failed", "queued"]


async def test_a_cancellation_waits_for_no_open_enqueue(db, dsn, schema, kit):
    """The enqueue has a key share lock on the running run, for as long as its transaction stays open."""
    [held] = await running(db, kit)
    async with await psycopg.AsyncConnection.connect(dsn) as client:
        await client.execute(in_schema(WAITING.encode(), schema, parametrised=False))
        await db.all("set lock_timeout = '5s'")
        assert await db.value("select pgsched.cancel(%s)", held.run_id) == "requested"


async def test_an_enqueue_waits_for_an_end_that_has_looked_and_not_written_yet(db, dsn, schema, kit):
    """The end saw nobody wait. If the enqueue did not wait for it, they would meet at the index."""
    [held] = await running(db, kit)
    look = "select pgsched.waiting_instead(id, '{}') from pgsched.runs"
    back = "update pgsched.runs set status = 'queued', worker = null, heartbeat_at = null"
    async with (
        await psycopg.AsyncConnection.connect(dsn) as ending,
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as client,
    ):
        cursor = await ending.execute(in_schema(look.encode(), schema, parametrised=False))
        assert await cursor.fetchone() == (0,)
        enqueuing = asyncio.create_task(client.execute(in_schema(WAITING.encode(), schema, parametrised=False)))
        await db.until(
            "select exists (select from pg_locks where pid = %s and not granted)", client.info.backend_pid, limit=5
        )
        await ending.execute(in_schema(back.encode(), schema, parametrised=False))
        await ending.commit()
        assert await (await enqueuing).fetchone() == (held.run_id, False)


async def test_a_reaped_run_ends_if_another_one_waits_and_its_worker_is_named(db, dsn, schema, kit):
    [held], [free] = await running(db, kit), await running(db, kit, key="free")
    silent = await db.all("select id, attempt, token, worker, entrypoint, heartbeat_at from pgsched.runs order by id")
    verdicts = [
        (
            SimpleNamespace(id=row[0], token=row[2], heartbeat_at=row[5]),
            RunStatus.QUEUED,
            timedelta(0),
            "its worker is gone",
        )
        for row in silent
    ]

    async def reap() -> set[int]:
        async with kit.control.use() as connection:
            return set(await kit.store.upkeep.reap_runs(connection, verdicts))

    async with await psycopg.AsyncConnection.connect(dsn) as client:
        await client.execute(in_schema(WAITING.encode(), schema, parametrised=False))
        assert await reap() == {free.run_id}, "the other one comes again"
        await client.commit()
    assert await reap() == {held.run_id}
    [waiting] = await db.one("select id from pgsched.runs where status = 'queued' and unique_key = 'k'")
    assert (await db.all(ROWS))[0] == (held.run_id, "failed", f"run {waiting} with its unique key is waiting", 1)


async def test_a_run_cannot_be_retried_while_another_one_waits(db, kit):
    [held] = await running(db, kit)
    await send(kit, failed(held, RunStatus.FAILED))
    await db.one(WAITING)
    with pytest.raises(psycopg.Error) as refused:
        await db.all("select pgsched.retry(%s)", held.run_id)
    assert refused.value.sqlstate == "PS409"


# --- what keeps a job from being stored -------------------------------------------------------------------

HIDING = """
create function pgsched.swallow() returns trigger language plpgsql as 'begin return null; end';
create trigger swallow before insert on pgsched.runs for each row execute function pgsched.swallow()
"""


@pytest.mark.parametrize(
    "call",
    [
        "pgsched.enqueue('job')",
        "pgsched.enqueue('job', unique_key => 'k')",
        "pgsched.enqueue_many('job', array['{}']::jsonb[])",
        "pgsched.enqueue_many('job', array['{}', '{}']::jsonb[], unique_keys => array['k', null])",
    ],
)
async def test_an_enqueue_that_a_trigger_swallows_is_refused_and_does_not_go_on_for_ever(db, schema, call):
    await db.connection.execute(in_schema(HIDING.encode(), schema, parametrised=False))
    await db.all("set statement_timeout = '5s'")
    with pytest.raises(psycopg.Error) as refused:
        await db.all(f"select {call}")
    assert refused.value.sqlstate == "PS409"
    assert refused.value.diag.message_primary.startswith(
        "Nothing was queued, and no run with the unique key can be seen."
    )


async def test_a_key_whose_run_a_policy_hides_is_refused(dsn, schema, db):
    async with connect(dsn, schema=schema) as client:
        await client.enqueue("job", {"tenant": "b"}, unique_key="k")
        role = f"tenant_{uuid.uuid4().hex}"
        try:
            for statement in (
                f"create role {role}; grant usage on schema pgsched to {role}",
                f"grant select, insert on pgsched.runs to {role}",
                "alter table pgsched.runs enable row level security",
                f"create policy mine on pgsched.runs to {role} using (args ->> 'tenant' = 'a')",
            ):
                await db.connection.execute(in_schema(
                    statement.replace("schema pgsched", 'schema "' + schema.replace('"', '""') + '"').encode(),
                    schema, parametrised=False,
                ))  # fmt: skip
            async with client.transaction() as connection:
                await connection.execute("set local statement_timeout = '5s'")
                await connection.execute(f"set local role {role}")
                with pytest.raises(PgschedError, match="Nothing was queued"):
                    await client.enqueue("job", {"tenant": "a"}, unique_key="k", connection=connection)
        finally:
            await db.connection.execute(f"drop owned by {role}; drop role {role}")
