"""Runs in processes of their own: isolated, killable, for work that keeps a processor busy or may crash.

What happens in the process is process_main's; what is sent there and told from there, remote's.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from pgsched.errors import PgschedError
from pgsched.executors.child import LATE, Child, Output, check_platform, environment, last_words, told
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
    """Calls the function, `async def` or not, in a fresh process of its own.

    For work that keeps a processor busy, must be killable, or may crash: whatever becomes of the process, the attempt
    fails with a ProcessDied that names the exit code or the signal, and the worker goes on. A process costs some
    tenths of a second and the memory of an interpreter with the function's module.

    The function goes by its name, so it has to stand at the top level of a module; arguments and results are JSON.
    The Run there is complete but for `resources`, which is None. run.log(), run.progress(), RetryLater, Discard work as
    anywhere; what it logs, prints or writes is kept with the run. run.transaction() has a connection of its own.

    Where the run is cancelled, runs into its timeout, loses its claim or outlasts a drain, the function is asked:
    run.cancelled becomes true, and a coroutine is cancelled. After cancel_timeout the process is killed, and with it
    all that it started and that is in its process group. When the worker dies, the process does, too.

    A worker has at most max_processes of them at once, by default one for each processor.
    """

    asks_first = True

    @property
    def place(self) -> Place | None:
        """One of max_processes."""
        return Place.PROCESS

    def check(self, function: Function) -> None:
        """Raises RegistrationError where another process cannot find the function."""
        check_platform()
        target_of(function)

    async def execute(self, run: Run) -> Any:
        """Calls the function in a process. Raises ProcessDied, and what it raises as RemoteError."""
        assert self.function is not None
        package = f"{json.dumps([str(path) for path in sys.path])}\n{pack(run, self.function, fenced=True)}\n".encode()
        output = Output(run.log, run.journal.drop, Journal.LIMIT)
        link = _Link(run)
        child = link.start()
        try:
            await child.listen(output)
            await link.open(package)
            code = await child.ended()
        except asyncio.CancelledError:
            await child.end(run.cancellation.grace, lambda: link.ask(child))
            await link.heard()
            if link.done:  # it had done its work before it could hear of it
                return received(link.answer or {})
            raise
        finally:
            await child.end(0)
            try:
                await link.heard()
            finally:
                link.close()
                await output.closed()
        if link.answer is None:
            raise ProcessDied(f"its process {told(code)} before the function had ended{last_words(output.tail)}")
        return received(link.answer)


class _Link(asyncio.Protocol):
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
        """Tells the process that its run shall stop."""
        if self._to is not None:
            self._to.write(b"cancel\n")
        else:  # it has not heard of its run yet
            child.terminate()

    @property
    def done(self) -> bool:
        """Whether the function returned, and without having seen that it was to stop."""
        return self.answer is not None and "result" in self.answer and not self._run.cancellation.noticed

    async def heard(self) -> None:
        """Waits until all is read that the process had said, a little while at most: it is gone."""
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
        """The event loop's: what the process says, a line of JSON for each thing."""
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
        """The event loop's: the process and all that had its pipe are gone."""
        if not self._ended.done():
            self._ended.set_result(None)
