"""The release that workers are replaced from: its wheel, built from its commit and unpacked, and its programs."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
# A release with a migration that does not serve these workers moves this on to the release before it.
COMMIT = "919d98b35948d88aa8f35bf64307d0f994429101"
VERSION = 4  # of its schema


class UnavailableError(Exception):
    """The commit is not here, for a good reason."""


def _git(*command: str) -> bytes:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, check=False, timeout=60)
    except FileNotFoundError:
        raise UnavailableError("there is no git") from None
    if done.returncode != 0:
        raise AssertionError(f"git {' '.join(command)}: {done.stderr.decode()}")
    return done.stdout


def _commit() -> None:
    """Raises UnavailableError for a source archive and a shallow clone. Every other clone has the commit."""
    if not (ROOT / ".git").exists():
        raise UnavailableError("a source archive has no history")
    if _git("rev-parse", "--is-shallow-repository").strip() == b"true":
        raise UnavailableError("a shallow clone has no history: run `git fetch --unshallow`")
    _git("cat-file", "-e", f"{COMMIT}^{{commit}}")


def unpacked(folder: Path) -> Path:
    """Builds the wheel without a network, and unpacks it: a place for PYTHONPATH. What it needs is here already."""
    _commit()
    tree, wheels, place = folder / "tree", folder / "wheels", folder / "installed"
    tree.mkdir()
    subprocess.run(["tar", "x", "-C", str(tree)], input=_git("archive", COMMIT), check=True, timeout=60)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)]
    subprocess.run(build, cwd=tree, check=True, capture_output=True, timeout=120)
    [wheel] = wheels.iterdir()
    with zipfile.ZipFile(wheel) as file:
        file.extractall(place)
    return place


def environment(place: Path) -> dict[str, str]:
    """The environment in which `python -m pgsched` is the unpacked wheel's."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PGSCHED_")}
    return kept | {"PYTHONPATH": str(place)}


def command(place: Path, *arguments: str, cwd: Path | None = None) -> str:
    """The output of a `pgsched` of that wheel."""
    done = subprocess.run(
        [sys.executable, "-m", "pgsched", *arguments],
        env=environment(place), cwd=cwd or place, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def statements(place: Path) -> dict[str, bytes]:
    """Its query files, by their names."""
    return {path.stem: path.read_bytes() for path in sorted((place / "pgsched/db/queries").glob("*/*.sql"))}
