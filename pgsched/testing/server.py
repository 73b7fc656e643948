"""The embedded PostgreSQL that the tests of one process share. Takes a second to start, once."""

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
    """The DSN of an embedded server in a temporary directory, started at the first call, stopped and deleted when the
    process ends.

    Blocks for a second or two at the first call. Raises ConfigurationError where the extra `embedded` is missing.
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
