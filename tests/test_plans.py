"""Plans of the statements that a worker sends all the time: each given row is found by its id, whatever the server's
statistics say. What is running grows from nothing to thousands, and back, between two looks of autovacuum."""

import uuid
from datetime import UTC, datetime

import psycopg
import pytest

from pgsched import db as connections
from pgsched.model import Claim, Outcome, RunStatus
from pgsched.store import Store

RUNNING, GIVEN, OTHERS = 3000, 1000, 20_000


class Recorded(Exception):
    """The statement was sent."""


class Recorder:
    """Takes a statement instead of a connection."""

    async def execute(self, query, params):
        self.sent = query, params
        raise Recorded


def thrown_away(node) -> float:
    """How many rows a plan has looked at in vain."""
    names = ("Rows Removed by Filter", "Rows Removed by Join Filter", "Rows Removed by Index Recheck")
    here = sum(node.get(name, 0) for name in names) * node["Actual Loops"]
    return here + sum(thrown_away(child) for child in node.get("Plans", []))


async def waste(connection, call, *, whole: bool) -> float:
    recorder = Recorder()
    with pytest.raises(Recorded):
        await call(recorder)
    query, params = recorder.sent
    async with connection.transaction(force_rollback=True):
        cursor = await connection.execute(b"explain (analyze, format json) " + query, params)
        plan = (await cursor.fetchone())[0][0]["Plan"]
        if whole:  # a hash join over all of the table throws nothing away that would be counted
            assert "Seq Scan" not in str(plan)
        return thrown_away(plan)


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("prepared", [True, False], ids=["worker's session", "session as behind a pooler"])
async def test_what_runs_is_found_by_its_id_though_nothing_ran_when_the_table_was_analysed(
    settings, db, mode, prepared
):
    worker, store = uuid.uuid4(), Store(settings.schema)
    await db.all("insert into pgsched.runs (entrypoint) select 'job' from generate_series(1, %s::int)", OTHERS)
    await db.all("vacuum analyze pgsched.runs")
    ids = [
        row[0]
        for row in await db.all(
            "update pgsched.runs set status = 'running', attempt = 1, worker = %s, max_attempts = 3"
            " where id in (select id from pgsched.runs order by id limit %s) returning id",
            worker, RUNNING,
        )
    ][:GIVEN]  # fmt: skip
    now = datetime.now(UTC)
    ends = [Outcome(Claim(run, 1, worker), RunStatus.SUCCEEDED, now, now) for run in ids]
    async with await psycopg.AsyncConnection.connect(settings.dsn, autocommit=True) as connection:
        if prepared:
            await connections.prepare(connection)
        await connection.execute(f"set plan_cache_mode = {mode}")
        for call in (
            lambda c: store.finish_runs(c, worker, ends),
            lambda c: store.look_after_ends(c, worker, ends),
            lambda c: store.beat(c, worker, [(run, 1, now) for run in ids]),
        ):
            assert await waste(connection, call, whole=prepared) <= GIVEN, "each once at most, not each against each"
