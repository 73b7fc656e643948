"""Applications that declare schedules, and what a start makes of them."""

from datetime import UTC, datetime

from structlog.testing import capture_logs

from pgsched import Scheduler
from pgsched.rules.deploy import fingerprint
from support.workers import working

EPOCH = datetime(2031, 1, 1, tzinfo=UTC)
V1 = {"kept": "@yearly", "dropped": "@yearly"}
V2 = {"kept": "@monthly", "added": "@yearly"}


def declares(schedules: dict[str, str], app: str = "app", **options) -> Scheduler:
    """An application whose one function has these schedules: name -> expression."""
    sc = Scheduler(app=app)

    @sc.entrypoint("job")
    async def job(): ...

    for name, expression in schedules.items():
        sc.schedule("job", expression, name=name, **options)(job)
    return sc


async def start(scheduler: Scheduler, settings) -> list[dict]:
    """Starts it, and stops it once it is ready. Returns the events."""
    with capture_logs() as events:
        async with working(scheduler, settings):
            pass
    return events


def named(events: list[dict], name: str) -> list[dict]:
    return [event for event in events if event["event"] == name]


async def stored(db) -> dict[str, tuple]:
    return {r[0]: r[1:] for r in await db.all("select name, expression, status, owner from pgsched.schedules")}


def as_of(version: dict[str, str]) -> dict[str, tuple]:
    return {name: (expression, "active", "code:app") for name, expression in version.items()}


async def versions(db) -> list[tuple]:
    """What tells that a row was written, or as much as locked."""
    return await db.all("select id, xmin::text, xmax::text, ctid::text, updated_at from pgsched.schedules order by id")


async def in_force(db, scheduler: Scheduler) -> bool:
    ours = fingerprint(d.row for d in scheduler.declared.values())
    return await db.value("select fingerprint from pgsched.declarations where app = 'app'") == ours
