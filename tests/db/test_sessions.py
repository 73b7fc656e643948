"""The interface in SQL means the same in every session, and does the same for every role that may call it."""

import itertools
import json
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import psycopg
import pytest
from psycopg import sql
from support.workers import Parts

from pgsched import connect, connect_sync
from pgsched.db.statements.queries import in_schema

STYLES = [
    {"DateStyle": dates, "TimeZone": zone, "IntervalStyle": intervals}
    for dates, zone, intervals in itertools.zip_longest(
        ("ISO, DMY", "SQL, MDY", "German", "Postgres, YMD"),
        ("Asia/Kolkata", "America/New_York", "Pacific/Apia", "UTC"),
        ("postgres", "sql_standard", "iso_8601", "postgres_verbose"),
    )
]
NOON = datetime(2027, 2, 1, 12, tzinfo=UTC)
WITHOUT_OFFSET = [
    "tomorrow", "now", "epoch", "01/02/2027 03:00", "2027-02-01", "2027-02-01 12:00", "2027-02-01T12:00:00",
    "2027-02-01 12:00 IST", "2027-02-01 12:00 Asia/Kolkata", "2027-02-01 12:00 America/New_York-05",
    "20270201T120000Z", "2027-02-01 12:00Z ", "1.2.2027 12:00Z", "Mon Feb 01 12:00:00 2027 UTC", "",
]  # fmt: skip
DURATIONS = {
    "300": 300, "5 minutes": 300, "PT5M": 300, "0:05": 300, "1 2:03": 93_780, "P1DT2H": 93_600, "1 day 2 hours": 93_600,
    "1.5 h": 5400,
}  # fmt: skip
SIGNED = ["-1 26:00", "-1 day +26:00", "1 -2:00", "1 day -2 hours", "-0:05", "-5", "P1DT-2H", "-1 day ago"]


@pytest.mark.parametrize("styles", STYLES, ids=lambda styles: styles["DateStyle"])
async def test_options_mean_the_same_in_every_session(db, styles):
    for name, value in styles.items():
        await db.all("select set_config(%s, %s, false)", name, value)
    for text in ("2027-02-01T12:00:00Z", "2027-02-01 17:30+05:30", "2027-02-01T04:00:00.000-08", "2027-02-01t12:00z"):
        for call in ("create_schedule('s', 'job', '@daily', options => %s)", "alter('s', %s)"):
            await db.all(f"select pgsched.{call}", f'{{"starts_at": "{text}", "ends_at": "{text}"}}')
            assert await db.value("select starts_at = %s and ends_at = starts_at from pgsched.schedules", NOON)
        await db.all("select pgsched.remove('s')")
    await db.all("select pgsched.create_schedule('s', 'job', '@daily')")
    for text in WITHOUT_OFFSET:
        with pytest.raises(psycopg.Error, match="with its UTC offset, such as 2027-01-01T09:00:00Z") as refused:
            await db.all("select pgsched.alter('s', jsonb_build_object('ends_at', %s::text))", text)
        assert refused.value.sqlstate == "PS422"
    for text, seconds in DURATIONS.items():
        await db.all("select pgsched.alter('s', jsonb_build_object('timeout', %s::text))", text)
        read = "select timeout = %s from pgsched.schedules"
        assert await db.value(read, timedelta(seconds=seconds)), text
    for text in SIGNED:
        with pytest.raises(psycopg.Error, match="grace must be an interval from 0") as refused:
            await db.all("select pgsched.alter('s', jsonb_build_object('grace', %s::text))", text)
        assert refused.value.sqlstate == "PS422"


# --- the rights of another --------------------------------------------------------------------------------


@pytest.fixture
async def roles(db, schema) -> AsyncIterator[SimpleNamespace]:
    """admin may do everything in the schema; caller inherits nothing and may become admin; stranger has no rights.

    The schema `apps` holds the application's own functions, and all three may use it.
    """
    names = SimpleNamespace(
        apps=sql.Identifier(f"{schema} apps"),
        **{name: sql.Identifier(f"{name} {os.getpid()}") for name in ("admin", "caller", "stranger")},
    )
    ours = sql.Identifier(schema)
    for text in (
        "create schema {apps}",
        "create role {admin} nologin",
        "create role {caller} login noinherit",
        "create role {stranger} login",
        "grant {admin} to {caller}",
        "grant usage on schema {apps} to {admin}, {caller}, {stranger}",
        "grant usage on schema {ours} to {admin}",
        "grant select, insert, update, delete on {ours}.schedules, {ours}.runs to {admin}",
        "grant select on {ours}.limits, {ours}.limit_members, {ours}.workers to {admin}",
    ):
        await db.connection.execute(sql.SQL(text).format(ours=ours, **vars(names)))
    yield names
    await db.connection.execute("reset role; reset session authorization")
    await db.connection.execute(
        sql.SQL(
            "drop schema {apps} cascade; drop owned by {admin}, {caller}, {stranger};"
            " drop role {admin}, {caller}, {stranger}"
        ).format(**vars(names))
    )


# Each changes what a worker has claimed ahead, or what it would plan next.
CALLS = [
    "select pgsched.alter('s', '{\"expression\": \"0 4 * * *\"}')",
    "select pgsched.alter('s', '{\"args\": {\"x\": 1}}')",
    "select pgsched.pause('s')",
    "select pgsched.remove('s')",
    "select pgsched.trigger('s')",
    "select pgsched.enqueue('job')",
    "select pgsched.create_schedule('new', 'job', '@daily')",
    "select pgsched.resume('paused')",
    "update pgsched.schedules set expression = '@hourly'",
]


async def claimed_ahead(db, settings) -> None:
    """Makes a schedule whose next fire time a worker holds already, and one that is paused."""
    await db.all(
        "select pgsched.create_schedule('s', 'job', '@every 5s'), pgsched.create_schedule('paused', 'job', '@daily')"
    )
    await db.all("select pgsched.pause('paused')")
    async with Parts(settings, lookahead="10s") as parts:
        await parts.dispatcher.claim_pass()
        await parts.dispatcher.claim_pass()
        assert [run.entrypoint for run in parts.taken] == ["job"]


@pytest.mark.parametrize("call", CALLS)
async def test_a_definer_function_lends_its_callers_no_more_than_the_call(db, settings, roles, call):
    """The caller has no rights in the schema when the transaction commits, which is when deferred work is done."""
    await claimed_ahead(db, settings)
    body = in_schema(call.encode(), db.schema, parametrised=False).decode()
    await db.connection.execute(
        sql.SQL(
            "create function {apps}.change() returns void language plpgsql security definer"
            " set search_path = pg_catalog, pg_temp as {}"
        ).format(f"begin {body.replace('select', 'perform', 1)}; end", **vars(roles))
    )
    await db.connection.execute(sql.SQL("alter function {apps}.change() owner to {admin}").format(**vars(roles)))
    before = await rows(db)
    await db.connection.execute(sql.SQL("set session authorization {stranger}").format(**vars(roles)))
    await db.connection.execute(sql.SQL("select {apps}.change()").format(**vars(roles)))
    await db.connection.execute("reset session authorization")
    assert await rows(db) != before


@pytest.mark.parametrize("call", CALLS)
async def test_a_role_that_is_taken_on_for_a_statement_suffices_until_the_commit(db, settings, roles, call):
    await claimed_ahead(db, settings)
    before = await rows(db)
    await db.connection.execute(sql.SQL("set session authorization {caller}").format(**vars(roles)))
    async with db.connection.transaction():
        await db.connection.execute(sql.SQL("set local role {admin}").format(**vars(roles)))
        await db.all(call)
        await db.connection.execute("reset role")
    await db.connection.execute("reset session authorization")
    assert await rows(db) != before


async def rows(db) -> list[tuple]:
    return await db.all(
        "select to_jsonb(s)::text from pgsched.schedules s"
        " union all select to_jsonb(r)::text from pgsched.runs r order by 1"
    )


# --- what is read -----------------------------------------------------------------------------------------

GIVEN = {"grace": "90 min", "jitter": "1500 ms", "timeout": "5 min", "backoff": "2 min", "max_backoff": "2 days 3 h"}
MEANT = {
    "grace": timedelta(minutes=90), "jitter": timedelta(seconds=1.5), "timeout": timedelta(minutes=5),
    "backoff": timedelta(minutes=2), "max_backoff": timedelta(days=2, hours=3),
}  # fmt: skip


async def odd(connection: psycopg.AsyncConnection, styles: dict[str, str]) -> None:
    for name, value in styles.items():
        await connection.execute("select set_config(%s, %s, false)", (name, value))


@pytest.mark.parametrize("styles", STYLES, ids=lambda styles: styles["DateStyle"])
async def test_what_a_client_reads_over_its_callers_connection_is_what_is_stored(db, dsn, schema, styles):
    await db.all("select pgsched.create_schedule('s', 'job', '@daily', options => %s)", json.dumps(GIVEN))
    await db.all("select pgsched.trigger('s')")
    await odd(db.connection, styles)
    async with connect(dsn, schema=schema) as client:
        row = await client.get_schedule("s", connection=db.connection)
        assert {name: row[name] for name in MEANT} == MEANT
        assert row == await client.get_schedule("s")
        assert row["created_at"].tzinfo is UTC
        assert await client.list_schedules(connection=db.connection) == [row]
        runs = await client.list_runs(connection=db.connection)
        assert runs == await client.list_runs()
        run = await client.get_run(runs[0]["id"], connection=db.connection)
        assert run["timeout"] == MEANT["timeout"] and run == await client.get_run(run["id"])
        now = (await client.situation("s", connection=db.connection)).now
        assert now.tzinfo is UTC
        since = now - timedelta(days=3)
        assert len((await client.backfill("s", since, now, connection=db.connection)).queued) == 3
    with psycopg.connect(dsn, autocommit=True) as given, connect_sync(dsn, schema=schema) as sync:
        for name, value in styles.items():
            given.execute("select set_config(%s, %s, false)", (name, value))
        assert sync.get_schedule("s", connection=given)["max_backoff"] == MEANT["max_backoff"]


@pytest.mark.parametrize("styles", STYLES, ids=lambda styles: styles["DateStyle"])
async def test_a_worker_behind_a_pooler_reads_what_is_stored(db, settings, monkeypatch, styles):
    """Behind a pooler nothing is set in a session, which is anybody's."""

    async def pooled(connection):
        await odd(connection, styles)
        return False

    monkeypatch.setattr("pgsched.db.session.is_direct", pooled)
    await db.all("select pgsched.create_schedule('s', 'job', '@every 1s', options => %s)", json.dumps(GIVEN))
    await db.all("update pgsched.schedules set created_at = now() - interval '1 minute'")
    async with Parts(settings) as parts:
        await parts.dispatcher.claim_pass()
        await db.all("select pgsched.enqueue('job')")
        await parts.dispatcher.claim_pass()
    fired = parts.taken[0]
    assert (fired.timeout, fired.backoff, fired.max_backoff) == (
        MEANT["timeout"],
        MEANT["backoff"],
        MEANT["max_backoff"],
    )
    assert fired.schedule.grace == MEANT["grace"]
    assert abs(fired.due_at - datetime.now(UTC)) < timedelta(hours=1)
    assert parts.taken[-1].backoff == timedelta(seconds=1) and parts.taken[-1].timeout is None
