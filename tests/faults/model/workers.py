"""Workers in threads of this process, each with a loop of its own, and workers in processes."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model import jobs
from pgsched.config import Settings
from pgsched.worker.worker import Worker

if TYPE_CHECKING:
    from model.world import World

STALL = 4.0
MILLISECOND = timedelta(milliseconds=1)
SETTINGS: dict[str, Any] = {
    "heartbeat_interval": timedelta(milliseconds=500),
    "stall_timeout": timedelta(seconds=STALL),
    "drain_timeout": timedelta(seconds=4),
    "cancel_timeout": timedelta(seconds=1),
    "max_threads": 4,
}
TESTS = Path(__file__).parent.parent.parent


class Hosted:
    """A worker in a thread of this process."""

    daemon = False

    def __init__(self, world: "World", code: str, version: int, settings: dict[str, Any]) -> None:
        self.code = code
        self.error: BaseException | None = None
        self.ending = False  # we have asked it to end, in one way or another
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self.scheduler = jobs.build(code, world.recorder, version)
        self._settings = Settings(dsn=world.dsn, schema=world.schema).merged({**SETTINGS, **settings}, "model").check()
        self.worker: Worker | None = None
        self.thread = threading.Thread(target=self._main, name=f"model {code}", daemon=True)
        self.thread.start()

    def _main(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as error:
            self.error = error

    async def _run(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        self.worker = Worker(self.scheduler, self._settings)
        try:
            await self.worker.run()
        except asyncio.CancelledError:
            if not self.ending:
                raise

    @property
    def alive(self) -> bool:
        return self.thread.is_alive()

    @property
    def ready(self) -> bool:
        return self.scheduler.ready.is_set()

    async def id(self) -> uuid.UUID | None:
        return self.worker and self.worker.kit.worker

    def stop(self) -> None:
        self._call(lambda: self.worker and self.worker.stop())

    def kill(self) -> None:
        """Ends it without a word to anybody: its task is cancelled, its threads go on."""
        if self._task is not None:
            self._call(self._task.cancel)

    def _call(self, function: Any) -> None:
        self.ending = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(function)


class Process:
    """A worker in a process of its own."""

    daemon = True

    def __init__(self, world: "World", code: str, version: int, settings: dict[str, Any]) -> None:
        self.code = code
        self.ending = False
        self._world = world
        given = {"dsn": world.dsn, "schema": world.schema, "log_format": "json", **SETTINGS, **settings}
        seconds = {k: f"{v // MILLISECOND}ms" if isinstance(v, timedelta) else str(v) for k, v in given.items()}
        flags = [part for name, value in seconds.items() for part in (f"--{name.replace('_', '-')}", value)]
        self.log = world.folder / f"daemon-{len(world.workers)}.log"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PGSCHED_")}
        environment |= {"MODEL_DSN": world.dsn, "MODEL_SCHEMA": world.schema}
        environment["PYTHONPATH"] = f"{TESTS.parent}:{TESTS / 'faults'}:{TESTS}"
        factory = f"model.jobs:create_{code}{version if version != 1 else ''}"
        with self.log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pgsched", "run", factory, *flags],
                cwd=world.folder, env=environment, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr,
            )  # fmt: skip

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def ready(self) -> bool:
        return any(event.get("event") == "worker_ready" for event in self.events())

    @property
    def error(self) -> str | None:
        code = self.process.poll()
        return None if code in (None, 0, 75, -signal.SIGKILL) else f"exit code {code}: {self.tail()}"

    def events(self) -> list[dict[str, Any]]:
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])

    async def id(self) -> uuid.UUID | None:
        async with self._world.connect() as connection:
            rows = await self._world.rows(
                connection, "select id from pgsched.workers where pid = %s order by started_at desc", self.process.pid
            )
        return rows[0][0] if rows else None

    def stop(self) -> None:
        self.ending = True
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.ending = True
        self.process.kill()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)


AnyWorker = Hosted | Process
