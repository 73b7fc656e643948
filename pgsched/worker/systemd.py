"""Tells the service manager how we are: the notification protocol of systemd, without its library.

Nothing here raises, and nothing happens where no manager listens. When to say what is the worker's decision.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta

PATIENCE = 1.0  # seconds that a full socket may take; READY=1 must get through, the event loop must not stand still


def notify(**fields: str | int) -> bool:
    """Sends assignments such as READY=1 in one message. Returns whether somebody took it.

    Control characters in a value become spaces: a line end would begin another assignment.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    family = getattr(socket, "AF_UNIX", None)
    if family is None or address[:1] not in ("/", "@"):
        return False
    lines = (f"{name}={_printable(value)}" for name, value in fields.items())
    target = os.fsencode(address)
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as channel:
            channel.settimeout(PATIENCE)
            channel.connect(b"\0" + target[1:] if target[:1] == b"@" else target)
            channel.sendall("\n".join(lines).encode(errors="replace"))
    except (OSError, ValueError):  # nobody there, no descriptor left, a name too long or with a NUL
        return False
    return True


def ready(status: str = "") -> bool:
    """Says that the service is up, and what `systemctl status` shows of it."""
    return notify(READY=1, STATUS=status) if status else notify(READY=1)


def status(text: str) -> bool:
    """Sets the line that `systemctl status` shows."""
    return notify(STATUS=text)


def stopping(status: str = "") -> bool:
    """Says that the service is about to end. To be said first of all when a stop begins."""
    return notify(STOPPING=1, STATUS=status) if status else notify(STOPPING=1)


def extend_timeout(length: timedelta) -> bool:
    """Asks for so much time, from now on, for the start or the stop that is under way.

    With it a drain may take longer than the unit's TimeoutStopSec, as long as it says so in time.
    """
    return notify(EXTEND_TIMEOUT_USEC=length // timedelta(microseconds=1))


def watchdog() -> bool:
    """Gives the sign of life that WatchdogSec= waits for."""
    return notify(WATCHDOG=1)


def watchdog_interval() -> float | None:
    """How often to call watchdog(), in seconds: half of what the manager allows. None: it does not wait for it."""
    given, meant = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    try:
        if meant and int(meant) != os.getpid():  # a parent's, which its children inherit
            return None
        microseconds = int(given)
    except ValueError:
        return None
    return microseconds / 2_000_000 if microseconds > 0 else None


def _printable(value: str | int) -> str:
    return "".join(c if c.isprintable() else " " for c in str(value))
