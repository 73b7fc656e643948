"""Backfills: which fire times run, once, beside whom, and what the command says."""

import asyncio
import json
import os
import pty
import re
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from support.shell import Shell, isolate, spawn
from support.workers import Parts, working

from pgsched import InvalidArguments, NotFound, PgschedError, Run, Scheduler, connect
from pgsched.db.statements.queries import in_schema

HOUR = timedelta(hours=1)
NIGHT = datetime(2026, 3, 28, 23, tzinfo=UTC)  # before the clocks of Paris jump from 02:00 to 03:00


@pytest.fixture
async def client(dsn, schema):
    async with connect(dsn, schema=schema) as client:
        yield client


async def hourly(client, **options) -> None:
    await client.create_schedule("s", "job", "0 * * * *", **options)


async def test_each_fire_time_of_the_range_runs_for_the_window_from_the_one_before(client, db):
    await hourly(client, timezone="Europe/Paris", args={"x": 1}, priority=5)
    done = await client.backfill("s", NIGHT, NIGHT + 3 * HOUR)
    times = [NIGHT + n * HOUR for n in range(4)]
    assert list(done.queued) == times and not done.left_alone
    rows = await db.all(
        "select id, fire_time, previous_fire_time, origin, again, status, args, priority, gated from pgsched.runs"
        " order by fire_time"
    )
    assert rows == [
        (done.queued[time], time, time - HOUR, "backfill", 0, "queued", {"x": 1}, -5, True) for time in times
    ]


async def test_daylight_saving_is_that_of_the_schedule(client):
    await client.create_schedule("s", "job", "30 2 * * *", timezone="Europe/Paris")
    done = await client.backfill("s", NIGHT - 24 * HOUR, NIGHT + 48 * HOUR)
    assert [f"{time:%d %H:%M}" for time in done.queued] == ["28 01:30", "29 01:00", "30 00:30"]


@pytest.mark.parametrize(
    "change",
    [
        "delete from pgsched.schedules",
        "update pgsched.schedules set expression = '30 * * * *'",
        "delete from pgsched.schedules; insert into pgsched.schedules (name, entrypoint, expression)"
        " values ('s', 'job', '30 * * * *')",
    ],
    ids=["removed", "retimed", "made again"],
)
async def test_a_schedule_that_changes_meanwhile_gets_no_run_of_a_fire_time_that_is_not_its_own(
    client, settings, db, monkeypatch, change
):
    monkeypatch.setattr("pgsched.client.client.BATCH", 1)
    await hourly(client)

    def changes(done: int, of: int) -> None:
        if done == 2:
            with psycopg.connect(settings.dsn, autocommit=True) as other:
                other.execute(in_schema(change.encode(), settings.schema, parametrised=False))

    with pytest.raises(PgschedError, match="was changed during the backfill: 2 of its runs"):
        await client.backfill("s", NIGHT, NIGHT + 3 * HOUR, progress=changes)
    assert await db.value("select count(*) from pgsched.runs") == 2


async def test_the_same_range_again_does_nothing(client, db):
    await hourly(client)
    first = await client.backfill("s", NIGHT, NIGHT + 3 * HOUR)
    second = await client.backfill("s", NIGHT - HOUR, NIGHT + 4 * HOUR)
    assert list(second.queued) == [NIGHT - HOUR, NIGHT + 4 * HOUR]
    assert second.left_alone == first.queued
    assert await db.value("select count(*) from pgsched.runs") == 6


async def test_again_runs_what_has_ended_once_more_and_leaves_alone_what_is_live(client, db):
    await hourly(client)
    first = list((await client.backfill("s", NIGHT, NIGHT + 3 * HOUR)).queued.values())
    for run_id, status in zip(first, ("succeeded", "failed", "running", "queued"), strict=True):
        await db.all(
            "update pgsched.runs set status = %s, worker = gen_random_uuid(), claimed_at = now(),"
            " heartbeat_at = now() where id = %s", status, run_id
        )  # fmt: skip
    told = await client.backfill("s", NIGHT, NIGHT + 3 * HOUR, again=True, dry_run=True)
    done = await client.backfill("s", NIGHT, NIGHT + 3 * HOUR, again=True)
    assert list(told.queued) == list(done.queued) == [NIGHT, NIGHT + HOUR]
    assert told.left_alone == done.left_alone == {NIGHT + 2 * HOUR: first[2], NIGHT + 3 * HOUR: first[3]}
    assert not (await client.backfill("s", NIGHT, NIGHT + HOUR, again=True)).queued, "these are live now"
    assert await db.all("select fire_time, again from pgsched.runs where again > 0 order by 1") == [
        (NIGHT, 1), (NIGHT + HOUR, 1),
    ]  # fmt: skip


async def test_what_was_skipped_can_be_run_and_both_are_told(client, db):
    await hourly(client)
    await db.all(
        "insert into pgsched.runs (schedule_id, entrypoint, fire_time, status, reason, skipped_count, skipped_through,"
        " finished_at)"
        " select id, 'job', %s, 'skipped', 'missed', 4, %s, now() from pgsched.schedules", NIGHT, NIGHT + 3 * HOUR,
    )  # fmt: skip
    assert len((await client.backfill("s", NIGHT, NIGHT + 3 * HOUR)).queued) == 4
    assert await db.value("select count(*) from pgsched.runs") == 5


async def test_a_dry_run_writes_nothing(client, db):
    await hourly(client)
    done = await client.backfill("s", NIGHT, NIGHT + 3 * HOUR, dry_run=True)
    assert list(done.queued.values()) == [None] * 4
    assert await db.value("select count(*) from pgsched.runs") == 0


@pytest.mark.parametrize(
    ("start", "end", "options", "says"),
    [
        (NIGHT, NIGHT - HOUR, {}, "A backfill must end after it starts"),
        (NIGHT, datetime(2090, 1, 1, tzinfo=UTC), {}, "A backfill must end in the past"),
        (NIGHT, NIGHT + 100 * HOUR, {"limit": 100}, "101 fire times .*, more than the limit of 100"),
        (datetime(2026, 1, 1), NIGHT, {}, "start must be a datetime with a time zone"),  # noqa: DTZ001
        (NIGHT, None, {}, "end must be a datetime"),
        (NIGHT, NIGHT, {"limit": 0}, "limit must be a whole number"),
        (NIGHT, NIGHT, {"priority": 101}, "priority must be a whole number"),
    ],
)
async def test_a_range_that_makes_no_sense_is_refused(client, db, start, end, options, says):  # noqa: PLR0917
    await hourly(client)
    with pytest.raises(InvalidArguments, match=says):
        await client.backfill("s", start, end, **options)
    assert await db.value("select count(*) from pgsched.runs") == 0


async def test_an_unknown_schedule_is_not_found(client):
    with pytest.raises(NotFound):
        await client.backfill("nobody", NIGHT, NIGHT)


async def test_it_is_part_of_the_callers_transaction(client, db, dsn):
    await hourly(client)
    async with await psycopg.AsyncConnection.connect(dsn) as own:
        await client.backfill("s", NIGHT, NIGHT + HOUR, connection=own)
        assert await db.value("select count(*) from pgsched.runs") == 0
        await own.rollback()
    assert await db.value("select count(*) from pgsched.runs") == 0


async def test_two_backfills_at_once_make_each_run_once(client, db, dsn, schema):
    """The second waits for the first one's schedule lock, and then finds its runs, which its snapshot has not."""
    await hourly(client)
    async with await psycopg.AsyncConnection.connect(dsn) as first:
        await client.backfill("s", NIGHT, NIGHT + 3 * HOUR, connection=first)
        second = asyncio.create_task(client.backfill("s", NIGHT, NIGHT + 4 * HOUR))
        await db.until("select count(*) > 0 from pg_stat_activity where wait_event_type = 'Lock'")
        await first.commit()
        done = await second
    assert list(done.queued) == [NIGHT + 4 * HOUR] and len(done.left_alone) == 4
    assert await db.value("select count(*) from pgsched.runs") == 5


async def test_a_pass_never_waits_for_a_backfill_that_is_not_committed(client, settings, db, dsn):
    """The same fire time, due and backfilled: the worker passes over the locked schedule, and runs the rest."""
    await hourly(client)
    await db.all(
        "insert into pgsched.schedules (name, entrypoint, expression, next_run)"
        " values ('other', 'job', '@yearly', now() - interval '1 second')"
    )
    last = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    await db.all("update pgsched.schedules set next_run = %s, planned_at = clock_timestamp() where name = 's'", last)
    async with Parts(settings) as parts, await psycopg.AsyncConnection.connect(dsn) as own:
        await client.backfill("s", last, last, connection=own)
        async with asyncio.timeout(5):
            assert await parts.dispatcher.claim_pass() == 1
        await own.commit()
        parts.gated(True)
        claimed = [await parts.dispatcher.claim_pass() for _ in range(3)]
        assert sorted(claimed) == [0, 0, 1], "the backfilled one; the fire time has its run"
    assert await db.value("select count(*) from pgsched.runs where fire_time = %s", last) == 1


async def test_own_fire_times_go_first_and_a_job_knows_its_window(settings, client, db):
    """A backfill of 30 under overlap skip: none beside another, and a fire time that comes in between is not lost."""
    await hourly(client)
    seen: list[Run] = []
    running = 0
    sc = Scheduler()

    @sc.entrypoint("job")
    async def job(run: Run):
        nonlocal running
        running += 1
        assert running == 1
        seen.append(run)
        if len(seen) == 10:  # now one of its own is due
            await db.all("update pgsched.schedules set next_run = now() - interval '1 second'")
            await db.until("select count(*) = 1 from pgsched.runs where origin is null")
        await asyncio.sleep(0.005)
        running -= 1

    await client.backfill("s", NIGHT, NIGHT + 29 * HOUR)
    async with working(sc, settings):
        await db.until("select count(*) = 31 from pgsched.runs where status = 'succeeded'", limit=30)
    assert seen[10].fire_time > NIGHT + 100 * HOUR, "its own went before the twenty that waited"
    backfilled = [run for run in seen if run.fire_time < NIGHT + 100 * HOUR]
    assert [run.fire_time for run in backfilled] == [NIGHT + n * HOUR for n in range(30)], "oldest first"
    assert all(run.previous_fire_time == run.fire_time - HOUR for run in backfilled)


async def test_after_a_catch_up_a_job_knows_its_window(settings, client, db):
    """catch_up latest: the one run spans all that was missed since the run before."""
    last = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    await hourly(client)
    await db.all(
        "update pgsched.schedules set next_run = %s, last_run = %s, planned_at = clock_timestamp()",
        last - 4 * HOUR, last - 5 * HOUR,
    )  # fmt: skip
    seen: list[Run] = []
    sc = Scheduler()

    @sc.entrypoint("job")
    async def job(run: Run):
        seen.append(run)

    async with working(sc, settings):
        await db.until("select count(*) = 1 from pgsched.runs where status = 'succeeded'")
    assert [(run.fire_time, run.previous_fire_time) for run in seen] == [(last, last - 5 * HOUR)]
    assert await db.value("select skipped_count from pgsched.runs where status = 'skipped'") == 4


# --- the command --------------------------------------------------------------------------------------------


@pytest.fixture
def shell(settings, monkeypatch, tmp_path) -> Shell:
    isolate(monkeypatch, tmp_path)
    return Shell(settings)


RANGE = ("--from", "2026-03-29T00:00", "--to", "2026-03-29T04:00")


def test_the_command_reads_times_on_the_schedules_clock(shell):
    shell.ok("schedules", "add", "n", "job", "30 * * * *", "--tz", "Europe/Paris")
    dry = shell.ok("schedules", "backfill", "n", *RANGE, "--dry-run")
    assert re.findall(r"^(\S+ \S+)Z  ", dry, re.M) == [
        f"2026-03-{time}" for time in ("28 23:30:00", "29 00:30:00", "29 01:30:00")
    ]
    assert dry.endswith('Would queue 3 runs of "n".\n')
    assert shell.sql("select * from pgsched.runs") == []
    assert shell.ok("schedules", "backfill", "n", *RANGE) == 'Queued 3 runs of "n".\n'
    again = shell.ok("schedules", "backfill", "n", "--from", "2026-03-29", "--to", "2026-03-29")
    assert again == 'Queued 20 runs of "n"; 3 fire times already have a run.\n', "a date is meant whole"
    found = json.loads(shell.ok("schedules", "backfill", "n", *RANGE, "--json"))
    assert [entry["result"] for entry in found["fire_times"]] == ["left alone"] * 3
    assert (found["schedule"], found["dry_run"]) == ("n", False)


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("--from", "yesterday", "--to", "2026-01-01"), 2, "is neither a date"),
        (("--from", "2026-01-02", "--to", "2026-01-01"), 2, "A backfill must end after it starts"),
        (("--from", "2026-01-01", "--to", "2089-01-01"), 2, "A backfill must end in the past"),
        (("--from", "2026-01-01", "--to", "2026-01-02", "--limit", "10"), 2, "more than the limit of 10"),
        (("--from", "2026-01-01"), 2, "Missing option '--to'"),
    ],
)
def test_the_command_refuses_with_a_sentence(shell, args, code, says):
    shell.ok("schedules", "add", "n", "job", "0 * * * *")
    result = shell("schedules", "backfill", "n", *args)
    assert result.exit_code == code
    assert says in result.stderr
    assert shell.sql("select * from pgsched.runs") == []


def test_an_unknown_name_is_not_found(shell):
    assert shell("schedules", "backfill", "nobody", *RANGE).exit_code == 3


def test_a_local_time_that_does_not_exist_is_told(shell):
    shell.ok("schedules", "add", "n", "job", "30 2 * * *", "--tz", "Europe/Paris")
    result = shell("schedules", "backfill", "n", "--from", "2026-03-29T02:30", "--to", "2026-03-29T02:30")
    assert result.exit_code == 0
    assert "02:30 does not exist on 2026-03-29" in result.stderr
    assert result.stdout == 'Queued 1 run of "n".\n'


async def test_it_waits_for_its_runs_and_fails_with_them(shell, settings, db):
    """On a terminal with a bar; the exit code says that not all went well."""
    await db.all(
        "insert into pgsched.schedules (name, entrypoint, expression, overlap, max_attempts)"
        " values ('n', 'job', '0 * * * *', 'allow', 1)"
    )
    sc = Scheduler()

    @sc.entrypoint("job")
    async def job(run: Run):
        if run.fire_time.hour == 3:
            raise ValueError("three")

    parent, child = pty.openpty()
    async with working(sc, settings):
        process = spawn("schedules", "backfill", "n", *RANGE, "--wait", *shell.where, stderr=child)
        os.close(child)
        out, _ = await asyncio.to_thread(process.communicate, None, 60)
    shown = os.read(parent, 100_000).decode()
    os.close(parent)
    assert out.decode() == 'Queued 5 runs of "n". Ended: 1 failed, 4 succeeded.\n'
    assert process.returncode == 1
    assert "queueing" in shown and "running" in shown and "100%" in shown


def test_a_plan_for_the_look_at_old_runs_uses_an_index(shell):
    shell.ok("schedules", "add", "n", "job", "0 * * * *")
    shell.sql(
        "insert into pgsched.runs (schedule_id, entrypoint, fire_time, status, finished_at)"
        " select 1 + n %% 50, 'job', now() - n * interval '1 second', 'succeeded', now()"
        " from generate_series(1, 20000) n"
    )
    shell.sql("analyze pgsched.runs")
    with psycopg.connect(shell.dsn) as connection:
        statement = (
            b"explain select from pgsched.runs r where r.schedule_id = 7 and r.fire_time = any(%s::timestamptz[])"
            b" and r.status <> 'skipped' and r.withdrawn_at is null"
        )
        plan = connection.execute(in_schema(statement, shell.schema), ([NIGHT],)).fetchall()
    assert "runs_one_per_fire_time" in str(plan)
