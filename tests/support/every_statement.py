"""Everything that pgsched sends, in one scenario: commands, clients for coroutines and threads, a worker. It checks the
answers, too. Records which statements have been sent.

A schema of its own name is made by `pgsched migrate`, so that the migrations are a part of it.
"""

from __future__ import annotations

import ast
import asyncio
import json
import logging
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

import pgsched
from pgsched import Client, Limits, Retry, Scheduler, connect, connect_sync
from pgsched.config import Settings
from pgsched.db import migrate, session
from pgsched.db.fence.fence import ASKING, Fence
from pgsched.db.fence.waits import Coroutines, Threads
from pgsched.db.pool import finished
from pgsched.db.statements.queries import Queries, in_schema
from pgsched.db.statements.store import Store
from pgsched.model import Claim
from support.shell import invoke
from support.worker_statements import all_of_a_worker
from support.workers import until, working

_STATEMENT = re.compile(r"\s*(select|insert|delete|create|lock|listen|notify|show|discard) [a-z{]")
NAME = "ü 'x' \\ € 🙂 \""
TEXT = "5 € 🙂 \\n ' \" \\u20ac"
_SET = "select pg_catalog.set_config(%s, %s, false)"
NOON = datetime(2037, 2, 1, 12, tzinfo=UTC)
MEANT = {
    "grace": timedelta(minutes=90), "jitter": timedelta(seconds=1.5), "timeout": timedelta(minutes=5),
    "backoff": timedelta(minutes=2), "max_backoff": timedelta(days=2, hours=3),
}  # fmt: skip
RETRY = Retry(attempts=3, backoff=MEANT["backoff"], max_backoff=MEANT["max_backoff"])


class Recorder:
    """The statements that the cursors of psycopg have sent."""

    def __init__(self) -> None:
        self.sent: set[str] = set()

    def files(self) -> set[str]:
        """The names of the query files among them."""
        first = {line: name for name, text in Queries.texts().items() for line in [text.decode().partition("\n")[0]]}
        return {name for text in self.sent if (name := first.get(text.partition("\n")[0].replace("%%", "%")))}

    @contextmanager
    def on(self) -> Iterator[Recorder]:
        with pytest.MonkeyPatch.context() as patch:
            for kind in (psycopg.AsyncCursor, psycopg.AsyncRawCursor, psycopg.Cursor):
                patch.setattr(kind, "execute", self._recording(kind.execute))
            yield self

    def _recording(self, execute: Callable[..., Any]) -> Callable[..., Any]:
        def recording(cursor: Any, query: Any, *args: Any, **options: Any) -> Any:
            text = query.as_bytes(cursor) if isinstance(query, sql.Composable) else query
            self.sent.add(text.decode() if isinstance(text, bytes) else text)
            return execute(cursor, query, *args, **options)

        return recording


def inline() -> set[str]:
    """The statements in pgsched's code, each as it begins, up to the first placeholder."""
    found = set()
    root = Path(pgsched.__file__).parent
    for path in sorted(root.rglob("*.py")):
        if path.is_relative_to(root / "testing"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            value = node.value if isinstance(node, ast.Constant) else None
            text = value.decode(errors="replace") if isinstance(value, bytes) else value
            if isinstance(text, str) and _STATEMENT.match(text):
                found.add(re.split(r"\{|%|pgsched\.", text)[0].strip())
    return found


# --- the client ---------------------------------------------------------------------------------------------


async def all_of_a_client(client: Client, connection: Any = None) -> None:
    """Each method, for coroutines; pool.finished() runs it for threads. Without `connection` over the client's own."""
    on = {"connection": connection}
    more = {key: MEANT[key] for key in ("grace", "jitter", "timeout")}
    created = await client.create_schedule(
        NAME,
        "job",
        "0 9 * * *",
        timezone="Europe/Berlin",
        args={"text": TEXT},
        retry=RETRY,
        starts_at=NOON,
        **more,
        **on,
    )
    row = await client.get_schedule(NAME, **on)
    assert (row["id"], row["args"], row["starts_at"]) == (created, {"text": TEXT}, NOON)
    assert {key: row[key] for key in MEANT} == MEANT
    now = await client.now(**on)
    assert abs(now - datetime.now(UTC)) < timedelta(hours=1)
    assert abs(row["created_at"] - now) < timedelta(hours=1)
    await client.alter(NAME, starts_at=None, ends_at=NOON, grace=timedelta(days=3, seconds=0.25), **on)
    [row] = await client.list_schedules(entrypoint="job", **on)
    assert (row["starts_at"], row["ends_at"], row["grace"]) == (None, NOON, timedelta(days=3, seconds=0.25))
    await client.pause(NAME, TEXT, NOON, **on)
    row = await client.get_schedule(NAME, **on)
    assert (row["status"], row["note"], row["paused_until"]) == ("paused", TEXT, NOON)
    await client.resume(NAME, **on)
    await all_of_its_runs(client, on, now)
    await client.remove(NAME, **on)
    assert await client.list_schedules(**on) == []
    assert await client.list_workers(**on) == []


async def all_of_its_runs(client: Client, on: dict[str, Any], now: datetime) -> None:
    triggered = await client.trigger(NAME, **on)
    assert [row["id"] for row in await client.list_runs(schedule=NAME, **on)] == [triggered]
    assert (await client.get_run(triggered, **on))["timeout"] == MEANT["timeout"]
    filled = await client.backfill(NAME, now - timedelta(days=3), now, **on)
    # Nine in Berlin, whatever the session's zone and style of dates.
    assert {(time.hour, time.minute) for time in filled.queued} <= {(7, 0), (8, 0)} and len(filled.queued) == 3
    assert len(await client.list_runs_between(NAME, now - timedelta(days=4), now, **on)) == 3
    assert (await client.situation(NAME, **on)).now >= now
    one = await client.enqueue("job", {"text": TEXT}, due_at=NOON, unique_key=TEXT, **on)
    again = await client.enqueue("job", due_at=NOON, unique_key=TEXT, **on)
    assert (one.queued, again.queued, again) == (True, False, one)
    run = await client.get_run(one, **on)
    assert (run["args"], run["due_at"], run["unique_key"]) == ({"text": TEXT}, NOON, TEXT)
    many = await client.enqueue_many("job", [None, {"text": TEXT}, None], unique_keys=[None, "NULL", None], **on)
    keys = [(await client.get_run(each, **on))["unique_key"] for each in many]
    assert (keys, [each.queued for each in many]) == ([None, "NULL", None], [True] * 3)
    assert await client.cancel(one, **on) == "cancelled"
    assert await client.cancel(many[0], **on) == "cancelled"
    assert {row["id"] for row in await client.runs.list_dead([one, *many], since=now - timedelta(1), **on)} == {
        one,
        many[0],
    }
    assert await client.runs.count([*many, one], **on) == {"cancelled": 2, "queued": 2}
    await client.retry(one, **on)
    assert await client.runs.retry_many([many[0]], **on) == [many[0]]
    assert await client.runs.log(one, **on) == [] and await client.runs.beyond_reach(**on) is False
    for each in (one, *many):
        await client.cancel(each, **on)


# --- the worker ---------------------------------------------------------------------------------------------


def scheduler() -> tuple[Scheduler, list[Any]]:
    """An application with each kind of job, and what its jobs have seen of themselves."""
    sc, seen = Scheduler(app="app"), []

    @sc.schedule("job", "0 0 1 1 *", name=NAME, timezone="Europe/Berlin", retry=RETRY, starts_at=NOON,
                 **{key: MEANT[key] for key in ("grace", "jitter", "timeout")})  # fmt: skip
    async def job(run: pgsched.Run, text: str | None = None) -> dict[str, Any]:
        logging.getLogger("job").warning(TEXT)
        seen.append(text)
        if run.attempt == 1 and text is not None:
            raise pgsched.RetryLater(0, TEXT)
        return {"text": text, "list": [None, "NULL", 0.1]}

    @sc.entrypoint("transaction", retry=Retry(attempts=1))
    async def transaction(run: pgsched.Run) -> str:
        async with run.transaction() as connection:
            await connection.execute("select pg_catalog.set_config('work_mem', '1MB', true)")
        return TEXT

    @sc.entrypoint("blocking", retry=Retry(attempts=1))
    def blocking(run: pgsched.Run) -> str:
        with run.transaction() as connection:
            connection.execute("select pg_catalog.set_config('work_mem', '1MB', true)")
        return TEXT

    @sc.entrypoint("bounded", limits=Limits(concurrency=2, starts=100, period=timedelta(minutes=1)))
    async def bounded() -> None: ...

    return sc, seen


async def all_of_its_work(settings: Settings, client: Client) -> None:
    """A worker starts, and runs jobs of each kind."""
    sc, seen = scheduler()
    async with working(sc, settings):
        run = await client.enqueue("job", {"text": TEXT})
        others = [await client.enqueue(name) for name in ("transaction", "blocking", "bounded")]
        await client.trigger(NAME)
        found = await client.runs.wait(run, 20)
        assert (found["status"], found["attempt"]) == ("succeeded", 2), found
        assert found["result"] == {"text": TEXT, "list": [None, "NULL", 0.1]}
        assert [error["message"] for error in found["errors"]] == [TEXT]
        for each in others:
            ended = await client.runs.wait(each, 20)
            assert ended["status"] == "succeeded", ended
        assert (await client.get_run(others[1]))["result"] == TEXT
        row = await client.get_schedule(NAME)
        assert {key: row[key] for key in MEANT} == MEANT and row["starts_at"] == NOON
        lines = [each["text"] async for each in client.runs.follow(run)]
        assert len(lines) == 2 and all(TEXT in line for line in lines), lines
        assert len(await client.list_workers()) == 1
        await until(lambda: seen.count(None) == 1)
    assert (await client.runs.count([run, *others])) == {"succeeded": 4}


_ALL = {"name": None, "entrypoint": None, "status": None}


async def what_a_worker_sends_seldom(dsn: str, schema: str) -> None:
    """Statements of faults and of deploys, which no healthy worker sends."""
    store, worker = Store(schema, "app"), uuid.uuid4()
    own = session.Session(session.conninfo_for(dsn, "pgsched test"), "test")
    claims = [(1, 1)]
    try:
        async with own.use() as connection:
            # Work of the passes that follow has rows of schedules with lower ids.
            await connection.execute(in_schema(b"alter table pgsched.schedules alter id restart with 1000", schema), ())
            await store.runs.keep_left_behind(connection, worker, claims, [1], timedelta(minutes=1))
            await store.upkeep.forget_leftovers(connection)
            await store.declarations.find_lock(connection, worker, "code:app", [NAME])
            await store.upkeep.end_transactions(connection, ["pgsched-run 1"])
            assert await store.declarations.retire_schedules(connection, "code:nobody", []) == []
            found = {row["name"]: row["id"] for row in await store.claims.rows(connection, "list_schedules", _ALL)}
            ids = [found[NAME]]
            assert await store.claims.lock_schedules(connection, ids) == set(ids)
            assert await store.claims.read_rooms(connection, ids) == {ids[0]: 1}
            [row] = await store.claims.get_schedules(connection, ids)
            assert (row.starts_at, row.grace) == (NOON, MEANT["grace"])
            zone = {"name": "Europe/Berlin", "after": 0, "limit": 10, "rules": "2026a:0", "zones": ["UTC"]}
            zone["worker"] = worker
            assert [row["id"] for row in await store.claims.rows(connection, "find_replans", zone)] == ids
            await store.claims.rows(connection, "replan_zone", zone | {"ids": ids})
            assert await store.claims.rows(connection, "read_keepers", zone) == []
            await connection.execute(store.claims.query("withhold_zones"), zone)
            async with connection.transaction():
                await store.claims.set_patience(connection, timedelta(seconds=5))
                await store.claims.settle_constraints(connection)
                assert await (await connection.execute("select current_setting('statement_timeout')")).fetchone() == (
                    "5s",
                )
    finally:
        await own.discard()
    fence = Fence(dsn, schema, Claim(1, 1, worker))
    questions = [fence.patience, *map(fence.statement, ASKING)]
    for way in (Coroutines(fence.source), Threads(fence.source)):
        assert await way.ask(questions) == []
        query, params = fence.statement("read_transaction")
        assert await way.ask([(query, params | {"pid": 0})]) == [(False,)]


# --- the scenario -------------------------------------------------------------------------------------------

APP = """
from support.every_statement import scheduler
def create_scheduler():
    return scheduler()[0]
"""


def commands_before(where: tuple[str, ...]) -> None:
    assert ok("migrate", *where).count("Applied") == len(migrate.migrations())
    ok("migrate", "--check", *where)
    checked = invoke("check", "every_app.create_scheduler", *where)
    assert checked.exit_code == 1, checked.output


def commands_after(where: tuple[str, ...]) -> None:
    ok("check", "every_app.create_scheduler", *where)
    assert NAME in ok("schedules", "adopt", "app", "other", "--yes", *where)
    assert NAME in ok("schedules", "adopt", "other", "app", "--yes", *where)
    assert invoke("schedules", "adopt", "nobody", "app", *where).exit_code == 3
    ok("schedules", "add", "added", "job", "@daily", "--timeout", "5m", *where)
    shown = json.loads(ok("schedules", "show", "added", "--json", *where))
    assert shown["timeout"] == "5m", shown
    ok("schedules", "list", *where)
    ok("schedules", "show", NAME, *where)
    ok("runs", "list", *where)
    ok("workers", *where)
    assert invoke("health", *where).exit_code == 4


def ok(*args: str) -> str:
    result = invoke(*args)
    assert result.exit_code == 0, (args, result.output)
    return result.stdout


def everything(dsn: str, schema: str, mine: Mapping[str, str] | None = None, *, lean: bool = False) -> None:
    """The scenario.

    mine: settings of the caller's own connections; None for no such connections.
    lean: without transactions that are long for a role with short timeouts.
    """
    where = ("--dsn", dsn, "--schema", schema)
    commands_before(where)
    with connect_sync(dsn, schema=schema) as client:
        finished(all_of_a_client(client.behind))
        if mine is not None:
            with psycopg.connect(dsn, autocommit=True) as connection:
                for setting in mine.items():
                    connection.execute(_SET, setting)
                finished(all_of_a_client(client.behind, connection))
        if not lean:
            with client.transaction() as inside:
                finished(all_of_a_client(client.behind, inside))
    asyncio.run(coroutines(dsn, schema, mine, lean=lean))
    commands_after(where)
    asyncio.run(rest_of_a_worker(dsn, schema))


async def coroutines(dsn: str, schema: str, mine: Mapping[str, str] | None, *, lean: bool) -> None:
    settings = Settings(dsn=dsn, schema=schema)
    async with connect(dsn, schema=schema) as client:
        await all_of_a_client(client)
        if mine is not None:
            async with await psycopg.AsyncConnection.connect(dsn) as connection:
                for setting in mine.items():
                    await connection.execute(_SET, setting)
                await all_of_a_client(client, connection)  # in one transaction
                await connection.commit()
        if not lean:
            async with client.transaction() as inside:
                await all_of_a_client(client, inside)
        await all_of_its_work(settings, client)
        for number in (1, 2):
            await client.create_schedule(f"far {number}", "job", "@yearly")


async def rest_of_a_worker(dsn: str, schema: str) -> None:
    await what_a_worker_sends_seldom(dsn, schema)
    await all_of_a_worker(Settings(dsn=dsn, schema=schema))
