"""`pgsched health`: what makes a system unhealthy, and what the shell hears of it."""

import asyncio
import json
import time
import uuid
from datetime import timedelta

import psycopg
import pytest
from support.proxies import Proxy
from support.shell import Shell, invoke, isolate


@pytest.fixture(autouse=True)
def _isolated(monkeypatch, tmp_path):
    isolate(monkeypatch, tmp_path)


@pytest.fixture
def shell(settings) -> Shell:
    return Shell(settings)


@pytest.fixture
def worker(shell) -> uuid.UUID:
    """A worker that was seen just now and knows the entrypoint e."""
    worker = uuid.uuid4()
    shell.sql(
        "insert into pgsched.workers (id, app, host, pid, version, entrypoints, direct, heartbeat_interval,"
        " stall_timeout) values (%s, 'app', 'h', 1, '0', '{e}', true, '1min', '1h')",
        worker,
    )
    return worker


def checked(shell) -> tuple[int, dict[str, str]]:
    """The exit code, and the status of each check."""
    result = shell("health", "--json")
    report = json.loads(result.stdout)
    assert report["healthy"] is (result.exit_code == 0)
    return result.exit_code, {check["name"]: check["status"] for check in report["checks"]}


ALL_OK = dict.fromkeys(
    [
        "database",
        "schema",
        "workers",
        "connections",
        "runs",
        "cancellation",
        "schedules",
        "entrypoints",
        "waiting",
        "applications",
        "expressions",
        "threads",
        "time zones",
        "rows",
    ],
    "ok",
)


def test_a_system_that_works_is_healthy(shell, worker):
    shell.ok("schedules", "add", "n", "e", "@daily")
    shell.sql(
        "insert into pgsched.runs (entrypoint, status, worker, claimed_at, heartbeat_at)"
        " values ('e', 'running', gen_random_uuid(), now(), now())"
    )
    assert checked(shell) == (0, ALL_OK)
    lines = shell.ok("health").splitlines()
    assert len(lines) == len(ALL_OK)
    assert all(line.startswith("ok       ") for line in lines)


def test_no_worker_is_unhealthy_unless_the_server_sees_its_session(shell, worker, dsn):
    shell.sql("update pgsched.workers set seen_at = now() - interval '4 minutes'")
    assert checked(shell) == (4, {**ALL_OK, "workers": "failed"})
    with psycopg.connect(dsn, application_name=f"pgsched {worker}"):
        assert checked(shell) == (0, ALL_OK)


def test_a_run_without_a_sign_of_life_is_unhealthy(shell, worker):
    shell.sql(
        "insert into pgsched.runs (entrypoint, status, worker, claimed_at, heartbeat_at)"
        " select 'e', 'running', gen_random_uuid(), now(), now() - n * interval '90 seconds'"
        " from generate_series(1, 2) n"
    )
    assert checked(shell) == (4, {**ALL_OK, "runs": "failed"})
    assert "1 run without" in shell("health").stdout


def test_runs_that_do_not_stop_are_told_in_health_and_where_the_run_is_shown(shell, worker):
    shell.sql(
        "insert into pgsched.runs (id, entrypoint, status, worker, claimed_at, heartbeat_at, cancel_requested_at,"
        " started_at, timeout) overriding system value"
        " select id, 'e', 'running', gen_random_uuid(), now(), now(), asked, started, timeout::interval from (values"
        " (1, now() - interval '2 minutes', now(), null),"
        " (2, null, now() - interval '5 minutes', '4 minutes'),"
        " (3, now() - interval '5 seconds', now() - interval '5 minutes', '5 minutes'),"
        " (4, null, now() - interval '5 minutes', null)) v (id, asked, started, timeout)"
    )
    assert checked(shell) == (0, {**ALL_OK, "cancellation": "warning"})
    assert "2 runs still going a minute after being asked to stop: 1, 2" in shell("health").stdout
    details = [json.loads(shell.ok("runs", "show", str(n), "--json"))["detail"] for n in (1, 2, 3, 4)]
    assert details == [
        "still running 00:02:00 after it was asked to stop", "still running 00:01:00 after its timeout", None, None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ("next_run = now() - interval '3 minutes'", "failed"),
        ("next_run = null, updated_at = now() - interval '3 minutes'", "failed"),
        ("next_run = now() - interval '1 minute'", "ok"),
        ("next_run = null", "ok"),
        ("next_run = now() - interval '3 minutes', status = 'paused'", "ok"),
    ],
)
def test_an_overdue_schedule_is_unhealthy_where_a_worker_could_run_it(shell, worker, change, status):
    shell.ok("schedules", "add", "late\x7f".strip("\x7f"), "e", "@daily")
    shell.sql(f"update pgsched.schedules set {change}, planned_at = now()")
    assert checked(shell) == (4 if status == "failed" else 0, {**ALL_OK, "schedules": status})


@pytest.mark.parametrize(
    ("work", "code"),
    [
        ("select pgsched.enqueue('nobody knows', due_at => now() - interval '3 minutes')", 4),
        ("select pgsched.enqueue('nobody knows', due_at => now() - interval '1 minute')", 0),
        ("select pgsched.enqueue('nobody knows', due_at => now() + interval '3 minutes')", 0),
        ("select pgsched.enqueue('e', due_at => now() - interval '1 minute')", 0),
        ("update pgsched.schedules set next_run = now() - interval '3 minutes', planned_at = now()", 4),
        ("update pgsched.schedules set next_run = null, updated_at = now() - interval '1 hour', planned_at = now()", 4),
        ("update pgsched.schedules set status = 'paused', next_run = now() - interval '3 minutes'", 0),
    ],
)
def test_work_that_no_live_worker_can_do_is_unhealthy(shell, worker, work, code):
    """What somebody took for a job that runs, and that silently does not."""
    shell.ok("schedules", "add", "n", "nobody knows", "@daily")
    shell.sql("update pgsched.schedules set next_run = now() + interval '1 day', planned_at = now()")
    shell.sql(work)
    assert checked(shell) == (code, {**ALL_OK, "entrypoints": "failed" if code else "ok"})
    if code:
        assert "1 entrypoint with work that has been due for 2 minutes" in shell("health").stdout
        assert "nobody knows" in shell("health").stdout


def test_a_schedule_that_waits_for_its_own_run_is_not_overdue(shell, worker):
    shell.ok("schedules", "add", "n", "e", "@daily")
    shell.ok("schedules", "trigger", "n")
    shell.sql("update pgsched.schedules set next_run = now() - interval '1 hour', planned_at = now()")
    assert checked(shell) == (0, ALL_OK)
    shell.sql("update pgsched.runs set status = 'succeeded', finished_at = now()")
    assert checked(shell)[0] == 4


def test_an_invalid_schedule_is_a_warning_only(shell, worker):
    shell.ok("schedules", "add", "n", "e", "@daily")
    shell.sql("update pgsched.schedules set status = 'invalid', planned_at = now()")
    assert checked(shell) == (0, {**ALL_OK, "expressions": "warning"})
    assert "warning  expressions: 1 schedule invalid: n" in shell.ok("health")


def test_workers_that_read_old_time_zone_files_are_a_warning(shell, worker):
    shell.sql(
        "update pgsched.workers set tzdata = '2026b', tzdata_from = '/there', tzdata_package = '2026b', host = 'h'"
    )
    assert checked(shell) == (0, ALL_OK)
    assert "ok       time zones: tzdata 2026b from /there" in shell.ok("health")
    shell.sql("update pgsched.workers set tzdata = '2025b'")
    assert checked(shell) == (0, {**ALL_OK, "time zones": "warning"})
    assert "on h (2025b in /there, package 2026b): update the host's files" in shell.ok("health")
    shell.sql("update pgsched.workers set withheld = '{America/Edmonton}'")
    assert "workers on h have other rules than the recorded ones for America/Edmonton" in shell.ok("health")


def test_a_row_that_the_database_refuses_is_unhealthy_until_it_changes(shell, worker):
    shell.ok("schedules", "add", "n", "e", "@daily")
    shell.sql("select pgsched.enqueue('e')")
    shell.sql(
        "insert into pgsched.set_aside (kind, id, row_version, reason, until) select 'run', id, xmin::text, 'no', now()"
        " from pgsched.runs union all select 'schedule', id, xmin::text, 'nor this', now() from pgsched.schedules"
    )
    assert checked(shell) == (4, {**ALL_OK, "rows": "failed"})
    said = shell("health").stdout
    assert "2 rows that the database refuses to change: " in said
    assert "the claim of run 1: no" in said and "schedule n: nor this" in said
    assert "the database refuses its claim: no; it is tried again when it changes" in shell.ok("runs", "show", "1")
    shell.sql("update pgsched.runs set args = '{}'")
    shell.sql("update pgsched.schedules set args = '{}'")
    assert checked(shell) == (0, ALL_OK)


def test_no_database_is_69_and_a_wrong_schema_78(dsn, schema):
    result = invoke("health", "--json", "--dsn", "postgresql://me:s3cret@127.0.0.1:1/db")
    assert result.exit_code == 69
    assert [check["status"] for check in json.loads(result.stdout)["checks"]] == ["failed"]
    assert "s3cret" not in result.output
    result = invoke("health", "--dsn", dsn, "--schema", "not there")
    assert result.exit_code == 78
    assert result.stdout.splitlines()[1].startswith("failed   schema: ")
    assert "pgsched migrate" in result.stdout
    with psycopg.connect(dsn, autocommit=True) as connection:
        quoted = psycopg.sql.Identifier(schema)
        connection.execute(psycopg.sql.SQL("update {}.migrations set checksum = 'edited'").format(quoted))
    assert invoke("health", "--dsn", dsn, "--schema", schema).exit_code == 78


@pytest.mark.parametrize("command", ["health", "migrate", "migrate --check", "check app:build", "schedules adopt a b"])
async def test_a_server_that_falls_silent_ends_each_command_with_69(dsn, schema, monkeypatch, tmp_path, command):
    monkeypatch.setattr("pgsched.cli.health._ANSWER", 0.5)
    monkeypatch.setattr("pgsched.db.session.STATEMENT_LIMIT", timedelta(seconds=0.5))
    (tmp_path / "app.py").write_text(
        "from pgsched import Scheduler\ndef build():\n    return Scheduler(app='silent')\n"
    )
    async with Proxy(dsn) as proxy:
        proxy.trap(b"pg_namespace", arrives=False)  # the first statement after the session is set up
        result = await asyncio.to_thread(invoke, *command.split(), "--dsn", proxy.dsn, "--schema", schema)
        assert proxy.sprung.is_set()
    assert result.exit_code == 69, result.output
    assert "The database cannot be reached: the server has not answered for 0.5 s. Check that" in result.output


# --- live -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [
        (lambda: f"{time.monotonic() - 50}\n", 0, "50 s ago"),
        (lambda: f"{time.monotonic() - 61}\n", 4, "61 s"),
        (lambda: f"{time.monotonic() + 100}\n", 4, "before this machine started"),
        (lambda: "", 4, "no time"),
        (lambda: "nan", 4, "no time"),
        (lambda: "inf", 4, "no time"),
        (lambda: "banana", 4, "no time"),
    ],
)
def test_live_reads_the_stamp_and_asks_no_database(tmp_path, content, code, says):
    (tmp_path / "beat").write_text(content())
    result = invoke("health", "--live", "--health-file", "beat", "--dsn", "postgresql://127.0.0.1:1/")
    assert result.exit_code == code
    assert says in result.stdout
    assert json.loads(invoke("health", "--live", "--health-file", "beat", "--json").stdout)["healthy"] is (code == 0)


def test_live_without_a_file_is_unhealthy_and_without_the_setting_a_mistake(monkeypatch):
    result = invoke("health", "--live", "--health-file", "nope")
    assert result.exit_code == 4
    assert "No such file" in result.stdout
    result = invoke("health", "--live")
    assert result.exit_code == 78
    assert "PGSCHED_HEALTH_FILE" in result.stderr
    monkeypatch.setenv("PGSCHED_HEALTH_FILE", "nope")
    assert invoke("health", "--live").exit_code == 4


def test_an_application_whose_workers_are_gone_is_named_with_the_command_that_renames_it(shell, worker):
    shell.sql("insert into pgsched.declarations (app, fingerprint) values ('old', 'x'), ('retired', 'x'), ('app', 'x')")
    shell.sql(
        "insert into pgsched.schedules (name, entrypoint, expression, app, owner, status, next_run, planned_at)"
        " select app, 'e', '@yearly', app, 'code:' || app, status, now() + interval '9 days', now()"
        " from (values ('old', 'active'), ('retired', 'finished'), ('app', 'active')) v (app, status)"
    )
    shell.sql("update pgsched.workers set app = 'app'")
    assert checked(shell) == (0, {**ALL_OK, "applications": "warning"})
    told = shell.ok("health")
    assert "1 application with active schedules and no live worker: old." in told
    assert "pgsched schedules adopt OLD NEW" in told


# --- waiting --------------------------------------------------------------------------------------------


def waits(shell) -> tuple[str, str]:
    """The status and the message of the check."""
    report = json.loads(shell("health", "--json").stdout)
    [check] = [check for check in report["checks"] if check["name"] == "waiting"]
    return check["status"], check["message"]


def due(shell, minutes: int, entrypoint: str = "e", **columns: object) -> int:
    names, values = "".join(f", {name}" for name in columns), ", %s" * len(columns)
    return shell.sql(
        f"insert into pgsched.runs (entrypoint, due_at{names}) values (%s, now() - %s * interval '1 minute'{values})"
        " returning id", entrypoint, minutes, *columns.values(),
    )[0][0]  # fmt: skip


def going_on(shell, worker, *, hangs=False, entrypoint: str = "e", **columns: object) -> int:
    names, values = "".join(f", {name}" for name in columns), ", %s" * len(columns)
    return shell.sql(
        f"insert into pgsched.runs (entrypoint, status, attempt, worker, claimed_at, started_at, heartbeat_at,"
        f" cancel_requested_at{names}) values (%s, 'running', 1, %s, now(), now() - interval '1 hour', now(),"
        f" case when %s then now() - interval '9 minutes' end{values}) returning id",
        entrypoint, worker, hangs, *columns.values(),
    )[0][0]  # fmt: skip


def left(shell, worker, run: int = 1000, schedule: int | None = None, minutes: int = 60) -> None:
    shell.sql(
        "insert into pgsched.left_behind (run_id, token, worker, schedule_id, entrypoint, args, since, counts_until)"
        " values (%s, 1, %s, %s, 'e', '{}', now() - %s * interval '1 minute', now() + interval '1 minute')",
        run, worker, schedule, minutes,
    )  # fmt: skip


def test_a_run_that_no_place_is_free_for_is_named_with_what_is_in_the_way(shell, worker):
    due(shell, 1)
    assert waits(shell) == ("ok", "no run has been due for 2 minutes")
    due(shell, 3, priority=10)
    run = due(shell, 125, priority=-10)
    due(shell, 500, "nobody knows it")
    busy = [going_on(shell, worker) for _ in range(2)]
    going_on(shell, uuid.uuid4())  # of a worker that is gone: no place
    said = f"run {run} (e) has been due for 2h5m and waits for a free place on 1 worker; 2 runs in the way: "
    assert waits(shell) == ("warning", f"{said}{busy[0]}, {busy[1]}")
    shell.sql("update pgsched.runs set cancel_requested_at = now() - interval '5 minutes' where id = %s", busy[1])
    assert waits(shell) == ("warning", f"{said}{busy[1]}, {busy[0]}, and 1 run will not stop")
    left(shell, worker)
    shell.sql("delete from pgsched.runs where id = %s", busy[0])
    assert waits(shell) == ("failed", f"{said}{busy[1]}, 1000, and 2 runs will not stop")
    assert shell("health").exit_code == 4


def test_a_run_that_waits_for_its_own_earlier_attempt_fails_though_another_has_waited_longer(shell, worker):
    due(shell, 50)
    run = due(shell, 3)
    going_on(shell, worker)
    left(shell, worker, run)
    said = "waits for its own earlier attempt, which is still going in a thread: restart its worker"
    assert waits(shell) == ("failed", f"run {run} (e) has been due for 3m and {said}")


@pytest.mark.parametrize("hangs", [False, True])
def test_a_run_that_waits_for_its_schedules_overlap_is_well_unless_that_hangs(shell, worker, hangs):
    shell.ok("schedules", "add", "n", "e", "@daily")
    schedule = shell.sql("select id from pgsched.schedules")[0][0]
    run = due(shell, 10, schedule_id=schedule, origin="trigger", fire_time="2020-01-02Z")
    assert waits(shell)[0] == "warning", "no worker has a place for it"
    holder = going_on(shell, worker, hangs=hangs, schedule_id=schedule, fire_time="2020-01-01Z")
    said = f"run {run} (e) has been due for 10m and waits for the overlap of its schedule; 1 run in the way: {holder}"
    assert waits(shell) == (("failed", f"{said}, and 1 run will not stop") if hangs else ("ok", said))
    shell("schedules", "pause", "n")
    shell.sql("update pgsched.runs set origin = null")
    assert waits(shell)[0] == "ok" and "no run" in waits(shell)[1], "it waits for the end of the pause"


def test_a_run_at_a_limit_whose_places_are_held_is_named_and_other_limits_do_not_hide_it(shell, worker):
    shell.sql("update pgsched.workers set entrypoints = '{e,limited,keyed,rated}'")
    shell.sql(
        "insert into pgsched.limits (gate, app, entrypoint, owner, concurrency, concurrency_key, per_key, starts,"
        " period, started_at, started) values"
        " ('1', 'app', 'limited', 'code:app', 1, null, null, null, null, '{}', '{}'),"
        " ('2', 'app', 'keyed', 'code:app', null, '{k}', 1, null, null, '{}', '{}'),"
        " ('3', 'app', 'rated', 'code:app', null, null, null, 5, '1 hour', array[now()], '{5}')"
    )
    shell.sql("insert into pgsched.limit_members select entrypoint, app, gate, true from pgsched.limits")
    going_on(shell, worker)
    rated = due(shell, 40, "rated", app="app")
    text = f"run {rated} (rated) has been due for 40m and waits for its limits, which let no more runs start"
    assert waits(shell) == ("ok", f"{text} in this period")
    keyed = due(shell, 30, "keyed", args='{"k": 1}')
    other = going_on(shell, worker, hangs=True, entrypoint="keyed", args='{"k": 2}')
    assert waits(shell)[0] == "warning", "another key is in nobody's way"
    held = going_on(shell, worker, hangs=True, entrypoint="keyed", args='{"k": 1}')
    said = f"run {keyed} (keyed) has been due for 30m and waits for a free place of its concurrency key"
    assert waits(shell) == ("failed", f"{said}; 1 run in the way: {held}, and 1 run will not stop")
    shell.sql("delete from pgsched.runs where id = any(%s)", [keyed, other, held])
    limited = due(shell, 20, "limited")
    holder = going_on(shell, worker, hangs=True, entrypoint="limited")
    said = f"run {limited} (limited) has been due for 20m and waits for a free place at its limits"
    assert waits(shell) == ("failed", f"{said}; 1 run in the way: {holder}, and 1 run will not stop")
