"""A name with an underscore is its module's own: of all tests, only the module's own ones touch it."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PACKAGE = TESTS.parent / "pgsched"
SOURCES = {path: path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}
PUBLIC = {"_exit", "_asdict", "_fields", "_make", "_replace"}  # of os, and of named tuples


def private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name not in PUBLIC


def touched(tree: ast.AST) -> list[tuple[int, str]]:
    """The lines and names of what is read, set or imported of others' names with an underscore."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                found.append((node.lineno, node.attr))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "pgsched":
            found += [(node.lineno, each.name) for each in node.names if private(each.name)]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr":
            texts = [each.value for each in node.args[:2] if isinstance(each, ast.Constant)][:1]
            found += [(node.lineno, name) for text in texts if private(name := str(text).rpartition(".")[2])]
    return sorted(found)


def having(name: str) -> set[str]:
    """The modules that have the name; none if it is somebody else's, such as the standard library's."""
    return {path.name for path, text in SOURCES.items() if re.search(rf"\b{name}\b", text)}


def test_only_a_modules_own_tests_touch_its_private_names():
    files = sorted(TESTS.rglob("*.py"))
    places = [
        f"{file.relative_to(TESTS)}:{line} {name}"
        for file in files for line, name in touched(ast.parse(file.read_text()))
        if (modules := having(name)) and file.name.removeprefix("test_") not in modules
    ]  # fmt: skip
    assert files and not places, "\n".join(places)


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("worker.reaper._watched = {}", ["_watched"]),
        ("from pgsched.config import _setting", ["_setting"]),
        ("monkeypatch.setattr(reaper, '_look', None)", ["_look"]),
        ("monkeypatch.setattr('pgsched.worker.reaper._look', '_x')", ["_look"]),
        ("self._a, cls._b, x.__doc__, os._exit(1), claim._replace(), x.a_b", []),
    ],
)
def test_it_would_find_one(code, names):
    assert [name for _, name in touched(ast.parse(code))] == names
