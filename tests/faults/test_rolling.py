"""A rolling deploy: workers and clients of the release before this one work through the migration and beside this
release's. No fire time is lost, none runs twice, and none is late by more than a second."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from daemons import Daemon, Daemons
from psycopg import sql
from psycopg.conninfo import make_conninfo
from support import baseline

from pgsched.db import migrate
from pgsched.db.statements.queries import in_schema

SCHEMA = 'Rolled; "out" %s'
VERSION = len(migrate.migrations())
LATE = timedelta(seconds=1)
SECOND = timedelta(seconds=1)
EACH_SECOND = 24
APP = f"""
from pgsched import Limits

@sc.entrypoint("tick", retry=Retry(attempts=1))
async def tick(run: Run):
    note(run, "tick")

for number in range({EACH_SECOND}):
    sc.schedule("tick", "* * * * * *", name=f"tick {{number}}")(tick)
sc.schedule("tick", every(timedelta(seconds=2)), name="every 2 s")(tick)
sc.schedule("tick", "* * * * * *", name="paused by turns")(tick)

# Each run lasts into the next second: two workers take turns. Its limit may hold it back, if this machine is slow.
@sc.schedule("turn", "* * * * * *", name="turn", overlap="allow")
@sc.entrypoint("turn", retry=Retry(attempts=1), limits=Limits(per_worker=1))
async def turn(run: Run):
    note(run, "turn")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1.2):
            await opened("alone")

@sc.entrypoint("job")
async def job(run: Run):
    note(run, "job")

@sc.entrypoint("retried", retry=Retry(attempts=3, backoff=timedelta(milliseconds=100)))
async def retried(run: Run):
    note(run, "retried")
    if run.attempt == 1:
        raise ValueError("the first attempt")

@sc.entrypoint("one at a time", limits=Limits(concurrency=1))
async def one_at_a_time(run: Run):
    note(run, "in")
    await asyncio.sleep(0.02)
    note(run, "out")

@sc.entrypoint("cancelled", retry=Retry(attempts=1))
async def cancelled(run: Run):
    await asyncio.Event().wait()

@sc.entrypoint("long", retry=Retry(attempts=1))
async def long(run: Run):
    note(run, "long")
    await opened("long")
"""
# Of another application, so that a killed worker holds no fire time.
HELD = """
@sc.entrypoint("held", retry=Retry(attempts=5, backoff=timedelta(milliseconds=100)))
async def held(run: Run, gate: str):
    note(run, gate)
    await opened(gate)
"""
CONTROL = """
@sc.schedule("tick", "* * * * * *", name="beside", retry=Retry(attempts=1))
async def tick(run: Run):
    note(run, "tick")
"""
# Ends when the file of its name appears. Says how many rounds it has done.
CLIENT = """
import asyncio, sys
from pathlib import Path
from pgsched import connect

async def main(dsn, schema, name, end):
    rounds = 0
    async with connect(dsn, schema=schema) as client:
        while not Path(end).exists():
            key = f"{name} {rounds}"
            first = await client.enqueue("job", unique_key=key)
            again = await client.enqueue("job", unique_key=key)
            await client.enqueue("one at a time")
            await client.enqueue("retried")
            run = await client.enqueue("cancelled")
            if rounds % 5 == 0:
                await client.pause("paused by turns", note="by a client")
            await asyncio.sleep(0.2)
            await client.resume("paused by turns")
            await client.cancel(run)
            assert (await client.runs.wait(run, timeout=20))["status"] == "cancelled"
            rounds += 1
    print(rounds)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def dsn(root, wheel):
    """A database with the schema of the release before, as its wheel makes it, and another one beside it."""
    name = f"pgsched_rolling_{os.getpid()}"
    with psycopg.connect(root, autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        with psycopg.connect(make_conninfo(root, dbname=name), autocommit=True) as inside:
            for schema in (SCHEMA, "control"):
                inside.execute(baseline.command(wheel, "migrate", "--sql", "--schema", schema).encode())
        yield make_conninfo(root, dbname=name)
        connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture
def schema():
    return SCHEMA


class Clients:
    """Client processes of both releases, under load until the end."""

    def __init__(self, folder: Path, dsn: str, wheel: Path) -> None:
        self._folder, self._dsn, self._wheel = folder, dsn, wheel
        self._all: list[subprocess.Popen[str]] = []
        (folder / "client.py").write_text(CLIENT)

    def start(self, name: str, *, old: bool = False) -> None:
        given = [self._dsn, SCHEMA, name, str(self._folder / "end")]
        environment = baseline.environment(self._wheel) if old else None
        self._all.append(subprocess.Popen(
            [sys.executable, "client.py", *given], cwd=self._folder, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ))  # fmt: skip

    async def end(self) -> list[int]:
        """Ends them all. Returns how many rounds each has done."""
        (self._folder / "end").touch()
        said = [await asyncio.to_thread(each.communicate, timeout=30) for each in self._all]
        assert [(each.returncode, err) for each, (_, err) in zip(self._all, said, strict=True)] == [(0, "")] * len(said)
        return [int(out) for out, _ in said]

    def close(self) -> None:
        for each in self._all:
            if each.poll() is None:
                each.kill()
            each.communicate()


@dataclass
class World:
    """The parts of the deploy."""

    daemons: Daemons
    control: Daemons  # on a schema beside it that nobody migrates: they show how late this machine is by itself
    clients: Clients
    db: Any
    dsn: str
    wheel: Path

    async def old(self, *command: str) -> str:
        """Runs a command of the release before."""
        return await asyncio.to_thread(baseline.command, self.wheel, *command, "--dsn", self.dsn, "--schema", SCHEMA)

    async def new(self, *command: str) -> str:
        """Runs a command of this release."""
        full = [sys.executable, "-m", "pgsched", *command, "--dsn", self.dsn, "--schema", SCHEMA]
        return await asyncio.to_thread(subprocess.check_output, full, text=True, timeout=60)


@pytest.fixture
def world(daemons, db, dsn, wheel, tmp_path):
    (tmp_path / "control").mkdir()
    control = Daemons(tmp_path / "control", dsn, "control")
    clients = Clients(tmp_path, dsn, wheel)
    yield World(daemons, control, clients, db, dsn, wheel)
    clients.close()
    control.close()


@contextlib.asynccontextmanager
async def reading(dsn: str) -> AsyncIterator[None]:
    """A long reader, as pg_dump is: a migration has to wait for its locks."""
    async with await psycopg.AsyncConnection.connect(dsn) as reader:
        await reader.execute(
            in_schema(
                b"select from pgsched.workers, pgsched.runs, pgsched.schedules limit 1", SCHEMA, parametrised=False
            )
        )
        yield


async def ticked(db: Any, entrypoint: str = "tick", by: str | None = None, times: int = 2) -> None:
    """Waits until fire times that are still to come have run, by that worker."""
    now = await db.value("select clock_timestamp()")
    await db.until(
        "select count(distinct fire_time) >= %s from pgsched.runs where entrypoint = %s and fire_time > %s"
        " and status = 'succeeded' and (%s::text is null or worker = %s::uuid)", times, entrypoint, now, by, by,
    )  # fmt: skip


async def take_turns(db: Any, *daemons: Daemon) -> None:
    """Waits until each of them has claimed fire times beside the other."""
    for daemon in daemons:
        await ticked(db, "turn", await daemon.worker_id(), times=1)


async def running(db: Any, gate: str, attempt: int, *daemons: Daemon) -> Daemon:
    """Waits until one of these daemons runs that attempt of the held run. Returns the daemon."""
    workers = {await daemon.worker_id(): daemon for daemon in daemons}
    return workers[await db.until(
        "select worker::text from pgsched.runs where args ->> 'gate' = %s and status = 'running' and attempt = %s"
        " and worker = any(%s::uuid[])", gate, attempt, list(workers),
    )]  # fmt: skip


async def migrated_beside_a_reader(world: World) -> None:
    """Migrates. Meanwhile it waits for a lock, and everybody goes on."""
    async with reading(world.dsn):
        migrating = asyncio.create_task(world.new("migrate"))
        await world.db.until("select count(*) > 0 from pg_locks where not granted and mode = 'AccessExclusiveLock'")
        await ticked(world.db, times=3)
        assert not migrating.done()
    assert f"Applied {VERSION:04}" in await migrating


async def taken_over(world: World, first: Daemon, second: Daemon, new: Daemon) -> None:
    """Kills workers of each release: one of the other takes the run over. Each of them runs one at once."""
    holding = await running(world.db, "passed on", 1, first, second)
    other = second if holding is first else first
    await holding.kill()
    await running(world.db, "passed on", 2, new)
    world.daemons.open("busy")
    await world.db.until("select status = 'succeeded' from pgsched.runs where args ->> 'gate' = 'busy'")
    await new.kill()
    await running(world.db, "passed on", 3, other)
    world.daemons.open("passed on")
    await world.db.until("select status = 'succeeded' from pgsched.runs where args ->> 'gate' = 'passed on'")
    assert await other.stop() == 0


async def command_lines(world: World) -> None:
    """Those of both releases work on the new schema."""
    await world.old("schedules", "pause", "tick 0")
    assert json.loads(await world.new("schedules", "show", "tick 0", "--json"))["status"] == "paused"
    await world.old("schedules", "resume", "tick 0")
    assert "paused by turns" in await world.old("schedules", "list")


@pytest.mark.slow
async def test_a_rolling_deploy_loses_nothing_and_delays_nothing(world):
    db, daemons = world.db, world.daemons
    daemons.app(APP)
    daemons.app(HELD, "held", "held")
    world.control.app(CONTROL)

    # The release before, alone.
    *workers, first, second, beside = await asyncio.gather(
        *[daemons.ready(wheel=world.wheel) for _ in range(2)],
        *[daemons.ready(wheel=world.wheel, module="held", max_running="1") for _ in range(2)],
        world.control.ready(wheel=world.wheel),
    )
    assert await db.value("select max(version) from pgsched.migrations") == baseline.VERSION
    world.clients.start("old", old=True)
    for call in ("('long')", "('held', '{\"gate\": \"passed on\"}')", "('held', '{\"gate\": \"busy\"}')"):
        await db.all(f"select pgsched.enqueue{call}")
    await db.until("select count(*) = 3 from pgsched.runs where entrypoint in ('held', 'long') and status = 'running'")
    await ticked(db)

    # Its workers go on while the schema is migrated, and after that.
    await migrated_beside_a_reader(world)
    await take_turns(db, *workers)
    await on_time(db)
    quiet(daemons)

    if baseline.VERSION == 4:  # the release of that version alone: docs/upgrades.md has the exception
        await refused(daemons, world.wheel)

    # Both releases side by side.
    world.clients.start("new")
    new, third = await asyncio.gather(daemons.ready(), daemons.ready(module="held", max_running="1"))
    await asyncio.gather(taken_over(world, first, second, third), command_lines(world))
    daemons.open("long")
    await db.until("select status = 'succeeded' from pgsched.runs where entrypoint = 'long'")
    assert await workers.pop().stop() == 0
    await take_turns(db, *workers, new)
    daemons.open("alone")

    # This release, alone.
    assert [await worker.stop() for worker in workers] == [0]
    await ticked(db)
    rounds = await world.clients.end()
    await db.until("select count(*) = 0 from pgsched.runs where status in ('queued', 'running') and fire_time is null")
    assert [await new.stop(), await beside.stop()] == [0, 0]

    await accounted(db, daemons)
    await jobs_done(db, daemons, rounds)
    await on_time(db)
    quiet(daemons)


async def refused(daemons: Daemons, wheel: Path) -> None:
    """A worker of the release before cannot start again after the migration."""
    late = daemons.start(wheel=wheel)
    assert await late.exit_code() == 78
    assert "newer than this pgsched" in late.tail()
    daemons.all.remove(late)


def quiet(daemons: Daemons) -> None:
    """No statement failed."""
    wrong = ("database_lost", "statement_refused", "statement_failed", "row_set_aside", "schema_unfit", "text")
    assert [event for daemon in daemons.all for name in wrong for event in daemon.events(name)] == []


async def accounted(db: Any, daemons: Daemons) -> None:
    """Every second of every schedule is there once, as a run or as a recorded skip, and was executed once."""
    rows = await db.all("""
        select s.name, min(r.fire_time), max(coalesce(r.skipped_through, r.fire_time)),
            sum(coalesce(r.skipped_count, 1))::int, count(*) filter (where r.status = 'skipped')
        from pgsched.runs r join pgsched.schedules s on s.id = r.schedule_id group by s.name
    """)
    assert len(rows) == EACH_SECOND + 3
    for name, first, last, count, skips in rows:
        step = 2 if name == "every 2 s" else 1
        assert (last - first) / SECOND == step * (count - 1), name
        assert skips == 0 or name in ("paused by turns", "tick 0", "turn"), name
    executed = Counter(note["run"] for note in [*daemons.notes("tick"), *daemons.notes("turn")])
    runs = await db.all(
        "select id, attempt from pgsched.runs where fire_time is not null and status not in ('queued', 'skipped')"
    )
    assert executed == {run: 1 for run, _ in runs}
    assert {attempt for _, attempt in runs} == {1}


async def jobs_done(db: Any, daemons: Daemons, rounds: list[int]) -> None:
    """Each call of a client has had its effect, once."""
    assert all(rounds)
    done = sum(rounds)
    counted = dict(await db.all(
        "select entrypoint || ' ' || status || ' ' || attempt, count(*) from pgsched.runs"
        " where fire_time is null group by 1"
    ))  # fmt: skip
    cancelled = {key: counted.pop(key) for key in list(counted) if key.startswith("cancelled cancelled")}
    assert sum(cancelled.values()) == done
    assert {key: count for key, count in counted.items() if not key.startswith(("job", "held"))} == {
        "one at a time succeeded 1": done, "retried succeeded 2": done, "long succeeded 1": 1,
    }  # fmt: skip
    order = [note for what in ("in", "out") for note in daemons.notes(what)]
    assert len(order) == 2 * done


async def on_time(db: Any) -> None:
    """No run began more than a second after its fire time, unless the schedule beside it did so in that second."""
    late = {
        schema: [
            (fire_time, lateness)
            for fire_time, lateness in await of(db, schema, "select fire_time::timestamptz, started_at - fire_time"
                " from pgsched.runs where status = 'succeeded' and entrypoint = 'tick'")
        ]
        for schema in (SCHEMA, "control")
    }  # fmt: skip
    slow: dict[datetime, timedelta] = dict(late["control"])
    assert all(lateness >= timedelta(0) for _, lateness in late[SCHEMA])

    def by_itself(at: datetime) -> timedelta:
        """How late the machine was around an instant."""
        return max((slow.get(at + n * SECOND, timedelta(0)) for n in (-1, 0, 1)), default=timedelta(0))

    assert [(at, lateness) for at, lateness in late[SCHEMA] if lateness > LATE + by_itself(at)] == []


async def of(db: Any, schema: str, query: str) -> list[tuple]:
    return await (await db.connection.execute(in_schema(query.encode(), schema), ())).fetchall()
