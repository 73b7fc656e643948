"""APScheduler 3: AsyncIOScheduler with its SQLAlchemy job store. One process only; it does not coordinate with others.

Tuned as its user guide says for jobs that must not be dropped if they start late: misfire_grace_time=None. It keeps
nothing of a job that has run once.
"""

from __future__ import annotations

import asyncio
import signal
from datetime import UTC, datetime
from typing import Any

import probe
import psycopg
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger


async def nothing() -> None:
    probe.nothing()


async def sleeper() -> None:
    await probe.sleeper()


def make(tuned: bool) -> AsyncIOScheduler:
    store = SQLAlchemyJobStore(url=probe.DSN.replace("postgresql://", "postgresql+psycopg://"))
    defaults = {"misfire_grace_time": None} if tuned else {}
    return AsyncIOScheduler(jobstores={"default": store}, job_defaults=defaults, timezone=UTC)


async def install() -> None:
    scheduler = make(False)
    scheduler.start(paused=True)
    scheduler.shutdown()
    await asyncio.sleep(0)


async def enqueue(count: int, at: float | None = None, job: str = "nothing", tuned: bool = False) -> None:
    scheduler = make(tuned)
    scheduler.start(paused=True)
    when = datetime.fromtimestamp(at, UTC) if at else datetime.now(UTC)
    for number in range(count):
        scheduler.add_job(f"with_apscheduler3:{job}", DateTrigger(when), id=f"job-{number}")
    scheduler.shutdown()
    await asyncio.sleep(0)


async def far(count: int, finished: int) -> None:
    """Inserts jobs of a far future. Finished jobs leave nothing behind."""
    await enqueue(1, at=datetime(2099, 1, 1, tzinfo=UTC).timestamp())
    with psycopg.connect(probe.DSN, autocommit=True) as connection:
        connection.execute(
            "insert into apscheduler_jobs (id, next_run_time, job_state)"
            " select 'far-' || n, next_run_time, job_state from apscheduler_jobs, generate_series(2, %s) n",
            (count,),
        )
        connection.execute("vacuum analyze apscheduler_jobs")


async def work(tuned: bool, schedule: dict[str, Any] | None = None) -> list[float]:
    scheduler = make(tuned)
    scheduler.start(paused=True)
    if schedule:
        at = datetime.fromtimestamp(schedule.get("at", 0), UTC)
        for number in range(schedule.get("count", 1)):
            trigger = {
                "every_second": lambda: CronTrigger(second="*", timezone=UTC),
                "herd": lambda: DateTrigger(at),
                "far": lambda: DateTrigger(datetime(2099, 1, 1, tzinfo=UTC)),
            }[schedule["kind"]]()
            scheduler.add_job("with_apscheduler3:nothing", trigger, id=f"bench-{number}")
    scheduler.resume()
    probe.say("ready")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    scheduler.shutdown(wait=False)
    await asyncio.sleep(0)
    return probe.started


async def produce(count: int, pause: float, how: str = "enqueue") -> list[tuple[float, bool]]:
    raise probe.Lack("another process cannot wake it")


if __name__ == "__main__":
    import sys

    sys.modules["with_apscheduler3"] = sys.modules["__main__"]  # jobs name their function by this module
    probe.main({"install": install, "enqueue": enqueue, "far": far, "work": work, "produce": produce})
