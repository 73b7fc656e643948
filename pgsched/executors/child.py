"""Processes of runs: starts them in their own group, reads their output, and ends them with everything they started.

process and command decide what runs in them.
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

TAIL = 8192  # bytes of output that are kept for the report of the end
_SHOWN = 2000  # characters of output in an error
_LONGEST = 8192  # bytes of a line, beyond which it is cut into several
UNKNOWN = 1 << 16  # stands for an exit code that other code has already collected
_LOOK = 0.01, 0.2  # seconds between checks whether processes that were asked to end still run: the first, the longest
LATE = 0.5  # seconds that output may still come after the end: a process that left the group may hold the pipe open
# systemd's variables for a service are not meant for the processes that the service starts.
_NOT_INHERITED = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


def check_platform() -> None:
    """Raises RegistrationError on a platform without process groups and signals."""
    if sys.platform == "win32":
        raise RegistrationError(
            "commands and runs in their own process need process groups, which Windows does not have: run the worker "
            "on another system."
        )


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """This process's environment and more."""
    return {key: value for key, value in os.environ.items() if key not in _NOT_INHERITED} | dict(more)


def _hear_of_children() -> None:
    # If it is inherited as ignored, the system discards every exit code, ours and those of our children's children.
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


class Child:
    """A process that leads its own group. Use it in one event loop, and always await `ended` or `end`.

    Its end is noticed before it is reaped, and a group's number stays taken as long as the group has a process. So no
    signal ever reaches another group.

    left: whether it left processes in its group that had to be killed when it had ended.
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
        self.process = subprocess.Popen(  # noqa: S603 - the caller names the program
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
        except RuntimeError:  # the loop is closed: nobody waits for the end
            signalled(self.pid, signal.SIGKILL)

    def _over(self) -> None:
        """It has ended. The rest of its group is killed, or gets its time if it was asked to end."""
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
        """Whether it, or a process that was asked to end with it, has not been seen to end."""
        return not self._gone.done()

    async def ended(self) -> int:
        """Waits for its end; returns its exit code, minus the signal's number if a signal ended it, or UNKNOWN.

        All processes that are still in its group are killed then."""
        return int(await asyncio.shield(self._gone))

    async def end(self, grace: float, ask: Callable[[], None] | None = None) -> int:
        """Asks it to end, and kills its group after `grace` seconds. Waits until it is gone; returns its exit code.

        By default the whole group gets SIGTERM and the grace period, even if its leader exits first. If the caller is
        cancelled meanwhile, the group is killed at once.
        """
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

    # --- its output -------------------------------------------------------------------------------------

    async def listen(self, output: Output) -> None:
        """Passes its standard output and error on, from now on. The caller must await output.closed().

        A cancellation waits until the pipes are connected: otherwise asyncio would close the pipes of a process that
        has not been asked to end yet, and its last output would be lost.
        """
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
            lines = _LineCutter(output, level)
            await self._loop.connect_read_pipe(lambda lines=lines: lines, stream)  # type: ignore[misc]
            output.open.append(lines)


class Output:
    """The output of a process: its lines, passed on up to a limit, and its last bytes.

    put: called with a line and a level.
    dropped: called with the number of lines that are not passed on.
    limit: in bytes.
    """

    def __init__(self, put: Callable[[str, str], None], dropped: Callable[[int], None], limit: int) -> None:
        self.streams: list[IO[bytes]] = []
        self.open: list[_LineCutter] = []
        self._put, self._dropped, self._left = put, dropped, limit
        self._tail = bytearray()

    @property
    def tail(self) -> str:
        """The last bytes of both streams, as text."""
        tail = bytes(self._tail[-TAIL:])
        whole = len(self._tail) <= TAIL
        return _text(tail if whole else tail[next((n for n in range(4) if not _inside(tail, n)), 0) :])

    def keep(self, data: bytes) -> None:
        """Keeps the bytes that may become the tail."""
        self._tail += data[-TAIL - 1 :]  # one byte more shows that it was cut
        if len(self._tail) > 4 * TAIL:
            del self._tail[: -TAIL - 1]

    def line(self, line: bytes, level: str) -> None:
        """Passes a line on, as long as there is room."""
        self._left -= len(line) + 1
        if self._left >= 0:
            self._put(_text(line), level)
        else:
            self._dropped(1)

    @property
    def full(self) -> bool:
        """Whether no more lines are passed on."""
        return self._left <= 0

    def drop(self, lines: int) -> None:
        """Counts lines that are dropped before they are cut."""
        self._dropped(lines)

    async def closed(self) -> None:
        """Waits until the streams have ended, for a short time at most: the process is gone."""
        try:
            if self.open:
                await asyncio.wait([lines.ended for lines in self.open], timeout=LATE)
        finally:
            for lines in self.open:
                lines.close()
            for stream in self.streams[len(self.open) :]:  # cancelled before these were connected
                stream.close()


class _LineCutter(asyncio.Protocol):
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
        if self._output.full:  # endless output must not cost more than reading it
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
    """A line in pieces that are not too long, cut between characters if it is UTF-8."""
    pieces = []
    while len(line) > _LONGEST:
        cut = next((n for n in range(_LONGEST, _LONGEST - 4, -1) if not _inside(line, n)), _LONGEST)
        pieces.append(line[:cut])
        line = line[cut:]
    return [*pieces, line]


def _text(data: bytes) -> str:
    return clean(data.decode("utf-8", "backslashreplace"))


def exit_text(code: int) -> str:
    """An exit code in words: "exited with code 3", "was killed by SIGSEGV"."""
    if code == UNKNOWN:
        return (
            "ended with an unknown exit code: other code in the worker waits for child processes that are not its own"
        )
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def last_words(output: str) -> str:
    """The text after an exit code: the most telling line of the output, and below it more of the last lines."""
    said = output.strip()
    if not said:
        return ", without any output."
    lines = said.splitlines()
    most = next((line for line in lines if line.startswith("Fatal Python error")), lines[-1])
    if len(lines) == 1:
        return f": {most[-_SHOWN:]}"
    return f": {most[:200]}\nIts last lines:\n{'…' if len(said) > _SHOWN else ''}{said[-_SHOWN:]}"
