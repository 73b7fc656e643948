"""Gets PgBouncer, the newest and 1.18, from Debian's archive: into the virtual environment, as any user.

`python tests/support/pgbouncer_packages.py` gets the versions that are missing. Nothing is installed on the machine:
apt keeps its lists in a folder of its own, and each version is unpacked beside the libraries that it was built for, so
that the machine's own release of Debian does not matter. If a version cannot be had, its folder holds the reason, and
the tests that need it are skipped with that reason.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(sys.prefix) / "pgbouncer"
SUITES = {"newest": "testing", "1.18": "bookworm"}  # Debian's suite that has the version
_APT = """\
Dir::State "{0}/state";
Dir::State::status "{0}/status";
Dir::Cache "{0}/cache";
Dir::Cache::pkgcache "pkgcache.bin";
Dir::Cache::srcpkgcache "srcpkgcache.bin";
Dir::Etc::SourceList "{0}/sources.list";
Dir::Etc::SourceParts "/dev/null";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::http::Timeout "20";
Acquire::Retries "2";
"""
_DEPENDS = re.compile(r"^ *\|?(?:Pre)?Depends: (lib[^\s<>:]+)", re.MULTILINE)


class UnavailableError(Exception):
    """A sentence that says why this machine cannot have a version."""


def command(version: str) -> list[str]:
    """The command that runs this version of PgBouncer. Raises UnavailableError if it is not here."""
    folder = FOLDER / version
    if not (folder / "complete").exists():
        reason = folder / "reason"
        raise UnavailableError(reason.read_text() if reason.exists() else "`make pgbouncer` has not been run")
    # Its own loader: the machine's C library may be older than the one that it was built for.
    loader = next(path for path in sorted(folder.rglob("ld-linux-*.so.*")) if not path.is_symlink())
    libraries = sorted({str(path.parent) for path in folder.rglob("lib*.so.*")})
    return [str(loader), "--library-path", ":".join(libraries), str(folder / "usr/sbin/pgbouncer")]


def get(version: str) -> None:
    """Downloads and unpacks this version, unless it is here."""
    folder = FOLDER / version
    if (folder / "complete").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with tempfile.TemporaryDirectory(prefix="pgsched-apt-") as work:
            _unpack(Path(work), SUITES[version], folder)
    except UnavailableError as error:
        (folder / "reason").write_text(str(error))
    else:
        (folder / "complete").touch()


def _unpack(work: Path, suite: str, folder: Path) -> None:
    archive = _archive()
    for part in ("state/lists/partial", "cache/archives/partial"):
        (work / part).mkdir(parents=True)
    (work / "status").touch()
    (work / "sources.list").write_text(f"deb {archive} {suite} main\n")
    (work / "apt.conf").write_text(_APT.format(work))
    _run(work, "apt-get", "update", "-qq", "--error-on=any")
    _run(work, "apt-get", "download", "-qq", "pgbouncer", *sorted(_libraries(work)))
    for package in sorted(work.glob("*.deb")):
        _run(work, "dpkg-deb", "--extract", str(package), str(folder))


def _archive() -> str:
    """The address of Debian's archive that this machine's own apt uses."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    if release.get("ID") == "debian" and shutil.which("apt-get"):
        listed = _run(None, "apt-get", "indextargets", "--no-release-info", "--format", "$(RELEASE) $(REPO_URI)")
        for line in listed.splitlines():
            suite, _, address = line.partition(" ")
            if suite in (release.get("VERSION_CODENAME"), "stable", "testing", "sid", "unstable"):
                return address
    raise UnavailableError("PgBouncer comes from Debian's archive, and this machine's apt does not know it")


def _libraries(work: Path) -> set[str]:
    """The names of the packages of all libraries that PgBouncer loads."""
    found: set[str] = set()
    new = {"pgbouncer"}
    while new:
        new = set(_DEPENDS.findall(_run(work, "apt-cache", "depends", "--important", *sorted(new)))) - found
        found |= new
    return found


def _run(work: Path | None, *arguments: str) -> str:
    environment = {**os.environ, "LC_ALL": "C"}
    if work is not None:
        environment["APT_CONFIG"] = f"{work}/apt.conf"
    try:
        done = subprocess.run(
            arguments, cwd=work, env=environment, capture_output=True, text=True, check=True, timeout=300
        )
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split()) or f"exit code {error.returncode}"
        raise UnavailableError(f"{arguments[0]} {arguments[1]} failed: {said}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{arguments[0]} {arguments[1]} failed: {error}") from None
    return done.stdout


def main() -> None:
    for version in SUITES:
        get(version)
        try:
            command(version)
        except UnavailableError as error:
            print(f"PgBouncer {version} is not here, so its tests are skipped: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
