"""Overlap, kept by the claim: who may run beside whom, whoever else claims at the same instant."""

import asyncio
import re
from dataclasses import fields
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from support.workers import Parts, until, working

from pgsched import Retry, Run, Scheduler, connect
from pgsched.client.why import Situation, fates
from pgsched.config import Settings
from pgsched.db.migrate import migrations
from pgsched.db.statements.claims import ClaimStatements
from pgsched.db.statements.queries import Queries, in_schema
from pgsched.model import Schedule
from pgsched.rules.plan import overlap_limit

# A schedule whose fire times a test brings about by setting next_run.
MADE = """
    insert into pgsched.schedules (name, entrypoint, expression, next_run, overlap, catch_up)
    values ('s', 'job', '@yearly', now() - interval '1 second', %s, %s) returning id
"""
DUE = "update pgsched.schedules set next_run = now() - interval '1 second', planned_at = clock_timestamp()"
STATES = "select status, count(*) from pgsched.runs group by 1 order by 1"
END = "update pgsched.runs set status = 'succeeded', finished_at = now() where id = %s"


async def states(db) -> dict[str, int]:
    return dict(await db.all(STATES))


# How many runs may be live at once. The table is the specification of both functions.
LIMITS = [
    ("skip", 1),
    ("queue", 1),
    ("cancel", 1),
    ("allow", 1_000_000),
    *((str(number), number) for number in (1, 2, 9, 10, 11, 99, 1000, 99_999, 100_000, 999_999)),
]


async def test_the_rule_in_sql_and_the_rule_in_python_are_one(db):
    """Also for every policy that the table's own check names, so that a new one cannot be forgotten here."""
    check = await db.value(
        "select pg_get_constraintdef(oid) from pg_constraint where conname = 'schedules_overlap_check'"
    )
    words = set(re.findall(r"'(\w+)'", check))
    assert words == {policy for policy, _ in LIMITS if not policy.isdecimal()}
    in_sql = await db.all("select p, pgsched.overlap_limit(p) from unnest(%s::text[]) p", [p for p, _ in LIMITS])
    assert in_sql == LIMITS
    nothing = dict.fromkeys(field.name for field in fields(Schedule))
    assert [(p, overlap_limit(Schedule(**{**nothing, "overlap": p}))) for p, _ in LIMITS] == LIMITS


def test_the_rule_is_written_once_in_sql():
    """All that reads a number from an overlap: the function alone."""
    texts = {**Queries.texts(), **{migration.name: migration.text for migration in migrations()}}
    readers = [name for name, text in texts.items() for _ in re.findall(rb"overlap::(?:int|bigint|smallint)", text)]
    assert readers == ["limits"]
    assert {name for name, text in texts.items() if b"overlap_limit(" in text} == {
        "limits", "lock_due_schedules", "lock_gated_runs", "lock_gated_schedules", "read_candidates", "read_rooms",
    }  # fmt: skip


async def test_queue_lets_one_wait_and_skips_the_next(settings, db):
    await db.all(MADE, "queue", "latest")
    async with Parts(settings) as one, Parts(settings) as two:
        assert await one.dispatcher.claim_pass() == 1
        await db.all(DUE)
        assert await two.dispatcher.claim_pass() == 0
        assert await states(db) == {"queued": 1, "running": 1}
        await db.all(DUE)
        assert await two.dispatcher.claim_pass() == 0
        assert await states(db) == {"queued": 1, "running": 1, "skipped": 1}
        first = one.taken[0].id
        assert await db.one("select reason, detail from pgsched.runs where status = 'skipped'") == (
            "overlap", f"runs {first}, {first + 1} were live",
        )  # fmt: skip
        await db.all(END, first)
        assert await two.dispatcher.claim_pass() == 1, "the one that waited"
        assert [run.id for run in two.taken] == [first + 1]
        assert two.taken[0].fire_time > one.taken[0].fire_time
        assert two.taken[0].previous_fire_time == one.taken[0].fire_time


@pytest.mark.parametrize("overlap", ["skip", "queue", "cancel", "1"])
async def test_of_two_workers_that_claim_waiting_runs_at_once_one_gets_one(settings, db, monkeypatch, overlap):
    """The first is held between its claim and its commit; the second comes then, and once more after the commit."""
    await db.all(MADE, overlap, "latest")
    await db.all("select pgsched.trigger('s'), pgsched.trigger('s') from pgsched.schedules")
    await db.all("update pgsched.schedules set next_run = now() + interval '1 hour', planned_at = clock_timestamp()")
    claimed, commit = asyncio.Event(), asyncio.Event()
    real = ClaimStatements.read_outlook

    async with Parts(settings) as one, Parts(settings) as two:

        async def held(self, connection, worker, *args, **kwargs):
            if worker == one.kit.worker:
                claimed.set()
                await commit.wait()
            return await real(self, connection, worker, *args, **kwargs)

        monkeypatch.setattr(ClaimStatements, "read_outlook", held)
        first = asyncio.create_task(one.dispatcher.claim_pass())
        await claimed.wait()
        # The second would choose another run than the one that is locked: only the schedule's lock keeps it from it.
        await db.all("update pgsched.runs set priority = 9 where id = (select max(id) from pgsched.runs)")
        assert await two.dispatcher.claim_pass() == 0, "the schedule is locked"
        commit.set()
        assert await first == 1
        assert await two.dispatcher.claim_pass() == 0, "one is running"
        await db.all(END, one.taken[0].id)
        assert await two.dispatcher.claim_pass() == 1


async def test_a_run_claimed_elsewhere_after_the_locks_snapshot_is_counted(settings, db, monkeypatch):
    await db.all(MADE, "skip", "latest")
    await db.all("update pgsched.schedules set next_run = now() + interval '1 hour', planned_at = clock_timestamp()")
    await db.all("select pgsched.trigger('s')")
    real = Queries.query
    late = (
        "insert into pgsched.runs (schedule_id, entrypoint, fire_time, status, worker, claimed_at, heartbeat_at)"
        " select id, 'job', now() - interval '1 day', 'running', gen_random_uuid(), now(), now()"
        " from pgsched.schedules"
    )

    def overtaken(self, name):
        if name == "lock_gated_runs":
            with psycopg.connect(settings.dsn, autocommit=True) as other:
                other.execute(in_schema(late.encode(), settings.schema, parametrised=False))
        return real(self, name)

    monkeypatch.setattr(Queries, "query", overtaken)
    async with Parts(settings) as parts:
        assert await parts.dispatcher.claim_pass() == 0
    assert await states(db) == {"queued": 1, "running": 1}


async def test_a_fire_time_waits_for_a_triggered_run_instead_of_being_lost(settings, db):
    await db.all(MADE, "skip", "latest")
    await db.all("update pgsched.schedules set next_run = now() + interval '1 hour', planned_at = clock_timestamp()")
    await db.all("select pgsched.trigger('s')")
    async with Parts(settings) as parts:
        assert await parts.dispatcher.claim_pass() == 1
        await db.all(DUE)
        assert await parts.dispatcher.claim_pass() == 0
        assert await states(db) == {"queued": 1, "running": 1}
        await db.all("select pgsched.trigger('s')")
        assert await parts.dispatcher.claim_pass() == 0, "a second trigger waits too"
        await db.all(END, parts.taken[0].id)
        assert await parts.dispatcher.claim_pass() == 1
        assert (await db.one("select origin from pgsched.runs where id = %s", parts.taken[1].id)) == (None,)


async def test_a_run_between_two_attempts_keeps_its_place(settings, db):
    await db.all(MADE, "queue", "latest")
    async with Parts(settings) as parts:
        await parts.dispatcher.claim_pass()
        first = parts.taken[0].id
        await db.all(DUE)
        await parts.dispatcher.claim_pass()
        again = "update pgsched.runs set status = 'queued', due_at = now() + %s where id = %s"
        await db.all(again, timedelta(hours=1), first)
        assert await parts.dispatcher.claim_pass() == 0, "the other one waits for it to be over, not to fail once"
        await db.all(again, timedelta(0), first)
        assert await parts.dispatcher.claim_pass() == 1
        assert [(run.id, run.attempt) for run in parts.taken] == [(first, 1), (first, 2)]


async def test_a_pause_holds_back_what_waits_but_not_what_is_asked_for(settings, db):
    await db.all(MADE, "queue", "latest")
    async with Parts(settings) as parts:
        await parts.dispatcher.claim_pass()
        await db.all(DUE)
        await parts.dispatcher.claim_pass()
        await db.all("select pgsched.pause('s')")
        await db.all(END, parts.taken[0].id)
        assert await parts.dispatcher.claim_pass() == 0
        assert parts.dispatcher.next.at is None or parts.dispatcher.next.at - asyncio.get_running_loop().time() > 60, (
            "a paused schedule is nothing to look after"
        )
        await db.all("select pgsched.trigger('s')")
        parts.kit.wakeups.due.ask()  # as its notification does
        parts.gated(True)
        assert await parts.dispatcher.claim_pass() == 1
        await db.all(END, parts.taken[1].id)
        await db.all("select pgsched.resume('s')")
        parts.gated(True)
        assert await parts.dispatcher.claim_pass() == 1
        assert await states(db) == {"running": 1, "succeeded": 2}


async def test_retries_of_a_removed_schedule_go_on(settings, db):
    await db.all(MADE, "skip", "latest")
    async with Parts(settings) as parts:
        await parts.dispatcher.claim_pass()
        await db.all("update pgsched.runs set started_at = now()")
        await db.all("select pgsched.remove('s')")
        await db.all("update pgsched.runs set status = 'queued', due_at = now()")
        await parts.dispatcher.claim_pass()  # sees that something waits
        assert await parts.dispatcher.claim_pass() == 1
        await db.all("update pgsched.runs set status = 'failed', finished_at = now()")
        await db.all("select pgsched.retry(id) from pgsched.runs")
        assert await parts.dispatcher.claim_pass() == 1


async def test_a_backlog_that_can_only_wait_takes_no_place(settings, db):
    await db.all(MADE, "skip", "all")
    async with Parts(settings, max_running=2) as parts:
        await db.all("update pgsched.schedules set expression = '* * * * *', next_run = now() - interval '9 minutes'")
        assert await parts.dispatcher.claim_pass() == 1
        parts.taker.allowed = 1
        await db.all(
            "insert into pgsched.schedules (name, entrypoint, expression, next_run)"
            " values ('t', 'job', '@yearly', now() - interval '1 second')"
        )
        assert await parts.dispatcher.claim_pass() == 1, "one place is free, and it is not the older backlog's"


async def test_cancel_asks_what_runs_to_stop_and_cancels_what_waits(settings, db):
    await db.all(MADE, "cancel", "latest")
    async with Parts(settings) as parts:
        await parts.dispatcher.claim_pass()
        await db.all(DUE)
        assert await parts.dispatcher.claim_pass() == 0
        await db.all(DUE)
        assert await parts.dispatcher.claim_pass() == 0
        rows = await db.all("select status, reason, cancel_requested_at is not null from pgsched.runs order by id")
        replaced = "replaced by the next fire time"
        assert rows == [("running", replaced, True), ("cancelled", replaced, True), ("queued", None, False)]
        await db.all(END, parts.taken[0].id)
        assert await parts.dispatcher.claim_pass() == 1


async def test_a_pass_does_not_wait_for_a_client_that_has_the_run_to_cancel_locked(settings, db, dsn):
    await db.all(MADE, "cancel", "latest")
    async with Parts(settings) as parts, await psycopg.AsyncConnection.connect(dsn) as other:
        await parts.dispatcher.claim_pass()
        await db.all(DUE)
        lock = "select from pgsched.runs for update"
        await other.execute(in_schema(lock.encode(), settings.schema, parametrised=False))
        async with asyncio.timeout(5):
            assert await parts.dispatcher.claim_pass() == 0
        assert await states(db) == {"running": 1}, "the fire time is still open"
        assert await db.value("select next_run <= now() from pgsched.schedules")
        await other.rollback()
        await parts.dispatcher.claim_pass()
        assert await states(db) == {"queued": 1, "running": 1}
        assert await db.value("select cancel_requested_at is not null from pgsched.runs where status = 'running'")


# --- what is skipped -------------------------------------------------------------------------------------

SKIPPED = """
    select reason, detail, skipped_count, fire_time, skipped_through from pgsched.runs where status = 'skipped'
    order by fire_time, id
"""


async def comes(db, parts: Parts) -> datetime:
    """One more fire time, and a pass."""
    await db.all(DUE)
    due = await db.value("select next_run from pgsched.schedules")
    await parts.dispatcher.claim_pass()
    return due


async def test_what_one_live_run_costs_is_one_row(settings, db, dsn, schema):
    await db.all(MADE, "skip", "latest")
    async with Parts(settings) as parts:
        await parts.dispatcher.claim_pass()
        first = [await comes(db, parts) for _ in range(3)]
        blamed = f"run {parts.taken[0].id} was live"
        assert await db.all(SKIPPED) == [("overlap", blamed, 3, first[0], first[2])]
        assert [skip.fire_time for _, skip in parts.skips] == first, "the hook hears of each"
        async with connect(dsn, schema=schema) as client:
            row, records = await client.get_schedule("s"), await client.list_runs_between("s", first[0], first[2])
        told = fates(row, records, Situation(first[2]), first[0], first[2])
        assert [(fate.fire_time, fate.state) for fate in told] == [(first[0], "skipped")]
        assert f"({blamed}), as one of 3 from" in told[0].sentence

        # Somebody has the row locked: it is not waited for.
        async with await psycopg.AsyncConnection.connect(dsn) as other:
            await other.execute(in_schema(b"select from pgsched.runs for update", schema, parametrised=False))
            async with asyncio.timeout(5):
                beside = await comes(db, parts)
            await other.rollback()
        fourth = await comes(db, parts)
        assert await db.all(SKIPPED) == [
            ("overlap", blamed, 3, first[0], first[2]), ("overlap", blamed, 2, beside, fourth),
        ]  # fmt: skip

        # next_run is set back into what is told already.
        await db.all("update pgsched.schedules set next_run = %s, planned_at = clock_timestamp()", first[1])
        await db.all("update pgsched.schedules set accounted_through = %s", first[0])
        before = await db.all(SKIPPED)
        await parts.dispatcher.claim_pass()
        assert await db.all(SKIPPED) == before

        # Another run is to blame.
        await db.all("update pgsched.schedules set accounted_through = %s", fourth)
        await db.all(END, parts.taken[0].id)
        await comes(db, parts)
        after = await comes(db, parts)
        assert (await db.all(SKIPPED))[2:] == [("overlap", f"run {parts.taken[1].id} was live", 1, after, after)]


# --- real workers -------------------------------------------------------------------------------------------


class Watch:
    """How many runs are in their function at once, over all workers of this process."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.began: list[Run] = []
        self.cancelled = 0
        self.go = asyncio.Event()

    async def job(self, run: Run) -> None:
        self.began.append(run)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(0.02)
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.now -= 1

    def scheduler(self) -> Scheduler:
        sc = Scheduler()
        sc.entrypoint("job", retry=Retry(attempts=2, backoff=timedelta(milliseconds=50)))(self.job)
        return sc


async def test_cancel_starts_the_new_run_only_once_the_old_one_has_ended(settings: Settings, db):
    watch = Watch()
    async with working(watch.scheduler(), settings), working(watch.scheduler(), settings):
        await db.all(
            "insert into pgsched.schedules (name, entrypoint, expression, overlap)"
            " values ('s', 'job', '* * * * * *', 'cancel')"
        )
        await until(lambda: len(watch.began) >= 4)
        await db.all("select pgsched.pause('s')")
        watch.go.set()
        await db.until("select count(*) = 0 from pgsched.runs where status = 'running'")
        assert watch.most == 1 and watch.cancelled >= 3
        reasons = await db.all("select distinct status, reason from pgsched.runs where status = 'cancelled'")
        assert reasons == [("cancelled", "replaced by the next fire time")]
        assert [run.fire_time for run in watch.began] == sorted({run.fire_time for run in watch.began})


@pytest.mark.parametrize(("overlap", "most"), [("skip", 1), ("queue", 1), ("3", 3)])
async def test_no_more_run_at_once_than_allowed_however_many_workers_claim(settings: Settings, db, overlap, most):
    """Sixty missed fire times to catch up with, triggers in between, three workers, a few failures."""
    watch = Watch()
    watch.go.set()
    failed = set()

    async def job(run: Run) -> None:
        await watch.job(run)
        if run.id % 7 == 0 and run.id not in failed:
            failed.add(run.id)
            raise ValueError("once")

    def scheduler() -> Scheduler:
        sc = Scheduler()
        sc.entrypoint("job", retry=Retry(attempts=2, backoff=timedelta(milliseconds=50)))(job)
        return sc

    await db.all(
        "insert into pgsched.schedules (name, entrypoint, expression, overlap, catch_up, next_run, ends_at)"
        " values ('s', 'job', '* * * * * *', %s, 'all', date_trunc('second', now()) - interval '119 seconds',"
        " date_trunc('second', now()) - interval '60 seconds')",
        overlap,
    )
    async with working(scheduler(), settings), working(scheduler(), settings), working(scheduler(), settings):
        for _ in range(10):
            await db.all("select pgsched.trigger('s')")
        await db.until(
            "select count(*) = 70 from pgsched.runs where status = 'succeeded' and fire_time is not null", limit=40
        )
    assert watch.most == most
    assert failed
    # By the books too: at no instant were more than that many between their start and their end.
    edges = await db.all(
        "select started_at, 1 from pgsched.runs union all select finished_at, -1 from pgsched.runs order by 1, 2"
    )
    busy = 0
    for _, step in edges:
        busy += step
        assert busy <= most
    assert await db.value("select count(*) from pgsched.runs where status = 'skipped'") == 0


async def test_a_waiting_run_starts_as_soon_as_the_one_before_ends_elsewhere(settings: Settings, db):
    """The worker that ends it looks at once; nobody polls for that."""
    watch = Watch()
    async with working(watch.scheduler(), settings), working(watch.scheduler(), settings):
        await db.all(MADE, "queue", "latest")
        await until(lambda: len(watch.began) == 1)
        await db.all("update pgsched.schedules set next_run = now() - interval '1 second'")  # as a client
        await db.until("select count(*) = 1 from pgsched.runs where status = 'queued'")
        watch.go.set()
        await until(lambda: len(watch.began) == 2)
    assert watch.most == 1
    assert datetime.now(UTC) > watch.began[1].fire_time
