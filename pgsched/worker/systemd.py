"""Reports the daemon's state to the service manager: the notification protocol of systemd, without its library.

Nothing here raises, and nothing happens if no manager listens. The worker decides when to send each message.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta

PATIENCE = 1.0  # seconds to wait for a full socket: READY=1 must get through, and the event loop must not stand still


def notify(**fields: str | int) -> bool:
    """Sends assignments such as READY=1 in one message. Returns whether somebody received it.

    Control characters in a value become spaces: a newline would begin another assignment.
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
    except (OSError, ValueError):  # nobody listens, no descriptor left, a name too long or with a NUL
        return False
    return True


def ready(status: str = "") -> bool:
    """Reports that the service is up. status: the line that `systemctl status` shows."""
    return notify(READY=1, STATUS=status) if status else notify(READY=1)


def stopping(status: str = "") -> bool:
    """Reports that the service is about to end. It must be the first step of a stop."""
    return notify(STOPPING=1, STATUS=status) if status else notify(STOPPING=1)


def extend_timeout(length: timedelta) -> bool:
    """Asks for this much time, from now on, for the start or the stop that is under way.

    With it a drain may take longer than the unit's TimeoutStopSec, if it asks in time.
    """
    return notify(EXTEND_TIMEOUT_USEC=length // timedelta(microseconds=1))


def watchdog_interval() -> float | None:
    """Seconds between signs of life (WATCHDOG=1): half of what WatchdogSec= allows. None if nobody expects any."""
    given, meant = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    try:
        if meant and int(meant) != os.getpid():  # meant for a parent, and inherited by its children
            return None
        microseconds = int(given)
    except ValueError:
        return None
    return microseconds / 2_000_000 if microseconds > 0 else None


def _printable(value: str | int) -> str:
    return "".join(c if c.isprintable() else " " for c in str(value))
