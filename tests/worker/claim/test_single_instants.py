"""A single instant is decided once, however its schedule changes around it."""

import pytest
from support.workers import Parts

ONCE = """
    insert into pgsched.schedules (name, entrypoint, expression, catch_up, timed_at, created_at)
    select 'once', 'job', '@at ' || to_char(t at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'), %s,
        t - interval '1 hour', t - interval '1 hour'
    from (select date_trunc('second', now()) - interval '5 minutes' as t) x
"""
LEDGER = "select status, reason from pgsched.runs order by id"
AROUND = "update pgsched.schedules set ends_at = now() + interval '1 day'"


async def passes(parts, db) -> None:
    """Passes, and an end for each run that they claim."""
    for _ in range(4):
        await parts.dispatcher.claim_pass()
        await db.all("update pgsched.runs set status = 'succeeded', finished_at = now() where status = 'running'")


@pytest.mark.parametrize("catch_up", ["latest", "all"])
async def test_a_single_instant_that_has_run_is_not_decided_again_when_its_bounds_change(db, settings, catch_up):
    async with Parts(settings) as parts:
        await db.all(ONCE, catch_up)
        await passes(parts, db)
        await db.all(AROUND + ", grace = '1 s'")
        await passes(parts, db)
    assert await db.all(LEDGER) == [("succeeded", None)]
    assert await db.one("select status, run_count from pgsched.schedules") == ("finished", 1)


async def test_a_single_instant_that_a_pause_has_skipped_is_not_run_when_its_bounds_change(db, settings):
    async with Parts(settings) as parts:
        await db.all(ONCE, "latest")
        await db.all("update pgsched.schedules set status = 'paused'")
        await db.all("update pgsched.schedules set paused_at = now() - interval '1 hour', planned_at = now()")
        await db.all("select pgsched.resume('once')")
        await db.all(AROUND)
        await passes(parts, db)
        assert await db.all(LEDGER) == [("skipped", "paused")]
        await db.all("update pgsched.schedules set max_runs = 7")
        await passes(parts, db)
    assert await db.all(LEDGER) == [("skipped", "paused")]


async def test_a_single_instant_that_nobody_has_decided_runs_once_though_its_bounds_change(db, settings):
    async with Parts(settings) as parts:
        await db.all(ONCE, "latest")
        await db.all(AROUND)
        await db.all("update pgsched.schedules set max_runs = 7")
        await passes(parts, db)
    assert await db.all(LEDGER) == [("succeeded", None)]


async def test_a_single_instant_that_has_run_and_becomes_the_schedules_again_does_not_run_again(db, settings):
    async with Parts(settings) as parts:
        await db.all(ONCE, "latest")
        await passes(parts, db)
        mine = await db.value("select expression from pgsched.schedules")
        await db.all("update pgsched.schedules set expression = '@at 2999-01-01T00:00:00Z'")
        await passes(parts, db)
        await db.all("update pgsched.schedules set expression = %s", mine)
        await passes(parts, db)
    assert await db.all(LEDGER) == [("succeeded", None)]
    assert await db.one("select status, run_count from pgsched.schedules") == ("finished", 1)


async def test_single_instants_that_were_changed_unseen_are_each_recorded_in_whatever_order(db, settings):
    async with Parts(settings) as parts:
        await db.all(ONCE, "latest")
        for past in ("4", "8", "2"):
            instant = await db.value("select now() - %s * interval '1 minute'", past)
            await db.all("update pgsched.schedules set expression = %s", f"@at {instant.isoformat()}")
        await passes(parts, db)
    skips = "select fire_time, skipped_through, skipped_count from pgsched.runs where status = 'skipped'"
    assert await db.value(f"select array_agg(skipped_count order by fire_time) from ({skips}) s") == [1, 2]
    assert await db.value(f"select bool_and(fire_time <= skipped_through) from ({skips}) s")


async def test_what_a_removed_schedule_of_the_same_name_had_begun_is_recorded_and_not_run(db, settings):
    async with Parts(settings) as parts:
        await db.all(ONCE, "latest")
        await db.all(
            "insert into pgsched.removed (schedule_id, name, accounted_through)"
            " select 0, name, expression_at from (select name, substr(expression, 5)::timestamptz as expression_at"
            " from pgsched.schedules) s"
        )
        await passes(parts, db)
    assert await db.all(LEDGER) == [("skipped", "overlap")]
    assert await db.value("select detail from pgsched.runs") == "a removed schedule of this name had begun it"


async def test_a_single_instant_that_lay_before_a_start_nobody_saw_counts_once_that_start_is_gone(db, settings):
    async with Parts(settings) as parts:
        await db.all(ONCE, "latest")
        await db.all("update pgsched.schedules set starts_at = now() + interval '1 day'")
        await db.all("update pgsched.schedules set starts_at = null")
        await passes(parts, db)
    assert await db.all(LEDGER) == [("succeeded", None)]
