"""What a change of a schedule, or of a run by plain SQL, means for its fire times and its runs."""

import asyncio
import contextlib

import psycopg
import pytest
from support.withdrawals import AHEAD, ROWS, begun, change, claimed, ended, looks
from support.workers import Parts, reap

from pgsched.db.statements.parameters import claim_of
from pgsched.db.statements.queries import in_schema
from pgsched.worker.upkeep.reaper import Reaper


async def test_a_row_that_is_written_back_whole_is_a_clients_change(settings, db):
    """An ORM's save() of a row that was read before the last plan."""
    async with Parts(settings, lookahead=AHEAD) as anna:
        await claimed(db, anna)
        [(before,)] = await db.all("select to_jsonb(s) from pgsched.schedules s")
        await db.all(
            "update pgsched.schedules s set (planned_at, next_run, args, version) ="
            " (select planned_at - interval '1 s', '2030-01-01Z'::timestamptz, '{\"v\": 1}'::jsonb, 1)"
        )
        [(after,)] = await db.all("select to_jsonb(s) from pgsched.schedules s")
    assert {key for key in after if after[key] != before[key]} == {"args", "version", "updated_at"}
    assert after["version"] == before["version"] + 1


async def test_interruptions_are_bounded_and_cover_the_same_time(db):
    await db.all("insert into pgsched.schedules (name, entrypoint, expression) values ('s', 'job', '@daily')")
    await db.all("select pgsched.pause('s')")
    for number in range(60):
        await db.all("select pgsched.alter('s', jsonb_build_object('expression', %s::text))", f"{number} 4 * * *")
    entries = await db.value("select interruptions from pgsched.schedules")
    assert len(entries) == 50
    paused = [entry for entry in entries if entry["kind"] == "paused"]
    changed = [entry for entry in entries if entry["kind"] == "changed"]
    assert [a["through"] for a in changed[:-1]] == [b["since"] for b in changed[1:]], "no gap between two timings"
    assert len(paused) == len(changed) == 25


async def test_a_new_overlap_and_a_new_entrypoint_hold_for_what_is_queued(db):
    await db.all(
        "insert into pgsched.schedules (name, entrypoint, expression, overlap) values ('s', 'job', '@daily', 'allow')"
    )
    for _ in range(2):
        await db.all("select pgsched.trigger('s')")
    assert await db.value("select bool_or(gated) from pgsched.runs") is False
    await db.all("select pgsched.alter('s', '{\"overlap\": \"1\"}')")
    assert await db.value("select bool_and(gated) from pgsched.runs")
    await db.all('select pgsched.alter(\'s\', \'{"entrypoint": "new", "args": {"v": 2}}\')')
    assert await db.all("select distinct entrypoint, args from pgsched.runs") == [("new", {"v": 2})]


async def test_max_runs_counts_only_runs_that_were_made(settings, db):
    async with Parts(settings, lookahead="0s") as anna:
        await db.all(
            "insert into pgsched.schedules (name, entrypoint, expression, overlap, catch_up, max_runs, next_run)"
            " values ('s', 'job', '0 4 * * *', 'allow', 'all', 6, date_trunc('day', now()) - interval '68 hours')"
        )
        await looks(anna, 3)
        made = await db.value("select count(*) from pgsched.runs")
        await db.all("update pgsched.runs set status = 'succeeded', finished_at = now(), started_at = now()")
        await db.all("update pgsched.schedules set next_run = date_trunc('day', now()) - interval '68 hours'")
        await looks(anna, 3)
        assert await db.value("select count(*) from pgsched.runs") == made
        assert await db.one("select run_count, status from pgsched.schedules") == (made, "active")


async def test_a_retry_starts_no_run_before_its_fire_time(settings, db):
    async with Parts(settings, lookahead=AHEAD) as anna:
        await claimed(db, anna)
    await db.all("update pgsched.runs set status = 'cancelled', finished_at = now(), committed_at = now()")
    await db.all("select pgsched.retry(id) from pgsched.runs")
    assert (
        await db.one("select due_at = fire_time, due_at > now(), committed_at is null from pgsched.runs") == (True,) * 3
    )


async def test_a_run_that_plain_sql_queues_again_has_not_committed(db):
    await db.all("select pgsched.enqueue('job')")
    await db.all("update pgsched.runs set status = 'succeeded', committed_at = now(), reported_at = now()")
    await db.all("update pgsched.runs set status = 'queued'")
    assert await db.one("select committed_at, reported_at from pgsched.runs") == (None, None)


async def test_a_queued_run_that_gets_another_entrypoint_wakes_workers(settings, db, dsn):
    await db.all("select pgsched.enqueue('nobodys')")
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as ear:
        await ear.execute(psycopg.sql.SQL("listen {}").format(psycopg.sql.Identifier(settings.schema)))
        await db.all("update pgsched.runs set entrypoint = 'job'")
        assert [note.channel async for note in ear.notifies(timeout=5, stop_after=1)] == [settings.schema]


@pytest.mark.parametrize("other", ["select pgsched.trigger('s')", "select pgsched.retry(1)"])
async def test_a_removal_beside_something_leaves_no_run_that_waits_for_ever(settings, db, dsn, other):
    """The one that comes second waits for the removal, and sees that the schedule is gone."""
    await db.all("insert into pgsched.schedules (name, entrypoint, expression) values ('s', 'job', '@daily')")
    await db.all("select pgsched.trigger('s')")
    await db.all("update pgsched.runs set status = 'failed', finished_at = now(), attempt = 1")
    async with (
        await psycopg.AsyncConnection.connect(dsn) as first,
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as second,
    ):
        await first.execute(in_schema(b"select pgsched.remove('s')", settings.schema, parametrised=False))

        async def does():
            with contextlib.suppress(psycopg.Error):  # PS404
                await second.execute(in_schema(other.encode(), settings.schema, parametrised=False))

        waiting = asyncio.create_task(does())
        await db.until(
            "select count(*) = 1 from pg_stat_activity where pid = %s and wait_event_type = 'Lock'",
            second.info.backend_pid,
        )
        await first.commit()
        await waiting
    assert await db.value("select count(*) from pgsched.runs where status = 'queued' and gated") == 0


@pytest.mark.parametrize("attempt", [0, 1])
async def test_a_waiting_run_whose_schedule_is_gone_is_settled(settings, db, attempt):
    await db.all("insert into pgsched.schedules (name, entrypoint, expression) values ('s', 'job', '@daily')")
    await db.all("select pgsched.trigger('s')")
    await db.all("update pgsched.runs set attempt = %s, schedule_id = 999", attempt)
    async with Parts(settings) as anna:
        await looks(anna, 3)
    told = await db.one("select status, reason from pgsched.runs")
    assert told == (("running", None) if attempt else ("cancelled", "schedule removed"))


@pytest.mark.parametrize("across", ["made after it", "retimed after it"])
async def test_a_schedule_that_is_removed_and_made_again_across_its_instant_does_not_run_it_again(
    settings, db, dsn, across
):
    remove, make = "select pgsched.remove('s')", "select pgsched.create_schedule('s', 'job', %s)"
    async with Parts(settings, lookahead=AHEAD) as anna, Parts(settings, lookahead=AHEAD) as ben:
        at = await db.value(
            "select '@at ' || to_char(now() at time zone 'UTC' + interval '1 s', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
        )
        await db.all(make, at)
        assert await anna.dispatcher.claim_pass() == 1
        instant = await db.value("select fire_time from pgsched.runs")
        async with await psycopg.AsyncConnection.connect(dsn) as late:
            await late.execute(in_schema(remove.encode(), db.schema), [])
            if across == "retimed after it":
                await late.execute(in_schema(make.encode(), db.schema), [at])
                await late.commit()
            await db.until("select now() > %s", instant)
            if across == "made after it":
                await late.execute(in_schema(make.encode(), db.schema), [at])
        assert await looks(ben) == 0
        await ended(anna)
        if across == "retimed after it":
            await db.all("select pgsched.alter('s', '{\"ends_at\": \"2100-01-01T00:00:00Z\"}')")
        assert await looks(ben, 3) == 0
        assert await db.all(ROWS) == [("succeeded", {}, True)]
        assert await db.value("select status from pgsched.schedules") == "finished"


async def test_a_claim_that_jitter_puts_off_is_not_run_beside_a_schedule_made_again_after_its_instant(settings, db):
    async with Parts(settings, lookahead=AHEAD) as anna, Parts(settings, lookahead=AHEAD) as ben:
        at = await db.value(
            "select '@at ' || to_char(now() at time zone 'UTC' + interval '1 s', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
        )
        await db.all(
            "insert into pgsched.schedules (name, entrypoint, expression, jitter) values ('s', 'job', %s, '5 s')", at
        )
        assert await anna.dispatcher.claim_pass() == 1
        await db.until("select now() > fire_time from pgsched.runs")
        await db.all("select pgsched.remove('s')")
        await db.all("select pgsched.create_schedule('s', 'job', %s)", at)
        assert await looks(ben) == 0
        await ended(anna)
        assert await looks(ben, 3) == 0
        assert await db.all(ROWS) == [("succeeded", {}, True)]


@pytest.mark.parametrize("remove", ["select pgsched.remove('s')", "truncate pgsched.schedules"])
@pytest.mark.parametrize("beaten", [False, True])
@pytest.mark.parametrize("over", [False, True])
async def test_a_single_instant_that_has_begun_does_not_run_again_if_its_schedule_is_made_again(
    settings, db, remove, beaten, over
):  # fmt: skip
    """A deploy drops all schedules and makes them again. It does not matter whether a beat has said that the run has
    begun, nor whether it is over."""
    async with Parts(settings, lookahead=AHEAD) as anna, Parts(settings, lookahead=AHEAD) as ben:
        at = await db.value(
            "select '@at ' || to_char(now() at time zone 'UTC' - interval '1 s', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
        )
        await db.all("select pgsched.create_schedule('s', 'job', %s)", at)
        assert await looks(anna) == 1
        if beaten:
            await begun(anna)
        if over:
            await ended(anna)
        await db.all(remove)
        await db.all("select pgsched.create_schedule('s', 'job', %s)", at)
        assert await looks(ben) == 0
        if not over:
            await ended(anna)
        assert await looks(ben, 3) == 0
        assert await db.all(ROWS) == [("succeeded", {}, True)]


async def test_a_removal_waits_for_no_other_removal(db, dsn):
    """Both find the same old row of a removed schedule, which may go."""
    for name in ("a", "b"):
        await db.all("select pgsched.create_schedule(%s, 'job', '@at 2100-01-01T00:00:00Z')", name)
    await db.all("update pgsched.schedules set planned_at = clock_timestamp(), accounted_through = '2100-01-01Z'")
    await db.all("insert into pgsched.removed values (-1, 'old', now(), now() - interval '2 days')")
    async with await psycopg.AsyncConnection.connect(dsn) as late:
        await late.execute(in_schema(b"select pgsched.remove('a')", db.schema, parametrised=False))
        await db.all("set lock_timeout = '5s'")
        await db.all("select pgsched.remove('b')")


async def test_a_change_costs_no_fire_time_that_has_come_and_that_jitter_puts_off(settings, db):
    async with Parts(settings, lookahead="0s") as anna:
        at = await db.value(
            "select '@at ' || to_char(now() at time zone 'UTC' - interval '2 s', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')"
        )
        await db.all(
            "insert into pgsched.schedules (name, entrypoint, expression, jitter) values ('s', 'job', %s, '10 days')",
            at,
        )
        assert await looks(anna) == 0
        [queued] = await db.all("select id, due_at from pgsched.runs where status = 'queued' and due_at > now()")
        await db.all("update pgsched.schedules set grace = '1 second', priority = 3")
        assert await looks(anna) == 0
        assert await db.all("select id, due_at from pgsched.runs where status = 'queued'") == [queued]


@pytest.mark.parametrize(("by", "name"), [("holder", "plain update"), ("holder", "retime"), ("reaper", "retime")])
async def test_a_cancellation_that_was_accepted_holds_beside_a_change(settings, db, by, name):
    async with Parts(settings, lookahead=AHEAD) as anna, Parts(settings, lookahead=AHEAD, stall_timeout="3s") as ben:
        at = await claimed(db, anna)
        run = await db.value("select id from pgsched.runs")
        await change(db, name, at)
        # The holder has heard of the change, and as it answers the row is locked by a cancellation that commits then.
        assert await db.value("select pgsched.cancel(%s)", run) == "requested"
        if by == "holder":
            [taken] = anna.taken
            async with anna.kit.writes.use() as connection:
                claims = [claim_of(taken, anna.kit.worker)]
                assert len(await anna.kit.store.runs.give_back_runs(connection, anna.kit.worker, claims)) == 1
        else:
            await db.all("update pgsched.runs set heartbeat_at = now() - interval '1 hour'")
            await reap(Reaper(ben.kit, ben.roster), ben.kit)
        assert await looks(ben) == 0
        assert await db.all("select id, status, reason from pgsched.runs") == [
            (run, "cancelled", "cancelled on request")
        ]


async def test_a_truncation_cancels_what_is_queued(db):
    await db.all("insert into pgsched.schedules (name, entrypoint, expression) values ('s', 'job', '@daily')")
    await db.all("select pgsched.trigger('s')")
    await db.all("truncate pgsched.schedules")
    assert await db.one("select status, reason from pgsched.runs") == ("cancelled", "schedule removed")
