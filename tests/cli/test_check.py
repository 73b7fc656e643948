"""`pgsched check`: what a deploy would change, told before it does, by a look that nobody notices."""

import asyncio
import json
import logging
import sys
import threading
from datetime import UTC, datetime

import psycopg
import pytest
import structlog
from psycopg import sql
from support.shell import Shell, isolate, spawn
from support.workers import working

from pgsched.cli.check import look
from pgsched.cli.run import find
from pgsched.db import session as sessions
from pgsched.db.statements.queries import in_schema

APP = """
from datetime import timedelta
from pgsched import Executor, Limits, Retry, Scheduler

class Own(Executor):
    async def execute(self, run): ...
    def next_fire_time(self, schedule, after): raise RuntimeError("only a worker may ask")

def scheduler(*schedules, app="shop"):
    sc = Scheduler(app=app)
    async def job(x: int = 0): ...
    for name, expression, options in schedules:
        sc.schedule("job", expression, name=name, **options)(job)
    return sc

LATER = {"timezone": "Europe/Berlin", "starts_at": __import__("datetime").datetime.fromisoformat("2031-06-01T00:00Z")}

def one():
    return scheduler(
        ("same", "@yearly", {}), ("morning", "0 9 * * *", LATER), ("options", "@yearly", {"retry": Retry(2)}),
        ("gone", "@yearly", {}), ("paused", "@yearly", {}),
    )

def two():
    return scheduler(
        ("same", "@yearly", {}), ("morning", "0 10 * * *", LATER),
        ("options", "@yearly", {"retry": Retry(3), "grace": timedelta(hours=1), "args": {"x": 1}}),
        ("fresh", "0 0 1 1 *", {}), ("paused", "@monthly", {}), ("theirs", "@daily", {}),
        ("own", "@daily", {"executor": Own}),
    )

async def nothing():
    return scheduler()

def limited(**limits):
    sc = Scheduler(app="shop")
    for name, each in limits.items():
        @sc.entrypoint(name, limits=each)
        async def job(tenant: str = ""): ...
    return sc

def few():
    minute = timedelta(minutes=1)
    return limited(a=Limits(concurrency=5), b=Limits(concurrency_key="tenant"), c=Limits(starts=3, period=minute))

def more():
    half = timedelta(seconds=30)
    return limited(a=Limits(concurrency=5), c=Limits(starts=3, period=half, per_worker=1), d=Limits(concurrency=1))
"""


@pytest.fixture(autouse=True)
def _isolated(monkeypatch, tmp_path):
    isolate(monkeypatch, tmp_path)
    (tmp_path / "shop.py").write_text(APP)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("shop", None)
    yield
    sys.modules.pop("shop", None)
    structlog.reset_defaults()
    logging.basicConfig(force=True, handlers=[logging.NullHandler()])


@pytest.fixture
def shell(settings) -> Shell:
    return Shell(settings)


def started(settings, factory: str) -> None:
    """A worker of this version has been here, and is gone."""

    async def go() -> None:
        async with working(find(f"shop.{factory}")(), settings):
            pass

    asyncio.run(go())


@pytest.fixture
def deployed(settings, shell):
    """Version one is deployed, one of its schedules is paused, and the API has one of its own."""
    started(settings, "one")
    shell.sql("select pgsched.pause('paused', 'audit', '2031-01-01T00:00:00Z')")
    shell.sql("select pgsched.create_schedule('theirs', 'job', '@yearly')")
    return shell


def looked(shell: Shell, app: str = "shop.two", code: int = 1) -> tuple[dict, dict[str, dict]]:
    """What `check --json` tells, and its schedules by name."""
    result = shell("check", app, "--json")
    assert (result.exit_code, result.stderr) == (code, "")
    told = json.loads(result.stdout)
    assert told["different"] is (code == 1)
    return told, {row["name"]: row for row in told["schedules"]}


# --- what it tells --------------------------------------------------------------------------------------


def test_before_the_first_start_everything_is_new(shell):
    told, rows = looked(shell, "shop.one")
    assert {row["difference"] for row in rows.values()} == {"new"} and len(rows) == 5
    assert rows["morning"]["next_run"] == {"before": None, "after": "2031-06-01T07:00:00Z"}
    assert (told["version"], told["in_force_since"]) == ("first", None)


def test_after_a_start_nothing_differs(deployed):
    told, rows = looked(deployed, "shop.one", 0)
    assert {row["difference"] for row in rows.values()} == {"unchanged"} and len(rows) == 5
    assert told["version"] == "current"
    out = deployed.ok("check", "shop.one")
    first, second = out.splitlines()
    assert first == "Nothing differs: the database has 5 schedules of shop as the code declares."
    assert second.startswith("Time zones: tzdata ")


def test_limits_that_differ(settings, shell):
    assert [each["entrypoint"] for each in looked(shell, "shop.few")[0]["limits"]] == ["a", "b", "c"]
    started(settings, "few")
    assert looked(shell, "shop.few", 0)[0]["limits"] == []
    assert looked(shell, "shop.more")[0]["limits"] == [
        {"entrypoint": "b", "changes": {
            "concurrency_key": {"from": ["tenant"], "to": None}, "per_key": {"from": 1, "to": None},
        }},
        {"entrypoint": "c", "changes": {"period": {"from": "1m", "to": "30s"}}},
        {"entrypoint": "d", "changes": {"concurrency": {"from": None, "to": 1}}},
    ]  # fmt: skip
    result = shell("check", "shop.more")
    assert result.exit_code == 1
    assert result.stdout.startswith("No schedule of shop differs, 0 unchanged; limits do.\n")
    assert "limits of c\n  period: 1m -> 30s\n" in result.stdout.replace("Limits", "limits")
    started(settings, "more")
    looked(shell, "shop.more", 0)


def test_every_kind_of_difference(deployed):
    told, rows = looked(deployed)
    assert {name: row["difference"] for name, row in rows.items()} == {
        "same": "unchanged", "morning": "changed", "options": "changed", "paused": "changed", "gone": "retired",
        "fresh": "new", "own": "new", "theirs": "not ours",
    }  # fmt: skip
    assert rows["morning"]["changes"] == {"expression": {"from": "0 9 * * *", "to": "0 10 * * *"}}
    assert rows["morning"]["next_run"] == {"before": "2031-06-01T07:00:00Z", "after": "2031-06-01T08:00:00Z"}
    assert rows["options"]["changes"] == {
        "args": {"from": {}, "to": {"x": 1}},
        "grace": {"from": None, "to": "1h"},
        "max_attempts": {"from": 2, "to": 3},
    }
    assert rows["options"]["next_run"]["before"] == rows["options"]["next_run"]["after"] is not None
    assert rows["paused"]["status"] == {"before": "paused", "after": "paused"}
    assert rows["paused"]["paused_until"] == "2031-01-01T00:00:00Z"
    assert rows["gone"]["next_run"]["before"] and rows["gone"]["next_run"]["after"] is None
    assert rows["theirs"]["owner"] == "api" and rows["theirs"]["changes"] == {}
    assert rows["own"]["next_run"]["after"] is None
    assert told["version"] == "new"


def test_people_read_the_same(deployed):
    result = deployed("check", "shop.two")
    assert (result.exit_code, result.stderr) == (1, "")
    out = result.stdout
    assert out.startswith("7 schedules of shop differ, 1 unchanged.\n")
    for lines in (
        "morning: changed\n  expression: 0 9 * * * -> 0 10 * * *\n"
        "  next run before: 2031-06-01 07:00:00Z, 2031-06-01 09:00:00 +02:00 (Sun) in Europe/Berlin\n"
        "  next run after:  2031-06-01 08:00:00Z, 2031-06-01 10:00:00 +02:00 (Sun) in Europe/Berlin\n",
        "options: changed\n  args: {} -> {\"x\": 1}\n  grace: - -> 1h\n  max attempts: 2 -> 3\n",
        "paused: changed\n  expression: @yearly -> @monthly\n"
        "  next run before: paused until 2031-01-01 00:00:00Z\n  next run after:  paused until 2031-01-01 00:00:00Z\n",
        "gone: will be retired (the code no longer declares it; its history stays)\n",
        "fresh: new\n  next run before: -\n",
        "own: new\n  next run before: -\n  next run after:  computed by its executor\n",
        "theirs: not ours (the name belongs to the API, and is left alone)\n",
    ):  # fmt: skip
        assert lines in out
    assert "same" not in out


def test_what_was_retired_returns(deployed, settings):
    deployed.sql("select pgsched.pause('gone', 'x')")
    started(settings, "two")
    _, rows = looked(deployed, "shop.one")
    assert rows["gone"]["difference"] == "returning" and rows["gone"]["status"]["after"] == "paused"
    assert rows["fresh"]["difference"] == "retired"
    assert "gone: returns (it was retired, its history goes on)" in deployed("check", "shop.one").stdout


def test_an_invalid_one_will_be_planned_again(deployed):
    deployed.sql("update pgsched.schedules set status = 'invalid', next_run = null, note = 'x' where name = 'same'")
    out = deployed("check", "shop.one").stdout
    assert "same: changed\n  status: invalid -> active\n  next run before: none, it is invalid\n" in out


def test_the_next_runs_are_those_that_a_start_then_plans(deployed, settings):
    _, rows = looked(deployed)
    started(settings, "two")
    planned = dict(deployed.sql("select name, next_run from pgsched.schedules where status = 'active'"))
    for name in ("same", "morning", "options", "fresh"):
        assert datetime.fromisoformat(rows[name]["next_run"]["after"]) == planned[name].astimezone(UTC), name
    assert looked(deployed)[1].keys() == rows.keys() - {"gone"}


def test_only_to_look_exits_0(deployed):
    result = deployed("check", "shop.two", "--exit-zero")
    assert (result.exit_code, result.stdout) == (0, deployed("check", "shop.two").stdout)
    assert deployed("check", "shop.missing", "--exit-zero").exit_code == 78, "that was no look"


def test_a_version_that_would_have_to_wait_says_so(deployed, settings):
    started(settings, "two")
    told, _ = looked(deployed, "shop.one")
    assert (told["version"], told["workers_in_force"]) == ("back", 0)
    assert "a start rolls back to this one" in deployed("check", "shop.one").stdout
    deployed.sql(
        "insert into pgsched.workers (id, app, host, pid, version, entrypoints, direct, heartbeat_interval,"
        " stall_timeout, fingerprint) select gen_random_uuid(), app, 'h', 1, 'v', '{}', true, '1s', '30s', fingerprint"
        " from pgsched.declarations"
    )
    told, _ = looked(deployed, "shop.one")
    assert (told["version"], told["workers_in_force"]) == ("deferred", 1)
    out = deployed("check", "shop.one").stdout
    assert "A start would change nothing yet" in out and "1 live worker runs the version" in out
    assert looked(deployed, "shop.nothing")[0]["version"] == "new"


def test_a_terminal_obeys_no_name(deployed):
    deployed.sql("update pgsched.schedules set name = E'evil \u202e' where name = 'gone'")
    assert "\u202e" not in deployed("check", "shop.one").stdout
    assert "\u202e" not in deployed("check", "shop.one", "--json").stdout


# --- what it leaves alone -------------------------------------------------------------------------------


def everything(shell: Shell) -> list:
    """All rows of all tables, with what tells that one was written or locked."""
    tables = ("schedules", "runs", "workers", "declarations", "migrations")
    columns = "to_jsonb(t), xmin::text, xmax::text, ctid::text"
    rows = [shell.sql(f"select {columns} from pgsched.{table} t order by ctid") for table in tables]
    return [rows, shell.sql("select last_value, is_called from pgsched.schedules_id_seq")]


@pytest.mark.parametrize("app", ["shop.one", "shop.two", "shop.nothing"])
def test_it_changes_nothing_and_wakes_nobody(deployed, app):
    before = everything(deployed)
    with psycopg.connect(deployed.dsn, autocommit=True) as listening:
        listening.execute(sql.SQL("listen {}").format(sql.Identifier(deployed.schema)))
        process = spawn("check", app, *deployed.where)
        out, err = process.communicate(timeout=60)
        assert process.returncode == (0 if app == "shop.one" else 1), err
        assert out and err == b""
        listening.execute("select 1")
        assert listening.pgconn.notifies() is None
    assert everything(deployed) == before


def test_it_waits_for_nobody_who_writes(deployed):
    with psycopg.connect(deployed.dsn) as other:
        for statement in (
            b"lock table pgsched.schedules, pgsched.declarations in share row exclusive mode",
            b"select from pgsched.schedules for update",
            b"select from pgsched.declarations for update",
        ):
            other.execute(in_schema(statement, deployed.schema, parametrised=False))
        late = threading.Timer(10, other.cancel)
        late.start()
        looked(deployed)
        assert late.is_alive(), "it waited"
        late.cancel()


async def test_nobody_who_writes_waits_for_it(settings, db, store, dsn):
    before, after = find("shop.one")(), find("shop.two")()
    async with working(before, settings), await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await sessions.prepare(connection)
        async with sessions.snapshot(connection):
            await look(connection, store.declarations, after)
            held = "select distinct mode from pg_locks where pid = %s and locktype <> 'virtualxid'"
            assert await db.all(held, connection.info.backend_pid) == [("AccessShareLock",)]
            # Claims go on beside it.
            await db.all("select pgsched.trigger('same')")
            await db.until("select count(*) = 1 from pgsched.runs where status = 'succeeded'")
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                await store.declarations.retire_schedules(connection, "code:shop", [])
