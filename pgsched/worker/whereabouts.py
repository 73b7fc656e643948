"""Where a process runs, how it reaches the server, and whether it is still there. What follows from that is plan's.

Linux shows all of it in /proc. On other systems nothing is known, and nothing is guessed.
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
            # A pid means something only in its own name space: each container counts for itself.
            machine = f"{boot} {(_PROC / 'self/ns/pid').readlink()}"
        found = _stat(os.getpid())
        return cls(machine if found is not None else "", os.getpid(), found[1] if found is not None else "")

    def state_of(self, machine: str, pid: int, started: str) -> Process:
        """Whether another worker's process goes on. Unknown on another machine."""
        if not self.machine or machine != self.machine or not started:
            return Process.UNKNOWN
        found = _stat(pid)
        if found is None:
            # /proc may hide the processes of other users (hidepid), but a signal finds them.
            return Process.UNKNOWN if _answers(pid) else Process.ENDED
        state, since = found
        return Process.ENDED if state in "ZX" or since != started else Process.ALIVE


def route(descriptor: int, target: str) -> str:
    """The way from here to the server's target over a socket, as far as this side of it knows the way.

    Its own address is a part of it: two hosts behind one balancer do not share the way to the balancer.
    """
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        own = connection.getsockname()
    return f"{own[0] if isinstance(own, tuple) else 'local'} {target}"


def _stat(pid: int) -> tuple[str, str] | None:
    """The state and the start time of a process, or None if there is none to be seen."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # The second field is the program's name, in which anything may stand, parentheses too.
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
