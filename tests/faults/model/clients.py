"""What clients do: the Python client's calls, plain SQL, transactions that stay open, locks.

Each operation takes the world, a connection and its drawn values. Being refused is an outcome like any other.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import psycopg
from psycopg import sql

from model.world import World
from pgsched import Client
from pgsched.client.connections import Pooled
from pgsched.db.statements.queries import Queries
from pgsched.errors import PgschedError

Connection = psycopg.AsyncConnection
Act = Callable[..., Awaitable[Any]]
ACTS: dict[str, Act] = {}
DURATIONS = ("jitter", "grace", "timeout")


def act(function: Act) -> Act:
    ACTS[function.__name__] = function
    return function


def client(world: World) -> Client:
    """A client whose calls all go over connections that they are given."""
    return Client(Pooled(world.dsn), Queries(world.schema))


def options(world: World, values: dict[str, Any]) -> dict[str, Any]:
    """Drawn values as the client takes them."""
    found = dict(values)
    if "at" in found:
        found["expression"] = f"@at {world.instant(found.pop('at')).isoformat()}"
    for name in DURATIONS:
        if found.get(name) is not None:
            found[name] = timedelta(seconds=found[name])
    for name in ("starts", "ends"):
        if name in found:
            found[f"{name}_at"] = world.instant(found.pop(name))
    return found


@act
async def create(world: World, connection: Connection, name: str, **values: Any) -> Any:
    return await client(world).create_schedule(name, **options(world, values), connection=connection)


@act
async def insert(world: World, connection: Connection, name: str, **values: Any) -> Any:
    found = options(world, values)
    columns = {**found, "name": name, "args": json.dumps(found["args"])}
    names = sql.SQL(", ").join(map(sql.Identifier, columns)).as_string()
    marks = ", ".join(["%s"] * len(columns))
    return await world.rows(
        connection, f"insert into pgsched.schedules ({names}) values ({marks}) returning id", *columns.values()
    )


@act
async def recreate(
    world: World, connection: Connection, name: str, same: bool, retimed: bool, **values: Any
) -> Any:  # fmt: skip
    """Removes a schedule and makes it again in one transaction; `same`: with the timing that it had. `retimed`: it gets
    another start before, which says nothing about its fire times and begins its account anew."""
    async with connection.transaction():
        rows = await world.rows(
            connection, "select expression, timezone from pgsched.schedules where name = %s", name
        )  # fmt: skip
        if rows and retimed:
            await client(world).alter(name, starts_at=world.instant(-86400.0 - world.now), connection=connection)
        if rows:
            await client(world).remove(name, connection=connection)
        if rows and same:
            values = {k: v for k, v in values.items() if k not in ("at", "starts", "ends", "max_runs")}
            values |= {"expression": rows[0][0], "timezone": rows[0][1]}
        return await create(world, connection, name, **values)


@act
async def alter(world: World, connection: Connection, name: str, **values: Any) -> Any:
    return await client(world).alter(name, **options(world, values), connection=connection)


@act
async def update(world: World, connection: Connection, name: str, **values: Any) -> Any:
    found = options(world, values)
    if "args" in found:
        found["args"] = json.dumps(found["args"])
    pairs = ", ".join(f"{sql.Identifier(column).as_string()} = %s" for column in found)
    return await world.rows(
        connection, f"update pgsched.schedules set {pairs} where name = %s returning id", *found.values(), name
    )


@act
async def pause(world: World, connection: Connection, name: str, until: float | None, backlog: bool) -> Any:
    instant = world.instant(world.now + until) if until is not None else None
    return await client(world).pause(name, "the model", instant, backlog=backlog, connection=connection)


@act
async def resume(world: World, connection: Connection, name: str) -> Any:
    return await client(world).resume(name, connection=connection)


@act
async def trigger(world: World, connection: Connection, name: str) -> Any:
    return await client(world).trigger(name, connection=connection)


@act
async def remove(world: World, connection: Connection, name: str) -> Any:
    return await client(world).remove(name, connection=connection)


@act
async def save_back(world: World, connection: Connection, name: str) -> Any:
    """What a mapper's save() does: it reads a row, changes a field, and writes all columns back a moment later."""
    columns = [row[0] for row in await world.rows(
        connection,
        "select attname from pg_attribute where attrelid = 'pgsched.schedules'::regclass and attnum > 0"
        " and not attisdropped and attidentity = '' and attgenerated = ''",
    )]  # fmt: skip
    names = ", ".join(sql.Identifier(column).as_string() for column in columns)
    rows = await world.rows(connection, f"select id, {names} from pgsched.schedules where name = %s", name)
    if not rows:
        return "none"
    await asyncio.sleep(0.1)
    key, *read = rows[0]
    values = dict(zip(columns, read, strict=True)) | {"note": f"saved at {world.now:.3f}"}
    values = {k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in values.items()}
    pairs = ", ".join(f"{sql.Identifier(column).as_string()} = %s" for column in columns)
    return await world.rows(
        connection, f"update pgsched.schedules set {pairs} where id = %s returning id", *values.values(), key
    )


@act
async def update_all(world: World, connection: Connection, column: str, value: int) -> Any:
    """One statement over all schedules that clients made."""
    new = {
        "timeout": f"make_interval(secs => 5 + {value})",
        "args": f"args || '{{\"n\": {value}}}'",
        "priority": str(value),
        "overlap": f"'{('skip', 'queue', 'allow', 'cancel', '2')[value]}'",
    }[column]
    return await world.rows(
        connection, f"update pgsched.schedules set {column} = {new} where owner = 'api' returning id"
    )


@act
async def move(world: World, connection: Connection, name: str, by: int) -> Any:
    return await world.rows(
        connection,
        "update pgsched.schedules set next_run = next_run + make_interval(secs => %s) where name = %s and status = "
        "'active' and next_run is not null returning id",
        by, name,
    )  # fmt: skip


@act
async def enqueue(
    world: World, connection: Connection, entrypoint: str, args: dict[str, Any], due: float | None = None, **more: Any
) -> Any:
    due_at = world.instant(world.now + due) if due is not None else None
    return await client(world).enqueue(entrypoint, args, due_at=due_at, connection=connection, **more)


@act
async def enqueue_many(world: World, connection: Connection, entrypoint: str, count: int) -> Any:
    return await client(world).enqueue_many(entrypoint, [{"n": n} for n in range(count)], connection=connection)


async def _picked(world: World, connection: Connection, pick: int, *statuses: str) -> int | None:
    rows = await world.rows(
        connection, "select id from pgsched.runs where status = any(%s) order by id desc limit 20", list(statuses)
    )
    return rows[pick % len(rows)][0] if rows else None


@act
async def cancel(world: World, connection: Connection, pick: int) -> Any:
    run = await _picked(world, connection, pick, "queued", "running")
    return run and (run, await client(world).cancel(run, connection=connection))


@act
async def retry(world: World, connection: Connection, pick: int) -> Any:
    run = await _picked(world, connection, pick, "failed", "cancelled")
    return run and (run, await client(world).retry(run, connection=connection))


@act
async def retry_many(world: World, connection: Connection, pick: int) -> Any:
    runs = await world.rows(connection, "select id from pgsched.runs where status in ('failed', 'cancelled') limit 5")
    return await client(world).runs.retry_many([row[0] for row in runs], connection=connection)


@act
async def backfill(world: World, connection: Connection, name: str, again: bool) -> Any:
    now = world.now
    found = await client(world).backfill(
        name, world.instant(now - 4), world.instant(now - 1), again=again, connection=connection
    )
    return {str(instant): run for instant, run in found.queued.items()}


@act
async def look(world: World, connection: Connection, name: str, pick: int) -> Any:
    """Reads as people do who look: lists, one schedule and why it does not fire, one run and how it went."""
    eyes = client(world)
    shown = await eyes.list_schedules(connection=connection)
    workers = await eyes.list_workers(connection=connection)
    runs = await eyes.list_runs(limit=50, connection=connection)
    if runs:
        await eyes.get_run(runs[pick % len(runs)]["id"], connection=connection)
    if name in {row["name"] for row in shown}:
        await eyes.situation(name, connection=connection)
    return len(shown), len(workers), len(runs)


@act
async def lock(world: World, connection: Connection, what: str, pick: int, seconds: float) -> Any:
    """Holds locks on some rows for a while."""
    async with connection.transaction():
        found = await world.rows(
            connection, f"select id from pgsched.{what} where id %% 3 = %s order by id for update", pick % 3
        )
        await asyncio.sleep(seconds)
    return len(found)


@act
async def hold(
    world: World, connection: Connection, *, changes: list[Any], seconds: float, immediate: bool, commit: bool
) -> Any:
    """A transaction that makes changes, stays open for a while, and is committed or rolled back."""
    outcomes = []
    async with connection.transaction(force_rollback=not commit):
        for name, values in changes:
            try:
                async with connection.transaction():
                    outcomes.append((name, await ACTS[name](world, connection, **values)))
            except Exception as error:
                if not expected(error):
                    raise
                outcomes.append((name, short(error)))
        if immediate:
            await world.rows(connection, "set constraints all immediate")
        await asyncio.sleep(seconds)
    return outcomes


def short(error: BaseException) -> str:
    state = f" {error.sqlstate}" if isinstance(error, psycopg.Error) else ""
    return f"{type(error).__name__}{state}: {str(error).splitlines()[0] if str(error) else ''}"


def expected(error: BaseException) -> bool:
    """Whether a client may be answered with this error: a refusal in a sentence, a deadlock, a name that is taken."""
    if isinstance(error, psycopg.Error):
        return error.sqlstate in ("40P01", "55P03", "23505", "23514", "P0001", "57014")
    return isinstance(error, PgschedError | ValueError)
