"""`pgsched schedules` and `pgsched runs`, on a real server."""

import json
import os
import pty
import re
import subprocess

import pytest
from support.shell import Shell, isolate, spawn

HOSTILE = 'We"ird; %s {x} \\ täglich 日'


@pytest.fixture(autouse=True)
def _isolated(monkeypatch, tmp_path):
    isolate(monkeypatch, tmp_path)


@pytest.fixture
def shell(settings) -> Shell:
    return Shell(settings)


def cells(line: str) -> list[str]:
    return re.split(r" {2,}", line.strip())


# --- schedules ------------------------------------------------------------------------------------------


def test_add_takes_every_policy_and_list_and_show_tell_them(shell):
    made = shell.ok(
        *("schedules", "add", HOSTILE, "report", "0 9 * * mon-fri", "--tz", "Europe/Berlin"),
        *("--args", '{"format": "pdf"}', "--overlap", "3", "--catch-up", "all", "--grace", "1h", "--jitter", "1500ms"),
        *("--timeout", "5m", "--attempts", "4", "--backoff", "2s", "--max-backoff", "1m", "--max-runs", "7"),
        *("--starts-at", "2031-01-01T00:00:00+01:00", "--ends-at", "2031-02-01T00:00:00Z", "--priority", "-5"),
    )
    (row,) = json.loads(shell.ok("schedules", "list", "--json"))
    given = {
        "id": int(made),
        "name": HOSTILE,
        "entrypoint": "report",
        "expression": "0 9 * * mon-fri",
        "timezone": "Europe/Berlin",
        "args": {"format": "pdf"},
        "overlap": "3",
        "catch_up": "all",
        "grace": "1h",
        "jitter": "1s500ms",
        "timeout": "5m",
        "max_attempts": 4,
        "backoff": "2s",
        "max_backoff": "1m",
        "max_runs": 7,
        "starts_at": "2030-12-31T23:00:00Z",
        "ends_at": "2031-02-01T00:00:00Z",
        "priority": -5,
    }
    assert {key: row[key] for key in given} == given


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["0 9 * * 99"], "99"),
        (["@daily", "--tz", "Mars"], "Mars"),
        (["@daily", "--args", "[1]"], "JSON object"),
        (["@daily", "--args", "{"], "cannot be read as JSON"),
        (["@daily", "--args", '{"x": ' + "[" * 500 + "]" * 500 + "}"], "more than 500 levels"),
        (["@daily", "--args", '{"x": NaN}'], "JSON"),
        (["@daily", "--grace", "soon"], "duration"),
        (["@daily", "--overlap", "often"], "overlap"),
        (["@daily", "--starts-at", "2031-01-01"], "offset"),
        (["@daily", "--backoff", "5s"], "--attempts"),
        (["@daily", "--timeout", "0"], "timeout"),
    ],
)
def test_add_refuses_with_a_sentence_and_makes_nothing(shell, args, says):
    result = shell("schedules", "add", "n", "e", *args)
    assert result.exit_code == 2
    assert says in result.stderr
    assert shell.sql("select name from pgsched.schedules") == []


def test_a_taken_name_is_a_failure(shell):
    shell.ok("schedules", "add", "n", "e", "@daily")
    result = shell("schedules", "add", "n", "e", "@daily")
    assert (result.exit_code, result.stderr) == (1, 'Error: A schedule named "n" exists already.\n')


def test_list_is_a_table_of_lines_whatever_the_names_hold(shell):
    assert shell("schedules", "list").stderr == "No schedules.\n"
    shell.ok("schedules", "add", "日本", "e", "@daily", "--tz", "Asia/Tokyo")
    shell.ok("schedules", "add", "a", "e", "0 9 * * *")
    shell.sql(
        "update pgsched.schedules set next_run = '2031-01-01 09:00Z', last_run = '2030-12-31 09:00:00.5Z',"
        " last_status = E'bad\\n\\x1b[2J', planned_at = now() where name = 'a'"
    )
    heads, first, second = shell.ok("schedules", "list").splitlines()
    assert cells(heads) == ["name", "entrypoint", "expression", "zone", "status", "next run", "last run", "last status"]
    assert cells(first) == [
        *("a", "e", "0 9 * * *", "UTC", "active", "2031-01-01 09:00:00Z", "2030-12-31 09:00:00Z", "bad\\n\\x1b[2J"),
    ]
    assert cells(second) == ["日本", "e", "@daily", "Asia/Tokyo", "active", "-", "-", "-"]
    assert first.index("  e  ") == second.index("  e  ") + 2  # two letters that take two columns each
    assert shell.ok("schedules", "list", "--status", "paused", "--json") == "[]\n"
    assert len(json.loads(shell.ok("schedules", "list", "--entrypoint", "e", "--json"))) == 2


def test_show_tells_when_it_fires_next_and_why_fire_times_did_not_run(shell):
    shell.ok("schedules", "add", "n", "e", "30 9 * * *", "--tz", "Europe/Berlin", "--args", '{"x": 1}')
    shell.sql("update pgsched.schedules set next_run = '2031-01-01 08:30Z', planned_at = now()")
    shell.sql(
        "insert into pgsched.runs (schedule_id, entrypoint, fire_time, status, reason, skipped_count, skipped_through,"
        " finished_at)"
        " select id, 'e', '2030-12-01 08:30Z', 'skipped', 'missed', 12, '2030-12-12 08:30Z', now()"
        " from pgsched.schedules"
    )
    text = shell.ok("schedules", "show", "n")
    assert re.search(r"^args +\{\"x\": 1\}$", text, re.M)
    assert "2031-01-01 08:30:00Z  2031-01-01 09:30:00 +01:00 (Wed)" in text
    assert "2031-01-10 08:30:00Z" in text
    assert "2031-01-11" not in text
    assert "missed, 12 fire times through 2030-12-12 08:30:00Z" in text
    as_json = json.loads(shell.ok("schedules", "show", "n", "--json"))
    assert as_json["next_fire_times"][0] == {
        "fire_time": "2031-01-01T08:30:00Z", "local": "2031-01-01 09:30:00 +01:00 (Wed)", "mark": None,
    }  # fmt: skip
    assert len(as_json["next_fire_times"]) == 10
    assert as_json["runs"][0]["skipped_count"] == 12


@pytest.mark.parametrize(
    ("change", "times", "says"),
    [
        ("ends_at = '2031-01-02 00:00Z'", ["2031-01-01T09:30:00Z"], None),
        ("max_runs = 10, run_count = 8", ["2031-01-01T09:30:00Z", "2031-01-02T09:30:00Z"], None),
        ("status = 'finished', next_run = null", [], "finished"),
        ("status = 'invalid', note = 'why'", [], "invalid"),
        ("expression = 'nonsense'", [], "nonsense"),
        ("timezone = 'Mars'", [], "Mars"),
    ],
)
def test_show_names_no_fire_time_that_will_not_come(shell, change, times, says):
    shell.ok("schedules", "add", "n", "e", "30 9 * * *")
    shell.sql("update pgsched.schedules set next_run = '2031-01-01 09:30Z', planned_at = now()")
    shell.sql(f"update pgsched.schedules set {change}, planned_at = clock_timestamp()")
    coming = json.loads(shell.ok("schedules", "show", "n", "--json"))["next_fire_times"]
    assert [each["fire_time"] for each in coming] == times
    if says:
        line = next(line for line in shell.ok("schedules", "show", "n").splitlines() if line.startswith("Next fire"))
        assert says in line


def test_show_of_a_paused_schedule_starts_where_the_pause_ends(shell):
    shell.ok("schedules", "add", "n", "e", "30 9 * * *")
    shell("schedules", "pause", "n", "--until", "2031-06-01T12:00:00Z")
    first = json.loads(shell.ok("schedules", "show", "n", "--json"))["next_fire_times"][0]
    assert first["fire_time"] == "2031-06-02T09:30:00Z"


def test_a_name_may_be_an_entrypoint_with_one_schedule(shell):
    shell.ok("schedules", "add", "nightly", "report", "@daily")
    assert json.loads(shell.ok("schedules", "show", "report", "--json"))["name"] == "nightly"
    assert int(shell.ok("schedules", "trigger", "report")) > 0
    shell.ok("schedules", "add", "weekly", "report", "@weekly")
    result = shell("schedules", "trigger", "report")
    assert result.exit_code == 3
    assert '"nightly", "weekly"' in result.stderr
    shell.ok("schedules", "add", "report", "other", "@daily")
    assert json.loads(shell.ok("schedules", "show", "report", "--json"))["entrypoint"] == "other"


@pytest.mark.parametrize(
    "args", [["show"], ["pause"], ["resume"], ["trigger"], ["remove", "--yes"]], ids=lambda args: args[0]
)
def test_an_unknown_name_is_exit_3(shell, args):
    result = shell("schedules", *args, HOSTILE)
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == f'Error: There is no schedule "{HOSTILE}".\n'


def test_pause_and_resume_talk_on_standard_error(shell):
    shell.ok("schedules", "add", "n", "e", "@daily")
    result = shell("schedules", "pause", "n", "--note", "holidays", "--until", "2031-01-01T00:00:00Z")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == 'Paused "n" until 2031-01-01 00:00:00Z.\n'
    assert shell.sql("select status, note from pgsched.schedules") == [("paused", "holidays")]
    result = shell("schedules", "resume", "n")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", 'Resumed "n".\n')
    assert shell.sql("select status, note from pgsched.schedules") == [("active", None)]
    shell.sql("update pgsched.schedules set status = 'finished'")
    assert shell("schedules", "resume", "n").exit_code == 1


def test_trigger_prints_the_runs_id(shell):
    shell.ok("schedules", "add", "n", "e", "@daily")
    run_id = shell.ok("schedules", "trigger", "n").strip()
    assert shell.sql("select id::text, status from pgsched.runs") == [(run_id, "queued")]
    assert json.loads(shell.ok("schedules", "trigger", "n", "--json"))["run_id"] == int(run_id) + 1


def test_remove_without_a_terminal_asks_for_yes(shell):
    shell.ok("schedules", "add", "n", "e", "@daily")
    result = shell("schedules", "remove", "n", stdin="y\n")
    assert result.exit_code == 2
    assert "--yes" in result.stderr
    assert shell.sql("select name from pgsched.schedules") == [("n",)]
    result = shell("schedules", "remove", "n", "--yes")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", 'Removed "n".\n')
    assert shell.sql("select name from pgsched.schedules") == []


@pytest.mark.parametrize(("answer", "code", "left"), [("y", 0, 0), ("n", 1, 1), ("", 1, 1), ("\x03", 130, 1)])
def test_remove_on_a_terminal_asks(shell, answer, code, left):
    shell.ok("schedules", "add", "n", "e", "@daily")
    ours, theirs = pty.openpty()
    process = spawn("schedules", "remove", "n", *shell.where, stdin=theirs, start_new_session=True, preexec_fn=_take)
    os.close(theirs)
    asked = b""
    while b"[y/N]" not in asked:
        asked += process.stderr.read1()
    keys = answer.encode() if answer == "\x03" else f"{answer}\n".encode()
    os.write(ours, keys)
    for _ in range(10):
        try:
            process.wait(3)
            break
        except subprocess.TimeoutExpired:
            if answer == "\x03":  # Python misses one that comes just before it begins to read; people press again
                os.write(ours, keys)
    stdout, _ = process.communicate(timeout=30)
    os.close(ours)
    assert (process.returncode, stdout) == (code, b"")
    assert len(shell.sql("select name from pgsched.schedules")) == left


def _take() -> None:
    """Makes standard input the new session's controlling terminal, so that Ctrl-C in it becomes a signal."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_remove_warns_where_the_code_declares_it(shell):
    shell.ok("schedules", "add", "n", "e", "@daily")
    shell.sql("update pgsched.schedules set owner = 'code:my.app'")
    assert "declared by my.app" in shell("schedules", "remove", "n", "--yes").stderr


# --- runs -----------------------------------------------------------------------------------------------


def runs_of(shell, count: int) -> list[int]:
    rows = shell.sql(
        "insert into pgsched.runs (entrypoint) select 'send' from generate_series(1, %s) returning id", count
    )
    return [row[0] for row in rows]


def test_runs_list_is_filtered_newest_first(shell):
    assert shell("runs", "list").stderr == "No runs.\n"
    shell.ok("schedules", "add", "n", "e", "@daily")
    of_n = int(shell.ok("schedules", "trigger", "n"))
    first, second = runs_of(shell, 2)
    shell.sql(
        "update pgsched.runs set status = 'failed', attempt = 2, max_attempts = 3, started_at = '2031-01-01 00:00Z',"
        " finished_at = '2031-01-01 00:00:01.25Z', errors = %s::jsonb where id = %s",
        json.dumps([{"message": "boom\x1b[31m\nsecond line"}]),
        second,
    )
    _, line, *others = shell.ok("runs", "list").splitlines()
    assert cells(line) == [
        *(str(second), "send", "-", "failed", "2/3", "-", "2031-01-01 00:00:00Z", "1.250s", "boom\\x1b[31m"),
    ]
    assert [cells(other)[0] for other in others] == [str(first), str(of_n)]

    def ids(*args):
        return [row["id"] for row in json.loads(shell.ok("runs", "list", "--json", *args))]

    assert ids("--schedule", "n") == ids("--schedule", "e") == [of_n]
    assert ids("--status", "failed") == [second]
    assert ids("--entrypoint", "send", "--limit", "1") == [second]
    assert shell("runs", "list", "--schedule", "nope").exit_code == 3


def test_runs_show_tells_errors_attempt_by_attempt(shell):
    (run_id,) = runs_of(shell, 1)
    errors = [
        {
            "attempt": 1,
            "at": "2031-01-01",
            "type": "ValueError",
            "message": "first",
            "traceback": "File x\n  one\x1b[2J",
        },
        {"attempt": 2, "at": "2031-01-02", "type": "KeyError", "message": "second\nline", "traceback": None},
        "not an entry",
    ]
    shell.sql(
        "update pgsched.runs set result = %s::jsonb, errors = %s::jsonb", json.dumps({"ok": [1]}), json.dumps(errors)
    )
    text = shell.ok("runs", "show", run_id)
    assert re.search(r'^result +\{"ok": \[1\]\}$', text, re.M)
    assert "Attempt 1 at 2031-01-01: ValueError: first\nFile x\n  one\\x1b[2J\n" in text
    assert "Attempt 2 at 2031-01-02: KeyError: second\\nline\n" in text
    assert "not an entry" in text
    assert "\x1b" not in text
    as_json = json.loads(shell.ok("runs", "show", run_id, "--json"))
    assert (as_json["result"], as_json["errors"]) == ({"ok": [1]}, errors)
    missing = shell("runs", "show", "999999")
    assert (missing.exit_code, missing.stderr) == (3, "Error: There is no run 999999.\n")


@pytest.mark.parametrize("value", ["1" * 5000, "[" * 3000 + "]" * 3000, '{"a": "\\u202e"}', '[[], {"attempt": {}}]'])
def test_no_stored_json_breaks_a_page(shell, value):
    (run_id,) = runs_of(shell, 1)
    shell.sql(
        "update pgsched.runs set args = %s::jsonb, result = %s::jsonb, errors = jsonb_build_array(%s::jsonb)",
        '{"x": 1}',
        value,
        value,
    )
    for args in (["runs", "show", run_id], ["runs", "list"]):
        assert "\u202e" not in shell.ok(*args)
        json.loads(shell.ok(*args, "--json"))


def test_cancel_does_what_it_can_and_tells_the_rest(shell):
    queued, running, ended = runs_of(shell, 3)
    shell.sql(
        "update pgsched.runs set status = 'running', worker = gen_random_uuid(), claimed_at = now(),"
        " heartbeat_at = now() where id = %s", running
    )  # fmt: skip
    shell.sql("update pgsched.runs set status = 'succeeded', finished_at = now() where id = %s", ended)
    result = shell("runs", "cancel", 999999, ended, queued, running)
    assert result.exit_code == 3
    assert result.stdout == f"{queued} cancelled\n{running} requested\n"
    assert result.stderr.splitlines() == [
        "Error: There is no run 999999.",
        f"Error: Run {ended} has already ended: succeeded.",
    ]
    again = shell("runs", "cancel", queued, "--json")
    assert (again.exit_code, json.loads(again.stdout)) == (1, [])


def test_retry_queues_a_failed_run_again(shell):
    failed, queued = runs_of(shell, 2)
    shell.sql("update pgsched.runs set status = 'failed', finished_at = now() where id = %s", failed)
    assert json.loads(shell.ok("runs", "retry", failed, "--json")) == [{"id": failed, "result": "queued"}]
    assert shell.sql("select status from pgsched.runs where id = %s", failed) == [("queued",)]
    assert shell("runs", "retry", queued).exit_code == 1


def test_retry_says_that_a_run_waits_for_its_earlier_attempt_and_whose_that_is(shell):
    [failed] = runs_of(shell, 1)
    shell.sql("update pgsched.runs set status = 'failed', finished_at = now()")
    worker = "00000000-0000-0000-0000-000000000001"
    shell.sql(
        "insert into pgsched.workers (id, app, host, pid, version, entrypoints, direct, heartbeat_interval,"
        " stall_timeout) values (%s, 'app', 'db7', 99, '0', '{e}', true, '1s', '30s')", worker,
    )  # fmt: skip
    shell.sql(
        "insert into pgsched.left_behind (run_id, token, worker, entrypoint, args, since, counts_until)"
        " values (%s, 1, %s, 'e', '{}', '2026-01-02T03:04:05Z', now() + interval '1 minute')", failed, worker,
    )  # fmt: skip
    assert shell.ok("runs", "retry", failed).strip() == (
        f"{failed} queued; it starts once its earlier attempt has ended, which goes on in a thread of worker {worker}"
        " (db7, process 99) since 2026-01-02 03:04:05Z; if that hangs, restart the worker"
    )
