"""What is installed is whole: from the source to a wheel to a clean environment to a run in the database."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tomllib
import venv
import zipfile
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

ROOT = pathlib.Path(__file__).parents[2]
APP = """
from datetime import timedelta

from pgsched import Scheduler, every


def factory():
    scheduler = Scheduler()

    @scheduler.schedule("tick", every(timedelta(seconds=1)))
    async def tick():
        return {"ticked": True}

    return scheduler
"""

pytestmark = pytest.mark.slow


def environment(**more: str) -> dict[str, str]:
    """Ours, without what would lead a program back to the source tree or to somebody's settings."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PGSCHED_", "VIRTUAL_"))}
    return kept | more


def execute(*command: str | pathlib.Path, cwd: pathlib.Path, **more: str) -> str:
    """The standard output of a command that succeeds."""
    done = subprocess.run(
        [str(part) for part in command],
        check=False,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment(**more),
        timeout=600,
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def copied_by_the_dockerfile() -> list[str]:
    """The sources of the image's build stage, from its COPY lines."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


def copy(names: list[str], target: pathlib.Path) -> None:
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with the source archive, and with the wheel that was built from that archive."""
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    # From a copy, so that nothing is left in the tree and nothing that lies about in it gets in.
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    copy(["pyproject.toml", *project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]], source)
    execute(sys.executable, "-m", "build", "--no-isolation", "--outdir", target, source, cwd=target)
    return target


@pytest.fixture(scope="module")
def wheel(dist: pathlib.Path) -> pathlib.Path:
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def scripts(wheel: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The programs of a clean virtual environment with the wheel in it, and with what pip makes of its needs."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=True, clear=True)
    programs = folder / ("Scripts" if sys.platform == "win32" else "bin")
    execute(programs / "python", "-m", "pip", "install", "--quiet", wheel, cwd=folder)
    return programs


def contents(wheel: pathlib.Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_all_that_is_needed(wheel: pathlib.Path) -> None:
    names = contents(wheel)
    wanted = {f"pgsched/migrations/{path.name}" for path in (ROOT / "migrations").glob("*.sql")}
    wanted |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "pgsched").rglob("*.sql")}
    wanted |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "pgsched").rglob("*.py")}
    assert any(name.startswith("pgsched/migrations/0001_") for name in wanted)
    assert any(name.startswith("pgsched/db/queries/") for name in wanted)
    assert wanted | {"pgsched/py.typed"} <= names


def test_the_wheel_holds_nothing_else(wheel: pathlib.Path) -> None:
    strange = [
        name
        for name in contents(wheel)
        if not re.fullmatch(r"pgsched/.*\.(py|sql|typed)|pgsched-[^/]+\.dist-info/.+", name)
    ]
    assert strange == []


def test_the_wheel_is_for_any_machine_and_says_its_licence(wheel: pathlib.Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    names = contents(wheel)
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(archive.read(name).decode() for name in names if name.endswith("/METADATA"))
    assert "Requires-Python: >=3.11" in metadata
    assert "License-Expression: MIT" in metadata
    assert "Provides-Extra: embedded" in metadata


def test_its_classifiers_are_known_and_fit_its_python() -> None:
    known = pytest.importorskip("trove_classifiers").classifiers
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(project["classifiers"]) <= known
    versions = [re.fullmatch(r"Programming Language :: Python :: 3\.(\d+)", each) for each in project["classifiers"]]
    assert f">=3.{min(int(each[1]) for each in versions if each)}" == project["requires-python"]
    assert "Typing :: Typed" in project["classifiers"]


USER = """
from pgsched import Limits, Retry, Run, Scheduler, connect


def factory() -> Scheduler:
    scheduler = Scheduler()

    @scheduler.schedule("tick", "@hourly", retry=Retry(attempts=2))
    async def tick(run: Run) -> int:
        return run.attempt

    @scheduler.entrypoint("mail", limits=Limits(concurrency=2))
    def mail(to: str) -> None: ...

    reveal_type(tick)
    reveal_type(mail)
    return scheduler


async def enqueue() -> None:
    async with connect() as client:
        reveal_type(await client.enqueue("mail", {"to": "ada"}))
    Retry(attempts="two")
"""


def test_an_application_gets_types_from_the_wheel(scripts: pathlib.Path, tmp_path: pathlib.Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "app.py").write_text(USER)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--python-executable", scripts / "python", "app.py"],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
        timeout=600,
    )
    notes = re.findall(r'Revealed type is "(.+)"', done.stdout)
    assert [note.replace("builtins.", "") for note in notes] == [
        "def (run: pgsched.model.Run) -> typing.Coroutine[Any, Any, int]",
        "def (to: str)",
        "pgsched.client.client.Enqueued",
    ], done.stdout + done.stderr
    assert re.findall(r"error: (.+)", done.stdout) == [
        'Argument "attempts" to "Retry" has incompatible type "str"; expected "int"  [arg-type]'
    ]


def test_the_source_archive_holds_the_unit_and_the_tests(dist: pathlib.Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "pyproject.toml",
        "README.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "systemd/pgsched.service",
        "tests/conftest.py",
    } <= names


def test_the_image_builds_the_same_wheel(wheel: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """From the few files that the Dockerfile copies."""
    source, target = tmp_path / "source", tmp_path / "dist"
    source.mkdir()
    copy(copied_by_the_dockerfile(), source)
    execute(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"),
        *("--wheel-dir", target, source),
        cwd=tmp_path,
    )
    (built,) = target.glob("*.whl")
    assert contents(built) == contents(wheel)


def test_the_installed_program_tells_its_version(scripts: pathlib.Path, tmp_path: pathlib.Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert execute(scripts / "pgsched", "--version", cwd=tmp_path).split() == ["pgsched", version]
    where = "import pgsched; print(pgsched.__file__, pgsched.__version__)"
    path, told = execute(scripts / "python", "-c", where, cwd=tmp_path).split()
    assert told == version
    assert ROOT not in pathlib.Path(path).parents, "the source tree is not what runs"


def test_the_installed_program_has_the_migrations(scripts: pathlib.Path, tmp_path: pathlib.Path) -> None:
    script = execute(scripts / "pgsched", "migrate", "--sql", cwd=tmp_path)
    assert script.startswith("begin;")
    assert "create table" in script


def test_the_installed_program_does_without_the_extra(scripts: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    without = {key: value for key, value in environment().items() if not key.startswith("PG")}
    done = subprocess.run(
        [scripts / "pgsched", "run", "app.factory"],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=without,
        timeout=60,
    )
    assert done.returncode == 78
    assert 'pip install "pgsched[embedded]"' in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def name(dsn: str) -> Iterator[str]:
    """The name of a schema that is not there yet, and will not be afterwards."""
    name = f"packaging_{os.getpid()}"
    yield name
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("drop schema if exists {} cascade").format(sql.Identifier(name)))


def test_the_installed_program_runs_a_schedule(
    scripts: pathlib.Path, tmp_path: pathlib.Path, dsn: str, name: str
) -> None:
    settings = {"PGSCHED_DSN": dsn, "PGSCHED_SCHEMA": name}
    (tmp_path / "app.py").write_text(APP)
    execute(scripts / "pgsched", "migrate", cwd=tmp_path, **settings)
    with (tmp_path / "log").open("w") as log:
        daemon = subprocess.Popen(
            [scripts / "pgsched", "run", "app.factory"], cwd=tmp_path, env=environment(**settings), stderr=log
        )
        try:
            wait_for_success(daemon, dsn, name)
            daemon.send_signal(signal.SIGTERM)
            code = daemon.wait(60)
        finally:
            daemon.kill()
            daemon.wait()
    told = (tmp_path / "log").read_text()
    assert code == 0, told
    assert "Traceback" not in told
    with psycopg.connect(dsn) as connection:
        query = sql.SQL("select count(*) from {} where status = 'running'")
        assert connection.execute(query.format(sql.Identifier(name, "runs"))).fetchone() == (0,)


def wait_for_success(daemon: subprocess.Popen[bytes], dsn: str, schema: str) -> None:
    query = sql.SQL("select result from {} where status = 'succeeded' and entrypoint = 'tick'")
    deadline = time.monotonic() + 60
    with psycopg.connect(dsn, autocommit=True) as connection:
        while True:
            row = connection.execute(query.format(sql.Identifier(schema, "runs"))).fetchone()
            if row is not None:
                assert row[0] == {"ticked": True}
                return
            assert daemon.poll() is None, "the daemon ended by itself"
            assert time.monotonic() < deadline, "no run succeeded"
            time.sleep(0.1)
