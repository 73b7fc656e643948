"""Ends the processes of runs when this process dies, no matter how.

Nothing here can run after a SIGKILL, so a separate process (the warden) watches us: by pidfd if there is one, and by a
pipe that only we hold. When we are gone, it ends the process groups that we registered. It is started with the first
group, and is this file, run as a program: only the standard library may be imported here.

For some microseconds between the start of a process and its registration, nobody would end it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time

GRACE = 1.0  # seconds between SIGTERM and SIGKILL; the runs' own grace periods are not known here


class Orphans:
    """The warden process, and the groups that it watches. Any thread may use it.

    groups: the process groups that end when this process ends.
    warden: the warden process, None before the first group.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.groups: set[int] = set()
        self.warden: subprocess.Popen[bytes] | None = None

    def watch(self, group: int) -> None:
        """Registers a process group, to be ended when this process ends.

        Raises OSError if the warden cannot be started: then the caller must end and forget the group.
        """
        with self._lock:
            self.groups.add(group)
            self._send(f"+{group}\n")

    def forget(self, group: int) -> None:
        """Unregisters a process group that is gone."""
        with self._lock:
            if group in self.groups:
                self.groups.remove(group)
                with contextlib.suppress(OSError):  # if it cannot be started now, it is started with the next group
                    self._send(f"-{group}\n")

    def _send(self, line: str) -> None:
        if self.warden is None or not self._sent(line):
            # The first warden, or somebody ended the last one: a new one gets all groups.
            self._start()
            self._sent("".join(f"+{group}\n" for group in sorted(self.groups)))

    def _sent(self, text: str) -> bool:
        assert self.warden is not None and self.warden.stdin is not None
        try:
            self.warden.stdin.write(text.encode())
            self.warden.stdin.flush()
        except OSError:
            return False
        return True

    def _start(self) -> None:
        self.close()
        # In its own session, so that Ctrl-C does not reach it.
        self.warden = subprocess.Popen(  # noqa: S603 - this file
            [sys.executable, "-I", "-S", __file__, str(os.getpid())],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True, cwd="/",
        )  # fmt: skip

    def leave_to_parent(self) -> None:
        """Runs in a forked child, which may outlive us: the warden and the groups are not the child's."""
        warden, self.warden = self.warden, None
        self.groups, self._lock = set(), threading.Lock()  # another thread of the parent may have held the old lock
        if warden is not None and warden.stdin is not None:
            null = os.open(os.devnull, os.O_WRONLY)
            with contextlib.suppress(OSError, ValueError):  # it is closed
                os.dup2(null, warden.stdin.fileno(), inheritable=False)
            os.close(null)
            warden.returncode = 0  # nobody waits for it here

    def close(self) -> None:
        """Lets the warden end, and with it all groups that it still watches."""
        warden, self.warden = self.warden, None
        if warden is not None and warden.stdin is not None:
            with contextlib.suppress(OSError):
                warden.stdin.close()
            warden.wait()


ORPHANS = Orphans()
atexit.register(ORPHANS.close)
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=ORPHANS.leave_to_parent)


def signalled(group: int, number: int) -> bool:
    """Sends a signal to a process group. Returns whether the group still exists."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # on macOS for a group of zombies; elsewhere the group has changed its user
        return False
    return True


def anybody(group: int) -> bool:
    """Whether a process of a group still runs. Zombies do not count: in a container nobody may ever reap them."""
    if not signalled(group, 0):
        return False
    try:
        processes = [name for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208
    except OSError:
        processes = []
    for process in processes:
        with contextlib.suppress(OSError), open(f"/proc/{process}/stat", "rb") as file:  # noqa: PTH123
            state, _, its_group = file.read().rpartition(b")")[2].split()[:3]
            if int(its_group) == group and state not in {b"Z", b"X"}:
                return True
    return not processes  # without /proc, zombies count too


def wait_and_end(orders: int, owner: int | None) -> None:
    """The program: keeps a list of groups as long as its owner lives, then ends the groups on it.

    orders: the pipe with the changes to the list.
    owner: readable when the owner is gone, even if a fork still holds the pipe's other end.
    """
    groups: set[int] = set()
    rest = b""
    while True:
        ready, _, _ = select.select([orders] if owner is None else [orders, owner], [], [])
        data = os.read(orders, 65536) if orders in ready else b""
        if not data:
            break
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            (groups.add if line[:1] == b"+" else groups.discard)(int(line[1:]))
    left = {group for group in groups if signalled(group, signal.SIGTERM)}
    deadline = time.monotonic() + GRACE
    while left and time.monotonic() < deadline:
        time.sleep(0.02)
        left = {group for group in left if anybody(group)}
    for group in left:
        signalled(group, signal.SIGKILL)


def _owner(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:  # gone already: something that is readable
        return os.open(os.devnull, os.O_RDONLY)
    except (AttributeError, OSError):  # not Linux: only the pipe shows it
        return None


if __name__ == "__main__":
    for ignored in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # stopping a service stops all its processes
        signal.signal(ignored, signal.SIG_IGN)
    wait_and_end(sys.stdin.fileno(), _owner(int(sys.argv[1])))
