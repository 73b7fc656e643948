"""Finds which project and factory a function's code comes from, and whether another factory is still in this code.

An application has its default name from them. Reads files and imports nothing; deploy decides which schedules an
application owns.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tokenize
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

_MARKS = (
    ".git", ".hg", "pyproject.toml", "setup.py", "setup.cfg", "manage.py", "requirements.txt", "Pipfile", "tox.ini",
)  # fmt: skip
_INSTALLED = frozenset({"site-packages", "dist-packages"})
_PROGRAMS = frozenset({"bin", "Scripts"})
# Folders that name a layout or one of many releases, not a project: /srv/shop/releases/20261127 belongs to shop.
_NAMELESS = re.compile(r"src|lib|releases?|versions|current|[\d._-]+|(?=.*\d)[0-9a-f]{7,40}", re.IGNORECASE)
_LONGEST = 200


@dataclass(frozen=True, slots=True)
class Home:
    """The origin of an application.

    project: the project's name, or empty if nothing names it.
    path: its factory's import path, or the name of the program that runs it.
    """

    project: str
    path: str

    @property
    def name(self) -> str:
        """The application's default name: two projects that both have an app.create_scheduler get different names."""
        project = self.project[:80]
        path = self.path if len(self.path) + len(project) < _LONGEST else self.path[len(project) + 1 - _LONGEST :]
        return f"{project}/{path}" if project else path


def home_of_factory(path: str, module: ModuleType) -> Home:
    """The home of the factory at an import path, in an imported module."""
    file = getattr(module, "__file__", None)
    depth = module.__name__.count(".") + (1 if hasattr(module, "__path__") else 0)
    start = Path(file) if file else Path.cwd() / "-"
    root = start.parents[min(depth, len(start.parents) - 1)]
    return Home(project_of(start, root), path.replace(":", "."))


def home_of_program() -> Home:
    """The home of the program that runs, for a scheduler that no factory built."""
    main = sys.modules.get("__main__")
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    name = spec.name.removesuffix(".__main__") if spec is not None else Path(file).stem if file else "python"
    here = Path.cwd()
    # The folder of an installed program, such as uvicorn, does not show which project's code it runs.
    if file is None or Path(file).parent.name in _PROGRAMS or not _INSTALLED.isdisjoint(Path(file).parts):
        return Home(project_of(here / "-", here), name)
    start = Path(file).absolute()
    return Home(project_of(start, start.parent), name)


def project_of(file: Path, root: Path, installed: Callable[[Path], str | None] | None = None) -> str:
    """The name of the project that a file belongs to.

    root: the folder that its module is imported from.

    An installed module has the name of its distribution. Otherwise the nearest pyproject.toml with a project name
    decides, then the folder of the project's root, then `root`.
    """
    if not _INSTALLED.isdisjoint(file.parts):
        return _written((installed or _distribution)(file) or _top(file))
    for folder in file.parents:
        if (name := _declared(folder / "pyproject.toml")) is not None:
            return _written(name)
    marked = next((f for f in file.parents if any((f / mark).exists() for mark in _MARKS)), root)
    named = next((f.name for f in (marked, *marked.parents) if f.name and not _NAMELESS.fullmatch(f.name)), "")
    return "".join(c if c.isprintable() and c != "/" else "-" for c in named)


def _declared(file: Path) -> str | None:
    try:
        text = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    for table in (text.get("project"), (text.get("tool") or {}).get("poetry")):
        name = table.get("name") if isinstance(table, dict) else None
        if isinstance(name, str) and name.strip():
            return name
    return None


def _written(name: str) -> str:
    """A distribution's name in normalised spelling."""
    return re.sub(r"[-_.\s/]+", "-", name.strip()).strip("-").lower()


def _distribution(file: Path) -> str | None:
    """The distribution that an installed module belongs to."""
    return next(iter(importlib.metadata.packages_distributions().get(_top(file), [])), None)


def _top(file: Path) -> str:
    """The first part of an installed module's name."""
    at = max(n for n, part in enumerate(file.parts) if part in _INSTALLED)
    return file.parts[at + 1].removesuffix(".py") if at + 1 < len(file.parts) else ""


# --- whether a factory is still there ----------------------------------------------------------------------


def is_gone(path: str) -> bool:
    """Whether an import path is no longer in this code: no such module, or no such name in it.

    False if that cannot be known without importing it.
    """
    parts = path.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        return False
    around: ModuleSpec | None = None
    for depth, part in enumerate(parts):
        places = around.submodule_search_locations if around is not None else None
        spec = _spec(".".join(parts[: depth + 1]), places) if around is None or places is not None else None
        if spec is None:  # not a module: then a name in the module around it
            return around is None or not _has(around, part)
        around = spec
    return False


def _spec(name: str, places: Iterable[str] | None) -> ModuleSpec | None:
    """Like importlib.util.find_spec(), but without importing the packages around a module."""
    listed = None if places is None else list(places)
    for finder in sys.meta_path:
        try:
            if (spec := finder.find_spec(name, listed)) is not None:
                return spec
        except (ImportError, OSError, ValueError):
            continue
    return None


def _has(spec: ModuleSpec, name: str) -> bool:
    """Whether a module has a name at its top level, or may have it."""
    if spec.origin is None or not spec.origin.endswith(".py"):
        return spec.origin is not None
    try:
        with tokenize.open(spec.origin) as stream:
            tree = ast.parse(stream.read())
    except (OSError, SyntaxError, ValueError):
        return True
    return not {name, "*", "__getattr__"}.isdisjoint(_names(tree))


def _names(node: ast.AST) -> Iterable[str]:
    """The names that a module's own statements bind, including those within if, try, with and loops."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield child.name
        elif isinstance(child, ast.alias):
            yield (child.asname or child.name).split(".")[0]
        elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            yield child.id
        elif not isinstance(child, ast.Lambda):
            yield from _names(child)
