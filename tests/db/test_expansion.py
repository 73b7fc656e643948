"""Migrations expand: earlier workers go on beside the new ones. One that contracts says so in its first line."""

import os
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest
from psycopg import sql
from support import baseline
from support.expansion import Catalogue, contractions, shape

from pgsched.db import migrate
from pgsched.db.migrate import Migration
from pgsched.db.statements.queries import in_schema

BEFORE, AFTER = f"before {os.getpid()}", f"after {os.getpid()}"
SHIPPED = migrate.migrations()
# Contractions by their form that no statement of an earlier release notices, by version, each as the test words it. Say
# why, as in `7: {"constraint x of runs is new or another one: …"},  # no release before it writes such a row`.
REVIEWED: dict[int, set[str]] = {}
# Statements that the server cannot prepare: one has several parts, one gets its types from psycopg.
UNPREPARED = {"commit_run", "find_silent_runs"}


@pytest.fixture
async def connection(dsn) -> AsyncIterator[psycopg.AsyncConnection]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        yield connection
        for name in (BEFORE, AFTER):
            await connection.execute(sql.SQL("drop schema if exists {} cascade").format(sql.Identifier(name)))


async def migrated(connection, monkeypatch, shipped: list[Migration]) -> Catalogue:
    """The schema after these migrations."""
    monkeypatch.setattr(migrate, "migrations", lambda: shipped)
    await migrate.migrate(connection, AFTER)
    return await Catalogue.read(connection, AFTER)


async def test_each_migration_serves_earlier_workers_or_says_that_it_does_not(connection, monkeypatch):
    before = await migrated(connection, monkeypatch, SHIPPED[: baseline.VERSION])
    for coming in SHIPPED[baseline.VERSION :]:
        after = await migrated(connection, monkeypatch, SHIPPED[: coming.version])
        found = set(contractions(before, after)) - REVIEWED.get(coming.version, set())
        if coming.serves < coming.version:
            assert found == set(), f"{coming.version:04}_{coming.name}.sql serves workers before it, by its first line"
        before = after


def test_the_baseline_is_served():
    assert max(each.serves for each in SHIPPED[baseline.VERSION :]) <= baseline.VERSION


CHANGES = [
    ("alter table pgsched.runs add column more int", None),
    ("alter table pgsched.runs add column more int not null default 7", None),
    ("alter table pgsched.runs add column more int check (more > 7)", None),
    ("alter table pgsched.runs add column more int unique", None),
    ("create table pgsched.more (id int not null unique check (id > 7))", None),
    ("create index concerning on pgsched.runs (claimed_at)", None),
    ("create function pgsched.cancel(run_id bigint, more text) returns text language sql as $$ select '' $$", None),
    ("alter table pgsched.runs alter column app set default '', alter column entrypoint drop not null", None),
    ("alter table pgsched.runs add column more int not null", "column runs.more is new and takes no null"),
    ("alter table pgsched.runs alter column claimed_at type timestamp", "column runs.claimed_at is of another type"),
    ("alter table pgsched.runs alter column app set not null", "column runs.app takes no null any more"),
    ("alter table pgsched.runs alter column priority drop default", "column runs.priority has lost its default"),
    ("alter table pgsched.runs rename column result to results", "column runs.result is gone"),
    ("drop table pgsched.logs", "column logs.text is gone"),
    ("drop view pgsched.executing", "column executing.run_id is gone"),
    ("alter table pgsched.runs add check (priority < 7)", "constraint runs_priority_check1 of runs is new or another"),
    ("alter table pgsched.runs add foreign key (schedule_id) references pgsched.schedules", "runs_schedule_id_fkey"),
    ("alter table pgsched.zones drop constraint zones_pkey", "a unique index of zones is gone"),
    ("create unique index another on pgsched.runs (claimed_at)", "a unique index of runs is new"),
    ("drop function pgsched.cancel(bigint)", "function cancel(run_id bigint) is gone"),
    ("drop function pgsched.cancel(bigint); create function pgsched.cancel(id bigint) returns text language sql"
     " as $$ select '' $$", "function cancel(run_id bigint) is gone"),
    ("drop function pgsched.cancel(bigint); create function pgsched.cancel(run_id bigint) returns bool language sql"
     " as $$ select true $$", "function cancel(run_id bigint) is gone, or returns another type"),
]  # fmt: skip


async def test_expansions_and_contractions_are_told_apart(connection, monkeypatch):
    before = await migrated(connection, monkeypatch, SHIPPED)
    for change, sentence in CHANGES:
        async with connection.transaction(force_rollback=True):
            await connection.execute(in_schema(change.encode(), AFTER, parametrised=False))
            found = list(contractions(before, await Catalogue.read(connection, AFTER)))
        if sentence is None:
            assert found == [], change
        else:
            assert any(sentence in each for each in found), (change, found)


# --- the statements of the baseline's wheel ---------------------------------------------------------------


@pytest.fixture
async def both(dsn, connection, wheel) -> Iterator[psycopg.Connection]:
    """A connection to the schema that the wheel makes, and to the same one migrated to this version."""
    for name in (BEFORE, AFTER):
        await connection.execute(baseline.command(wheel, "migrate", "--sql", "--schema", name).encode())
    await migrate.migrate(connection, AFTER)
    with psycopg.connect(dsn, autocommit=True) as plain:
        plain.execute("set plan_cache_mode = force_generic_plan")
        yield plain


async def test_each_statement_of_the_release_before_means_the_same_as_before(both, wheel):
    statements = baseline.statements(wheel)
    assert len(statements) > 90
    shapes = {name: shape(both, text, BEFORE) for name, text in statements.items()}
    assert {name for name, found in shapes.items() if "refused" in found} == UNPREPARED
    assert {name: shape(both, text, AFTER) for name, text in statements.items()} == shapes


NOTICED = [
    ("drop index pgsched.runs_one_per_fire_time", "write_plans"),
    ("alter table pgsched.workers drop column route", "insert_worker"),
    ("alter table pgsched.workers alter column started_at type timestamp", "list_workers"),
    ("drop function pgsched.cancel(bigint)", "cancel_run"),
]


async def test_a_statement_that_fits_no_more_is_noticed(both, wheel):
    for change, name in NOTICED:
        text = baseline.statements(wheel)[name]
        before = shape(both, text, AFTER)
        assert "refused" not in before
        with both.transaction(force_rollback=True):
            both.execute(in_schema(change.encode(), AFTER, parametrised=False))
            assert shape(both, text, AFTER) != before, change
