"""Makes the environments of the benchmark: one for it and pgsched, and one for each peer, with pinned versions.

    python benchmarks/environments.py

Needs nothing but Python 3.11+ and pip, and npm for the peer on Node.js. An environment is made again if its
requirements have changed. If a peer's cannot be made, its measurements report the reason.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDER = HERE / ".environments"

UVLOOP = "uvloop==0.23.0"
# The first driver in each peer's documentation.
REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "bench": ("-e", f"{HERE.parent}[embedded]", "matplotlib==3.10.8", "psutil>=7", UVLOOP),
    "pgqueuer": ("pgqueuer[asyncpg]==1.6.0", "asyncpg==0.32.0", UVLOOP),
    "procrastinate": ("procrastinate==3.10.0", "psycopg[binary]==3.3.9", "psycopg-pool==3.3.3"),
    "apscheduler3": ("apscheduler==3.11.3", "sqlalchemy==2.1.9", "psycopg[binary]==3.3.9"),
    # With an anyio of its time: with later ones its event broker loses events, and it stops working.
    "apscheduler4": ("apscheduler==4.0.0a6", "sqlalchemy[asyncio]==2.1.9", "asyncpg==0.32.0", "anyio==4.9.0"),
    "awa": ("awa-pg==0.6.9", "asyncpg==0.32.0", UVLOOP),
}
PROCESSORS = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}
NODE = f"node-{platform.system().lower()}-{PROCESSORS.get(platform.machine().lower(), platform.machine().lower())}"
# With a Node.js of its own, because graphile-worker needs a newer one than many machines have.
PACKAGES: dict[str, tuple[str, ...]] = {"graphile": ("graphile-worker@0.18.0", f"{NODE}@26.10.0")}
REPLACED: dict[str, str] = {}  # environments that others stand in for


class Unavailable(Exception):
    """Why an environment cannot be made, in one line."""


def program(name: str) -> Path:
    """The interpreter of an environment."""
    name = REPLACED.get(name, name)
    if name in PACKAGES:
        return FOLDER / name / "node_modules" / NODE / "bin/node"
    return FOLDER / name / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def use(name: str, interpreter: Path) -> None:
    """Has an environment replaced by one with another Python, with the same requirements, for this process.

    Raises Unavailable.
    """
    version = subprocess.run(
        [interpreter, "-c", "import platform; print(platform.python_version())"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    REQUIREMENTS[f"{name}-{version}"] = REQUIREMENTS[name]
    make(f"{name}-{version}", interpreter)
    REPLACED[name] = f"{name}-{version}"


def missing(name: str) -> str | None:
    """Why an environment is not there; None if it is."""
    if (FOLDER / name / "requirements").exists():
        return None
    reason = FOLDER / f"{name}.missing"
    return reason.read_text() if reason.exists() else f"the environment {name} was not made"


def make(name: str, interpreter: Path | None = None) -> None:
    """Makes an environment if it is missing or has other requirements. It is complete afterwards, or not there.

    interpreter: the Python of the environment; by default the one that runs this.

    Raises Unavailable.
    """
    wanted = "\n".join(PACKAGES.get(name) or REQUIREMENTS[name])
    if "-e" in REQUIREMENTS.get(name, ()):
        wanted += f"\n{interpreter}\n" + (HERE.parent / "pyproject.toml").read_text()  # what pgsched itself requires
    stamp = FOLDER / name / "requirements"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"environment {name}", flush=True)
    shutil.rmtree(FOLDER / name, ignore_errors=True)
    reason = FOLDER / f"{name}.missing"
    reason.unlink(missing_ok=True)
    try:
        if name in PACKAGES:
            install(["npm", "install", "--no-save", "--no-fund", "--no-audit", "--prefix", str(FOLDER / name)],
                    PACKAGES[name])  # fmt: skip
        else:
            make_venv(name, interpreter)
            pip = [str(program(name)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            install(pip, REQUIREMENTS[name])
    except Unavailable as why:
        FOLDER.mkdir(exist_ok=True)
        reason.write_text(str(why))
        raise
    stamp.write_text(wanted)


def make_venv(name: str, interpreter: Path | None) -> None:
    """Makes an empty environment."""
    if interpreter is None:
        venv.create(FOLDER / name, with_pip=True, symlinks=sys.platform != "win32")
    else:
        install([str(interpreter), "-m", "venv"], (str(FOLDER / name),))


def install(command: list[str], what: tuple[str, ...]) -> None:
    """Runs a command that installs something. Raises Unavailable with the end of its output."""
    with tempfile.TemporaryFile("w+") as said:
        try:
            failed = subprocess.run([*command, *what], stdout=said, stderr=said, check=False).returncode != 0
        except OSError as error:
            raise Unavailable(f"{command[0]} cannot be run: {error}") from None
        if failed:
            said.seek(0)
            raise Unavailable(f"{' '.join(what)} cannot be installed: {' '.join(said.read().split())[-300:]}")


def make_base(commit: str) -> str:
    """Makes an environment with pgsched as of a commit, and returns its name."""
    repository = HERE.parent
    asked = git(repository, "rev-parse", "--short=12", f"{commit}^{{commit}}")
    if asked.returncode:
        sys.exit(f"There is no commit {commit!r} here to compare with.")
    name = f"base-{asked.stdout.strip()}"
    source = FOLDER / f"{name}-source"
    if not source.exists():
        half = source.with_suffix(".half")
        shutil.rmtree(half, ignore_errors=True)
        git(repository, "clone", "--quiet", "--no-checkout", str(repository), str(half)).check_returncode()
        git(half, "checkout", "--quiet", asked.stdout.strip()).check_returncode()
        half.rename(source)
    REQUIREMENTS[name] = ("-e", f"{source}[embedded]", UVLOOP)
    try:
        make(name)
    except Unavailable as why:
        sys.exit(f"The environment of {commit} cannot be made: {why}")
    return name


def make_newest() -> str:
    """Makes an environment with the newest Python that this machine can have, and returns its version.

    Raises Unavailable.
    """
    sys.path.insert(0, str(HERE.parent / "tests"))
    from support.debian_packages import UnavailableError
    from support.versions import PYTHONS, interpreter, python_version

    reasons = []
    for version in reversed(PYTHONS):
        try:
            found = interpreter(version)
        except UnavailableError as why:
            reasons.append(f"{version}: {why}")
            continue
        REQUIREMENTS["newest"] = ("-e", f"{HERE.parent}[embedded]", UVLOOP)
        make("newest", found)
        return python_version(program("newest"))
    raise Unavailable("; ".join(reasons))


def git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of git in a repository."""
    return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)


def versions(name: str) -> dict[str, str]:
    """The names and versions of the interpreter and the packages in an environment."""
    if name in PACKAGES:
        found = (FOLDER / name / "node_modules").glob("*/package.json")
        return {told["name"]: told["version"] for told in map(json.loads, map(Path.read_text, found))}
    told = subprocess.run(
        [
            program(name),
            "-c",
            "import importlib.metadata as m, json, platform;"
            "found = {d.metadata['Name'].lower(): d.version for d in m.distributions()};"
            "print(json.dumps({'python': platform.python_version()} | found))",
        ],
        capture_output=True,
        check=True,
        text=True,
    )
    return dict(json.loads(told.stdout))


if __name__ == "__main__":
    for each in (*REQUIREMENTS, *PACKAGES):
        try:
            make(each)
        except Unavailable as why:
            if each == "bench":
                sys.exit(str(why))
            print(f"environment {each}: {why}", flush=True)
