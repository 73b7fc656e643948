"""A tzdata update that moves fire times is noticed at the start, and they are planned anew."""

import zoneinfo
from datetime import UTC, datetime

from harness import working

from pgsched import Scheduler
from pgsched.zones import digest


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
    await db.all("update pgsched.zones set digest = 'old' where name = 'Europe/Paris'")
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


def test_a_digest_tells_rules_apart_and_not_names():
    assert digest("Europe/Paris") == digest("Europe/Paris") != digest("Asia/Tokyo")
    assert digest("Asia/Calcutta") == digest("Asia/Kolkata")
    assert len({digest(name) for name in zoneinfo.available_timezones() - {"localtime", "Factory"}}) > 50
