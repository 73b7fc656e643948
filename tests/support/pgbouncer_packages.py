"""Gets PgBouncer, the newest and 1.18, from Debian's archive: into the virtual environment, as any user.

`python -m support.pgbouncer_packages` gets the versions that are missing. If a version cannot be had, its folder holds
the reason, and the tests that need it are skipped with that reason.
"""

import shutil
import sys
from pathlib import Path

from support.debian_packages import UnavailableError, loader, unpack

FOLDER = Path(sys.prefix) / "pgbouncer"
SUITES = {"newest": "testing", "1.18": "bookworm"}  # Debian's suite that has the version


def command(version: str) -> list[str]:
    """The command that runs this version of PgBouncer. Raises UnavailableError if it is not here."""
    folder = FOLDER / version
    if not (folder / "complete").exists():
        reason = folder / "reason"
        raise UnavailableError(reason.read_text() if reason.exists() else "`make pgbouncer` has not been run")
    # Its own loader: the machine's C library may be older than the one that it was built for.
    program, libraries = loader(folder)
    return [str(program), "--library-path", ":".join(map(str, libraries)), str(folder / "usr/sbin/pgbouncer")]


def get(version: str) -> None:
    """Downloads and unpacks this version, unless it is here."""
    folder = FOLDER / version
    if (folder / "complete").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        unpack(SUITES[version], ["pgbouncer"], folder)
    except UnavailableError as error:
        (folder / "reason").write_text(str(error))
    else:
        (folder / "complete").touch()


def main() -> None:
    for version in SUITES:
        get(version)
        try:
            command(version)
        except UnavailableError as error:
            print(f"PgBouncer {version} is not here, so its tests are skipped: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
