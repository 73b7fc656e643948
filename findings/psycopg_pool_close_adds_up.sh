#!/usr/bin/env bash
# psycopg_pool's close(timeout) may take its timeout once for each of the pool's workers.
#
# Behaviour: a ConnectionPool whose workers are all connecting to a peer that accepts and says nothing is closed with
#   close(timeout=T). The call joins the worker threads one after the other, each for up to T seconds. So with the three
#   workers that a pool has by default, it returns after 3 T.
# Versions: seen with psycopg-pool 3.3.3 and psycopg 3.3.6.
# Source: the documentation of ConnectionPool.close() calls timeout the time to wait for the threads to terminate.
# Why a good guess misses: one call with one timeout seems to have one deadline, as the same method of the asynchronous
#   pool has. Who leaves five seconds for a shutdown loses fifteen, at the very time when the database is away.
# What pgsched does: ThreadPool.close() in pgsched/db/pool.py divides the time by the number of workers.
#
# Needs bash and python3 with venv and pip. No server: the peer is a socket of this script.
# Exits with 0 if it behaves as described, with 2 if a package could not be installed, else with 1.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/try.py" <<'PYTHON'
import asyncio
import logging
import os
import socket
import sys
import time
import warnings
from importlib.metadata import version

from psycopg_pool import AsyncConnectionPool, ConnectionPool

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
TIMEOUT, WORKERS = 2.0, 3  # seconds, and a pool's default number of workers
listening = socket.create_server(("127.0.0.1", 0))  # connections come about, and nobody answers
INFO = f"host=127.0.0.1 port={listening.getsockname()[1]} user=u dbname=d sslmode=disable connect_timeout=60"
SIZES = {"min_size": WORKERS, "max_size": WORKERS, "num_workers": WORKERS, "open": False}


def threads() -> float:
    pool = ConnectionPool(INFO, **SIZES)
    pool.open()
    time.sleep(0.5)  # each worker is connecting by now
    began = time.monotonic()
    pool.close(timeout=TIMEOUT)
    return time.monotonic() - began


async def tasks() -> float:
    pool = AsyncConnectionPool(INFO, **SIZES)
    await pool.open()
    await asyncio.sleep(0.5)
    began = time.monotonic()
    await pool.close(timeout=TIMEOUT)
    return time.monotonic() - began


took = {"ConnectionPool": threads(), "AsyncConnectionPool": asyncio.run(tasks())}
times = {name: seconds / TIMEOUT for name, seconds in took.items()}
print(f"psycopg-pool {version('psycopg-pool')}, close(timeout={TIMEOUT:g}) with {WORKERS} workers that are connecting:")
for name, each in times.items():
    print(f"  {name}: {each:.1f} times the timeout")
expected = WORKERS - 0.5 < times["ConnectionPool"] < WORKERS + 0.5 and times["AsyncConnectionPool"] < 1.5
if not expected:
    print(f"  This has changed. It was: {WORKERS} times, and once or less")
sys.stdout.flush()
os._exit(int(not expected))  # the threads go on
PYTHON

python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    'psycopg[binary]==3.3.6' 'psycopg-pool==3.3.3' || exit 2
"$folder/venv/bin/python" "$folder/try.py"
