"""Processes of runs: started in a group of their own, listened to, and ended with all that they started.

What is run in them belongs to process and command.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import IO

from pgsched.errors import RegistrationError
from pgsched.executors.warden import ORPHANS, anybody, signalled
from pgsched.journal import clean

TAIL = 8192  # bytes of output that are kept to be told with the end
_TOLD = 2000  # characters of output in an error
_LONGEST = 8192  # bytes of a line, beyond which it is cut into several
UNKNOWN = 1 << 16  # stands for an exit code that somebody else has taken
_LOOK = 0.01, 0.2  # seconds between two looks whether anybody goes on who was asked to end: the first, the longest
LATE = 0.5  # seconds that output may still come after the end: who has left the group may hold the pipe open
# What systemd tells a service is not meant for what the service starts.
_NOT_INHERITED = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


def check_platform() -> None:
    """Raises RegistrationError where there are no process groups and signals."""
    if sys.platform == "win32":
        raise RegistrationError("runs in processes of their own need process groups, which Windows does not have.")


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """This process's environment and more."""
    return {key: value for key, value in os.environ.items() if key not in _NOT_INHERITED} | dict(more)


def _hear_of_children() -> None:
    # Inherited from whoever started us, this would take every exit code away, from us and from our children's own.
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


class Child:
    """A process that leads a group of its own. Use it in one event loop, and await `ended` or `end` in any case.

    Its end is noticed before it is reaped, and a group's number stays taken as long as anybody is in it: so no signal
    ever reaches another group. left: whether it left something in its group that had to be killed when it had ended.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str | None = None,
        pass_fds: Sequence[int] = (),
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        """Starts it. Raises OSError and ValueError as subprocess does."""
        self._loop = asyncio.get_running_loop()
        self._gone = self._loop.create_future()
        self._patient = self._killed = self.left = False
        _hear_of_children()
        self.process = subprocess.Popen(  # noqa: S603 - what is to be run, is
            argv, env=env, cwd=cwd, pass_fds=pass_fds, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            bufsize=0, start_new_session=True,
        )  # fmt: skip
        self.pid = self.process.pid
        try:
            ORPHANS.watch(self.pid)
            self._watch()
        except BaseException:  # nobody would end it
            signalled(self.pid, signal.SIGKILL)
            ORPHANS.forget(self.pid)
            with self.process:
                raise

    # --- its end ----------------------------------------------------------------------------------------

    def _watch(self) -> None:
        try:
            fd = os.pidfd_open(self.pid)  # Linux; nobody has waited for it, so the number is its own
        except (AttributeError, OSError):
            threading.Thread(target=self._wait, name=f"pgsched-child-{self.pid}", daemon=True).start()
            return

        def gone() -> None:
            self._loop.remove_reader(fd)
            os.close(fd)
            self._over()

        self._loop.add_reader(fd, gone)

    def _wait(self) -> None:
        if hasattr(os, "waitid"):
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        else:
            self._reap()
        try:
            self._loop.call_soon_threadsafe(self._over)
        except RuntimeError:  # the loop is closed: nobody asks any more
            signalled(self.pid, signal.SIGKILL)

    def _over(self) -> None:
        """It has ended. Who is left in its group was either asked to end and has time to, or is killed."""
        code = self._reap()
        if self._patient:
            self._wait_for_group(code)
            return
        if anybody(self.pid):
            self.left = signalled(self.pid, signal.SIGKILL)
        self._reaped(code)

    def _wait_for_group(self, code: int, wait: float = _LOOK[0]) -> None:
        if self._killed or not anybody(self.pid):
            self._reaped(code)
        else:
            self._loop.call_later(wait, self._wait_for_group, code, min(1.5 * wait, _LOOK[1]))

    def _reap(self) -> int:
        if self.process.returncode is None:
            try:
                self.process.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            except ChildProcessError:  # subprocess would call this a success
                self.process.returncode = UNKNOWN
        return self.process.returncode

    def _reaped(self, code: int) -> None:
        ORPHANS.forget(self.pid)
        if not self._gone.done():
            self._gone.set_result(code)

    @property
    def alive(self) -> bool:
        """Whether it, or who was asked to end with it, has not been seen to end."""
        return not self._gone.done()

    async def ended(self) -> int:
        """Waits for its end; returns its exit code, minus the signal's number where one ended it, or UNKNOWN.

        All that it started and that is still in its group is killed then."""
        return int(await asyncio.shield(self._gone))

    async def end(self, grace: float, ask: Callable[[], None] | None = None) -> int:
        """Ends it: asks it to, and kills its group after `grace` seconds, or at once when the caller is cancelled
        meanwhile. By default all of its group is asked, with SIGTERM, and has that time, whoever of it ends first.
        Returns when it is gone, its exit code."""
        if self.alive:
            self._patient = ask is None
            (ask or self.terminate)()
        timer = self._loop.call_later(grace, self.kill)
        try:
            while self.alive:
                try:
                    await asyncio.shield(self._gone)
                except asyncio.CancelledError:
                    self.kill()
        finally:
            timer.cancel()
        return int(self._gone.result())

    def terminate(self) -> None:
        """SIGTERM to its group."""
        if self.alive:
            signalled(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to its group."""
        self._killed = True
        if self.alive:
            signalled(self.pid, signal.SIGKILL)

    # --- what it says -----------------------------------------------------------------------------------

    async def listen(self, output: Output) -> None:
        """Hands its standard output and error over, from now on. Whoever calls it has to await output.closed().

        A cancellation waits until that is done: else asyncio would close the pipes of a process that is still to be
        asked to end, and may have something to say then."""
        connecting = asyncio.create_task(self._connect(output))
        cancelled: asyncio.CancelledError | None = None
        while not connecting.done():
            try:
                await asyncio.shield(connecting)
            except asyncio.CancelledError as error:
                cancelled = error
        connecting.result()
        if cancelled is not None:
            raise cancelled

    async def _connect(self, output: Output) -> None:
        output.streams += [stream for stream in (self.process.stdout, self.process.stderr) if stream is not None]
        for stream, level in zip(output.streams, ("info", "warning"), strict=True):
            lines = _Lines(output, level)
            await self._loop.connect_read_pipe(lambda lines=lines: lines, stream)  # type: ignore[misc]
            output.open.append(lines)


class Output:
    """What a process wrote: given on line by line, up to a limit, and its last bytes.

    put: gets a line and a level. dropped: gets a number of lines that are not given on. limit: in bytes.
    """

    def __init__(self, put: Callable[[str, str], None], dropped: Callable[[int], None], limit: int) -> None:
        self.streams: list[IO[bytes]] = []
        self.open: list[_Lines] = []
        self._put, self._dropped, self._left = put, dropped, limit
        self._tail = bytearray()

    @property
    def tail(self) -> str:
        """The last bytes of both streams, as text."""
        tail = bytes(self._tail[-TAIL:])
        whole = len(self._tail) <= TAIL
        return _text(tail if whole else tail[next((n for n in range(4) if not _inside(tail, n)), 0) :])

    def keep(self, data: bytes) -> None:
        """Keeps what may become the tail."""
        self._tail += data[-TAIL - 1 :]  # one more tells that it was cut
        if len(self._tail) > 4 * TAIL:
            del self._tail[: -TAIL - 1]

    def line(self, line: bytes, level: str) -> None:
        """Gives a line on, as long as there is room."""
        self._left -= len(line) + 1
        if self._left >= 0:
            self._put(_text(line), level)
        else:
            self._dropped(1)

    @property
    def full(self) -> bool:
        """Whether no line is given on any more."""
        return self._left <= 0

    def drop(self, lines: int) -> None:
        """Counts what is not even cut into lines."""
        self._dropped(lines)

    async def closed(self) -> None:
        """Waits until the streams have ended, a little while at most: the process is gone."""
        try:
            if self.open:
                await asyncio.wait([lines.ended for lines in self.open], timeout=LATE)
        finally:
            for lines in self.open:
                lines.close()
            for stream in self.streams[len(self.open) :]:  # cancelled before these were connected
                stream.close()


class _Lines(asyncio.Protocol):
    """Cuts one stream into lines."""

    def __init__(self, output: Output, level: str) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._output, self._level = output, level
        self._rest = b""
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._output.keep(data)
        if self._output.full:  # somebody writes without end: it must not cost more than reading it
            self._output.drop(data.count(b"\n"))
            self._rest = b""
            return
        *lines, rest = (self._rest + data).split(b"\n")
        *begun, self._rest = _pieces(rest)
        for piece in [piece for line in lines for piece in _pieces(line.removesuffix(b"\r"))] + begun:
            self._output.line(piece, self._level)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._rest:
            self._output.line(self._rest, self._level)
            self._rest = b""
        if not self.ended.done():
            self.ended.set_result(None)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def _inside(data: bytes, at: int) -> bool:
    """Whether a character of UTF-8 goes on there."""
    return at < len(data) and data[at] & 0xC0 == 0x80


def _pieces(line: bytes) -> list[bytes]:
    """A line in pieces that are not too long, cut between characters where it has any."""
    pieces = []
    while len(line) > _LONGEST:
        cut = next((n for n in range(_LONGEST, _LONGEST - 4, -1) if not _inside(line, n)), _LONGEST)
        pieces.append(line[:cut])
        line = line[cut:]
    return [*pieces, line]


def _text(data: bytes) -> str:
    return clean(data.decode("utf-8", "backslashreplace"))


def told(code: int) -> str:
    """An exit code as people read it: "exited with code 3", "was killed by SIGSEGV"."""
    if code == UNKNOWN:
        return "ended, and how is not known: other code of the worker waits for child processes that are not its own"
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def last_words(output: str) -> str:
    """What is said of an end after its code: the line that tells most of it, and below it more of the last lines."""
    said = output.strip()
    if not said:
        return ", without a word."
    lines = said.splitlines()
    most = next((line for line in lines if line.startswith("Fatal Python error")), lines[-1])
    if len(lines) == 1:
        return f": {most[-_TOLD:]}"
    return f": {most[:200]}\nIts last lines:\n{'…' if len(said) > _TOLD else ''}{said[-_TOLD:]}"
