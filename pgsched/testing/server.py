"""The embedded PostgreSQL that the tests of one process share. It takes a second to start, once."""

from __future__ import annotations

import atexit
import contextlib
import shutil
import tempfile
import threading

from pgsched.db import embedded

_lock = threading.Lock()
_started: list[str] = []


def embedded_dsn() -> str:
    """The DSN of an embedded server in a temporary directory. The first call starts it; it is stopped and deleted when
    the process ends.

    The first call blocks for a second or two. Raises ConfigurationError if the extra `embedded` is missing.
    """
    with _lock:
        if not _started:
            folder = tempfile.mkdtemp(prefix="pgsched-testing-")
            stack = contextlib.ExitStack()
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            try:
                _started.append(stack.enter_context(embedded.start(f"{folder}/postgres")))
            except BaseException:
                stack.close()
                raise
            atexit.register(stack.close)
        return _started[0]
