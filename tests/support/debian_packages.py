"""Unpacks packages of Debian's archive beside the libraries that they were built for, as any user.

Nothing is installed on the machine: apt keeps its lists in a folder of its own. The machine's own release of Debian
does not matter, because the libraries come along, the C library and its loader too.
"""

import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

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


def unpack(suite: str, names: Sequence[str], folder: Path) -> None:
    """Downloads these packages of a suite, such as "testing", and all libraries that they load, into the folder."""
    archive = _archive()
    with tempfile.TemporaryDirectory(prefix="pgsched-apt-") as temporary:
        work = Path(temporary)
        for part in ("state/lists/partial", "cache/archives/partial"):
            (work / part).mkdir(parents=True)
        (work / "status").touch()
        (work / "sources.list").write_text(f"deb {archive} {suite} main\n")
        (work / "apt.conf").write_text(_APT.format(work))
        run("apt-get", "update", "-qq", "--error-on=any", work=work)
        run("apt-get", "download", "-qq", *names, *sorted(_libraries(work, names)), work=work)
        for package in sorted(work.glob("*.deb")):
            run("dpkg-deb", "--extract", str(package), str(folder))


def loader(folder: Path) -> tuple[Path, list[Path]]:
    """The unpacked loader of programs, and the folders of the unpacked libraries."""
    program = next(path for path in sorted(folder.rglob("ld-linux-*.so.*")) if not path.is_symlink())
    return program, sorted({path.parent for path in folder.rglob("lib*.so.*")})


def run(*arguments: str, work: Path | None = None) -> str:
    """The output of a command. Raises UnavailableError with the error that it printed.

    work: the folder that apt uses instead of the machine's.
    """
    environment = {**os.environ, "LC_ALL": "C"}
    if work is not None:
        environment["APT_CONFIG"] = f"{work}/apt.conf"
    called = " ".join(arguments[:2])
    try:
        done = subprocess.run(
            arguments, cwd=work, env=environment, capture_output=True, text=True, check=True, timeout=600
        )
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split()) or f"exit code {error.returncode}"
        raise UnavailableError(f"{called} failed: {said}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{called} failed: {error}") from None
    return done.stdout


def _archive() -> str:
    """The address of Debian's archive that this machine's own apt uses."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    if release.get("ID") == "debian" and shutil.which("apt-get"):
        listed = run("apt-get", "indextargets", "--no-release-info", "--format", "$(RELEASE) $(REPO_URI)")
        for line in listed.splitlines():
            suite, _, address = line.partition(" ")
            if suite in (release.get("VERSION_CODENAME"), "stable", "testing", "sid", "unstable"):
                return address
    raise UnavailableError("it comes from Debian's archive, which this machine's apt does not know")


def _libraries(work: Path, names: Sequence[str]) -> set[str]:
    """The names of the packages of all libraries that these packages load."""
    found: set[str] = set()
    new = set(names)
    while new:
        new = set(_DEPENDS.findall(run("apt-cache", "depends", "--important", *sorted(new), work=work))) - found
        found |= new
    return found
