"""pgsched, at its defaults: there is nothing to tune for these measurements.

Its worker can run on uvloop. A build with the setting `loop` is given that, an older one the policy of asyncio.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import partial
from typing import Any

import probe
import psycopg

from pgsched import Run, Scheduler, connect, connect_sync
from pgsched.cli import cli
from pgsched.config import Settings

BATCH = 10_000
keep: set[asyncio.Task[None]] = set()


@dataclass
class Declared:
    """The schedules that the factory declares in code, each with a function of its own, and the one that it watches."""

    count: int = 0
    expression: str = ""
    watch: bool = False


declared = Declared()


def install() -> None:
    pgsched("migrate")


def pgsched(*arguments: str) -> None:
    """Runs `pgsched ARGUMENTS` in this process, with this database."""
    os.environ["PGSCHED_DSN"] = probe.DSN
    try:
        cli.main(arguments)
    except SystemExit as end:
        if end.code:
            raise


def enqueue(count: int, at: float | None = None, job: str = "nothing", tuned: bool = False) -> None:
    due_at = datetime.fromtimestamp(at, UTC) if at else None
    with connect_sync(probe.DSN) as client:
        for first in range(0, count, BATCH):
            client.enqueue_many(job, [None] * min(BATCH, count - first), due_at=due_at)


# Schedules that are planned for a far future, as a worker leaves them, and ended runs.
FAR = """
with planned as (
    insert into pgsched.schedules (name, entrypoint, expression, next_run, planned_at)
    select 'far-' || n, 'nothing', '@at 2099-01-01T00:00:00Z', '2099-01-01Z', now() from generate_series(1, {count}) n
)
insert into pgsched.runs
    (schedule_id, entrypoint, fire_time, status, attempt, claimed_at, started_at, finished_at)
select n % {count} + 1, 'nothing', i, 'succeeded', 1, i, i, i
from generate_series(1, {finished}) n, lateral (select now() - n * interval '1 s' as i) _
"""


def far(count: int, finished: int) -> str:
    """Inserts schedules and ended runs. Returns the statement."""
    statement = FAR.format(count=count, finished=finished)
    with psycopg.connect(probe.DSN, autocommit=True) as connection:
        connection.execute(statement)
        connection.execute("vacuum analyze pgsched.schedules, pgsched.runs")
    return statement


def make_schedules(schedule: dict[str, Any]) -> None:
    """Makes the schedules of a measurement, through the SQL interface; or in code, with a function each."""
    kind, count = schedule["kind"], schedule.get("count", 1)
    if kind == "every_second":
        expression = "* * * * * *"
    elif kind == "herd":
        at = datetime.fromtimestamp(schedule["at"], UTC)
        expression = f"{at.minute} {at.hour} {at.day} {at.month} * {at.second}"
    else:
        expression = "@at 2099-01-01T00:00:00Z"
    if schedule.get("own"):
        declared.count, declared.expression = count, expression
        return
    with psycopg.connect(probe.DSN, autocommit=True) as connection:
        connection.execute(
            "select count(pgsched.create_schedule('bench-' || n, 'nothing', %s)) from generate_series(1, %s) n",
            (expression, count),
        )


async def create_scheduler() -> Scheduler:
    """The factory for `pgsched run`."""
    scheduler = Scheduler(app="benchmark")

    @scheduler.entrypoint("nothing")
    async def nothing() -> None:
        probe.nothing()

    @scheduler.entrypoint("sleeper")
    async def sleeper() -> None:
        await probe.sleeper()

    for number in range(declared.count):
        scheduler.schedule(f"function-{number}", declared.expression)(function())
    if declared.watch:
        keep.add(asyncio.create_task(probe.watch_loop()))

        @scheduler.schedule("tick", "* * * * * *")
        async def tick(run: Run) -> None:
            probe.ticks.append((run.fire_time.timestamp(), time.time()))

    keep.add(asyncio.create_task(announce(scheduler)))
    return scheduler


def function() -> Callable[[], Awaitable[None]]:
    """A function of its own that does nothing."""

    async def nothing() -> None:
        probe.nothing()

    return nothing


async def announce(scheduler: Scheduler) -> None:
    """Reports that the worker is ready: it listens, has looked once, and has planned the schedules that it found."""
    await scheduler.ready.wait()
    async with await psycopg.AsyncConnection.connect(probe.DSN, autocommit=True) as connection:
        while await (
            await connection.execute(
                "select 1 from pgsched.schedules where status = 'active' and next_run is null limit 1"
            )
        ).fetchone():
            await asyncio.sleep(0.05)
    probe.say("ready")


def work(
    tuned: bool,
    schedule: dict[str, Any] | None = None,
    settings: dict[str, str] | None = None,
    loop: str | None = None,
    watch: bool = False,
) -> Any:
    """Runs a worker.

    watch: whether a schedule of every second and a look at the event loop go on beside its jobs, and are reported.
    """
    declared.watch = watch
    if schedule:
        make_schedules(schedule)
    os.environ.update({f"PGSCHED_{name.upper()}": value for name, value in (settings or {}).items()})
    if loop:
        choose(loop)
    pgsched("run", "with_pgsched:create_scheduler")
    return {"starts": probe.started, "ticks": probe.ticks, "lags": probe.lags} if watch else probe.started


def choose(loop: str) -> None:
    """Has the worker run on this event loop."""
    if "loop" in {field.name for field in fields(Settings)}:
        os.environ["PGSCHED_LOOP"] = loop
    elif loop == "uvloop":
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())


async def produce(count: int, pause: float, how: str = "enqueue") -> list[tuple[float, bool]]:
    async with connect(probe.DSN) as client, await psycopg.AsyncConnection.connect(probe.DSN) as mine:
        if how == "trigger":
            name = f"triggered-{time.time()}"
            await client.create_schedule(name, "nothing", "@at 2099-01-01T00:00:00Z", overlap="allow")
        put = partial(client.trigger, name) if how == "trigger" else partial(client.enqueue, "nothing")

        async def put_in_transaction() -> Callable[[], Awaitable[None]]:
            await put(connection=mine)
            return mine.commit

        return await probe.produced(count, pause, put, put_in_transaction)


if __name__ == "__main__":
    sys.modules["with_pgsched"] = sys.modules["__main__"]  # the factory is in this module
    probe.main({"install": install, "enqueue": enqueue, "far": far, "work": work, "produce": produce})
