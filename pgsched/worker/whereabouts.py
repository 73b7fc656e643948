"""The machine of a process, its route to the server, and whether it still runs. rules.retry draws the conclusions.

Linux shows processes in /proc. On other systems nothing is known of them, and nothing is guessed.
"""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from pgsched.model import Process

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """A process. machine, started: empty if they are not known."""

    machine: str
    pid: int
    started: str

    @classmethod
    def own(cls) -> Whereabouts:
        """This process."""
        machine = ""
        with contextlib.suppress(OSError):
            boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
            # A pid is unique only in its own namespace: each container has its own.
            machine = f"{boot} {(_PROC / 'self/ns/pid').readlink()}"
        found = _stat(os.getpid())
        return cls(machine if found is not None else "", os.getpid(), found[1] if found is not None else "")

    def state_of(self, machine: str, pid: int, started: str) -> Process:
        """Whether another worker's process still runs. UNKNOWN if it is on another machine."""
        if not self.machine or machine != self.machine or not started:
            return Process.UNKNOWN
        found = _stat(pid)
        if found is None:
            # /proc may hide the processes of other users (hidepid), but a signal finds them.
            return Process.UNKNOWN if _answers(pid) else Process.ENDED
        state, since = found
        return Process.ENDED if state in "ZX" or since != started else Process.ALIVE


def route(descriptor: int, target: str) -> str:
    """The route from here to the server, as far as this side knows it.

    descriptor, target: a connected socket, and the server's address.

    Our own address is part of it: two hosts behind one balancer do not share the route to the balancer.
    """
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        own = connection.getsockname()
    return f"{own[0] if isinstance(own, tuple) else 'local'} {target}"


def _stat(pid: int) -> tuple[str, str] | None:
    """The state and the start time of a process, or None if it cannot be seen."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # The second field is the program's name, and may contain anything, even parentheses.
    rest = text.rpartition(")")[2].split()
    return (rest[0], rest[19]) if len(rest) > 19 else None


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
