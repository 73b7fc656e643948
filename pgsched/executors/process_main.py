"""The other end of ProcessExecutor: a fresh interpreter, in which one function is called.

Two pipes connect it with the worker. On one the worker sends the task and, later, a request to stop; on the other we
send log lines and the end. When the first pipe closes, the worker is dead, and this process ends.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import sys
import threading
from typing import Any, BinaryIO

from pgsched.executors.capture import Handler
from pgsched.executors.remote import Package, RemoteJournal


class Report:
    """The pipe to the worker. Any thread may write."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """Sends the worker one message."""
        data = json.dumps(message).encode() + b"\n"
        with self._lock:
            while data:
                data = data[os.write(self._fd, data) :]


def main(control: BinaryIO, report_fd: int) -> None:
    """Runs the task and ends the process. control: the pipe, read up to its second line, which holds the task."""
    os.set_inheritable(control.fileno(), False)
    os.set_inheritable(report_fd, False)
    faulthandler.enable()  # a crash shows its place
    report = Report(report_fd)
    journal = RemoteJournal(report.send)
    package = Package(control.readline(), journal, lambda: report.send({"committed": True}))
    threading.Thread(target=_obey, args=(control, package), name="pgsched-control", daemon=True).start()
    logging.basicConfig(level=logging.INFO, handlers=[Handler(lambda: journal)])
    answer = package.call()
    journal.finish()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # the function may have closed it
            continue
    report.send({"answer": answer, "noticed": package.cancellation.noticed})
    os._exit(0)  # threads that the function has left behind would keep the interpreter from ending


def _obey(control: BinaryIO, package: Package) -> None:
    for _ in control:  # there is only one message: the request to stop
        package.cancellation.ask()
    os.killpg(0, signal.SIGKILL)
