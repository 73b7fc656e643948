"""Commands: what they get, which ones are refused, and what is told of their end."""

import json
import os
import sys
from datetime import UTC, datetime, timedelta

import pytest
from support.commands import Attempt
from support.workers import until, working

from pgsched import (
    Command,
    CommandExecutor,
    CommandFailed,
    InvalidArguments,
    Limits,
    RegistrationError,
    Retry,
    Run,
    Scheduler,
    at,
    connect,
)
from pgsched.commands import create_scheduler
from pgsched.executors.executor import Place

PAST = datetime(2020, 1, 1, tzinfo=UTC)
ONCE = Retry(attempts=1)


@pytest.fixture
async def client(settings):
    async with connect(settings.dsn, schema=settings.schema) as client:
        yield client


async def test_a_command_gets_its_words_as_they_are_and_knows_its_run(settings, db, client):
    sc = Scheduler()
    show = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"
    words = [sys.executable, "-c", show, "a b", "$HOME", "*", ";", ""]
    sc.command("show", words, env={"COLOUR": "blue", "HOME": None, "PGSCHED_RUN_ID": "0"}).schedule(
        str(at(PAST)), name="once"
    )
    async with working(sc, settings):
        await db.until("select status = 'succeeded' from pgsched.runs")
    run = (await client.list_runs())[0]
    result = (await client.get_run(run["id"]))["result"]
    assert result["exit_code"] == 0
    arguments, environment = json.loads(result["output"])
    assert arguments == ["a b", "$HOME", "*", ";", ""]
    expected = {
        "COLOUR": "blue", "PGSCHED_RUN_ID": str(run["id"]), "PGSCHED_ATTEMPT": "1", "PGSCHED_ENTRYPOINT": "show",
        "PGSCHED_SCHEDULE": "once", "PGSCHED_FIRE_TIME": "2020-01-01T00:00:00+00:00",
    }  # fmt: skip
    assert expected.items() <= environment.items()
    assert environment["PATH"] == os.environ["PATH"] and "HOME" not in environment


async def test_an_enqueued_job_has_no_schedule_in_its_environment():
    attempt = Attempt(Command("env | grep ^PGSCHED_ | sort", shell=True))
    assert (await attempt.execute())["output"].splitlines() == [
        "PGSCHED_ATTEMPT=2", "PGSCHED_ENTRYPOINT=job", "PGSCHED_RUN_ID=7", "PGSCHED_TOKEN=0",
    ]  # fmt: skip


async def test_what_systemd_tells_the_worker_is_not_told_to_a_command(monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    attempt = Attempt(["sh", "-c", "echo ${NOTIFY_SOCKET-none}"])
    assert (await attempt.execute())["output"] == "none\n"


async def test_an_exit_code_fails_the_attempt_with_the_last_words(settings, db, client):
    sc = Scheduler()
    sc.command("bad", ["sh", "-c", "echo first; echo 'no such table' >&2; exit 3"], retry=ONCE)
    async with working(sc, settings):
        run_id = await client.enqueue("bad")
        await db.until("select status = 'failed' from pgsched.runs")
    error = (await client.get_run(run_id))["errors"][0]
    assert error["type"] == "pgsched.CommandFailed"
    head, title, *lines = error["message"].splitlines()
    assert (head, title) == (f"sh exited with code 3: {lines[-1]}", "Its last lines:")
    assert {*lines} == {"first", "no such table"}
    assert error["traceback"] == ""  # it would only say the same again


async def test_one_line_is_told_in_one():
    with pytest.raises(CommandFailed, match=r"^sh exited with code 1: out of paper$"):
        await Attempt(["sh", "-c", "echo out of paper; exit 1"]).execute()


async def test_a_signal_is_named():
    attempt = Attempt(Command("kill -SEGV $$", shell=True))
    with pytest.raises(CommandFailed, match=r"^the command was killed by SIGSEGV, without any output"):
        await attempt.execute()


async def test_a_failed_command_can_be_tried_again_by_its_class(settings, db, client, tmp_path):
    sc = Scheduler()
    script = f"echo x >> {tmp_path}/tries; test $(wc -l < {tmp_path}/tries) -ge 2"
    sc.command("flaky", script, shell=True, retry=Retry(3, timedelta(0), on=CommandFailed))
    async with working(sc, settings):
        await client.enqueue("flaky")
        await db.until("select status = 'succeeded' and attempt = 2 from pgsched.runs")


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["no-such-program-here"], "'no-such-program-here' cannot be started: No such file or directory"),
        (["/etc/passwd"], "'/etc/passwd' cannot be started: Permission denied"),
        (Command(["true"], cwd="/no/such/folder"), "'true' cannot be started: No such file or directory: '/no/such"),
    ],
)
async def test_what_cannot_be_started_is_told_in_a_sentence(command, sentence):
    with pytest.raises(CommandFailed) as raised:
        await Attempt(command).execute()
    assert str(raised.value).startswith(sentence)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"argv": "ls -l"}, r"argv must be a list such as \['ls', '-l'\]"),
        ({"argv": []}, "argv must be a list"),
        ({"argv": ["ls", 1]}, "argv must be a list"),
        ({"argv": ["ls"], "shell": True}, "argv must be one text"),
        ({"argv": ["ls"], "env": {"A=B": "c"}}, "env must be a dict"),
        ({"argv": ["ls"], "env": ["A"]}, "env must be a dict"),
        ({"argv": ["ls"], "cwd": 3}, "cwd must be a text"),
        ({"argv": ["ls"], "stdin": 3}, "stdin must be a text"),
        ({"argv": ["l\0s"]}, "NUL"),
    ],
)
async def test_arguments_that_are_no_command_are_refused_once_and_for_all(values, sentence):
    with pytest.raises(InvalidArguments, match=sentence):
        Command(**values)
    with pytest.raises(RegistrationError, match=sentence):
        Scheduler().command("job", **values)


async def test_a_command_reads_nothing_or_what_it_is_given():
    assert (await Attempt(["cat"]).execute())["output"] == ""
    text = "line\n" * 50_000  # more than a pipe takes
    result = await Attempt(Command(["wc", "-c"], stdin=text)).execute()
    assert result["output"].strip() == str(len(text))


async def test_a_shell_of_ones_own():
    assert (await Attempt(Command("echo $0", shell="/bin/sh")).execute())["output"] == "/bin/sh\n"


async def test_a_function_may_say_what_to_run(settings, db, client):
    sc = Scheduler()

    @sc.schedule("dump", at(PAST), args={"table": "users"}, executor=CommandExecutor)
    def dump(run: Run, table: str) -> list[str]:
        return ["echo", "dump", table, str(run.attempt)]

    @sc.entrypoint("where", executor=CommandExecutor)
    async def where() -> Command:
        return Command(["pwd"], cwd="/")

    async with working(sc, settings):
        run_id = await client.enqueue("where")
        await db.until("select bool_and(status = 'succeeded') and count(*) = 2 from pgsched.runs")
    assert (await client.get_run(run_id))["result"]["output"] == "/\n"
    dumped = (await client.list_runs(entrypoint="dump"))[0]
    assert (await client.get_run(dumped["id"]))["result"]["output"] == "dump users 1\n"


async def test_a_row_names_a_program_only_where_the_application_allows_it(settings, db, client):
    sc = Scheduler()

    @sc.entrypoint("other")
    async def other() -> None: ...

    args = {"argv": ["echo", "from a row"], "env": {"A": "b"}}
    await client.create_schedule("stored", "command", str(at(PAST)), args=args)
    async with working(sc, settings):
        await client.enqueue("other")
        await db.until("select status = 'succeeded' from pgsched.runs where entrypoint = 'other'")
        assert await db.value("select count(*) from pgsched.runs where entrypoint = 'command'") == 0
    async with working(create_scheduler(), settings):
        await db.until("select status = 'succeeded' from pgsched.runs where entrypoint = 'command'")
        wrong = await client.enqueue("command", {"argv": "rm -rf /nowhere"})
        await db.until("select status = 'failed' from pgsched.runs where id = %s", wrong)
    run = await client.get_run(wrong)
    assert run["attempt"] == 1  # another attempt would fare no better
    assert "argv must be a list such as" in run["errors"][0]["message"]


async def test_no_more_commands_than_their_setting_are_claimed(settings, db, client, tmp_path):
    sc = Scheduler()
    sc.command("wait", f"until test -e {tmp_path}/gate; do sleep 0.02; done", shell=True)

    @sc.entrypoint("coroutine")
    async def coroutine() -> None: ...

    async with working(sc, settings, max_commands=2):
        await client.enqueue_many("wait", [{}] * 5)
        await client.enqueue("coroutine")
        await db.until("select status = 'succeeded' from pgsched.runs where entrypoint = 'coroutine'")
        await db.until("select count(*) = 2 from pgsched.runs where status = 'running'")
        assert await db.value("select count(*) from pgsched.runs where status = 'queued'") == 3
        (tmp_path / "gate").touch()
        await db.until("select count(*) = 6 from pgsched.runs where status = 'succeeded'")


async def test_two_lanes_do_not_take_the_same_places(settings, db, client, tmp_path):
    """An entrypoint with a limit of its own on each worker is claimed apart from the others, in the same pass."""
    sc = Scheduler()
    waiting = f"until test -e {tmp_path}/gate; do sleep 0.02; done"
    sc.command("apart", waiting, shell=True, limits=Limits(per_worker=3))
    sc.command("shared", waiting, shell=True)
    await client.enqueue_many("apart", [{}] * 2)
    await client.enqueue_many("shared", [{}] * 2)
    async with working(sc, settings, max_commands=2) as worker:
        await until(lambda: worker.roster.slots_used >= 2)
        assert (worker.roster.slots_used, worker.roster.places()[Place.COMMAND]) == (2, 0)
        (tmp_path / "gate").touch()
        await db.until("select count(*) = 4 from pgsched.runs where status = 'succeeded'")
