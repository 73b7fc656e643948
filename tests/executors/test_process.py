"""Runs in processes of their own: what goes there and comes back, and that nothing of them goes on."""

import asyncio
import functools
import json
import os
import signal
import subprocess
import sys
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs
from support import jobs as work
from support.shell import invoke
from support.workers import alive, until, working

from pgsched import (
    Discard,
    InvalidArguments,
    ProcessDied,
    ProcessExecutor,
    RegistrationError,
    RemoteError,
    Retry,
    RetryLater,
    Run,
    Scheduler,
    at,
    connect,
)
from pgsched.journal import Journal
from pgsched.model import Cancellation
from pgsched.rules.outcome import Unstored

PAST = datetime(2020, 1, 1, tzinfo=UTC)
FAR = {"heartbeat_interval": "30s", "stall_timeout": "1h"}
ONCE = Retry(attempts=1)


@pytest.fixture
async def client(settings):
    async with connect(settings.dsn, schema=settings.schema) as client:
        yield client


class Attempt:
    """A run as an executor sees it, without a worker."""

    def __init__(self, function, **args):
        self.executor = ProcessExecutor(function)
        self.journal = Journal()
        self.run = Run(
            id=7, entrypoint="job", schedule=None, fire_time=None, previous_fire_time=None, attempt=2, args=args,
            worker=uuid.UUID(int=7), resources=object(), cancellation=Cancellation(30), journal=self.journal,
        )  # fmt: skip

    async def execute(self):
        return await self.executor.execute(self.run)

    def lines(self) -> list[tuple[str, str]]:
        said = self.journal.read()
        self.journal.wrote(said)
        return [(line.level, line.text) for line in said.lines]


async def test_arguments_go_there_and_the_result_comes_back(settings, db, client):
    sc = Scheduler()
    sc.entrypoint("product", executor=ProcessExecutor)(work.product)
    args = {"a": 3, "b": {"datetime": "no date"}}
    async with working(sc, settings):
        run_id = await client.enqueue("product", {"a": 21})
        await db.until("select status = 'succeeded' from pgsched.runs")
    result = (await client.get_run(run_id))["result"]
    assert result["pid"] != os.getpid()
    assert result | {"pid": 0} == {"product": 42, "pid": 0, "attempt": 1, "args": {"a": 21}}
    attempt = Attempt(work.product, a="x", b=2)
    assert (await attempt.execute())["args"] == {"a": "x", "b": 2}
    with pytest.raises(RemoteError, match="TypeError"):
        await Attempt(work.product, **args).execute()  # a dict that looks like one of ours is left as it is


async def test_the_deepest_arguments_and_results_pass_everywhere(settings, db, client):
    sc = Scheduler()
    sc.entrypoint("there", executor=ProcessExecutor)(work.same)
    sc.entrypoint("here", retry=ONCE)(work.same)
    value = json.loads("[" * 499 + "]" * 499)  # the dict of the arguments is a level, too
    deepest = [await client.enqueue(name, {"value": value}) for name in ("there", "here")]
    deeper = await db.value("select pgsched.enqueue('here', %s::jsonb)", '{"value": ' + "[" * 500 + "]" * 500 + "}")
    async with working(sc, settings):
        for run_id in deepest:
            run = await client.runs.wait(run_id, timeout=30)
            assert (run["result"], run["args"]) == (value, {"value": value})
        await db.until("select status = 'failed' from pgsched.runs where id = %s", deeper)
    error = (await client.get_run(deeper))["errors"][0]["message"]
    assert error == "the arguments cannot be read: it has more than 500 levels of lists and dicts"
    shown = await asyncio.to_thread(
        invoke, "runs", "show", deepest[0], "--json", "--dsn", settings.dsn, "--schema", settings.schema
    )
    assert json.loads(shown.stdout)["result"] == value


async def test_a_schedules_own_executor_and_a_coroutine(settings, db, client):
    sc = Scheduler()
    sc.schedule("slept", at(PAST), name="mine", executor=ProcessExecutor)(work.slept)
    async with working(sc, settings) as worker:
        await db.until("select status = 'succeeded' from pgsched.runs")
    run = (await client.list_runs())[0]
    row = await client.get_schedule("mine")
    assert (await client.get_run(run["id"]))["result"] == [
        run["id"], "mine", PAST.isoformat(), row["created_at"].isoformat(), str(worker.kit.worker),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda: None, "is a lambda, and another process can only import a function from the top level of a module"),
        (functools.partial(work.product, a=1), "is not a plain function"),
        (ProcessExecutor(work.product).check, "is not a plain function"),
    ],
)
def test_what_another_process_cannot_find_is_refused_at_registration(function, sentence):
    sc = Scheduler()
    with pytest.raises(RegistrationError, match=sentence):
        sc.entrypoint("job", executor=ProcessExecutor)(function)

    def nested() -> None: ...

    with pytest.raises(RegistrationError, match=r"nested is defined inside test_what_.*\(\), and .*: define it there"):
        sc.schedule("job", "@daily", executor=ProcessExecutor)(nested)
    assert not sc.declared and not sc.entrypoints


async def test_errors_are_told_as_if_they_had_been_raised_here(settings, db, client):
    sc = Scheduler()
    retry = Retry(3, timedelta(0), never=ValueError)
    sc.entrypoint("deep", executor=ProcessExecutor, retry=retry)(work.deep)
    failures = []

    @sc.on_failure
    async def failed(run, failure) -> None:
        failures.append(str(failure.error))

    async with working(sc, settings):
        run_id = await client.enqueue("deep")
        await db.until("select status = 'failed' from pgsched.runs")
    run = await client.get_run(run_id)
    assert run["attempt"] == 1  # OwnError is a ValueError
    error = run["errors"][0]
    assert (error["type"], error["message"]) == ("support.jobs.OwnError", "no such luck")
    frames = [line for line in error["traceback"].splitlines() if line.startswith("  File")]
    assert len(frames) == 2 and "in deep" in frames[0] and "in inner" in frames[1]
    assert "secretsecret" not in error["traceback"]


async def test_what_is_said_by_raising_is_heard_here():
    with pytest.raises(RetryLater, match="rate limited") as raised:
        await Attempt(work.later).execute()
    assert raised.value.delay == timedelta(hours=2)
    with pytest.raises(Discard, match="gone"):
        await Attempt(work.discard).execute()
    with pytest.raises(InvalidArguments, match="never do"):
        await Attempt(work.unfit).execute()
    with pytest.raises(InvalidArguments, match="needs the argument 'a'"):
        await Attempt(work.product).execute()
    with pytest.raises(RemoteError, match="SystemExit: that is all"):
        await Attempt(work.system_exit).execute()


async def test_a_result_that_is_no_json_is_told_as_such():
    found = await Attempt(work.no_json).execute()
    assert isinstance(found, Unstored) and "not JSON" in found.reason


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (
            work.segfault,
            "was killed by SIGSEGV before the function had ended: Fatal Python error: Segmentation fault\n",
        ),
        (work.exit_hard, "exited with code 7 before the function had ended: about to leave"),
        (work.kill_self, "was killed by SIGKILL before the function had ended, without any output."),
    ],
)
async def test_a_process_that_dies_fails_its_attempt_and_nothing_else(function, sentence):
    with pytest.raises(ProcessDied) as raised:
        await Attempt(function).execute()
    assert str(raised.value).startswith(f"its process {sentence}")


async def test_a_crash_is_tried_again_and_the_worker_goes_on(settings, db, client):
    sc = Scheduler()
    sc.entrypoint("segfault", executor=ProcessExecutor, retry=Retry(2, timedelta(0)))(work.segfault)
    sc.entrypoint("product", executor=ProcessExecutor)(work.product)
    async with working(sc, settings):
        run_id = await client.enqueue("segfault")
        await db.until("select status = 'failed' and attempt = 2 from pgsched.runs")
        await client.enqueue("product", {"a": 1})
        await db.until("select status = 'succeeded' from pgsched.runs where entrypoint = 'product'")
    errors = (await client.get_run(run_id))["errors"]
    assert [error["type"] for error in errors] == ["pgsched.ProcessDied"] * 2


async def test_all_that_it_says_is_kept_with_the_run():
    attempt = Attempt(work.chatter)
    await attempt.execute()
    assert sorted(attempt.lines()) == [
        ("error", "from the run"), ("info", "from print"), ("warning", "from stderr"), ("warning", "lib: from logging"),
    ]  # fmt: skip
    assert attempt.journal.progress == (3, 4)


async def test_a_flood_of_lines_is_capped_where_it_springs():
    attempt = Attempt(work.flood)
    await attempt.execute()
    kept = attempt.lines()
    assert sum(len(text) + 1 for _, text in kept) <= Journal.LIMIT + 1
    assert kept[0] == ("info", "line 0")
    assert 19_999 <= len(kept) + attempt.journal.dropped <= 20_001  # one is cut by the limit


@pytest.mark.parametrize("function", [work.looks, work.coroutine])
async def test_a_function_that_listens_is_asked_and_not_killed(settings, db, client, tmp_path, function):
    sc = Scheduler()
    sc.entrypoint("job", executor=ProcessExecutor)(function)
    async with working(sc, settings, **FAR, cancel_timeout="20s"):
        run_id = await client.enqueue("job", {"folder": str(tmp_path)})
        await until(lambda: (tmp_path / "began").exists())
        await client.cancel(run_id)
        await db.until("select status = 'cancelled' from pgsched.runs")
    assert (tmp_path / "stopped").exists()
    assert (await client.get_run(run_id))["reason"] == "cancelled on request"


async def test_what_was_done_before_it_could_hear_of_the_cancellation_counts(settings, db, client, tmp_path):
    sc = Scheduler()
    sc.entrypoint("job", executor=ProcessExecutor)(work.finishes)
    async with working(sc, settings, **FAR, cancel_timeout="20s") as worker:
        run_id = await client.enqueue("job", {"folder": str(tmp_path)})
        await until(lambda: (tmp_path / "began").exists())
        await client.cancel(run_id)
        await until(lambda: any(live.stop for live in worker.roster.attempts.values()))
        (tmp_path / "gate").touch()
        await db.until("select status = 'succeeded' from pgsched.runs")
    assert (await client.get_run(run_id))["result"] == "done"


@pytest.mark.parametrize("why", ["cancel", "timeout", "lost", "drain"])
async def test_one_that_never_looks_is_killed_with_its_children(settings, db, client, tmp_path, why):
    sc = Scheduler()
    timeout = timedelta(seconds=3) if why == "timeout" else None
    sc.entrypoint("job", executor=ProcessExecutor, retry=ONCE, timeout=timeout)(work.family)
    changes = {} if why == "lost" else FAR
    with capture_logs() as logs:
        async with working(sc, settings, **changes, drain_timeout="100ms", cancel_timeout="1500ms") as worker:
            run_id = await client.enqueue("job", {"folder": str(tmp_path)})
            await until((tmp_path / "pids-1").exists)
            pids = [int(word) for word in (tmp_path / "pids-1").read_text().split()]
            if why == "cancel":
                await client.cancel(run_id)
            elif why == "lost":
                await db.all("update pgsched.runs set worker = gen_random_uuid(), heartbeat_at = now() + interval '1h'")
            elif why == "drain":
                worker.stop()
            await until(lambda: worker.roster.slots_used == 0)
            assert not any(alive(pid) for pid in pids)
    assert not [entry for entry in logs if entry["event"] == "run_ignores_cancellation"]
    expected = {"cancel": "cancelled", "timeout": "failed", "lost": "running", "drain": "queued"}
    assert await db.value("select status from pgsched.runs") == expected[why]


async def test_no_more_processes_than_their_setting_are_claimed(settings, db, client, tmp_path):
    """Nor by a schedule whose own executor it is, though its entrypoint's is another."""
    sc = Scheduler()
    sc.schedule("job", at(PAST), args={"folder": str(tmp_path)}, executor=ProcessExecutor)(work.finishes)
    sc.entrypoint("product", executor=ProcessExecutor)(work.product)
    async with working(sc, settings, max_processes=1) as worker:
        await until((tmp_path / "began").exists)
        await client.enqueue_many("product", [{"a": 1}] * 2)
        await client.enqueue("job", {"folder": str(tmp_path)})  # a thread would do, but that is not known before
        for _ in range(3):  # each look finds room for nothing
            worker.dispatcher.passed.clear()
            worker.kit.wakeups.due.ask()
            await worker.dispatcher.passed.wait()
        assert await db.value("select count(*) from pgsched.runs where status = 'queued'") == 3
        (tmp_path / "gate").touch()
        await db.until("select count(*) = 4 from pgsched.runs where status = 'succeeded'")


async def test_neither_descriptors_nor_zombies_remain(tmp_path):
    await asyncio.gather(Attempt(work.discard).execute(), return_exceptions=True)  # what stays for good is there now
    before = len(os.listdir("/dev/fd"))  # noqa: PTH208
    done = await asyncio.gather(
        Attempt(work.product, a=1).execute(), Attempt(work.segfault).execute(), return_exceptions=True
    )
    assert isinstance(done[1], ProcessDied)
    for turns in range(4):  # cancelled at each of its first steps
        stopped = asyncio.create_task(Attempt(work.family, folder=str(tmp_path)).execute())
        for _ in range(turns):
            await asyncio.sleep(0)
        stopped.cancel()
        stopped.cancel()
        await asyncio.wait([stopped], timeout=0.05)
        stopped.cancel()  # a second time: at once
        await asyncio.gather(stopped, return_exceptions=True)
        assert stopped.cancelled()
    await asyncio.sleep(0)
    assert len(os.listdir("/dev/fd")) == before  # noqa: PTH208


PROGRAM = """
import asyncio, sys
from pgsched import ProcessExecutor, Run
from pgsched.journal import Journal
from pgsched.model import Cancellation
import uuid

def work(run: Run) -> str:
    return __name__

if __name__ == "__main__":
    run = Run(id=1, entrypoint="a", schedule=None, fire_time=None, previous_fire_time=None, attempt=1, args={},
              worker=uuid.uuid4(), resources=None)
    executor = ProcessExecutor(work)
    executor.check(work)
    print(asyncio.run(executor.execute(run)))
"""


def test_functions_of_the_program_itself_are_found(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    for how, name in ((["program.py"], "__pgsched_main__"), (["-m", "program"], "program")):
        done = subprocess.run(
            [sys.executable, *how], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.stdout == f"{name}\n", done.stderr


ORPHAN = """
import asyncio, os, signal, sys, uuid
from pgsched import ProcessExecutor, Run
from pgsched.executors.warden import ORPHANS
from support import jobs as work
from support.shell import invoke

async def main(folder):
    run = Run(id=1, entrypoint="a", schedule=None, fire_time=None, previous_fire_time=None, attempt=1,
              args={"folder": folder}, worker=uuid.uuid4(), resources=None)
    task = asyncio.create_task(ProcessExecutor(work.family).execute(run))
    while not os.path.exists(folder + "/pids-1"):
        await asyncio.sleep(0.01)
    if sys.argv[2] == "warden gone":
        os.kill(ORPHANS.warden.pid, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize("warden", ["there", "warden gone"])
async def test_a_process_does_not_outlive_its_worker(tmp_path, warden):
    """Two things see to that: the process sees its pipe end, and where it cannot (a busy interpreter lock), the
    warden kills it."""
    folder = os.path.dirname(os.path.dirname(work.__file__))  # noqa: PTH120
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", ORPHAN, str(tmp_path), warden],
        env=os.environ | {"PYTHONPATH": folder}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    pids = [int(word) for word in (tmp_path / "pids-1").read_text().split()]
    await until(lambda: not any(alive(pid) for pid in pids), limit=20)
