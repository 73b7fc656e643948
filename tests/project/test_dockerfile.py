"""The container image, as far as its recipe tells: no engine builds it here."""

import fnmatch
import json
import pathlib
import re
import shlex

import pytest

from pgsched.config import Settings

ROOT = pathlib.Path(__file__).parents[2]
Instruction = tuple[str, str]


def stages() -> list[list[Instruction]]:
    """The instructions of each stage, comments left out and continued lines joined. What precedes the first
    stage is in all of them."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    found: list[list[Instruction]] = []
    before: list[Instruction] = []
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if not line.strip():
            continue
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            found.append([*before])
        (found[-1] if found else before).append((word, " ".join(rest.split())))
    return found


@pytest.fixture(scope="module")
def final() -> list[Instruction]:
    return stages()[-1]


def only(stage: list[Instruction], word: str) -> str:
    (rest,) = [rest for name, rest in stage if name == word]
    return rest


def environment(stage: list[Instruction]) -> dict[str, str]:
    return dict(pair.split("=", 1) for word, rest in stage if word == "ENV" for pair in shlex.split(rest))


def ignored(path: pathlib.Path) -> bool:
    """What .dockerignore says of a path in the tree: the last pattern that fits it or a parent wins."""
    answer = False
    names = [str(path), *(str(parent) for parent in path.parents if parent != pathlib.Path())]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        again = pattern.startswith("!")
        wanted = pattern.removeprefix("!")
        anywhere = wanted.removeprefix("**/")
        if any(
            fnmatch.fnmatch(name, wanted)
            or (anywhere != wanted and fnmatch.fnmatch(pathlib.PurePath(name).name, anywhere))
            for name in names
        ):
            answer = not again
    return answer


def sources() -> list[str]:
    copies = [rest for stage in stages() for word, rest in stage if word in ("COPY", "ADD")]
    return [source for rest in copies if "--from=" not in rest for source in rest.split()[:-1]]


def test_builds_in_one_stage_and_ships_another(final: list[Instruction]) -> None:
    build, shipped = stages()
    assert only(build, "FROM") == "python:${PYTHON}-slim AS build"
    assert only(shipped, "FROM") == "python:${PYTHON}-slim"
    assert only(final, "COPY") == "--from=build /opt/pgsched /opt/pgsched"
    assert "pip wheel" in only(build, "RUN")
    assert not any("pip" in rest for word, rest in final if word == "RUN"), "nothing is installed in what is shipped"


def test_signals_reach_the_daemon(final: list[Instruction]) -> None:
    assert json.loads(only(final, "ENTRYPOINT")) == ["pgsched"]
    assert isinstance(json.loads(only(final, "CMD")), list)
    assert only(final, "STOPSIGNAL") == "SIGTERM"


def test_the_user_is_not_root_and_has_a_fixed_number(final: list[Instruction]) -> None:
    user, group = only(final, "USER").split(":")
    assert int(user) >= 10000
    assert int(group) >= 10000
    (made,) = [rest for word, rest in final if word == "RUN"]
    assert f"--uid {user}" in made
    assert f"--gid {group}" in made
    order = [word for word, _ in final]
    assert order.index("RUN") < order.index("USER"), "what root has to do comes first"


def test_the_health_check_asks_no_database(final: list[Instruction]) -> None:
    options, _, command = only(final, "HEALTHCHECK").partition(" CMD ")
    assert json.loads(command) == ["pgsched", "health", "--live"]
    assert {option.split("=")[0] for option in options.split()} == {
        "--interval",
        "--timeout",
        "--start-period",
        "--retries",
    }
    named = environment(final)
    assert "PGSCHED_DSN" not in named
    assert named["PGSCHED_HEALTH_FILE"].startswith("/tmp/"), "the one place to write on a read-only root"


def test_the_settings_exist(final: list[Instruction]) -> None:
    for name in environment(final):
        if name.startswith("PGSCHED_"):
            assert hasattr(Settings(), name.removeprefix("PGSCHED_").lower()), name
    assert environment(final)["PYTHONUNBUFFERED"] == "1"
    assert environment(final)["PATH"].startswith("/opt/pgsched/bin:")


def test_a_secret_is_nowhere_in_it() -> None:
    for stage in stages():
        assert not any(re.search(r"(?i)password|secret|token", name) for name in environment(stage))
        assert not any("DSN" in rest for word, rest in stage if word == "ARG")


def test_what_it_copies_is_there_and_reaches_the_build() -> None:
    assert sources()
    for source in sources():
        path = pathlib.Path(source)
        assert (ROOT / path).exists(), source
        assert not ignored(path), source
        for below in (ROOT / path).rglob("*"):
            inside = below.relative_to(ROOT)
            assert ignored(inside) == ("__pycache__" in inside.parts), inside


def test_what_the_wheel_is_made_of_is_copied() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    needed |= {*wheel["packages"], *wheel["force-include"]}
    assert needed <= set(sources())


def test_nothing_else_reaches_the_build() -> None:
    for name in (".git", ".venv", "tests", "docs", "dist", ".env", "pgsched.toml"):
        assert ignored(pathlib.Path(name)), name


def test_the_python_is_one_that_the_project_names() -> None:
    text = (ROOT / "Dockerfile").read_text()
    (version,) = re.findall(r"^ARG PYTHON=(\S+)$", text, re.MULTILINE)
    assert f'"Programming Language :: Python :: {version}"' in (ROOT / "pyproject.toml").read_text()
