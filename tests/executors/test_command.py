"""Commands: what they get, what is kept of them, and that nothing of them goes on when their run is over."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest
from support.workers import alive, until, working

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
from pgsched.executors.warden import ORPHANS, Orphans
from pgsched.journal import Journal
from pgsched.model import Cancellation

PAST = datetime(2020, 1, 1, tzinfo=UTC)
# Only a notification can bring a request, and nobody takes the claim away.
FAR = {"heartbeat_interval": "30s", "stall_timeout": "1h"}
ONCE = Retry(attempts=1)


@pytest.fixture
async def client(settings):
    async with connect(settings.dsn, schema=settings.schema) as client:
        yield client


def children_states(column: str = "stat") -> str:
    """The states of this process's children, or another column, as ps has them."""
    command = ["ps", "-o", f"{column}=", "--ppid", str(os.getpid())]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def numbers(path) -> list[int]:
    """The process ids in a file, as soon as there are any."""
    return [int(word) for word in path.read_text().split()] if path.exists() else []


class Attempt:
    """A run as an executor sees it, without a worker."""

    def __init__(self, command, grace=30.0, **args):
        self.executor = CommandExecutor()

        async def function() -> object:
            return command

        self.executor.function = function
        self.journal = Journal()
        self.run = Run(
            id=7, entrypoint="job", schedule=None, fire_time=None, previous_fire_time=None, attempt=2, args=args,
            worker=None, resources=None, cancellation=Cancellation(grace), journal=self.journal,
        )  # fmt: skip

    async def execute(self):
        return await self.executor.execute(self.run)

    def lines(self) -> list[tuple[str, str]]:
        said = self.journal.read()
        self.journal.wrote(said)
        return [(line.level, line.text) for line in said.lines]


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


async def test_lines_are_kept_as_they_come_with_their_stream_as_level(tmp_path):
    gate = tmp_path / "gate"
    attempt = Attempt(
        Command(f"printf 'one\\ntw'; echo oops >&2; until test -e {gate}; do sleep 0.01; done", shell=True)
    )
    task = asyncio.create_task(attempt.execute())
    seen: list[tuple[str, str]] = []

    def more() -> bool:
        seen.extend(attempt.lines())
        return len(seen) >= 2

    await until(more)
    assert sorted(seen) == [("info", "one"), ("warning", "oops")]  # while it runs
    gate.touch()
    await task
    assert attempt.lines() == [("info", "tw")]


async def test_output_without_end_is_capped_and_counted():
    attempt = Attempt(Command("yes some line or other | head -n 200000; echo last", shell=True))
    result = await attempt.execute()
    assert result["output"].endswith("\nlast\n") and len(result["output"]) == 8192
    kept = attempt.lines()
    assert sum(len(text) + 1 for _, text in kept) <= Journal.LIMIT
    assert len(kept) + attempt.journal.dropped in (200_000, 200_001)  # a line that is cut by the limit counts once


async def test_bytes_that_are_no_text_are_shown_and_can_be_stored():
    attempt = Attempt(["printf", r"a\377\000b\n"])
    assert (await attempt.execute())["output"] == "a\\xff\\x00b\n"


async def test_long_lines_are_cut_between_characters():
    """Where they are cut must not depend on how the bytes came, and no letter is lost."""
    for text in ("ä" * 10_000, "x" + "日" * 9_000 + "\n"):
        attempt = Attempt([sys.executable, "-c", f"print({text!r}, end='', flush=True)"])
        result = await attempt.execute()
        lines = [line for _, line in attempt.lines()]
        assert "".join(lines) == text.rstrip() and len(lines) > 1
        assert max(len(line.encode()) for line in lines) <= 8192
        assert set(result["output"]) <= set(text)


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


FAMILY = """
sleep 1000 & echo $$ $! > {folder}/pids.new && mv {folder}/pids.new {folder}/pids
wait
"""


@pytest.mark.parametrize("why", ["cancel", "timeout", "lost", "drain"])
async def test_whatever_stops_its_run_ends_the_command_and_its_children(settings, db, client, tmp_path, why):
    sc = Scheduler()
    sc.command(
        "family", FAMILY.format(folder=tmp_path), shell=True, retry=ONCE,
        timeout=timedelta(seconds=1.5) if why == "timeout" else None,
    )  # fmt: skip
    changes = {} if why == "lost" else FAR
    async with working(sc, settings, **changes, cancel_timeout="20s", drain_timeout="100ms") as worker:
        run_id = await client.enqueue("family")
        await until(lambda: numbers(tmp_path / "pids"))
        pids = numbers(tmp_path / "pids")
        if why == "cancel":
            await client.cancel(run_id)
        elif why == "lost":
            await db.all("update pgsched.runs set worker = gen_random_uuid(), heartbeat_at = now() + interval '1 hour'")
        elif why == "drain":
            worker.stop()
        await until(lambda: worker.roster.slots_used == 0)
        assert not any(alive(pid) for pid in pids)  # at once: SIGTERM was enough
    expected = {"cancel": "cancelled", "timeout": "failed", "lost": "running", "drain": "queued"}
    assert await db.value("select status from pgsched.runs") == expected[why]


async def test_a_command_that_ignores_sigterm_is_killed_and_not_told_as_disobedient(settings, db, client, tmp_path):
    sc = Scheduler()
    stubborn = f"trap '' TERM; {FAMILY.format(folder=tmp_path)} while :; do sleep 1; done"
    sc.command("stubborn", stubborn, shell=True)
    async with working(sc, settings, **FAR, cancel_timeout="1500ms"):
        run_id = await client.enqueue("stubborn")
        await until(lambda: numbers(tmp_path / "pids"))
        await client.cancel(run_id)
        await db.until("select status = 'cancelled' from pgsched.runs")
        assert not any(alive(pid) for pid in numbers(tmp_path / "pids"))
    assert (await client.get_run(run_id))["reason"] == "cancelled on request"


async def test_all_of_the_group_is_asked(tmp_path):
    script = f"""
    trap : TERM
    sh -c 'trap "touch {tmp_path}/asked; exit" TERM; touch {tmp_path}/ready; while :; do sleep 0.05; done' &
    while kill -0 $! 2> {tmp_path}/errors; do wait $!; done
    """
    task = asyncio.create_task(Attempt(Command(script, shell=True)).execute())
    await until((tmp_path / "ready").exists)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled() and (tmp_path / "asked").exists()


@pytest.fixture(params=["pidfd", "thread"])
def watched(request, monkeypatch):
    """Both ways in which the end of a process is noticed."""
    if request.param == "thread":

        def refused(pid: int) -> int:
            raise OSError("Too many open files")

        monkeypatch.setattr(os, "pidfd_open", refused)


@pytest.mark.usefixtures("watched")
async def test_who_is_asked_has_the_time_whoever_of_the_group_ends_first(tmp_path):
    """The shell of a crontab's line goes down at once; the program in it may have something to put in order."""
    script = f"""
    sh -c 'trap "sleep 0.2; touch {tmp_path}/tidy; exit" TERM; touch {tmp_path}/ready; while :; do sleep 0.05; done' &
    echo $$ $! > {tmp_path}/pids
    wait
    """
    task = asyncio.create_task(Attempt(Command(script, shell=True)).execute())
    await until((tmp_path / "ready").exists)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled() and (tmp_path / "tidy").exists()
    assert not any(alive(pid) for pid in numbers(tmp_path / "pids")) and not ORPHANS._groups


async def test_who_is_cancelled_at_once_may_still_say_something(tmp_path):
    """The cancellation comes while its output is being connected."""
    script = f"""
    trap "echo sorry; echo sorry >&2; touch {tmp_path}/tidy; exit" TERM; touch {tmp_path}/ready
    while :; do sleep 0.05; done
    """
    attempt = Attempt(Command(script, shell=True))
    task = asyncio.create_task(attempt.execute())
    await asyncio.sleep(0)
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled() and (tmp_path / "tidy").exists()
    assert attempt.lines()[-2:] in (
        [("info", "sorry"), ("warning", "sorry")],
        [("warning", "sorry"), ("info", "sorry")],
    )


@pytest.mark.usefixtures("watched")
async def test_who_does_not_take_it_is_killed_though_the_first_has_gone(tmp_path):
    deaf = f"sh -c 'trap \"\" TERM; touch {tmp_path}/ready; while :; do sleep 0.05; done'"
    script = f"{deaf} & echo $! > {tmp_path}/pids; wait"
    task = asyncio.create_task(Attempt(Command(script, shell=True), grace=0.1).execute())
    await until((tmp_path / "ready").exists)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until(lambda: not any(alive(pid) for pid in numbers(tmp_path / "pids")))
    assert task.cancelled() and not ORPHANS._groups


@pytest.mark.usefixtures("watched")
async def test_an_exit_code_that_others_took_is_no_success(tmp_path):
    """As of `os.wait()` in a job's thread: subprocess would say 0."""
    script = f"echo $$ > {tmp_path}/pids; until test -e {tmp_path}/gate; do sleep 0.02; done; exit 3"
    task = asyncio.create_task(Attempt(Command(script, shell=True)).execute())
    await until(lambda: numbers(tmp_path / "pids"))
    (tmp_path / "gate").touch()
    os.waitpid(numbers(tmp_path / "pids")[0], 0)  # noqa: ASYNC222 - the event loop shall have no say meanwhile
    with pytest.raises(CommandFailed, match="unknown exit code: other code in the worker waits for child") as told:
        await task
    assert told.value.exit_code_of_command is None


async def test_exit_codes_are_known_where_they_were_to_be_ignored():
    """Some parents of services start them so, and every exit code is lost."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with pytest.raises(CommandFailed, match="exited with code 3"):
            await Attempt(["sh", "-c", "exit 3"]).execute()
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.usefixtures("watched")
async def test_what_a_command_leaves_behind_ends_with_it_even_if_it_holds_the_output(tmp_path):
    attempt = Attempt(Command(f"sleep 1000 & echo $! > {tmp_path}/pids; echo done", shell=True))
    assert (await attempt.execute())["output"] == "done\n"
    await until(lambda: not any(alive(pid) for pid in numbers(tmp_path / "pids")))
    said = ("warning", "the command left processes in the background, which were killed when it ended")
    assert attempt.lines() == [("info", "done"), said]
    tidy = Attempt(Command("sleep 0 & wait; echo done | cat", shell=True))
    await tidy.execute()
    assert tidy.lines() == [("info", "done")]


async def test_neither_descriptors_nor_zombies_nor_threads_remain(tmp_path):
    await Attempt(["true"]).execute()  # what stays for good is there now
    before = len(os.listdir("/dev/fd"))  # noqa: PTH208
    for command in (["true"], ["false"], ["no-such-program"], Command("cat", shell=True, stdin="x")):
        await asyncio.gather(Attempt(command).execute(), return_exceptions=True)
    stopped = asyncio.create_task(Attempt(["sleep", "1000"]).execute())
    await asyncio.sleep(0)
    stopped.cancel()
    await asyncio.gather(stopped, return_exceptions=True)
    assert stopped.cancelled()
    await asyncio.sleep(0)  # transports close in the next turn of the loop
    assert not ORPHANS._groups
    assert len(os.listdir("/dev/fd")) == before  # noqa: PTH208
    assert "Z" not in children_states()


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


async def test_a_command_that_nobody_could_end_is_not_run(tmp_path, monkeypatch):
    """Where no warden can be started, or no thread: there is one sentence, and nothing is left, in no list either."""
    lonely = Orphans()
    monkeypatch.setattr("pgsched.executors.child.ORPHANS", lonely)
    monkeypatch.setattr(lonely, "_start", lambda: (_ for _ in ()).throw(BlockingIOError(11, "Too few processes")))
    with pytest.raises(CommandFailed, match="cannot be started: Too few processes"):
        await Attempt(["sleep", "1000"]).execute()
    assert not lonely._groups and "Z" not in children_states() and "sleep" not in children_states("comm")


async def test_an_end_is_noticed_though_its_warden_cannot_be_told(tmp_path, monkeypatch):
    mine = Orphans()
    monkeypatch.setattr("pgsched.executors.child.ORPHANS", mine)
    task = asyncio.create_task(
        Attempt(Command(f"until test -e {tmp_path}/gate; do sleep 0.02; done", shell=True)).execute()
    )
    await until(lambda: mine._groups)
    warden = mine._warden
    warden.kill()
    warden.wait()
    monkeypatch.setattr(mine, "_start", lambda: (_ for _ in ()).throw(BlockingIOError(11, "Too few processes")))
    (tmp_path / "gate").touch()
    async with asyncio.timeout(10):
        assert (await task)["exit_code"] == 0
    assert not mine._groups
    mine.close()


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="only where a process can be watched")
def test_a_fork_that_outlives_the_worker_does_not_keep_its_commands_alive():
    """As the processes of a multiprocessing pool do: they hold all that the worker held."""
    script = """
import os, signal, subprocess, sys, time
from pgsched.executors.warden import ORPHANS
child = subprocess.Popen(["sleep", "1000"], start_new_session=True, stdout=subprocess.DEVNULL)
ORPHANS.watch(child.pid)
fork = os.fork()
if not fork:
    os.close(1)
    time.sleep(1000)
print(fork, child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=False)
    fork, child = map(int, done.stdout.split())
    try:
        deadline = time.monotonic() + 20
        while alive(child):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert alive(fork)
    finally:
        os.kill(fork, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def test_a_second_warden_is_told_of_everything_when_the_first_is_ended():
    """Somebody may kill it; what is started after that must be looked after all the same, and what was there before."""
    script = """
import os, signal, subprocess, sys
from pgsched.executors.warden import ORPHANS
deaf = "trap '' TERM; echo ready; while :; do sleep 1; done"
children = [
    subprocess.Popen(["sh", "-c", deaf], start_new_session=True, stdout=subprocess.PIPE) for _ in range(2)
]
for child in children:
    child.stdout.readline()
ORPHANS.watch(children[0].pid)
ORPHANS._warden.kill(); ORPHANS._warden.wait()
ORPHANS.watch(children[1].pid)
print(*[child.pid for child in children], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    deadline = time.monotonic() + 20
    while any(alive(int(pid)) for pid in done.stdout.split()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
