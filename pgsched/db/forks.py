"""Cuts forked children off from our connections.

A program that a job starts gets none: libpq closes its sockets on exec. But a fork without exec (os.fork(), the start
method "fork" of multiprocessing) inherits them. If the worker died, the server would see its sessions live on as long
as the child, and other workers would take it for alive. And a child that closed such a connection would end the
parent's session.

So in the child each socket is replaced, without a word to the server. A connection that is just being made is not
covered: it is known only once it is made.
"""

from __future__ import annotations

import contextlib
import os
import stat
import weakref
from typing import Any

import psycopg

from pgsched.errors import PgschedError

_connections: weakref.WeakSet[psycopg.Connection[Any] | psycopg.AsyncConnection[Any]] = weakref.WeakSet()


def keep_from_children(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """Marks a connection as this process's own."""
    _connections.add(connection)


class Birth:
    """The process that made an object, for objects that a forked child must not use."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    def check(self, thing: str, advice: str) -> None:
        """Raises PgschedError in any other process, with the object's name and an advice."""
        if self._pid != os.getpid():
            raise PgschedError(
                f"{thing} was made in process {self._pid} and cannot be used in its fork {os.getpid()}: {advice}."
            )


def _cut_off() -> None:
    """Runs in the child, before anything else does."""
    null = os.open(os.devnull, os.O_RDWR)
    for connection in list(_connections):
        with contextlib.suppress(psycopg.Error, OSError):  # it is closed
            descriptor = connection.pgconn.socket
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                # Replaced, not closed: libpq may still write to the number, so no new file may get it.
                os.dup2(null, descriptor, inheritable=False)
    os.close(null)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_cut_off)
