"""procrastinate on psycopg.

Tuned as its documentation says for asynchronous jobs: a higher `concurrency`, with a pool that has a connection for
as many jobs as the server can serve at once. Jobs stay in the table when they have ended (its default).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import probe
import psycopg
from procrastinate import App, PsycopgConnector

BATCH = 1_000
CONCURRENCY = 30  # among the best of 1, 5, 10, 30 and 100 for no-ops
TUNED_POOL = 10


def make(tuned: bool = False) -> App:
    app = App(connector=PsycopgConnector(conninfo=probe.DSN, **({"max_size": TUNED_POOL} if tuned else {})))

    @app.task(name="nothing")
    async def nothing(**_: Any) -> None:
        probe.nothing()

    @app.task(name="sleeper")
    async def sleeper() -> None:
        await probe.sleeper()

    return app


async def install() -> None:
    async with make().open_async() as app:
        await app.schema_manager.apply_schema_async()


async def enqueue(count: int, at: float | None = None, job: str = "nothing", tuned: bool = False) -> None:
    when = datetime.fromtimestamp(at, UTC) if at else None
    async with make().open_async() as app:
        for first in range(0, count, BATCH):
            await app.configure_task(job, schedule_at=when).batch_defer_async(*[{}] * min(BATCH, count - first))


def far(count: int, finished: int) -> None:
    """Inserts jobs of a far future and finished ones, without its triggers, which would write events."""
    with psycopg.connect(probe.DSN, autocommit=True) as connection:
        connection.execute("set session_replication_role = replica")
        rows = (
            "insert into procrastinate_jobs (queue_name, task_name, status, scheduled_at, attempts)"
            " select 'default', 'nothing', %s, %s, %s from generate_series(1, %s)"
        )
        connection.execute(rows, ("todo", "2099-01-01Z", 0, count))
        connection.execute(rows, ("succeeded", None, 1, finished))
        connection.execute(
            "insert into procrastinate_events (job_id, type) select id, e::procrastinate_job_event_type"
            " from procrastinate_jobs, unnest('{deferred,started,succeeded}'::text[]) e where status = 'succeeded'"
        )
        connection.execute("vacuum analyze procrastinate_jobs, procrastinate_events")


async def worker(tuned: bool, schedule: dict[str, Any] | None, concurrency: int | None) -> list[float]:
    app = make(tuned)
    if schedule:
        kind, count = schedule["kind"], schedule.get("count", 1)
        at = datetime.fromtimestamp(schedule.get("at", 0), UTC)
        herd = f"{at.minute} {at.hour} {at.day} {at.month} * {at.second}"
        cron = {"every_second": "* * * * * *", "herd": herd, "far": "0 0 1 1 *"}[kind]
        for number in range(count):
            app.periodic(cron=cron, periodic_id=str(number))(app.tasks["nothing"])
    chosen = concurrency or (CONCURRENCY if tuned else None)
    async with app.open_async():
        ready = asyncio.create_task(listens())
        await app.run_worker_async(**({"concurrency": chosen} if chosen else {}))
        ready.cancel()
    return probe.started


async def listens() -> None:
    """Reports that the worker listens, on a connection of its pool."""
    async with await psycopg.AsyncConnection.connect(probe.DSN, autocommit=True) as connection:
        while not await (
            await connection.execute(
                "select 1 from pg_stat_activity where datname = current_database() and query ilike 'listen%%'"
            )
        ).fetchone():
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.2)  # for the look that follows
    probe.say("ready")


async def work(tuned: bool, schedule: dict[str, Any] | None = None, concurrency: int | None = None) -> list[float]:
    return await worker(tuned, schedule, concurrency)


async def produce(count: int, pause: float, how: str = "enqueue") -> list[tuple[float, bool]]:
    if how != "enqueue":
        raise probe.Lack("periodic tasks cannot be triggered by name")
    async with make().open_async() as app, await psycopg.AsyncConnection.connect(probe.DSN) as mine:
        task = app.configure_task("nothing")

        async def put_in_transaction() -> Callable[[], Awaitable[None]]:
            await app.configure_task("nothing", connection=mine).defer_async()
            return mine.commit

        return await probe.produced(count, pause, task.defer_async, put_in_transaction)


if __name__ == "__main__":
    probe.main({"install": install, "enqueue": enqueue, "far": far, "work": work, "produce": produce})
