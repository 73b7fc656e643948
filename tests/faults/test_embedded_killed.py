"""The embedded server dies under a daemon that nobody watches: it is started again, and work goes on."""

import os
import signal
import subprocess
import sys

import psycopg
import pytest
from daemons import Daemon, until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills a process group's leader by signal")

APP = """
from pgsched import Scheduler

sc = Scheduler()


@sc.schedule("tick", "* * * * * *")
async def tick(): ...


def create():
    return sc
"""


def postmaster(data_dir) -> int:
    return int((data_dir / "postmaster.pid").read_text().splitlines()[0])


def start(folder) -> Daemon:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "PGSCHED_"))}
    with (folder / "log").open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "pgsched", "run", "app.create", "--data-dir", str(folder / "postgres")],
            cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
        )  # fmt: skip
    return Daemon(process, folder / "log")


async def test_a_killed_embedded_server_is_started_again_and_work_goes_on(tmp_path):
    (tmp_path / "app.py").write_text(APP)
    data_dir, daemon = tmp_path / "postgres", start(tmp_path)
    try:
        await daemon.event("worker_ready", limit=60)
        before = postmaster(data_dir)
        os.kill(before, signal.SIGKILL)
        await daemon.event("embedded_restarted", limit=90)
        assert postmaster(data_dir) != before
        seen = len(daemon.events("run_finished"))
        await until(lambda: len(daemon.events("run_finished")) > seen + 1, "work after the restart", 60)
        with psycopg.connect(host=str(data_dir), user="postgres", dbname="postgres") as connection:
            row = connection.execute("select count(*) - count(distinct fire_time) from pgsched.runs").fetchone()
        assert row == (0,), "no fire time has two runs"
        assert await daemon.stop() == 0
        assert not (data_dir / "postmaster.pid").exists(), "and the stop stops it"
    finally:
        daemon.end()
