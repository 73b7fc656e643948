"""The other end of ProcessExecutor: a fresh interpreter, in which one function is called.

Two pipes lead to the worker: on one it says what to do and, later, that somebody wants the run to stop; on the other
we tell what is logged and how it ends. When the first ends, the worker is dead, and so are we.
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
        """Tells the worker one thing."""
        data = json.dumps(message).encode() + b"\n"
        with self._lock:
            while data:
                data = data[os.write(self._fd, data) :]


def main(control: BinaryIO, report_fd: int) -> None:
    """Does what the first line says, and ends the process. control: as far as its second line."""
    os.set_inheritable(control.fileno(), False)
    os.set_inheritable(report_fd, False)
    faulthandler.enable()  # a crash shows where it was
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
    for _ in control:  # there is only one thing to be told
        package.cancellation.ask()
    os.killpg(0, signal.SIGKILL)
