"""One table: what a person can get wrong, the sentence they get for it, and the exit code.

Every line is run as they would run it, as a process of its own, and none may show a traceback or change anything.
"""

import asyncio
import os
import subprocess
import sys

import psycopg
import pytest
from psycopg import sql
from support.shell import isolate

from pgsched.db import migrate
from pgsched.db.statements.queries import in_schema

APP = """
import asyncio, contextlib
from datetime import datetime, timedelta
from pgsched import Scheduler, Retry, every, at

def not_a_scheduler(): return 5
def nothing(): Scheduler()
async def async_nothing(): pass
def needs_arguments(x): return Scheduler()
def fails(): raise ValueError("the vault is closed")
async def async_fails(): raise KeyError("vault")
@contextlib.asynccontextmanager
async def context_fails():
    raise RuntimeError("no vault")
    yield Scheduler()
@contextlib.asynccontextmanager
async def context_wrong():
    yield 5
def exits(): raise SystemExit("bye")
number = 5

def with_schedule(expression="@daily", function=None, **options):
    def factory():
        sc = Scheduler()
        async def job(): ...
        sc.schedule("job", expression, **options)(function or job)
        return sc
    return factory

async def takes(x): ...
expression = with_schedule("61 * * * *")
never = with_schedule("0 0 30 2 *")
backwards = with_schedule("0 17-9 * * *")
reboot = with_schedule("@reboot")
long = with_schedule("*" * 300)
zone = with_schedule(timezone="Europe/Berlinn")
args_json = with_schedule(args={"x": object()})
args_fit = with_schedule(args={"y": 1}, function=takes)
args_missing = with_schedule(function=takes)
negative = with_schedule(timeout=timedelta(seconds=-1))
name = with_schedule(name="two\\nlines")
retry = lambda: with_schedule(retry=Retry(attempts=0))()
every_zero = lambda: with_schedule(every(timedelta(0)))()
at_naive = lambda: with_schedule(at(datetime(2027, 1, 1)))()
overlap = with_schedule(overlap="wait")
setting = lambda: Scheduler(max_runing=5)
both = lambda: Scheduler(stall_timeout="2s", heartbeat_interval="1s")
def twice():
    sc = Scheduler()
    async def job(): ...
    sc.schedule("job", "@daily")(job)
    sc.schedule("job", "@daily")(job)
    return sc
def good():
    return Scheduler()
"""
RUN = ["run", "--dsn", "{dsn}", "--schema", "{schema}"]
CHECK = ["check", "--dsn", "{dsn}", "--schema", "{schema}"]

TABLE = [
    # import paths and factories
    ([*RUN, "app"], 78, "'app' is not the import path of a factory: write module.function or module:function."),
    ([*RUN, "app:"], 78, "is not the import path of a factory"),
    ([*RUN, "os;rm -rf.x"], 78, "is not the import path of a factory"),
    ([*RUN, "ap.good"], 78, "There is no module 'ap', neither installed nor in"),
    ([*RUN, "app.goood"], 78, "The module 'app' has no 'goood'"),
    ([*RUN, "broken.good"], 78, "Importing broken failed: SyntaxError"),
    ([*RUN, "lacks.good"], 78, "Importing lacks failed: ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
    ([*RUN, "raises:good"], 78, "Importing raises failed: ZeroDivisionError: division by zero"),
    ([*RUN, "app.number"], 78, "app.number is a value of type int, not a factory"),
    ([*RUN, "app:not_a_scheduler"], 78, "app:not_a_scheduler returned a value of type int, not a Scheduler"),
    ([*RUN, "app.nothing"], 78, "returned nothing (None), not a Scheduler: return the Scheduler that it builds."),
    ([*RUN, "app.async_nothing"], 78, "returned nothing (None), not a Scheduler"),
    ([*RUN, "app.needs_arguments"], 78, "app.needs_arguments needs arguments, but pgsched calls it without any: "),
    ([*RUN, "app.fails"], 78, "The factory app.fails failed: ValueError: the vault is closed ("),
    ([*RUN, "app.async_fails"], 78, "The factory app.async_fails failed: KeyError: 'vault'"),
    ([*RUN, "app.context_fails"], 78, "failed: RuntimeError: no vault"),
    ([*RUN, "app.context_wrong"], 78, "returned a value of type int, not a Scheduler"),
    ([*RUN, "app.exits"], 78, "The factory app.exits failed: SystemExit: bye"),
    # what a factory declares
    ([*RUN, "app.expression"], 78, "61"),
    ([*RUN, "app.never"], 78, "never"),
    ([*RUN, "app.backwards"], 78, "17-23"),
    ([*RUN, "app.reboot"], 78, "@reboot"),
    ([*RUN, "app.long"], 78, "256"),
    ([*RUN, "app.zone"], 78, "Europe/Berlin"),
    ([*RUN, "app.args_json"], 78, "args cannot be written as JSON"),
    ([*RUN, "app.args_fit"], 78, "takes() needs the argument 'x', which args does not give."),
    ([*RUN, "app.args_missing"], 78, "takes() needs the argument 'x'"),
    ([*RUN, "app.negative"], 78, "timeout must be more than 0 s and at most a hundred years, not -1 s."),
    ([*RUN, "app.name"], 78, "no control characters, unlike 'two\\nlines'."),
    ([*RUN, "app.retry"], 78, "Retry(attempts=0) is out of range: use 1 to 1000."),
    ([*RUN, "app.every_zero"], 78, "every"),
    ([*RUN, "app.at_naive"], 78, "zone"),
    ([*RUN, "app.overlap"], 78, "'queue', 'allow', 'cancel' or a number from 1 to 100000, not 'wait'"),
    ([*RUN, "app.twice"], 78, "is declared twice: give the second schedule another name, name='…'."),
    ([*RUN, "app.setting"], 78, "there is no setting 'max_runing'"),
    ([*RUN, "app.both"], 78, "heartbeat_interval (1s) must be at most a quarter of stall_timeout (2s)"),
    # settings
    ([*RUN, "app.good", "--stall-timeout", "-5"], 78, "command line: stall_timeout must be a duration such as 500ms"),
    ([*RUN, "app.good", "--max-running", "none"], 78, "max_running must be a whole number of 1 or more, not 'none'."),
    ([*RUN, "app.good", "--config", "nowhere.toml"], 78, "nowhere.toml: there is no such file."),
    ([*RUN, "app.good", "--config", "wrong.toml"], 78, "wrong.toml: there is no setting 'drain'"),
    ([*RUN, "app.good", "--shema", "x"], 2, "No such option"),
    (["run"], 2, "Missing argument 'APP'"),
    (["run", "app.good", "--data-dir", "a file/x"], 78, "white space"),
    (["run", "app.good", "--data-dir", "afile"], 78, "afile"),
    (["run", "app.good", "--data-dir", "/proc/pgsched/data"], 78, "/proc/pgsched"),
    # databases
    (["run", "app.good", "--dsn", "nonsense"], 78, "The DSN cannot be read"),
    (["run", "app.good", "--dsn", "postgresql://u:canary@[bad/db"], 78, "The DSN cannot be read"),
    (["run", "app.good", "--dsn", "postgresql://u:canary@127.0.0.1:1/db"], 69, "The database cannot be reached"),
    (["run", "app.good", "--dsn", "host=/nowhere password=canary"], 69, "The database cannot be reached"),
    (["schedules", "list", "--dsn", "postgresql://u:canary@127.0.0.1:1/db"], 69, "database"),
    (["run", "app.good", "--dsn", "{dsn}", "--schema", "no such schema"], 78, "Run `pgsched migrate`"),
    (["run", "app.good", "--dsn", "{dsn}", "--schema", "{newer}"], 78, "newer than this pgsched"),
    (["run", "app.good", "--dsn", "{dsn}", "--schema", "{edited}"], 78, "migrations are never edited"),
    (["migrate", "--dsn", "{dsn}", "--schema", "{newer}"], 78, "newer than this pgsched"),
    (["run", "app.good", "--dsn", "{dsn}", "--schema", "{replaced}"], 78, "before 0.1.0, which"),
    (["run", "app.good", "--migrate", "--dsn", "{dsn}", "--schema", "{replaced}"], 78, "another one with --schema"),
    (["migrate", "--dsn", "{dsn}", "--schema", "{replaced}"], 78, "export the data that you"),
    (["migrate", "--check", "--dsn", "{dsn}", "--schema", "{replaced}"], 78, "and run `pgsched migrate`."),
    (["migrate", "--check", "--dsn", "{dsn}", "--schema", "no such schema"], 78, "Run `pgsched migrate`"),
    (["run", "app.good", "--dsn", "{dsn}", "--schema", "pg_mine"], 78, "not start with pg_"),
    (["schedules", "list", "--dsn", "{dsn}", "--schema", "no such schema"], 78, "pgsched migrate"),
    # a look before a deploy
    (["check"], 2, "Missing argument 'APP'"),
    ([*CHECK, "app"], 78, "'app' is not the import path of a factory: write module.function or module:function."),
    ([*CHECK, "app.goood"], 78, "The module 'app' has no 'goood'"),
    ([*CHECK, "raises:good"], 78, "Importing raises failed: ZeroDivisionError: division by zero"),
    ([*CHECK, "app.fails"], 78, "The factory app.fails failed: ValueError: the vault is closed ("),
    ([*CHECK, "app.nothing"], 78, "returned nothing (None), not a Scheduler"),
    ([*CHECK, "app.exits"], 78, "The factory app.exits failed: SystemExit: bye"),
    ([*CHECK, "app.never"], 78, "never"),
    ([*CHECK, "app.twice"], 78, "is declared twice: give the second schedule another name, name='…'."),
    ([*CHECK, "app.setting"], 78, "there is no setting 'max_runing'"),
    ([*CHECK, "app.good", "--config", "wrong.toml"], 78, "wrong.toml: there is no setting 'drain'"),
    ([*CHECK, "app.good", "--exit-zreo"], 2, "No such option"),
    (["check", "app.good", "--exit-zero", "--dsn", "postgresql://u:canary@127.0.0.1:1/db"], 69, "cannot be reached"),
    (["check", "app.good", "--dsn", "nonsense"], 78, "The DSN cannot be read"),
    (["check", "app.good", "--dsn", "postgresql://u:50%canary@h/db"], 78, "The DSN cannot be read"),
    (["check", "app.good", "--dsn", "{dsn}", "--schema", "no such schema"], 78, "Run `pgsched migrate`"),
    (["check", "app.good", "--dsn", "{dsn}", "--schema", "{newer}", "--exit-zero"], 78, "newer than this pgsched"),
    (["check", "app.good", "--dsn", "{dsn}", "--schema", "{edited}", "--json"], 78, "migrations are never edited"),
    (["check", "app.good", "--dsn", "{dsn}", "--schema", "{replaced}"], 78, "before 0.1.0, which"),
    (["check", "app.good", "--data-dir", "afile"], 78, "afile"),
    # commands
    (["next", "* * * *"], 2, "field"),
    (["next", "* * * * *", "--tz", "Mars/Base"], 2, "Mars/Base"),
    (["next", "* * * * *", "--after", "yesterday"], 2, "is not an instant such as"),
    (["next", "* * * * *", "--count", "-1"], 2, "-1"),
    (["schedules", "show", "nobody", "--dsn", "{dsn}", "--schema", "{schema}"], 3, "nobody"),
    (["schedules", "pause", "nobody", "--dsn", "{dsn}", "--schema", "{schema}"], 3, "nobody"),
    (["schedules", "add", "a\nb", "job", "@daily", "--dsn", "{dsn}", "--schema", "{schema}"], 2, "control character"),
    (["schedules", "add", "a", "job", "@dayly", "--dsn", "{dsn}", "--schema", "{schema}"], 2, "@dayly"),
    (["schedules", "add", "a", "job", "@daily", "--args", "[1", "--dsn", "{dsn}", "--schema", "{schema}"], 2, "JSON"),
    (["schedules", "add", "a", "x", "@daily", "--args", "[1]", "--dsn", "{dsn}", "--schema", "{schema}"], 2, "object"),
    (["runs", "show", "999999", "--dsn", "{dsn}", "--schema", "{schema}"], 3, "999999"),
    (["runs", "cancel", "999999", "--dsn", "{dsn}", "--schema", "{schema}"], 3, "999999"),
    (["runs", "cancel", "one", "--dsn", "{dsn}", "--schema", "{schema}"], 2, "one"),
    (["runs", "list", "--status", "done", "--dsn", "{dsn}", "--schema", "{schema}"], 2, "done"),
    (["dance"], 2, "No such command 'dance'"),
]  # fmt: skip


@pytest.fixture(scope="module")
def places(root, tmp_path_factory):
    """A folder with modules to get wrong, and schemas that are right, newer, edited and replaced."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "app.py").write_text(APP)
    (folder / "broken.py").write_text("def good(:\n")
    (folder / "lacks.py").write_text("import nowhere_to_be_found\n")
    (folder / "raises.py").write_text("1 / 0\n")
    (folder / "wrong.toml").write_text("drain = 5\n")
    (folder / "afile").write_text("")
    schemas = {kind: f"bad input {kind} {os.getpid()}" for kind in ("schema", "newer", "edited", "replaced")}

    async def make() -> None:
        async with await psycopg.AsyncConnection.connect(root, autocommit=True) as connection:
            for kind, name in schemas.items():
                await migrate.migrate(connection, name)
                change = {
                    "newer": b"insert into pgsched.migrations (version, name, checksum) values (99, 'new', 'x')",
                    "edited": b"update pgsched.migrations set checksum = 'x'",
                    "replaced": b"update pgsched.migrations set name = 'initial', checksum = 'x' where version = 1",
                }.get(kind)
                if change:
                    await connection.execute(in_schema(change, name, parametrised=False))

    asyncio.run(make())
    yield folder, {"dsn": root, **schemas}
    with psycopg.connect(root, autocommit=True) as connection:
        for name in schemas.values():
            connection.execute(sql.SQL("drop schema {} cascade").format(sql.Identifier(name)))


@pytest.mark.parametrize(
    ("args", "code", "sentence"), TABLE, ids=lambda v: " ".join(v)[:60] if isinstance(v, list) else ""
)
def test_bad_input(places, monkeypatch, args, code, sentence):
    folder, names = places
    isolate(monkeypatch, folder)
    ended = subprocess.run(
        [sys.executable, "-m", "pgsched", *(arg.format(**names) if arg.startswith("{") else arg for arg in args)],
        capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    told = ended.stderr
    assert sentence in told, told
    assert ended.returncode == code, told
    assert "Traceback" not in told + ended.stdout
    assert "canary" not in told + ended.stdout, "a password"
    assert ended.stdout == ""
    with psycopg.connect(names["dsn"]) as connection:
        for table in ("schedules", "runs", "workers"):
            query = in_schema(b"select count(*) from pgsched." + table.encode(), names["schema"], parametrised=False)
            assert connection.execute(query).fetchone() == (0,), f"{table} changed"


def test_there_are_enough_of_them():
    assert len(TABLE) >= 30
