"""The notification protocol over a real socket, and silence where nobody listens."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from pgsched.worker import systemd

unix = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")
EVERY = [
    systemd.ready,
    systemd.stopping,
    lambda: systemd.notify(WATCHDOG=1, STATUS="fine"),
    lambda: systemd.extend_timeout(timedelta(seconds=1)),
]


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A socket that listens as systemd does."""
    if not hasattr(socket, "AF_UNIX"):
        pytest.skip("needs Unix sockets")
    if request.param == "abstract" and sys.platform != "linux":
        pytest.skip("abstract sockets are Linux's")
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        name = f"{folder}/notify" if request.param == "path" else f"@pgsched-test-{os.getpid()}"
        listening.bind("\0" + name[1:] if name[0] == "@" else name)
        listening.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield listening


def sent_by(manager: socket.socket) -> dict[str, str]:
    lines = manager.recv(65536).decode().split("\n")
    return dict(line.split("=", 1) for line in lines)


def test_ready_is_told_with_the_status_in_one_message(manager: socket.socket) -> None:
    assert systemd.ready("3 schedules, next in 12 s")
    assert sent_by(manager) == {"READY": "1", "STATUS": "3 schedules, next in 12 s"}
    assert systemd.ready()
    assert sent_by(manager) == {"READY": "1"}


def test_stopping_is_told(manager: socket.socket) -> None:
    assert systemd.stopping("draining 2 runs")
    assert sent_by(manager) == {"STOPPING": "1", "STATUS": "draining 2 runs"}
    assert systemd.stopping()
    assert sent_by(manager) == {"STOPPING": "1"}


def test_the_other_messages(manager: socket.socket) -> None:
    assert systemd.notify(WATCHDOG=1, STATUS="idle")
    assert sent_by(manager) == {"WATCHDOG": "1", "STATUS": "idle"}
    assert systemd.extend_timeout(timedelta(minutes=1, milliseconds=1))
    assert sent_by(manager) == {"EXTEND_TIMEOUT_USEC": "60001000"}
    assert systemd.notify(MAINPID=7, ERRNO=2)
    assert sent_by(manager) == {"MAINPID": "7", "ERRNO": "2"}


@pytest.mark.parametrize(
    ("text", "arrives"),
    [("a\nMAINPID=1", "a MAINPID=1"), ("a\x1b[2J\0b", "a [2J b"), ("lone \ud800", "lone  "), ("größer", "größer")],
)
def test_a_value_is_one_line_of_text(manager: socket.socket, text: str, arrives: str) -> None:
    assert systemd.notify(STATUS=text)
    assert sent_by(manager) == {"STATUS": arrives}


def test_nothing_happens_without_a_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert [say() for say in EVERY] == [False] * len(EVERY)


@pytest.mark.parametrize(
    "address", ["", "relative", "vsock:2:1234", "/nowhere/at/all", "@nobody", "/" + "x" * 200, "/"]
)
def test_an_address_where_nobody_listens_is_harmless(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert [say() for say in EVERY] == [False] * len(EVERY)


@unix
def test_a_manager_that_does_not_read_costs_a_moment(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "PATIENCE", 0.1)
    started = time.monotonic()
    for _ in range(100_000):
        if not systemd.notify(WATCHDOG=1):
            break
    else:
        pytest.fail("the socket never filled up")
    assert time.monotonic() - started < 30
    assert sent_by(manager) == {"WATCHDOG": "1"}
    assert systemd.notify(WATCHDOG=1), "it is heard again as soon as there is room"


@unix
def test_leaves_no_descriptor_open(manager: socket.socket) -> None:
    with contextlib.suppress(FileNotFoundError):
        before = len(list(pathlib.Path("/proc/self/fd").iterdir()))
        for _ in range(5):
            systemd.notify(WATCHDOG=1)
        assert len(list(pathlib.Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    ("given", "meant", "interval"),
    [
        ("180000000", lambda: str(os.getpid()), 90.0),
        ("180000000", lambda: "", 90.0),
        ("1", lambda: "", 0.0000005),
        ("180000000", lambda: str(os.getpid() + 1), None),
        ("180000000", lambda: "me", None),
        ("", lambda: "", None),
        ("0", lambda: "", None),
        ("-5", lambda: "", None),
        ("soon", lambda: "", None),
    ],
)
def test_the_watchdog_is_fed_twice_as_often_as_it_asks(
    monkeypatch: pytest.MonkeyPatch, given: str, meant: Callable[[], str], interval: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", given)
    monkeypatch.setenv("WATCHDOG_PID", meant())
    assert systemd.watchdog_interval() == interval


def test_there_is_no_watchdog_without_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert systemd.watchdog_interval() is None


@unix
def test_the_message_comes_from_the_main_process(manager: socket.socket) -> None:
    """NotifyAccess=main believes nobody else, so there may be no helper process in between."""
    if not hasattr(socket, "SO_PASSCRED"):
        pytest.skip("credentials on sockets are Linux's")
    manager.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    program = "from pgsched.worker import systemd\nsystemd.ready()"
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        text, ancillary, _, _ = manager.recvmsg(4096, socket.CMSG_SPACE(12))
        assert process.wait(30) == 0
    assert text == b"READY=1"
    assert int.from_bytes(ancillary[0][2][:4], sys.byteorder) == process.pid
