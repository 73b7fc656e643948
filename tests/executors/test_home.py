"""Which project a file belongs to, and whether an import path names anything: tables over small folders."""

import importlib
import sys
from pathlib import Path

import pytest

from pgsched.executors.home import Home, home_of_factory, home_of_program, is_gone, project_of

NAMED = '[project]\nname = "{}"\n'

# What lies in the folder, the module's file, and the name of its project. The module is imported from "{root}".
PROJECTS = [
    ({"shop/pyproject.toml": NAMED.format("shop")}, "shop/app.py", "shop"),
    ({"shop/pyproject.toml": NAMED.format("My.Shop_2")}, "shop/src/shop/core/app.py", "my-shop-2"),
    ({"pyproject.toml": NAMED.format("all"), "a/pyproject.toml": NAMED.format("a")}, "a/app.py", "a"),
    # One that names no project is a mark of the root, and no name.
    ({"pyproject.toml": NAMED.format("all"), "a/pyproject.toml": "[tool.ruff]\n"}, "a/app.py", "all"),
    ({"shop/pyproject.toml": "[tool.ruff]\n"}, "shop/deep/er/app.py", "shop"),
    ({"shop/pyproject.toml": '[tool.poetry]\nname = "poetic"\n'}, "shop/app.py", "poetic"),
    ({"shop/pyproject.toml": "no toml ["}, "shop/app.py", "shop"),
    ({"shop/setup.py": ""}, "shop/lib/app.py", "shop"),
    ({"shop/manage.py": ""}, "shop/web/tasks.py", "shop"),
    ({"shop/.git/HEAD": ""}, "shop/a/b/app.py", "shop"),
    # A folder for each release, as Capistrano makes them, is no project of its own.
    ({"shop/releases/20261127103000/requirements.txt": ""}, "shop/releases/20261127103000/app.py", "shop"),
    ({"shop/releases/ed6fd71a/.git/HEAD": ""}, "shop/releases/ed6fd71a/app.py", "shop"),
    ({"shop/current/setup.cfg": ""}, "shop/current/app.py", "shop"),
    ({"deadbeef/setup.cfg": ""}, "deadbeef/app.py", "deadbeef"),  # a word, without a digit
    ({}, "plain/app.py", "plain"),
    ({}, "plain/src/app.py", "plain"),
    ({}, "a b\tc/app.py", "a b-c"),
    ({"shop/pyproject.toml": NAMED.format("shop")}, "shop/.venv/lib/site-packages/thing/app.py", "the-thing"),
    ({}, "lib/site-packages/unknown.py", "unknown"),
]


@pytest.mark.parametrize(("files", "module", "expected"), PROJECTS, ids=[m for _, m, _ in PROJECTS])
def test_project(tmp_path, files, module, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    file = tmp_path / module
    dist = {"thing": "The_Thing"}
    assert project_of(file, file.parent, lambda f: dist.get(f.parent.name)) == expected


def test_at_the_root_of_the_file_system_nothing_names_it():
    assert project_of(Path("/app.py"), Path("/")) == ""
    assert Home("", "app.create_scheduler").name == "app.create_scheduler"


def test_a_long_name_is_cut_and_still_a_name():
    assert Home("p" * 300, "m" * 300).name == "p" * 80 + "/" + "m" * 119
    assert Home("shop", "app.create_scheduler").name == "shop/app.create_scheduler"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project, imported from its folder."""
    files = {
        "pyproject.toml": NAMED.format("shop"),
        "gone_app.py": "x = 1\n",
        "pack/__init__.py": "from pack.inner import made as factory\n",
        "pack/inner.py": "async def made(): ...\n",
        "pack/bad.py": "def (",
        "shapes.py": (
            "import os.path, json as j\nif 1:\n    def conditional(): ...\ntry:\n    from a import b\n"
            "except ImportError:\n    b = None\nx: int = 1\n(y, z) = 1, 2\n"
            "class Made:\n    def inner(self): ...\ndef outer():\n    hidden = 1\n"
        ),
        "stars.py": "from os import *\n",
        "lazy.py": "def __getattr__(name): ...\n",
        "raises.py": "raise RuntimeError('imported')\ndef create(): ...\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield tmp_path
    for name in ("pack", "pack.inner"):
        sys.modules.pop(name, None)


GONE = {
    "no_such_module.create": True,
    "no_such_package.core.create": True,
    "gone_app.create_scheduler": True,
    "gone_app.x": False,
    "pack.factory": False,
    "pack.inner.made": False,
    "pack.inner.other": True,
    "pack.other": True,
    "pack.other.made": True,
    "pack.inner": False,  # a module of that name
    "pack.bad.create": False,  # cannot be read, so cannot be known
    "shapes.conditional": False,
    "shapes.b": False,
    "shapes.j": False,
    "shapes.os": False,
    "shapes.json": True,
    "shapes.x": False,
    "shapes.z": False,
    "shapes.Made.inner": False,
    "shapes.hidden": True,
    "shapes.inner": True,
    "stars.anything": False,
    "lazy.anything": False,
    "raises.create": False,  # and nothing was imported to find out
    "raises.other": True,
    "serve": False,  # a program's name, and no import path
    "run the shop.now": False,
    "": False,
}


@pytest.mark.parametrize("path", GONE)
def test_gone(project, path):
    before = set(sys.modules)
    assert is_gone(path) is GONE[path]
    assert not (set(sys.modules) - before) & {"pack", "pack.inner", "shapes", "raises"}


def test_the_home_of_a_factory(project):
    module = importlib.import_module("pack.inner")
    assert home_of_factory("pack.inner:made", module) == Home("shop", "pack.inner.made")


def test_the_home_of_a_program(tmp_path, monkeypatch):
    main = type(sys)("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    (tmp_path / "shop").mkdir()
    monkeypatch.chdir(tmp_path / "shop")
    assert home_of_program() == Home("shop", "python")
    main.__file__ = "/usr/local/bin/uvicorn"
    assert home_of_program() == Home("shop", "uvicorn"), "where it is installed says nothing"
    main.__file__ = str(tmp_path / "other" / "serve.py")
    assert home_of_program() == Home("other", "serve")
    main.__spec__ = importlib.machinery.ModuleSpec("jobs.__main__", None)
    assert home_of_program() == Home("other", "jobs")
