"""The examples for Django and SQLAlchemy: a restart of the server fails one job at most, for as long as they live."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from daemons import until

EXAMPLES = Path(__file__).parents[2] / "examples"
# An example, its entrypoint, and the statement that makes so many rows and a job for each.
MAKES = """
    with made as (insert into {} select 'a@example.org', false from generate_series(1, %s) returning id)
    select pgsched.enqueue('{}', jsonb_build_object('{}', id)) from made
"""
APPS = {
    "django_app": ("invoice", "shop_order (email, invoiced)", "order"),
    "sqlalchemy_app": ("send", "parcels (email, sent)", "parcel"),
}


@pytest.fixture(scope="module")
def database(server) -> str:
    """The module's own server, with the schema's usual name."""
    subprocess.run([sys.executable, "-m", "pgsched", "migrate"], env=environment(server.dsn), check=True, timeout=60)
    return server.dsn


def environment(dsn: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PGSCHED_", "PGHOST", "PGDATABASE"))}
    return {**kept, "PGSCHED_DSN": dsn, "PYTHONPATH": str(EXAMPLES.parent)}


@contextlib.contextmanager
def worker(database: str, app: str, log: Path):
    command = [sys.executable, "-m", "pgsched", "run", f"{app}:create_scheduler", "--max-threads", "4"]
    with (
        log.open("wb") as out,
        subprocess.Popen(command, cwd=EXAMPLES, env=environment(database), stderr=out) as process,
    ):
        try:
            yield
            process.terminate()
            assert process.wait(30) == 0
        finally:
            process.kill()
            print(log.read_text()[-4000:])


def query(database: str, statement: str, *params: object) -> list[tuple]:
    with psycopg.connect(database, autocommit=True) as connection:
        cursor = connection.execute(statement.encode(), params)
        return cursor.fetchall() if cursor.description else []


async def all_run(database: str, app: str, number: int) -> None:
    """Enqueues so many jobs at once and waits until all have ended."""
    entrypoint, table, argument = APPS[app]
    query(database, MAKES.format(table, entrypoint, argument), number)
    live = "select count(*) from pgsched.runs where entrypoint = %s and status in ('queued', 'running')"
    await until(lambda: query(database, live, entrypoint) == [(0,)], "end of all jobs")


def requests(database: str, app: str) -> list[str]:
    """The output of the example's own requests."""
    done = subprocess.run([sys.executable, f"{app}.py"], cwd=EXAMPLES, env=environment(database), check=True,
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    return done.stdout.splitlines()


@pytest.mark.parametrize("app", APPS)
async def test_a_restart_of_the_server_fails_one_job_at_most(database, server, tmp_path, app):
    with worker(database, app, tmp_path / "log"):
        sentence, done = requests(database, app)
        assert "@example.org" in sentence and done == "True"
        await all_run(database, app, 12)
        server.stop("immediate")
        server.start()
        await all_run(database, app, 12)
    entrypoint = APPS[app][0]
    counts = query(
        database,
        "select count(*), count(*) filter (where status = 'succeeded'), coalesce(sum(jsonb_array_length(errors)), 0)"
        " from pgsched.runs where entrypoint = %s",
        entrypoint,
    )
    assert counts[0][:2] == (25, 25) and counts[0][2] <= 1, counts
