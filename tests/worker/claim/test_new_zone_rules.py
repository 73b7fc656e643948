"""A tzdata update that moves fire times is noticed at the start, and they are planned anew."""

import asyncio
import zoneinfo
from datetime import UTC, datetime

import psycopg
from psycopg import sql
from structlog.testing import capture_logs
from support.workers import working

from pgsched import Scheduler
from pgsched.expression.zones import digest
from pgsched.worker.claim import zone_rules


def scheduler() -> Scheduler:
    sc = Scheduler()

    @sc.entrypoint("job")
    async def job(): ...

    return sc


async def test_new_rules_have_the_zones_schedules_planned_anew_and_no_others(settings, db):
    for name, zone in (("paris", "Europe/Paris"), ("tokyo", "Asia/Tokyo")):
        await db.all("select pgsched.create_schedule(%s, 'job', '0 9 1 1 *', timezone => %s)", name, zone)
    async with working(scheduler(), settings):
        await db.until("select count(*) = 2 from pgsched.schedules where next_run is not null")
    assert await db.all("select name, digest from pgsched.zones order by 1") == [
        (zone, digest(zone)) for zone in ("Asia/Tokyo", "Europe/Paris")
    ]
    # As old rules would have it.
    right = dict(await db.all("select name, next_run from pgsched.schedules"))
    await db.all("update pgsched.schedules set next_run = '2030-01-01', planned_at = clock_timestamp()")
    await db.all("update pgsched.schedules set zone_rules = ':old' where name = 'paris'")
    await db.all("update pgsched.zones set digest = 'old', release = null where name = 'Europe/Paris'")
    async with working(scheduler(), settings):
        await db.until("select next_run = %s from pgsched.schedules where name = 'paris'", right["paris"])
    assert await db.value("select next_run from pgsched.schedules where name = 'tokyo'") == datetime(
        2030, 1, 1, tzinfo=UTC
    )
    assert await db.value("select digest from pgsched.zones where name = 'Europe/Paris'") == digest("Europe/Paris")
    before = await db.all("select xmin::text from pgsched.zones")
    async with working(scheduler(), settings):
        pass
    assert await db.all("select xmin::text from pgsched.zones") == before, "nothing changed, nothing is written"


async def test_a_zone_that_is_noted_first_leaves_its_schedules_alone(settings, db):
    await db.all("select pgsched.create_schedule('paris', 'job', '0 9 1 1 *', timezone => 'Europe/Paris')")
    await db.all("update pgsched.schedules set next_run = '2030-01-01', planned_at = clock_timestamp()")
    async with working(scheduler(), settings):
        assert await db.value("select digest from pgsched.zones") == digest("Europe/Paris")
    assert await db.value("select next_run = '2030-01-01' from pgsched.schedules")


async def test_all_schedules_of_the_zone_are_planned_anew_and_other_workers_hear_of_it(settings, db, monkeypatch):
    """In batches of one; no worker of the entrypoint is there, so that what the look at the zones did can be seen."""
    monkeypatch.setattr(zone_rules, "BATCH", 1)
    for name in ("a", "b", "c"):
        await db.all("select pgsched.create_schedule(%s, 'other', '0 9 1 1 *', timezone => 'Europe/Paris')", name)
    await db.all("update pgsched.schedules set next_run = '2030-01-01', planned_at = clock_timestamp()")
    await db.all("insert into pgsched.zones (name, digest) values ('Europe/Paris', 'old')")
    written = await db.all("select updated_at, interruptions from pgsched.schedules order by id")
    async with await psycopg.AsyncConnection.connect(settings.dsn, autocommit=True) as other:
        await other.execute(sql.SQL("listen {}").format(sql.Identifier(settings.schema)))
        async with working(scheduler(), settings):
            assert await db.value("select count(*) from pgsched.schedules where next_run is null") == 3
        assert [told async for told in other.notifies(timeout=5, stop_after=1)], "somebody may have one of them due"
    assert await db.all("select updated_at, interruptions from pgsched.schedules order by id") == written, (
        "it counts as no client's change"
    )


def test_a_digest_tells_rules_apart_and_not_names():
    assert digest("Europe/Paris") == digest("Europe/Paris") != digest("Asia/Tokyo")
    assert digest("Asia/Calcutta") == digest("Asia/Kolkata")
    assert len({digest(name) for name in zoneinfo.available_timezones() - {"localtime", "Factory"}}) > 50


async def test_a_schedule_that_refuses_its_new_plan_keeps_no_other_from_it_and_no_worker_from_its_start(
    settings, db, monkeypatch
):
    monkeypatch.setattr(zone_rules, "BATCH", 3)
    monkeypatch.setattr(zone_rules, "LOCKED", 0.2)
    for name in "abcdefg":
        await db.all("select pgsched.create_schedule(%s, 'other', '0 9 1 1 *', timezone => 'Europe/Paris')", name)
    await db.all(
        "update pgsched.schedules set next_run = '2030-01-01', zone_rules = ':old', planned_at = clock_timestamp()"
    )
    await db.all("insert into pgsched.zones (name, digest) values ('Europe/Paris', 'old')")
    await db.all(
        "create function pgsched.hostile() returns trigger language plpgsql as $$ begin"
        " if new.name = 'd' and new.next_run is null then raise 'not this one'; end if; return new; end $$"
    )
    await db.all(
        "create trigger hostile before update on pgsched.schedules for each row execute function pgsched.hostile()"
    )
    replanned = "select string_agg(name, '' order by name) from pgsched.schedules where next_run is null"
    with capture_logs() as events:
        async with working(scheduler(), settings) as worker:
            assert await db.value(replanned) == "abcefg"
            looks, real = [], worker.dispatcher.zones.look
            worker.dispatcher.zones.look = lambda connection: (looks.append(1), real(connection))[1]
            await asyncio.sleep(1.5)  # it comes to rest
            assert len(looks) <= 2
            await db.all("select pgsched.enqueue('job')")
            await db.until("select status = 'succeeded' from pgsched.runs")
            [row] = await worker.kit.store.claims.rows(db.connection, "read_health", {})
    assert row["refused_rows"] == ["the new time zone rules of schedule d: not this one (SQLSTATE P0001)"]
    assert [(e["kind"], e["id"]) for e in events if e["event"] == "row_set_aside"] == [("replan", 4)]
    # It goes on by its old rules, and is tried again when it is due or has changed.
    assert await db.value(
        "select next_run = '2030-01-01' and status = 'active' from pgsched.schedules where name = 'd'"
    )
    await db.all("drop trigger hostile on pgsched.schedules")
    await db.all("update pgsched.schedules set note = 'mended' where name = 'd'")
    async with working(scheduler(), settings):
        await db.until(f"select ({replanned}) = 'abcdefg'")
        assert await db.value("select count(*) from pgsched.resting") == 0
