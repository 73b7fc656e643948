"""The roles of docs/roles.md, with just the rights that it names: what each can do, and that it can do nothing else."""

import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from structlog.testing import capture_logs
from support.workers import working

from pgsched import Limits, Scheduler, connect
from pgsched.db.statements.queries import in_schema

PAGE = (Path(__file__).parents[2] / "docs" / "roles.md").read_text()
GRANTS = re.findall(r"^grant .*;$", PAGE, re.M)
ALLOWED = {"entrypoint", "args", "due_at", "priority", "unique_key", "unique_while", "app"}


@pytest.fixture
async def roles(db, schema) -> AsyncIterator[dict[str, str]]:
    """The four roles, with the grants that the page has, under names of this process."""
    names = {role: f"{role}_{os.getpid()}" for role in ("app_enqueues", "app_client", "app_worker", "app_reads")}
    for name in names.values():
        await db.connection.execute(sql.SQL("create role {}").format(sql.Identifier(name)))
    for grant in GRANTS:
        text = re.sub(r"schema pgsched\b", lambda _: "schema " + quoted(schema), grant)
        text = re.sub(r"\bapp_\w+;$", lambda found: quoted(names[found[0][:-1]]) + ";", text)
        await db.connection.execute(in_schema(text.encode(), schema, parametrised=False))
    yield names
    for name in names.values():
        await db.connection.execute(sql.SQL("drop owned by {0}; drop role {0}").format(sql.Identifier(name)))


def quoted(name: str) -> str:
    return sql.Identifier(name).as_string()


def as_role(dsn: str, name: str) -> str:
    return make_conninfo(dsn, options=f"-c role={name}")


class Enqueuer:
    """A session of the role that may only enqueue."""

    def __init__(self, connection: psycopg.AsyncConnection, schema: str) -> None:
        self.connection, self.schema = connection, schema

    async def refused(self, statement: str) -> str | None:
        """The SQLSTATE with which the statement is refused."""
        try:
            async with self.connection.transaction():
                await self.connection.execute(in_schema(statement.encode(), self.schema, parametrised=False))
        except psycopg.Error as error:
            return error.sqlstate
        return None


@pytest.fixture
async def enqueuer(dsn, schema, roles) -> AsyncIterator[Enqueuer]:
    async with await psycopg.AsyncConnection.connect(
        as_role(dsn, roles["app_enqueues"]), autocommit=True
    ) as connection:
        yield Enqueuer(connection, schema)


def serving(**limits) -> Scheduler:
    scheduler = Scheduler(app="roles")

    @scheduler.entrypoint("mail", limits=Limits(**limits))
    async def mail(): ...

    return scheduler


def test_the_page_has_the_grants_of_four_roles():
    assert len(GRANTS) == 11
    [columns] = re.findall(r"grant insert \((.*)\) on pgsched.runs to app_enqueues", PAGE)
    assert set(columns.split(", ")) == ALLOWED


async def test_who_may_only_enqueue_enqueues_in_every_way(db, enqueuer, roles, settings):
    async with working(serving(concurrency=1), settings):
        for statement in (
            "select pgsched.enqueue('mail', '{}', unique_key => 'a')",
            "select pgsched.enqueue_unique('mail', '{}', unique_key => 'b', unique_while => 'waiting', app => 'roles')",
            "select pgsched.enqueue_many('mail', array['{}', '{}']::jsonb[], unique_keys => array['c', null])",
            "insert into pgsched.runs (entrypoint, args, due_at, priority, unique_key, unique_while, app)"
            " values ('mail', '{}', now(), 3, 'd', 'live', null)",
            "insert into pgsched.runs (entrypoint) values ('mail') returning id",
        ):
            assert await enqueuer.refused(statement) is None, statement
        mine = as_role(settings.dsn, roles["app_enqueues"])
        async with connect(mine, schema=settings.schema) as client:
            assert (await client.enqueue("mail", unique_key="e")).queued
            assert [each.queued for each in await client.enqueue_many("mail", [{}, {}], unique_keys=["f", "f"])] == [
                True, False,
            ]  # fmt: skip
        await db.until("select count(*) = 8 from pgsched.runs where status = 'succeeded'")
    # A plain INSERT stood in line like the others.
    assert await db.value("select bool_and(line is not null and limited_by = 'roles') from pgsched.runs")


async def test_who_may_only_enqueue_can_do_nothing_else(db, enqueuer):
    run_id = await db.value("select pgsched.enqueue('mail')")
    columns = [
        name
        for (name,) in await db.all(
            "select attname from pg_attribute where attrelid = 'pgsched.runs'::regclass and attnum > 0"
            " and not attisdropped"
        )
    ]
    assert len(columns) > 30
    tried = [f"update pgsched.runs set {name} = default where id = {run_id}" for name in columns]
    tried += [
        f"insert into pgsched.runs (entrypoint, {name}) values ('mail', default)"
        for name in columns
        if name not in ALLOWED
    ]
    tried += [
        f"select 1 from pgsched.runs where id = {run_id} for {lock}"
        for lock in ("update", "no key update", "share", "key share")
    ]
    tried += [
        "delete from pgsched.runs", "truncate pgsched.runs", "lock table pgsched.runs in share mode",
        "select args from pgsched.runs", "select result from pgsched.runs", "select name from pgsched.schedules",
        "insert into pgsched.schedules (name, entrypoint, expression) values ('s', 'mail', '@daily')",
        "select pgsched.create_schedule('s', 'mail', '@daily')", f"select pgsched.cancel({run_id})",
        f"select pgsched.retry({run_id})", "select * from pgsched.workers", "delete from pgsched.limits",
        "select nextval('pgsched.tokens')",
    ]  # fmt: skip
    passed = {statement: state for statement in tried if (state := await enqueuer.refused(statement)) != "42501"}
    assert passed == {}


BAD_ROWS = [
    "insert into pgsched.runs (entrypoint, attempt) values ('mail', 2147483647)",
    "insert into pgsched.runs (entrypoint, errors) values ('mail', '{}')",
    "insert into pgsched.runs (entrypoint, schedule_id, fire_time, status, finished_at)"
    " select 'mail', 1, now() + n * interval '1 second', 'succeeded', now() from generate_series(1, 5) n",
    "insert into pgsched.runs (entrypoint, schedule_id, fire_time, status) values ('mail', 1, now(), 'running')",
    "begin; insert into pgsched.runs (entrypoint, schedule_id, fire_time) values ('mail', 1, now())",
]


async def test_no_row_of_who_may_only_enqueue_keeps_a_worker_from_firing(db, enqueuer, settings):
    await db.all("select pgsched.create_schedule('s', 'mail', '0 0 1 1 *')")
    async with working(serving(), settings):
        assert [await enqueuer.refused(row) for row in BAD_ROWS] == ["42501"] * 5
        await db.all(
            "update pgsched.schedules set next_run = date_trunc('second', now()), planned_at = clock_timestamp()"
        )
        await db.all("select pgsched.enqueue('mail')")  # wakes the worker
        await db.until("select count(*) = 1 from pgsched.runs where schedule_id is not null and status = 'succeeded'")


@pytest.mark.parametrize(
    ("columns", "constraint"),
    [
        ("attempt) values ('mail', 1000001)", "runs_attempt_check"),
        ("attempt) values ('mail', -1)", "runs_attempt_check"),
        ("errors) values ('mail', '{}')", "runs_errors_check"),
        ("status, claimed_at, heartbeat_at) values ('mail', 'running', now(), now())", "runs_claim_check"),
        ("status, worker, claimed_at) values ('mail', 'running', gen_random_uuid(), now())", "runs_claim_check"),
        ("schedule_id) values ('mail', 1)", "runs_fire_time_check"),
        ("fire_time) values ('mail', now())", "runs_fire_time_check"),
        ("unique_while) values ('mail', 'never')", "runs_unique_while_check"),
    ],
)
async def test_not_even_the_owner_writes_a_row_that_no_worker_can_handle(db, columns, constraint):
    with pytest.raises(psycopg.errors.CheckViolation) as refused:
        await db.all(f"insert into pgsched.runs (entrypoint, {columns}")
    assert refused.value.diag.constraint_name == constraint


async def test_the_worker_and_the_client_need_no_right_but_these(db, dsn, schema, roles, settings):
    mine = settings.merged({"dsn": as_role(dsn, roles["app_worker"])}, "test")
    with capture_logs() as events:
        async with (
            working(serving(concurrency=5), mine),
            connect(as_role(dsn, roles["app_client"]), schema=schema) as client,
        ):
            await client.create_schedule("s", "mail", "* * * * *")
            ids = [await client.trigger("s"), await client.enqueue("mail", unique_key="k", unique="waiting")]
            ended = [await client.runs.wait(run_id, 20) for run_id in ids]
            await client.alter("s", priority=3)
            await client.remove("s")
    assert [run["status"] for run in ended] == ["succeeded"] * 2
    assert [event for event in events if "denied" in str(event)] == []


async def test_who_looks_sees_all_and_changes_nothing(db, dsn, schema, roles):
    run_id = await db.value("select pgsched.enqueue('mail')")
    async with connect(as_role(dsn, roles["app_reads"]), schema=schema) as client:
        assert [row["id"] for row in await client.list_runs()] == [run_id]
        assert await client.list_schedules() == await client.list_workers() == []
        assert (await client.get_run(run_id))["status"] == "queued"
        for call in (client.enqueue("mail"), client.cancel(run_id)):
            with pytest.raises(Exception, match="permission denied"):
                await call


async def test_nobody_else_hangs_the_triggers_functions_on_a_table_of_his_own(db):
    """They run with their owner's rights, and read the names and ids of the row that they are called for."""
    public = await db.all(
        "select p.oid::regprocedure::text from pg_proc p where p.prorettype = 'trigger'::regtype"
        " and p.pronamespace = (select relnamespace from pg_class where oid = 'pgsched.runs'::regclass)"
        " and has_function_privilege('public', p.oid, 'execute')"
    )
    assert public == []
