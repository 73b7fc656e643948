"""Makes the environments of the benchmark: one for it and pgsched, and one for each peer, with pinned versions.

    python benchmarks/environments.py

Needs nothing but Python 3.11+ and pip. An environment is made again if its requirements have changed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDER = HERE / ".environments"

# The first driver in each peer's documentation.
REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "bench": ("-e", f"{HERE.parent}[embedded]", "matplotlib==3.10.8", "psutil>=7"),
    "pgqueuer": ("pgqueuer[asyncpg]==1.6.0", "asyncpg==0.32.0", "uvloop==0.23.0"),
    "procrastinate": ("procrastinate==3.10.0", "psycopg[binary]==3.3.9", "psycopg-pool==3.3.3"),
    "apscheduler3": ("apscheduler==3.11.3", "sqlalchemy==2.1.9", "psycopg[binary]==3.3.9"),
    # With an anyio of its time: with later ones its event broker loses events, and it stops working.
    "apscheduler4": ("apscheduler==4.0.0a6", "sqlalchemy[asyncio]==2.1.9", "asyncpg==0.32.0", "anyio==4.9.0"),
}


def python(name: str) -> Path:
    """The interpreter of an environment."""
    return FOLDER / name / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def make(name: str) -> None:
    """Makes an environment if it is missing or has other requirements. It is complete afterwards, or not there."""
    wanted = "\n".join(REQUIREMENTS[name])
    if name == "bench":
        wanted += (HERE.parent / "pyproject.toml").read_text()  # the requirements of pgsched itself
    stamp = FOLDER / name / "requirements"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"environment {name}", flush=True)
    shutil.rmtree(FOLDER / name, ignore_errors=True)
    venv.create(FOLDER / name, with_pip=True, symlinks=sys.platform != "win32")
    pip = [str(python(name)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    with tempfile.TemporaryFile("w+") as said:
        if subprocess.run([*pip, *REQUIREMENTS[name]], stdout=said, stderr=said, check=False).returncode:
            said.seek(0)
            sys.exit(f"The environment {name} cannot be made:\n{said.read()}")
    stamp.write_text(wanted)


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
    REQUIREMENTS[name] = ("-e", f"{source}[embedded]")
    make(name)
    return name


def git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of git in a repository."""
    return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)


def versions(name: str) -> dict[str, str]:
    """The names and versions of the packages in an environment."""
    told = subprocess.run(
        [
            python(name),
            "-c",
            "import importlib.metadata as m, json;"
            "print(json.dumps({d.metadata['Name'].lower(): d.version for d in m.distributions()}))",
        ],
        capture_output=True,
        check=True,
        text=True,
    )
    return dict(json.loads(told.stdout))


if __name__ == "__main__":
    for each in REQUIREMENTS:
        make(each)
