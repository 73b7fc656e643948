"""Crontabs: what is read from them, line by line, and what the command makes of that."""

import asyncio
import json
import os
import pty
from datetime import UTC, datetime

import pytest
from support.shell import Shell, isolate, spawn
from support.workers import working

from pgsched import InvalidExpression
from pgsched.cli.import_crontab import local_timezone
from pgsched.commands import create_scheduler
from pgsched.expression.crontab import Crontab, name_for, read
from pgsched.expression.expression import parse


@pytest.fixture(autouse=True)
def _isolated(monkeypatch, tmp_path):
    isolate(monkeypatch, tmp_path)


@pytest.fixture
def shell(settings) -> Shell:
    return Shell(settings)


def problems(found: Crontab) -> list[tuple[int, str]]:
    return [(note.line, note.text) for note in found.problems]


# --- reading --------------------------------------------------------------------------------------------


def test_settings_hold_for_the_lines_below_them():
    found = read(
        """
# a comment, and a blank line

0 1 * * * first
SHELL=/bin/bash
  PATH = /usr/bin:/bin
"EMPTY"=
QUOTED="  with spaces  "
'ODD NAME'='it''s'
\t0 2\t* * *   second
HOME=/srv
0 3 * * * third # no comment: the shell's business
"""
    )
    assert problems(found) == []
    first, second, third = found.jobs
    assert first.args == {"argv": "first", "shell": True}
    assert second.args == {
        "argv": "second", "shell": "/bin/bash",
        "env": {"SHELL": "/bin/bash", "PATH": "/usr/bin:/bin", "EMPTY": "", "QUOTED": "  with spaces  ",
                "ODD NAME": "it''s"},
    }  # fmt: skip
    assert (second.line, second.expression) == (10, "0 2 * * *")
    assert third.args["cwd"] == "/srv" and third.args["env"]["HOME"] == "/srv"
    assert third.command == "third # no comment: the shell's business"


@pytest.mark.parametrize(
    ("written", "argv", "stdin"),
    [
        ("date +\\%F", "date +%F", None),
        ("mail ada%Hello%there", "mail ada", "Hello\nthere\n"),
        ("cat%", "cat", "\n"),
        ("cat%one%", "cat", "one\n"),
        ("cat %100\\%", "cat", "100%\n"),
        ("echo '%'", "echo '", "'\n"),  # quotes do not count for cron either
    ],
)
def test_a_percent_sign_ends_the_command_and_begins_what_it_reads(written, argv, stdin):
    job = read(f"* * * * * {written}").jobs[0]
    assert (job.args["argv"], job.args.get("stdin")) == (argv, stdin)


@pytest.mark.parametrize(
    ("line", "remark"),
    [
        ("0 9 * * fri-sun a", "fri-sun is a range to Sunday: Debian's cron"),
        ("0 9 * * 1,Sat-SUN a", "Sat-SUN is a range to Sunday"),
        ("0 9 * * fri-7 a", None),
        ("0 0 1 * * *true", "its command begins with *"),
    ],
)
def test_what_never_ran_before_is_told(line, remark):
    found = read(line)
    assert len(found.jobs) == 1
    assert (found.remarks[0].text if found.remarks else None) == remark or found.remarks[0].text.startswith(remark)


def test_times_are_read_in_cron_tz_from_there_on():
    found = read(
        "0 0 * * * a\nCRON_TZ=America/New_York\n0 0 * * * b\nTZ=Asia/Tokyo\n0 0 * * * c", timezone="Asia/Tokyo"
    )
    assert [job.timezone for job in found.jobs] == ["Asia/Tokyo", "America/New_York", "America/New_York"]
    assert found.jobs[2].args["env"] == {"TZ": "Asia/Tokyo"}
    assert [(note.line, note.text.split()[0]) for note in found.remarks] == [(2, "CRON_TZ"), (4, "TZ")]


def test_without_a_zone_no_time_is_guessed():
    found = read("CRON_TZ=Mars/Olympus\n* * * * * a\nCRON_TZ=UTC\n* * * * * b")
    assert [job.command for job in found.jobs] == ["b"]
    assert [line for line, _ in problems(found)] == [1, 2]
    with pytest.raises(InvalidExpression):
        read("", timezone="Mars/Olympus")


def test_macros_and_the_day_rule_of_cron():
    found = read("@daily a\n@Hourly b\n0 0 13 * FRI c\n-*/5 * * * * d")
    assert [job.expression for job in found.jobs] == ["@daily", "@Hourly", "0 0 13 * FRI", "*/5 * * * *"]
    # Either day is enough: Friday the 8th comes before the 13th.
    coming = parse("0 0 13 * FRI", "UTC").next(datetime(2027, 1, 2, tzinfo=UTC))
    assert coming == datetime(2027, 1, 8, tzinfo=UTC)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("@reboot start", "@reboot is not a time"),
        ("@REBOOT start", "@reboot is not a time"),
        ("@fortnightly a", "@fortnightly"),
        ("61 * * * * a", "out of range"),
        ("0 0 30 2 * a", "never"),
        ("5-1 * * * * a", "5-1"),
        ("0~59 * * * * a", "~"),
        ("* * * * *", "no command"),
        ("@daily", "no command"),
        ("@daily   %x", "no command"),
        ("what is this", "neither a setting nor five time fields"),
        ("0 0 * * täglich a", "ASCII"),
    ],
)
def test_what_cannot_be_imported_is_told_by_its_line(line, says):
    found = read(f"# one\n{line}\n@daily fine")
    assert [number for number, _ in problems(found)] == [2]
    assert says in problems(found)[0][1]
    assert [job.command for job in found.jobs] == ["fine"]


def test_what_would_go_otherwise_than_under_cron_is_remarked():
    found = read("@daily a.sh > x 2>&1 &\n@daily b && c\n@daily d 2>&1\n@daily root e")
    assert [(note.line, note.text.split()[0:2]) for note in found.remarks] == [(1, ["the", "&"]), (4, ["root", "is"])]
    assert len(found.jobs) == 4


def test_lines_end_where_they_end_for_cron():
    """Not at each character at which Python would end one; and an empty SHELL is none."""
    found = read("SHELL=\r\n@daily echo a\fb\u2028c\r\n")
    assert [(job.command, job.args["shell"]) for job in found.jobs] == [("echo a\fb\u2028c", True)]


def test_a_system_crontab_has_a_user():
    found = read("17 * * * * root\tcd / && run-parts --report /etc/cron.hourly\n@daily ada", user_column=True)
    assert [(job.user, job.command) for job in found.jobs] == [("root", "cd / && run-parts --report /etc/cron.hourly")]
    assert problems(found) == [(2, "there is no command after the user")]


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("/usr/local/bin/backup.sh --full > /var/log/backup 2>&1", "backup.sh-full"),
        ("cd /srv/app && ./manage.py clearsessions", "manage.py-clearsessions"),
        ("test -x /usr/sbin/anacron || ( cd / && run-parts --report /etc/cron.daily )", "run-parts-report-cron.daily"),
        ("PGPASSWORD=x nice env A=b pg_dump app | gzip > x", "pg_dump-app"),
        ("/opt/täglich.sh", "täglich.sh"),
        (">/dev/null", "command"),
        ("cd / ; sleep 10 &", "sleep-10"),
        ("a" * 300, "a" * 60),
    ],
)
def test_names_are_readable(command, name):
    assert name_for(command) == name


def test_names_are_told_apart_and_the_same_at_every_reading():
    text = "@daily a\n@hourly a\n@daily a-2\n@weekly a"
    names = [job.name for job in read(text, prefix="host:").jobs]
    assert names == ["host:a", "host:a-2", "host:a-2-2", "host:a-3"]
    assert names == [job.name for job in read(text, prefix="host:").jobs]


# --- the command ----------------------------------------------------------------------------------------

CRONTAB = """\
MAILTO=ops@example.org
CRON_TZ=Europe/Berlin
0 3 * * 1-5 /usr/local/bin/backup --full
@daily cat%line
"""


def rows(shell) -> list[tuple]:
    return shell.sql("select name, entrypoint, expression, timezone, max_attempts from pgsched.schedules order by name")


def test_it_shows_first_and_makes_nothing_until_it_is_told_to(shell, tmp_path):
    (tmp_path / "tab").write_text(CRONTAB)
    looked = shell("import-crontab", "tab", "--dry-run")
    assert looked.exit_code == 0
    assert "backup-full  new  0 3 * * 1-5  Europe/Berlin" in looked.stdout
    first, second = looked.stderr.splitlines()
    assert first == "Line 1: MAILTO is ignored: output is kept with each run instead of being mailed."
    assert second.startswith("Line 2: CRON_TZ moves the lines below it here and in cronie")
    refused = shell("import-crontab", "tab", stdin="y\n")
    assert refused.exit_code == 2 and "--dry-run" in refused.stderr and "--yes" in refused.stderr
    assert rows(shell) == []
    made = shell("import-crontab", "tab", "--yes")
    assert made.exit_code == 0 and made.stderr.endswith("Made 2 schedules of the entrypoint 'command'.\n")
    assert rows(shell) == [
        ("backup-full", "command", "0 3 * * 1-5", "Europe/Berlin", 1),
        ("cat", "command", "@daily", "Europe/Berlin", 1),
    ]


@pytest.mark.parametrize(("answer", "code", "made"), [("y", 0, 2), ("n", 1, 0), ("", 1, 0)])
def test_on_a_terminal_it_asks(shell, tmp_path, answer, code, made):
    (tmp_path / "tab").write_text(CRONTAB)
    ours, theirs = pty.openpty()
    process = spawn("import-crontab", "tab", *shell.where, stdin=theirs)
    os.close(theirs)
    asked = b""
    while b"[y/N]" not in asked:
        asked += process.stderr.read1()
    os.write(ours, f"{answer}\n".encode())
    shown, _ = process.communicate(timeout=30)
    os.close(ours)
    assert process.returncode == code and b"backup-full" in shown
    assert len(rows(shell)) == made


def test_a_name_that_exists_stops_all_of_it(shell, tmp_path):
    (tmp_path / "tab").write_text(CRONTAB)
    shell.ok("schedules", "add", "cat", "e", "@daily")
    assert shell("import-crontab", "tab", "--dry-run").exit_code == 1
    result = shell("import-crontab", "tab", "--yes")
    assert result.exit_code == 1 and "other schedules already have the names cat (choose a --prefix)" in result.stderr
    assert len(rows(shell)) == 1
    assert shell("import-crontab", "tab", "--yes", "--prefix", "host/").exit_code == 0
    assert len(rows(shell)) == 3


def test_a_second_import_changes_nothing_and_an_update_what_its_lines_say(shell, tmp_path):
    (tmp_path / "tab").write_text(CRONTAB)
    assert shell("import-crontab", "tab", "--yes").exit_code == 0
    again = shell("import-crontab", "tab", "--yes")
    assert again.exit_code == 0 and again.stderr.endswith("All 2 schedules already exist and are up to date.\n")
    assert shell("schedules", "pause", "cat").exit_code == 0
    shell.sql("update pgsched.schedules set max_attempts = 5")
    (tmp_path / "tab").write_text(CRONTAB.replace("0 3", "0 4").replace("cat%line", "cat%other\n@weekly new"))
    before = rows(shell)
    looked = shell("import-crontab", "tab", "--dry-run")
    assert looked.exit_code == 1 and "backup-full  changed" in looked.stdout and "new          new" in looked.stdout
    refused = shell("import-crontab", "tab", "--yes")
    assert (
        refused.exit_code == 1
        and "the schedules backup-full, cat already exist with another time or command" in refused.stderr
    )
    assert shell("import-crontab", "tab", "--dry-run", "--update").exit_code == 0
    assert rows(shell) == before
    done = shell("import-crontab", "tab", "--yes", "--update")
    assert done.exit_code == 0 and "Made 1 and changed 2 schedules" in done.stderr and "Warning" not in done.stderr
    assert rows(shell) == [
        ("backup-full", "command", "0 4 * * 1-5", "Europe/Berlin", 5),
        ("cat", "command", "@daily", "Europe/Berlin", 5),
        ("new", "command", "@weekly", "Europe/Berlin", 1),
    ]
    assert shell.sql("select status, args->>'stdin' from pgsched.schedules where name = 'cat'") == [
        ("paused", "other\n")
    ]


def test_what_has_gone_from_the_file_is_told_and_stays(shell, tmp_path):
    (tmp_path / "tab").write_text("@daily a\n@weekly a\n")
    assert shell("import-crontab", "tab", "--yes", "--prefix", "host:").exit_code == 0
    shell.ok("schedules", "add", "other", "command", "@daily")
    (tmp_path / "tab").write_text("@weekly a\n")
    done = shell("import-crontab", "tab", "--yes", "--prefix", "host:", "--update")
    assert "Warning: the file has no line for host:a-2: if their lines" in done.stderr
    assert [row[0] for row in rows(shell)] == ["host:a", "host:a-2", "other"]


@pytest.mark.parametrize("owner", ["api", "code:app"])
def test_an_update_touches_only_what_an_import_can_have_made(shell, tmp_path, owner):
    (tmp_path / "tab").write_text("@daily a\n")
    shell.ok("schedules", "add", "a", "other" if owner == "api" else "command", "@weekly")
    shell.sql("update pgsched.schedules set owner = %s", owner)
    result = shell("import-crontab", "tab", "--yes", "--update")
    assert result.exit_code == 1 and "have the names a (choose a --prefix)" in result.stderr
    assert [row[2] for row in rows(shell)] == ["@weekly"]


def test_a_schedule_that_the_database_refuses_takes_the_others_with_it(shell, tmp_path):
    (tmp_path / "tab").write_text(CRONTAB)
    shell.sql("alter table pgsched.schedules add constraint no_cat check (name <> 'cat')")
    assert shell("import-crontab", "tab", "--yes").exit_code == 2
    assert rows(shell) == []


def test_lines_that_cannot_be_read_stop_it_unless_they_are_to_be_left_out(shell, tmp_path):
    (tmp_path / "tab").write_text(CRONTAB + "@reboot start\nnonsense\n")
    result = shell("import-crontab", "tab", "--yes")
    assert result.exit_code == 1
    assert "line 5 cannot be imported: @reboot is not a time" in result.stderr
    assert "line 6 cannot be imported" in result.stderr and "--skip-unreadable" in result.stderr
    assert rows(shell) == []
    assert shell("import-crontab", "tab", "--yes", "--skip-unreadable").exit_code == 0
    assert len(rows(shell)) == 2


def test_standard_input_and_json(shell):
    result = shell("import-crontab", "-", "--dry-run", "--json", "--tz", "Asia/Tokyo", "--user-column",
                   stdin="0 0 * * * root ls -l\n@reboot root x\n")  # fmt: skip
    assert result.exit_code == 1
    printed = json.loads(result.stdout)
    schedule = printed["schedules"][0]
    assert schedule.pop("next_run").endswith("T15:00:00Z")
    assert schedule == {
        "line": 1, "name": "ls-l", "expression": "0 0 * * *", "timezone": "Asia/Tokyo", "user": "root",
        "args": {"argv": "ls -l", "shell": True}, "state": "new",
    }  # fmt: skip
    assert [problem["line"] for problem in printed["problems"]] == [2]
    assert shell("import-crontab", "-", stdin="@daily x\n").exit_code == 2


@pytest.mark.parametrize(("content", "says"), [(None, "No such file"), (b"@daily \xff", "not UTF-8 in line 1")])
def test_a_file_that_is_no_text_is_one_sentence(shell, tmp_path, content, says):
    if content is not None:
        (tmp_path / "tab").write_bytes(content)
    result = shell("import-crontab", "tab", "--dry-run")
    assert result.exit_code == 78 and says in result.stderr and len(result.stderr.splitlines()) == 1


def test_the_zone_is_this_machines_by_default(monkeypatch):
    monkeypatch.setenv("TZ", ":Asia/Tokyo")
    assert local_timezone() == "Asia/Tokyo"
    monkeypatch.delenv("TZ")
    parse("@daily", local_timezone())


async def test_what_was_imported_is_run_by_the_ready_made_factory(shell, settings, db, tmp_path):
    (tmp_path / "tab").write_text(
        f"GREETING=hello\nHOME={tmp_path}\n@daily read line; echo $GREETING $line; pwd%you%\n"
    )
    assert (await asyncio.to_thread(shell, "import-crontab", "tab", "--yes")).exit_code == 0
    async with working(create_scheduler(), settings):
        await db.all("select pgsched.trigger(name) from pgsched.schedules")
        await db.until("select status = 'succeeded' from pgsched.runs")
    assert await db.value("select result->>'output' from pgsched.runs") == f"hello you\n{tmp_path}\n"
