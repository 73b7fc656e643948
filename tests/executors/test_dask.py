"""Runs on a Dask cluster: a real scheduler and two worker processes, some of which are killed."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

import pytest
from support import jobs as work
from support.workers import until, working

from pgsched import Discard, RegistrationError, RemoteError, Retry, RetryLater, Run, Scheduler, connect
from pgsched.journal import Journal
from pgsched.model import Cancellation

pytest.importorskip("distributed")
from distributed import Client

from pgsched.dask import _SHARED, DaskExecutor, DaskFailed

pytestmark = pytest.mark.slow
FAR = {"heartbeat_interval": "30s", "stall_timeout": "1h"}
ONCE = Retry(attempts=1)


class Cluster:
    """A scheduler and workers of one thread each, as processes."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "scheduler.json"
        self.log = (folder / "log").open("wb")
        self.all: list[subprocess.Popen] = []
        self.scheduler = self.start("scheduler", "--port", "0", "--no-show")
        self.workers = [self.worker(), self.worker()]

    def start(self, kind: str, *more: str) -> subprocess.Popen:
        environment = os.environ | {
            "PYTHONPATH": str(Path(work.__file__).parents[1]), "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0",
        }  # fmt: skip
        command = [sys.executable, "-m", "dask", kind, "--host", "127.0.0.1", "--no-dashboard", *more]
        started = subprocess.Popen(
            [*command, "--scheduler-file", str(self.file)], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
            env=environment, cwd=self.file.parent,
        )  # fmt: skip
        self.all.append(started)
        return self.all[-1]

    def worker(self) -> subprocess.Popen:
        return self.start("worker", "--nthreads", "1", "--no-nanny")

    @property
    def address(self) -> str:
        deadline = time.monotonic() + 60
        while True:
            try:
                return json.loads(self.file.read_text())["address"]
            except (OSError, ValueError):
                assert time.monotonic() < deadline and self.scheduler.poll() is None, self.output()
                time.sleep(0.05)

    def output(self) -> str:
        return (self.file.parent / "log").read_text(errors="replace")

    def close(self) -> None:
        for process in reversed(self.all):
            if process.poll() is None:
                process.kill()
            process.wait()
        self.log.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("dask"))
    try:
        cluster.address  # noqa: B018 - waits for it
        yield cluster
        print(cluster.output())
    finally:
        cluster.close()


@pytest.fixture
async def client(settings):
    async with connect(settings.dsn, schema=settings.schema) as client:
        yield client


class Attempt:
    """A run as an executor sees it, without a worker."""

    def __init__(self, where: str, function, *, connect_timeout: float = 60, **args):
        self.executor = DaskExecutor(where, connect_timeout=connect_timeout, function=function)
        self.journal = Journal()
        self.run = Run(
            id=7, entrypoint="job", schedule=None, fire_time=None, previous_fire_time=None, attempt=2, args=args,
            worker=uuid.UUID(int=7), resources=None, cancellation=Cancellation(30), journal=self.journal,
        )  # fmt: skip

    async def execute(self):
        return await self.executor.execute(self.run)


@pytest.fixture(autouse=True)
def _no_link_stays():
    yield
    assert not _SHARED


def pid_of(path: Path) -> int:
    return int(path.read_text().split()[0])


async def test_a_run_is_done_by_a_dask_worker(settings, db, client, cluster):
    sc = Scheduler()
    sc.entrypoint("product", executor=DaskExecutor(cluster.address))(work.product)
    async with working(sc, settings):
        run_ids = await client.enqueue_many("product", [{"a": a} for a in range(20)])
        await db.until("select count(*) = 20 from pgsched.runs where status = 'succeeded'")
    results = [(await client.get_run(run_id))["result"] for run_id in run_ids]
    assert [result["product"] for result in results] == [2 * a for a in range(20)]
    assert {result["pid"] for result in results} <= {worker.pid for worker in cluster.workers}


async def test_errors_and_what_is_said_by_raising_come_back(cluster):
    with pytest.raises(RemoteError, match="OwnError: no such luck") as raised:
        await Attempt(cluster.address, work.deep).execute()
    assert raised.value.kinds == (work.OwnError,)
    assert "in inner" in raised.value.error.traceback
    with pytest.raises(RetryLater):
        await Attempt(cluster.address, work.later).execute()
    with pytest.raises(Discard):
        await Attempt(cluster.address, work.discard).execute()


async def test_what_it_logs_and_its_progress_reach_the_run(cluster):
    attempt = Attempt(cluster.address, work.chatter)
    await attempt.execute()
    assert [(line.level, line.text) for line in attempt.journal.read().lines] == [("error", "from the run")]
    assert attempt.journal.progress == (3, 4)


async def test_runs_one_after_another_leave_one_topic_with_the_scheduler(cluster):
    """It never forgets one, and keeps what was said under each."""
    async with Client(cluster.address, asynchronous=True, set_as_default=False) as client:
        for _ in range(2):  # the link between them is closed, and opened again
            await Attempt(cluster.address, work.chatter).execute()
            assert not _SHARED
        topics = [topic for topic in await client.get_events() if topic.startswith("pgsched")]
    assert len(topics) == 1


async def test_a_worker_with_another_pgsched_is_told_of(cluster, monkeypatch):
    monkeypatch.setattr("pgsched.dask.pack", lambda run, function: '{"another": "layout"}')
    with pytest.raises(DaskFailed, match=rf"it needs pgsched {version('pgsched')} there\): KeyError: 'target'"):
        await Attempt(cluster.address, work.product, a=1).execute()


@pytest.mark.parametrize("function", [work.looks, work.coroutine])
@pytest.mark.parametrize("why", ["cancel", "timeout", "lost", "drain"])
async def test_what_stops_its_run_is_heard_by_the_function(  # noqa: PLR0917
    settings, db, client, cluster, tmp_path, function, why
):
    sc = Scheduler()
    timeout = timedelta(seconds=2) if why == "timeout" else None
    sc.entrypoint("job", executor=DaskExecutor(cluster.address), retry=ONCE, timeout=timeout)(function)
    changes = {} if why == "lost" else FAR
    async with working(sc, settings, **changes, drain_timeout="100ms") as worker:
        run_id = await client.enqueue("job", {"folder": str(tmp_path)})
        await until((tmp_path / "began").exists)
        if why == "cancel":
            await client.cancel(run_id)
        elif why == "lost":
            await db.all("update pgsched.runs set worker = gen_random_uuid(), heartbeat_at = now() + interval '1h'")
        elif why == "drain":
            worker.stop()
        await until(lambda: worker.roster.slots_used == 0)
        await until((tmp_path / "stopped").exists)
    expected = {"cancel": "cancelled", "timeout": "failed", "lost": "running", "drain": "queued"}
    # A lost claim's result, which the function did return, is not there.
    assert await db.one("select status, result from pgsched.runs") == (expected[why], None)


async def test_a_pending_run_keeps_its_claim_and_begins_when_there_is_room(settings, db, client, cluster, tmp_path):
    sc = Scheduler()
    sc.entrypoint("job", executor=DaskExecutor(cluster.address))(work.finishes)
    async with working(sc, settings):
        await client.enqueue_many("job", [{"folder": str(tmp_path)}] * 3)  # for two threads
        await until((tmp_path / "began").exists)
        before = await db.value("select min(heartbeat_at) from pgsched.runs")
        await db.until("select min(heartbeat_at) - %s > interval '500 ms' from pgsched.runs", before)
        (tmp_path / "gate").touch()
        await db.until("select count(*) = 3 from pgsched.runs where status = 'succeeded' and attempt = 1")


async def test_a_dask_worker_that_is_killed_fails_the_attempt_and_the_next_goes_on(
    settings, db, client, cluster, tmp_path
):
    sc = Scheduler()
    retry = Retry(2, timedelta(0))
    sc.entrypoint("job", executor=DaskExecutor(cluster.address), retry=retry)(work.family)
    async with working(sc, settings):
        run_id = await client.enqueue("job", {"folder": str(tmp_path)})
        await until((tmp_path / "pids-1").exists)
        pid, child = map(int, (tmp_path / "pids-1").read_text().split())
        victim = next(worker for worker in cluster.workers if worker.pid == pid)
        victim.kill()
        os.kill(child, signal.SIGKILL)  # Dask leaves it behind
        await db.until("select status = 'succeeded' and attempt = 2 from pgsched.runs", limit=60)
    error = (await client.get_run(run_id))["errors"][0]
    assert error["type"] == "pgsched.dask.DaskFailed"
    assert error["message"].startswith(
        "Dask gave the run up: its workers died with it, the last one at tcp://127.0.0.1:"
    )
    cluster.workers.remove(victim)
    cluster.workers.append(cluster.worker())


async def test_a_scheduler_that_is_away_is_told_in_a_sentence():
    attempt = Attempt("tcp://127.0.0.1:1", work.product, connect_timeout=0.2, a=1)
    with pytest.raises(DaskFailed, match=r"^the Dask scheduler at tcp://127\.0\.0\.1:1 does not answer: "):
        await attempt.execute()


async def test_a_scheduler_that_dies_fails_the_attempt(cluster, tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    other = await asyncio.to_thread(Cluster, folder)
    try:
        attempt = Attempt(await asyncio.to_thread(lambda: other.address), work.finishes, folder=str(tmp_path))
        task = asyncio.create_task(attempt.execute())
        await until((tmp_path / "began").exists, limit=60)
        other.scheduler.kill()
        with pytest.raises(DaskFailed, match=r"Dask gave the run up: .* lost the connection to the scheduler"):
            await task
    finally:
        await asyncio.to_thread(other.close)


async def test_a_client_of_ones_own(cluster):
    from distributed import Client

    made = []

    async def factory() -> Client:
        made.append(await Client(cluster.address, asynchronous=True, set_as_default=False))
        return made[-1]

    assert (await Attempt(factory, work.product, a=4).execute())["product"] == 8
    assert made[0].status == "closed"


def test_what_a_dask_worker_cannot_find_is_refused_at_registration(monkeypatch):
    sc = Scheduler()

    def nested() -> None: ...

    with pytest.raises(RegistrationError, match="nested is defined inside"):
        sc.entrypoint("job", executor=DaskExecutor("tcp://127.0.0.1:1"))(nested)
    monkeypatch.setattr(work.product, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "program.py", raising=False)
    with pytest.raises(RegistrationError, match="a Dask worker cannot import"):
        sc.entrypoint("job", executor=DaskExecutor("tcp://127.0.0.1:1"))(work.product)
    with pytest.raises(RegistrationError, match="takes a scheduler's address"):
        DaskExecutor(None)
