"""CONTRIBUTING.md is true: names and files exist, a run passes the functions in that order, and the recipes work."""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import FrameType

import pytest
from support.workers import until, working

from pgsched import Run, Scheduler, at, connect

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
CODE = re.compile(r"^( *)```python\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)

WITHIN = re.compile(r"^- In `([\w/]+/)`:((?:\s+`\w+\.\w+`,?)+)$", re.MULTILINE)


def in_full(found: re.Match[str]) -> str:
    """The files of one folder, by their paths."""
    return re.sub(r"`(\w+\.\w+)`", rf"`{found[1]}\1`", found[2])


def section(title: str) -> str:
    return PAGE.split(f"# {title}\n", 1)[1].split("\n## ")[0].split("\n### ")[0]


STEPS = re.findall(r"^\| `(\S+)` \| `(\S+)` \|", section("The life of a run"), re.MULTILINE)


# --- names and files --------------------------------------------------------------------------------------


def defined(path: Path) -> Iterator[str]:
    """The names of a module's functions, classes and methods, and of its constants."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            parts = (each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))
            yield from (f"{node.name}.{each.name}" for each in parts)
        if isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


@pytest.mark.parametrize(("file", "name"), STEPS)
def test_each_function_is_in_its_file(file, name):
    assert name in set(defined(ROOT / "pgsched" / file))


def test_each_file_exists():
    named = re.findall(r"`([\w/]+\.(?:py|sql|md)|[\w/]+/)`", WITHIN.sub(in_full, CODE.sub("", PAGE)))
    assert len(named) > 60
    assert [each for each in named if not ((ROOT / each).exists() or (ROOT / "pgsched" / each).exists())] == []


def test_each_name_exists():
    """In the text, names in backticks: functions with brackets, methods, constants in capitals, private ones."""
    known = {name for path in [*ROOT.glob("pgsched/**/*.py"), *ROOT.glob("tests/**/*.py")] for name in defined(path)}
    known |= {name.rpartition(".")[2] for name in known}
    named = re.findall(r"`((?:[A-Z]\w+\.)?_?\w+)(\(\))?`", CODE.sub("", PAGE))
    functions = [name for name, brackets in named if brackets or "." in name or name.startswith("_")]
    functions = [name for name in functions if not name.endswith(".md")]
    assert len(functions) > 40
    assert [each for each in functions if each not in known] == []


def test_the_recipe_names_all_places_that_ask_if_a_schedule_is_gated():
    recipe = WITHIN.sub(in_full, section("Add an overlap policy").split("A policy without a limit", 1)[1])
    files = [*ROOT.glob("migrations/*.sql"), *ROOT.glob("pgsched/db/queries/**/*.sql")]
    asking = {path for path in files if re.search(r"(<>|[^:]=) 'allow'", path.read_text())}
    named = {ROOT / each for each in re.findall(r"`([\w/]+\.sql)`", recipe)}
    assert named - {ROOT / "pgsched/db/queries/claim/replace_runs.sql"} == asking


def test_the_map_has_all_packages():
    packages = {path.name for path in (ROOT / "pgsched").iterdir() if (path / "__init__.py").exists()}
    assert set(re.findall(r"^\| `(\w+)/` \|", section("The map"), re.MULTILINE)) == packages


# --- the life of a run ------------------------------------------------------------------------------------


async def test_a_fire_time_passes_them_in_this_order(settings, dsn, schema, db):
    scheduler, called = Scheduler(), dict[tuple[str, str], None]()

    @scheduler.entrypoint("job")
    async def job(run: Run):
        run.log("it runs")

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and "/pgsched/" in (file := frame.f_code.co_filename):
            called.setdefault((file.rpartition("/pgsched/")[2], frame.f_code.co_qualname))

    async with working(scheduler, settings) as worker, connect(dsn, schema=schema) as client:
        instant = await client.now() + timedelta(seconds=4)
        await client.create_schedule("once", "job", at(instant))
        await db.until("select count(*) = 1 from pgsched.schedules where next_run is not null")
        await until(lambda: worker.dispatcher.next.at is not None)
        sys.setprofile(note)
        try:
            await until(lambda: STEPS[-1] in called, 20)
        finally:
            sys.setprofile(None)
    assert [step for step in called if step in STEPS] == STEPS


# --- the recipes ------------------------------------------------------------------------------------------


def blocks(title: str) -> Iterator[tuple[str, str, str]]:
    """The blocks of a recipe: the file, the line after which it goes (if the file is there already), the text."""
    for indent, block in CODE.findall(section(title)):
        head, _, text = re.sub(rf"^{indent}", "", block, flags=re.MULTILINE).partition("\n")
        file, _, anchor = head.removeprefix("# ").partition(" after: ")
        yield file, anchor, text


@pytest.fixture
def copy(tmp_path) -> Path:
    """The source, in a folder from which programs import it."""
    for name in ("pgsched", "migrations"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def follow(title: str, source: Path) -> None:
    for file, anchor, text in blocks(title):
        path = source / file
        if not anchor:
            assert not path.exists()
            path.write_text(text)
            continue
        lines = path.read_text().splitlines(keepends=True)
        [at] = [number for number, line in enumerate(lines) if line.strip().startswith(anchor)]
        path.write_text("".join([*lines[: at + 1], text, *lines[at + 1 :]]))


def execute(source: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PGSCHED_", "PGHOST", "PGDATABASE"))}
    return subprocess.run(
        [sys.executable, *arguments],
        check=False, cwd=source, env=kept | {"PYTHONPATH": str(source)}, capture_output=True, text=True, timeout=90,
    )  # fmt: skip


GPU = """
import asyncio, sys
import pgsched
from pgsched import GpuExecutor, Scheduler
from pgsched.testing import SyncHarness

assert pgsched.__file__.startswith(sys.argv[1])
running = most = 0

def app(gpus):
    sc = Scheduler(app="gpu", max_gpus=gpus)

    @sc.entrypoint("train", executor=GpuExecutor)
    async def train(model: str):
        global running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.05)
        running -= 1
        return model

    return sc

for gpus in (1, 2):
    most = 0
    with SyncHarness(app(gpus), dsn=sys.argv[2]) as t:
        t.client.enqueue_many("train", [{"model": str(n)} for n in range(4)])
        print(">", *sorted(run["result"] for run in t.run_due()), "most", most)
try:
    Scheduler().entrypoint("train", executor=GpuExecutor)(lambda: None)
except pgsched.RegistrationError as error:
    print(">", error)
"""


def test_the_recipe_for_an_executor(copy, root):
    follow("Add an executor", copy)
    (copy / "gpu_app.py").write_text(GPU)
    done = execute(copy, "gpu_app.py", str(copy), root)
    assert done.returncode == 0, done.stderr
    first, second, third = (line for line in done.stdout.splitlines() if line.startswith(">"))
    assert (first, second) == ("> 0 1 2 3 most 1", "> 0 1 2 3 most 2")
    assert third.endswith("GpuExecutor executes async functions: make it `async def`.")
    assert "--max-gpus" in execute(copy, "-m", "pgsched", "run", "--help").stdout


def test_the_recipe_for_a_command(copy, dsn, schema):
    follow("Add a command", copy)
    there = ("--dsn", dsn, "--schema", schema)
    done = execute(copy, "-m", "pgsched", "clock", *there)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ\n", done.stdout)
    assert '"now": "2' in execute(copy, "-m", "pgsched", "clock", "--json", *there).stdout
    assert re.search(r"^  clock +Show the database's clock\.$", execute(copy, "-m", "pgsched", "--help").stdout, re.M)
    assert execute(copy, "-m", "pgsched", "clock", "--dsn", "host=/nowhere").returncode == 69


@pytest.mark.parametrize("title", re.findall(r"^### (.+)$", PAGE, re.MULTILINE))
def test_a_recipe_names_its_files(title):
    assert len(re.findall(r"\w+\.(?:py|sql|md)\b", section(title))) >= 4
