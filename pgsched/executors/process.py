"""Runs each in its own process: isolated, killable, for work that keeps a processor busy or may crash.

process_main runs in the process; remote has the messages to it and back.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from pgsched.errors import PgschedError
from pgsched.executors.child import LATE, Child, Output, check_platform, environment, exit_text, last_words
from pgsched.executors.executor import Executor, Function, Place
from pgsched.executors.remote import Answer, hear, pack, received, target_of
from pgsched.journal import Journal
from pgsched.model import Run

# The path comes first: without it pgsched itself may not be found.
_START = (
    "import json, os, sys; control = os.fdopen(int(sys.argv[1]), 'rb'); sys.path[:] = json.loads(control.readline()); "
    "from pgsched.executors.process_main import main; main(control, int(sys.argv[2]))"
)


class ProcessDied(PgschedError):
    """The process of a run ended before its function did: it crashed, was killed, or called os._exit()."""


class ProcessExecutor(Executor):
    """Calls the function, `async def` or not, in a fresh process.

    Use it for work that keeps a processor busy, must be killable, or may crash. If the process dies, the attempt
    fails with a ProcessDied that names the exit code or the signal, and the worker goes on. A process costs some
    tenths of a second and the memory of an interpreter with the function's module.

    The function is found by its name, so it must be at the top level of a module; arguments and results are JSON.
    The Run in the process is complete, except that `resources` is None. run.log(), run.progress(), RetryLater and
    Discard work as usual; everything that the function logs or prints is kept with the run. run.transaction() opens its
    own connection.

    If the run is cancelled, runs into its timeout, loses its claim or outlasts a drain, the function is asked to stop:
    run.cancelled becomes true, and a coroutine is cancelled. After cancel_timeout the process and its process group are
    killed. When the worker dies, the process dies too.

    A worker runs at most max_processes of them at once, by default one per processor.
    """

    asks_first = True

    @property
    def place(self) -> Place | None:
        """One of max_processes."""
        return Place.PROCESS

    def check(self, function: Function) -> None:
        """Raises RegistrationError if another process cannot find the function."""
        check_platform()
        target_of(function)

    async def execute(self, run: Run) -> Any:
        """Calls the function in a process. Raises ProcessDied, and the function's own error as RemoteError."""
        assert self.function is not None
        package = f"{json.dumps([str(path) for path in sys.path])}\n{pack(run, self.function, fenced=True)}\n".encode()
        output = Output(run.log, run.journal.drop, Journal.LIMIT)
        pipes = _Pipes(run)
        child = pipes.start()
        try:
            await child.listen(output)
            await pipes.open(package)
            code = await child.ended()
        except asyncio.CancelledError:
            await child.end(run.cancellation.grace, lambda: pipes.ask(child))
            await pipes.heard()
            if pipes.done:  # its work was done before the request to stop arrived
                return received(pipes.answer or {})
            raise
        finally:
            await child.end(0)
            try:
                await pipes.heard()
            finally:
                pipes.close()
                await output.closed()
        if pipes.answer is None:
            raise ProcessDied(f"its process {exit_text(code)} before the function had ended{last_words(output.tail)}")
        return received(pipes.answer)


class _Pipes(asyncio.Protocol):
    """The two pipes between us and a process."""

    def __init__(self, run: Run) -> None:
        self.answer: Answer | None = None
        self._run = run
        self._loop = asyncio.get_running_loop()
        self._rest = b""
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._from: asyncio.BaseTransport | None = None
        self._to: asyncio.WriteTransport | None = None

    def start(self) -> Child:
        """Starts the process at the other ends. Raises OSError."""
        reads, to = os.pipe()
        from_, writes = os.pipe()
        self._files = os.fdopen(from_, "rb", 0), os.fdopen(to, "wb", 0)
        try:
            argv = [sys.executable, "-c", _START, str(reads), str(writes)]
            return Child(argv, env=environment({}), pass_fds=(reads, writes))
        except BaseException:
            self.close()
            raise
        finally:
            os.close(reads)
            os.close(writes)

    async def open(self, package: bytes) -> None:
        """Sends the package, and listens from now on."""
        from_, to = self._files
        self._from, _ = await self._loop.connect_read_pipe(lambda: self, from_)
        self._to, _ = await self._loop.connect_write_pipe(asyncio.Protocol, to)
        self._to.write(package)

    def ask(self, child: Child) -> None:
        """Asks the process to stop its run."""
        if self._to is not None:
            self._to.write(b"cancel\n")
        else:  # it has not received its run yet
            child.terminate()

    @property
    def done(self) -> bool:
        """Whether the function returned without having noticed the request to stop."""
        return self.answer is not None and "result" in self.answer and not self._run.cancellation.noticed

    async def heard(self) -> None:
        """Waits until all messages of the process are read, for a short time at most: the process is gone."""
        if self._from is not None:
            await asyncio.wait([self._ended], timeout=LATE)

    def close(self) -> None:
        """Closes both pipes."""
        if self._from is not None:
            self._from.close()
        if self._to is not None and not self._to.is_closing():
            self._to.abort()
        for file in self._files:
            file.close()

    def data_received(self, data: bytes) -> None:
        """Called by the event loop with the process's messages, one line of JSON each."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._take(json.loads(line))

    def _take(self, message: dict[str, Any]) -> None:
        if "answer" in message:
            self.answer = message["answer"]
            self._run.cancellation.noticed = self._run.cancellation.noticed or message["noticed"]
        else:
            hear(self._run, message)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop when every process that had the pipe is gone."""
        if not self._ended.done():
            self._ended.set_result(None)
