"""Applications that have the same name, or another name now: what a start refuses, takes over, and leaves alone."""

import asyncio
import contextlib
import json
import sys

import pytest
from structlog.testing import capture_logs
from support.declarations import named, start
from support.moves import HERE, active, declares, retired, stored
from support.shell import Shell, isolate, spawn
from support.workers import until, working

from pgsched import Limits, Scheduler
from pgsched.cli.run import built
from pgsched.db.statements.declarations import DeclarationStatements
from pgsched.errors import ConfigurationError
from pgsched.executors.home import Home
from pgsched.worker.kit import Kit
from pgsched.worker.upkeep.reconciler import Reconciler

OLD = "shop/no_such_module.create_scheduler"


@contextlib.asynccontextmanager
async def impatient(scheduler: Scheduler, settings):
    async with working(scheduler, settings, resync_interval="50ms") as worker:
        worker.reconciler.restart = 0.1
        yield worker


# --- names ----------------------------------------------------------------------------------------------


async def test_the_same_factory_path_in_two_projects_is_two_applications(settings, db, tmp_path, monkeypatch):
    async with contextlib.AsyncExitStack() as stack:
        for project, name in (("one", "invoices"), ("two", "letters")):
            (tmp_path / project).mkdir()
            (tmp_path / project / "pyproject.toml").write_text(f'[project]\nname = "{project}"\n')
            (tmp_path / project / "same_app.py").write_text(
                "from pgsched import Scheduler\n"
                "def create_scheduler():\n    sc = Scheduler()\n"
                f"    @sc.schedule('job', '@yearly', name={name!r})\n    async def job(): ...\n    return sc\n"
            )
            monkeypatch.chdir(tmp_path / project)
            monkeypatch.setattr(sys, "path", [str(tmp_path / project), *sys.path])
            monkeypatch.delitem(sys.modules, "same_app", raising=False)
            scheduler = await stack.enter_async_context(built("same_app:create_scheduler"))
            assert scheduler.app_name == f"{project}/same_app.create_scheduler"
            await stack.enter_async_context(working(scheduler, settings))
        assert await stored(db) == {
            "invoices": active("one/same_app.create_scheduler"), "letters": active("two/same_app.create_scheduler"),
        }  # fmt: skip
    assert "same_app" in sys.modules
    sys.modules.pop("same_app")


# --- refused --------------------------------------------------------------------------------------------


async def everything(db) -> list[tuple]:
    """All that a start may change."""
    return [
        await db.all(f"select t::text from pgsched.{table} t order by 1")
        for table in ("schedules", "limits", "declarations", "runs")
    ]


@pytest.mark.parametrize(
    ("project", "names"),
    [("shop", ["letters"]), ("bank", ["letters"]), ("bank", ["invoices", "letters"]), ("shop", [])],
)
async def test_a_start_that_would_retire_what_a_living_stranger_serves_is_refused(settings, db, project, names):
    first = declares("invoices", "payroll", app="svc", limits=Limits(concurrency=3))
    async with working(first, settings) as worker:
        before = await everything(db)
        second = declares(*names, app="svc", home=Home(project, "other.create"), limits=Limits(concurrency=1))
        gone = sorted({"invoices", "payroll"} - set(names))
        with pytest.raises(ConfigurationError) as refused:
            await start(second, settings)
        text = str(refused.value)
        assert refused.value.exit_code == 78
        for part in (
            "'svc'",
            *map(repr, gone),
            f"pid {__import__('os').getpid()}",
            "project shop",
            "Scheduler(app='…')",
        ):
            assert part in text
        assert await everything(db) == before
        assert await db.all("select id from pgsched.workers") == [(worker.kit.worker,)]
    await start(second, settings)  # nobody is left who serves them
    assert (await stored(db))["payroll"][2] == "finished"


async def test_a_new_version_beside_the_old_one_is_no_stranger(settings, db):
    async with working(declares("kept", "dropped", app="svc"), settings):
        await start(declares("kept", "added", app="svc"), settings)
    assert await stored(db) == {"kept": active("svc"), "added": active("svc"), "dropped": retired("svc")}


async def test_a_worker_of_an_older_pgsched_that_names_no_project_is_no_stranger(settings, db):
    async with working(declares("kept", "dropped", app="svc"), settings):
        await db.all("update pgsched.workers set project = null")
        await start(declares("kept", app="svc", home=Home("bank", "x.y")), settings)
    assert (await stored(db))["dropped"] == retired("svc")


# --- moved ----------------------------------------------------------------------------------------------


async def test_a_factory_that_moved_within_its_project_keeps_its_schedules(settings, db):
    await start(declares("kept", "paused", "dropped", app=OLD), settings)
    await db.all("select pgsched.pause('paused', 'audit'), pgsched.trigger('kept')")
    await db.all("insert into pgsched.runs (entrypoint, app) values ('job', %s)", OLD)
    ids = await db.all("select id, name from pgsched.schedules where name <> 'added' order by id")
    events = await start(declares("kept", "paused", "added", expression="@monthly"), settings)
    (moved,) = named(events, "application_moved")
    assert (moved["old"], moved["app"], moved["schedules"], moved["runs"]) == (OLD, HERE.name, 3, 1)
    assert await stored(db) == {
        "kept": active(HERE.name), "added": active(HERE.name), "dropped": retired(HERE.name),
        "paused": [f"code:{HERE.name}", HERE.name, "paused"],
    }  # fmt: skip
    assert await db.all("select id, name from pgsched.schedules where name <> 'added' order by id") == ids
    assert await db.value("select bool_and(expression = '@monthly') from pgsched.schedules where retired_at is null")
    assert await db.all("select distinct app from pgsched.runs") == [(HERE.name,)]
    assert await db.all("select app from pgsched.declarations") == [(HERE.name,)]
    assert not named(
        await start(declares("kept", "paused", "added", expression="@monthly"), settings), "application_moved"
    )


async def test_what_stood_in_line_at_the_old_limits_stands_at_the_new_ones(settings, db):
    one_at_once = Limits(concurrency=1)
    await start(declares("s", app=OLD, limits=one_at_once), settings)
    await db.all("select pgsched.trigger('s')")
    for app in (OLD, None, OLD):
        await db.all("select pgsched.enqueue('job', app => %s)", app)
    await db.all("insert into pgsched.runs (entrypoint, app, unique_key) values ('job', %s, 'k')", OLD)
    await db.all("insert into pgsched.runs (entrypoint, app, unique_key) values ('job', %s, 'k')", HERE.name)
    assert await db.value("select count(*) from pgsched.runs where limited_by = %s", OLD) == 5
    async with working(declares("s", limits=one_at_once), settings):
        await db.until("select count(*) = 6 from pgsched.runs where status = 'succeeded'")
    overlapping = (
        "select count(*) from pgsched.runs a join pgsched.runs b"
        " on a.id < b.id and a.started_at < b.finished_at and b.started_at < a.finished_at"
    )
    assert await db.value(overlapping) == 0
    assert await db.all("select distinct app from pgsched.runs order by 1") == [(HERE.name,), (None,)]
    assert await db.all("select app from pgsched.limit_members where limited") == [(HERE.name,)]


@pytest.mark.parametrize("old", [HERE.path, HERE.name])
async def test_an_application_that_gets_a_name_keeps_what_it_had_without_one(settings, db, old):
    """The name was the import path alone in earlier versions."""
    await start(declares("kept", app=old), settings)
    await start(declares("kept", app="Shop"), settings)
    assert await stored(db) == {"kept": active("Shop")}


OTHERS = {
    "another project": "bank/no_such_module.create_scheduler",
    "a factory that is still there": "shop/pgsched.commands.create_scheduler",
    "a name that somebody chose": "Shop",
}


@pytest.mark.parametrize("why", OTHERS)
async def test_what_is_not_certainly_ours_is_left_alone_and_the_log_names_the_command(settings, db, why):
    await start(declares("kept", app=OTHERS[why]), settings)
    before = await stored(db)
    (event,) = named(await start(declares("kept"), settings), "schedule_not_ours")
    assert await stored(db) == before
    assert f"pgsched schedules adopt {OTHERS[why]} {HERE.name}" in event["advice"]


async def test_a_move_waits_for_the_workers_of_the_old_name(settings, db):
    """A rolling deploy: the old version runs on beside the new one, and its schedules with it."""
    async with contextlib.AsyncExitStack() as stack:
        old = await stack.enter_async_context(working(declares("kept", "dropped", app=OLD), settings))
        with capture_logs() as events:
            new = await stack.enter_async_context(impatient(declares("kept", "added"), settings))
        (waits,) = named(events, "application_move_waits")
        assert waits["old"] == OLD and f"pgsched schedules adopt {OLD} {HERE.name} --yes" in waits["advice"]
        assert not named(events, "schedule_not_ours"), "one warning is enough"
        looks = new.listener.resyncs
        await until(lambda: new.listener.resyncs != looks)
        assert await stored(db) == {"kept": active(OLD), "dropped": active(OLD), "added": active(HERE.name)}
        old.stop()
        await db.until(
            "select owner = %s and status = 'finished' from pgsched.schedules where name = 'dropped'",
            f"code:{HERE.name}",
        )
        assert await stored(db) == {
            "kept": active(HERE.name), "dropped": retired(HERE.name), "added": active(HERE.name),
        }  # fmt: skip


async def test_an_old_process_that_starts_again_in_the_middle_of_a_move_brings_nothing_back(settings, db):
    """What the moved application has retired is not free for a worker of the old name while it is alive."""
    gone = Home("shop", "no_such_module.create_scheduler")  # in the old code it is the new factory that is not there
    await start(declares("kept", "dropped", home=gone), settings)
    new = Home("shop", "another_module_that_is_not_here.create_scheduler")
    async with working(declares("kept", home=new), settings) as worker:
        before = await stored(db)
        assert before == {"kept": active(new.name), "dropped": retired(new.name)}
        async with impatient(declares("kept", "dropped", home=gone), settings) as old:
            assert await stored(db) == before
            assert old.reconciler.awaited == [new.name]
            worker.stop()  # the roll-back is complete
            await db.until(
                "select bool_and(owner = %s and status = 'active') from pgsched.schedules", f"code:{gone.name}"
            )


async def test_two_starts_that_take_over_from_each_other_wait_and_do_not_deadlock(settings, db, monkeypatch):
    """Each holds its first lock, and goes for the other's."""
    one, two = Home("shop", "no_module_a.create"), Home("shop", "no_module_b.create")
    for home, name in ((one, "a"), (two, "b")):
        await db.all(
            "insert into pgsched.schedules (name, entrypoint, expression, owner, app)"
            " values (%s, 'job', '@yearly', 'code:' || %s::text, %s)",
            name, home.name, home.name,
        )  # fmt: skip
    real, held = DeclarationStatements.lock_declarations, set()
    waiting = "select exists (select from pg_locks where not granted)"

    async def lock(self, connection, app):
        await real(self, connection, app)
        held.add(connection)
        while len(held) < 2 and not await db.value(waiting):
            await asyncio.sleep(0.005)

    monkeypatch.setattr(DeclarationStatements, "lock_declarations", lock)
    both = [declares("a", "b", home=home) for home in (one, two)]
    machines = [Kit.build(sc, settings) for sc in both]

    async def reconciled(kit: Kit) -> None:
        async with kit.control.use() as connection:
            await Reconciler(kit).start(connection)
        await kit.control.discard()

    await asyncio.gather(*map(reconciled, machines))
    owners = await db.all("select distinct owner, app from pgsched.schedules")
    assert owners in [[(f"code:{home.name}", home.name)] for home in (one, two)]


# --- adopted --------------------------------------------------------------------------------------------


@pytest.fixture
def shell(settings, monkeypatch, tmp_path) -> Shell:
    isolate(monkeypatch, tmp_path)
    return Shell(settings)


def test_adopt(shell):
    shell.sql(
        "insert into pgsched.schedules (name, entrypoint, expression, owner, app) values"
        " ('a', 'job', '@yearly', 'code:old one', 'old one'), ('b', 'job', '@yearly', 'api', 'old one'),"
        " ('c', 'job', '@yearly', 'api', null), ('d', 'job', '@yearly', 'code:other', 'other')"
    )
    shell.sql("select pgsched.trigger('a'), pgsched.trigger('c')")
    shell.sql("insert into pgsched.runs (entrypoint, app) values ('job', 'old one'), ('job', 'other'), ('job', null)")
    shell.sql("insert into pgsched.declarations (app, fingerprint) values ('old one', 'x')")

    def owners() -> dict:
        return {row[0]: row[1:] for row in shell.sql("select name, owner, app from pgsched.schedules")}

    before = owners()
    missing = shell("schedules", "adopt", "nobody", "new")
    assert missing.exit_code == 3 and "'old one', 'other'" in missing.stderr
    dry = shell("schedules", "adopt", "old one", "new", "--dry-run")
    assert dry.exit_code == 0 and dry.stdout.split() == ["a", "b"]
    assert dry.stderr == 'Would take over 2 schedules and 1 job of "old one" for "new".\n'
    assert owners() == before and shell.sql("select app from pgsched.declarations where app = 'old one'")
    shell.sql(
        "insert into pgsched.workers (id, app, host, pid, version, entrypoints, direct, heartbeat_interval,"
        " stall_timeout) values (gen_random_uuid(), 'old one', 'h', 7, '1', '{}', true, '1s', '9s')"
    )
    refused = shell("schedules", "adopt", "old one", "new")
    assert refused.exit_code == 1 and "host h, pid 7" in refused.stderr and "--yes" in refused.stderr
    assert owners() == before
    done = json.loads(shell("schedules", "adopt", "old one", "new", "--yes", "--json").stdout)
    assert (done["schedules"], done["runs"], [w["pid"] for w in done["workers"]]) == (["a", "b"], 1, [7])
    assert owners() == {**before, "a": ("code:new", "new"), "b": ("api", "new")}
    assert shell.sql("select app from pgsched.runs order by id") == [("new",), (None,), ("new",), ("other",), (None,)]
    assert not shell.sql("select app from pgsched.declarations where app = 'old one'")
    assert shell("schedules", "adopt", "x", "x").exit_code == 2
    assert shell("schedules", "adopt", "x", "a\nb").exit_code == 2


def test_check_shows_a_move_a_refusal_and_the_command(shell, tmp_path, settings):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "shop"\n')
    (tmp_path / "moved_app.py").write_text(
        "from pgsched import Scheduler\n"
        "def create(app=None):\n    sc = Scheduler(app=app)\n"
        "    @sc.schedule('job', '@yearly', name='kept')\n    async def job(): ...\n    return sc\n"
        "def named(): return create('svc')\n"
    )
    with_owner = (
        "insert into pgsched.schedules (name, entrypoint, expression, owner, app, next_run, planned_at)"
        " select n, 'job', '@yearly', 'code:' || %s::text, %s::text, now() + interval '9 days', now()"
        " from unnest(%s::text[]) n"
    )
    shell.sql(with_owner, OLD, OLD, ["kept", "dropped"])
    told = shell("check", "moved_app.create")
    assert told.exit_code == 1
    assert f"used to be called {OLD}. Its 2 schedules will be taken over by the next start." in told.stdout
    assert "dropped: will be retired" in told.stdout and "kept: changed" in told.stdout
    shell.sql(
        "insert into pgsched.workers (id, app, host, pid, version, entrypoints, direct, heartbeat_interval,"
        " stall_timeout, fingerprint, project) values (gen_random_uuid(), %s, 'h', 7, '1', '{}', true, '1s', '9s', 'x',"
        " 'other')",
        OLD,
    )
    told = json.loads(shell("check", "moved_app.create", "--json").stdout)
    assert told["earlier_names"] == [{"app": OLD, "schedules": 2, "workers": 1}]
    assert [s["difference"] for s in told["schedules"]] == ["not ours"]
    text = shell("check", "moved_app.create").stdout
    assert "once its 1 live worker is gone" in text and f"pgsched schedules adopt {OLD} shop/moved_app.create" in text
    # Another application that has our name.
    shell.sql("update pgsched.schedules set owner = 'code:svc', app = 'svc'")
    shell.sql("update pgsched.workers set app = 'svc'")
    shell.sql("insert into pgsched.declarations (app, fingerprint) values ('svc', 'x')")
    assert "would be refused. This start would retire 1 schedule" in shell("check", "moved_app.named").stdout
    assert "'dropped'" in json.loads(shell("check", "moved_app.named", "--json").stdout)["refused"]
    process = spawn("run", "moved_app.named", *shell.where)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 78 and b"Scheduler(app=" in errors


# --- forgotten ------------------------------------------------------------------------------------------


# And the other way round: it said goodbye before its turn came.
