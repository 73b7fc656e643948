"""A scheduler in a web server's lifespan leaves the server's signals and logging alone: the server stops, the lifespan
ends, and the scheduler drains on the way."""

import contextlib
import os
import signal
import socket

import pytest
from daemons import until
from hosts import WEB, host

SERVERS = {
    "uvicorn": ["uvicorn", "hosted:app", "--uds"],
    "hypercorn": ["hypercorn", "hosted:app", "--workers", "0", "--bind"],
    "hypercorn, in a process of its own": ["hypercorn", "hosted:app", "--bind"],
    "granian": ["granian", "--interface", "asgi", "hosted:app", "--uds"],
}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("server", SERVERS)
async def test_the_server_stops_and_the_scheduler_drains_on_the_way(daemons, db, server, number):
    path = daemons.folder / "socket"
    served = host(daemons, WEB, *SERVERS[server], f"unix:{path}" if "hypercorn" in server else str(path))
    began = await served.event("lifespan_began")
    assert (began["root"], began["structlog"]) == (0, False)
    assert b"served" in await until(lambda: get(path), "answer")
    runs = await db.all("select pgsched.enqueue('host-async'), pgsched.enqueue('host-sync')")
    await until(lambda: len(daemons.notes("began")) == 2, "start of both runs")
    if number is signal.SIGINT:
        os.killpg(served.pid, number)  # Ctrl-C reaches the server's own processes too
    else:
        served.send(number)
    await served.event("drain_started", running=2)
    daemons.open("gate")
    await served.event("lifespan_ended", given_back=0)
    assert await served.exit_code() in (0, -number, 128 + number), served.tail()
    assert await db.all("select distinct status, attempt from pgsched.runs") == [("succeeded", 1)], runs
    assert await db.value("select count(*) from pgsched.workers") == 0
    assert served.events("signal_received") == [], "the scheduler heard it from the server alone"


def get(path) -> bytes:
    """The answer of the server; nothing if it does not listen yet."""
    with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
        client.settimeout(20)
        client.connect(str(path))
        client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        found = b""
        while part := client.recv(4096):
            found += part
        return found
    return b""
