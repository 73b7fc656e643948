"""APScheduler 4, a pre-release: AsyncScheduler, its SQLAlchemy data store on asyncpg, its asyncpg event broker.

Tuned: max_running_jobs of the task lifted (the default is one at once) and max_concurrent_jobs raised, the two limits
that its user guide names. Results are not kept, which is its default for schedules and jobs.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import asyncpg
import probe
from apscheduler import AsyncScheduler
from apscheduler.datastores.sqlalchemy import SQLAlchemyDataStore
from apscheduler.eventbrokers.asyncpg import AsyncpgEventBroker
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from sqlalchemy.ext.asyncio import create_async_engine

CONCURRENT = 50  # among the best of 5, 10, 20, 50, 100 and 1,000 for no-ops; the default is 100


async def nothing() -> None:
    probe.nothing()


async def sleeper() -> None:
    await probe.sleeper()


@asynccontextmanager
async def scheduler(tuned: bool = False, concurrent: int | None = None) -> AsyncIterator[AsyncScheduler]:
    engine = create_async_engine(probe.DSN.replace("postgresql://", "postgresql+asyncpg://"))
    broker = AsyncpgEventBroker(probe.DSN)
    most = concurrent or (CONCURRENT if tuned else 100)
    async with AsyncScheduler(SQLAlchemyDataStore(engine), broker, max_concurrent_jobs=most) as made:
        limits: dict[str, Any] = {"max_running_jobs": None} if tuned or concurrent else {}
        await made.configure_task("nothing", func=nothing, **limits)
        await made.configure_task("sleeper", func=sleeper, **limits)
        yield made
    await engine.dispose()


async def install() -> None:
    async with scheduler():
        pass


async def enqueue(count: int, at: float | None = None, job: str = "nothing", tuned: bool = False) -> None:
    async with scheduler(tuned) as made:
        for number in range(count):
            if at:
                await made.add_schedule(job, DateTrigger(datetime.fromtimestamp(at, UTC)), id=f"job-{number}")
            else:
                await made.add_job(job)


async def far(count: int, finished: int) -> None:
    """Inserts schedules of a far future, and results that are kept."""
    await enqueue(1, at=datetime(2099, 1, 1, tzinfo=UTC).timestamp())
    connection = await asyncpg.connect(probe.DSN)
    columns = [
        row[0]
        for row in await connection.fetch(
            "select column_name from information_schema.columns"
            " where table_name = 'schedules' and table_schema = 'public' and column_name <> 'id'"
        )
    ]
    names = ", ".join(columns)
    await connection.execute(
        f"insert into schedules (id, {names})"
        f" select 'far-' || n, {names} from schedules, generate_series(2, {count}) n",
        timeout=200,
    )
    await connection.execute(
        "insert into job_results (job_id, outcome, started_at, finished_at, expires_at)"
        f" select gen_random_uuid(), 'success', now(), now(), '2099-01-01Z' from generate_series(1, {finished})",
        timeout=200,
    )
    await connection.execute("vacuum analyze schedules", timeout=200)
    await connection.execute("vacuum analyze job_results", timeout=200)


async def work(tuned: bool, schedule: dict[str, Any] | None = None, concurrent: int | None = None) -> list[float]:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with scheduler(tuned, concurrent) as made:
        if schedule:
            full_second = datetime.now(UTC).replace(microsecond=0)  # an interval keeps the fraction of its start
            at = datetime.fromtimestamp(schedule.get("at", 0), UTC)
            for number in range(schedule.get("count", 1)):
                trigger = {
                    "every_second": lambda: CronTrigger(second="*", start_time=full_second, timezone=UTC),
                    "herd": lambda: DateTrigger(at),
                    "far": lambda: DateTrigger(datetime(2099, 1, 1, tzinfo=UTC)),
                }[schedule["kind"]]()
                await made.add_schedule("nothing", trigger, id=f"bench-{number}")
        await made.start_in_background()
        probe.say("ready")
        await stop.wait()
        await made.stop()
    return probe.started


async def produce(count: int, pause: float, how: str = "enqueue") -> list[tuple[float, bool]]:
    if how != "enqueue":
        raise probe.Lack("schedules cannot be triggered")
    async with scheduler() as made:
        return await probe.produced(count, pause, lambda: made.add_job("nothing"))


if __name__ == "__main__":
    sys.modules["with_apscheduler4"] = sys.modules["__main__"]  # tasks name their function by this module
    probe.main({"install": install, "enqueue": enqueue, "far": far, "work": work, "produce": produce})
