"""A worker whose every statement takes a tenth of a second, while clients change what it has claimed.

Each change meets its claims in another state: asked for, held, about to begin, begun without the database knowing it.
The promises of one call and one row for a fire time do not depend on which.
"""

import itertools
from collections import Counter
from datetime import timedelta

import pytest
from structlog.testing import capture_logs
from support.proxies import Proxy
from support.workers import until, working

from pgsched import Run, Scheduler

SLOW = {
    "lookahead": timedelta(seconds=2),
    "heartbeat_interval": timedelta(seconds=1),
    "stall_timeout": timedelta(seconds=30),
}
OVERLAPS = ["skip", "queue", "cancel", "allow", "2"]
MAKE = """
    select pgsched.create_schedule(
        {name}, 'job', '* * * * * */2', options => jsonb_build_object('overlap', {overlap})
    )
"""
CHANGES = [
    'select pgsched.alter({name}, \'{"args": {"v": 1}}\')',
    "update pgsched.schedules set timeout = '1 hour' where name = {name}",
    'select pgsched.alter({name}, \'{"starts_at": "2020-01-01T00:00:00Z"}\')',
    "select pgsched.pause({name}, 'audit')",
    "select pgsched.remove({name})",
]
BACK = {"pause": "select pgsched.resume({name})", "remove": MAKE}
HELD = """
    select exists (
        select from pgsched.runs r join pgsched.schedules s on s.id = r.schedule_id
        where s.name = %s and r.status = 'running' and r.started_at is null and r.due_at > clock_timestamp()
    )
"""


def filled(statement, overlap):
    return statement.replace("{name}", f"'each {overlap}'").replace("{overlap}", f"'{overlap}'::text")


@pytest.mark.slow
async def test_changes_around_fire_times_of_a_worker_far_away(settings, db, dsn):
    calls = []
    scheduler = Scheduler(app="far")

    @scheduler.entrypoint("job")
    async def job(run: Run, v: int = 0):
        calls.append((run.schedule.name, run.fire_time, run.id, run.attempt))

    async with (
        Proxy(dsn, delay=0.05) as far,
        working(scheduler, settings.merged({"dsn": far.dsn}, "test"), **SLOW),
    ):
        for overlap in OVERLAPS:
            await db.all(filled(MAKE, overlap))
        for overlap, statement in itertools.product(OVERLAPS, CHANGES):
            # It is claimed ahead of its instant: the worker may hear of the change before, at, or after that.
            await db.until(HELD, f"each {overlap}")
            await db.all(filled(statement, overlap))
            if "pause" in statement or "remove" in statement:
                await db.all(filled(BACK["pause" if "pause" in statement else "remove"], overlap))
        ended = await db.value("select max(id) from pgsched.runs")
        await db.until("select exists (select from pgsched.runs where status = 'succeeded' and id > %s)", ended)
    twice = {call: times for call, times in Counter((name, at) for name, at, _, _ in calls).items() if times > 1}
    assert not twice
    assert all(attempt == 1 for *_, attempt in calls)
    # What it held as it stopped is given back, and has not begun.
    rows = await db.all("select id, status from pgsched.runs where status <> 'skipped' and started_at is not null")
    assert sorted(rows) == sorted((run, "succeeded") for _, _, run, _ in calls), (
        "each call has its row, and no row else"
    )


async def test_a_database_that_answers_too_late_to_start_by_is_named(settings, db, dsn):
    scheduler = Scheduler(app="far")

    @scheduler.entrypoint("job")
    async def job(): ...

    with capture_logs() as logs:
        # Twice the interval of a test's worker is what an answer takes: each claim is too old as its answer comes.
        async with Proxy(dsn, delay=0.12) as far, working(scheduler, settings.merged({"dsn": far.dsn}, "test")):
            await db.all("select pgsched.enqueue('job')")
            await until(lambda: any(line["event"] == "answers_too_late" for line in logs), 30)
            assert await db.value("select status = 'running' and started_at is null from pgsched.runs")
    assert await db.value("select status = 'queued' from pgsched.runs"), "it is given back, since it has not begun"
    assert sum(line["event"] == "answers_too_late" for line in logs) == 1
