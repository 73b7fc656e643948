"""Counts the words and the sentences that make English hard to read.

`python tests/support/english.py` prints the numbers.

It counts docstrings and comments by package, with benchmarks, examples and the files of the deployment, and as prose
README, CONTRIBUTING, CHANGELOG, docs/, the benchmarks' page, the examples' texts and the help texts. In prose it also
finds long sentences.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import click

ROOT = Path(__file__).parents[2]
# How often each may come in a thousand words. A subject is a noun, a condition is "if" or "when", and programs report.
LIMITS = {"what": 2.0, "where": 2.0, "tell": 0.3, "who": 0.5, "of which": 0.5, "shall": 0.0}
PATTERNS = {
    "what": r"what",
    "where": r"where",
    "tell": r"tell|tells|told",
    "who": r"who|whoever|whatever",
    "of which": r"(?:after|at|before|beside|by|for|from|in|of|on|to|under|with) which",
    "shall": r"shall",
}
LONGEST = 25  # words in a sentence
_WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")
_NOT_PROSE = re.compile(r"noqa|type: ignore|fmt: ")


def words(text: str) -> list[str]:
    return _WORD.findall(text)


def counts(text: str) -> dict[str, int]:
    return {kind: len(re.findall(rf"\b(?:{each})\b", text, re.IGNORECASE)) for kind, each in PATTERNS.items()}


def rates(text: str) -> dict[str, float]:
    """How often each word comes in a thousand."""
    return {kind: 1000 * number / len(words(text)) for kind, number in counts(text).items()}


def ours(folder: str, pattern: str) -> list[Path]:
    """The files of a folder, without hidden folders such as the benchmarks' environments."""
    paths = (ROOT / folder).rglob(pattern)
    return sorted(path for path in paths if not any(part[0] == "." for part in path.relative_to(ROOT).parts))


# --- docstrings and comments ------------------------------------------------------------------------------


def of_python(source: str) -> Iterator[str]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, documented) and (text := ast.get_docstring(node)):
            yield text
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not _NOT_PROSE.search(token.string):
            yield token.string.lstrip("# ")


def of_sql(source: str) -> Iterator[str]:
    yield from re.findall(r"--+ ?(.*)", source)
    yield from re.findall(r"^comment on [^;]*? is\s+'((?:[^']|'')*)';", source, re.MULTILINE)


def of_lines(source: str) -> Iterator[str]:
    """The lines of a Dockerfile, a unit or a Makefile that are comments."""
    yield from re.findall(r"^# *(.*)", source, re.MULTILINE)


def packages() -> dict[str, str]:
    """The docstrings and comments of each package: of its Python, and of its SQL."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "pgsched").rglob("*.py")):
        top = path.relative_to(ROOT / "pgsched").parts
        found.setdefault(top[0] if len(top) > 1 else "pgsched", []).extend(of_python(path.read_text()))
    for path in sorted([*(ROOT / "pgsched").rglob("*.sql"), *(ROOT / "migrations").glob("*.sql")]):
        found.setdefault("queries" if "queries" in path.parts else "migrations", []).extend(of_sql(path.read_text()))
    for name in ("benchmarks", "examples"):
        for path in ours(name, "*.py"):
            found.setdefault(name, []).extend(of_python(path.read_text()))
        for path in ours(name, "*.sql"):
            found.setdefault(name, []).append(" ".join(of_sql(path.read_text())))
    for name in ("Dockerfile", "Makefile", "systemd/pgsched.service"):
        found.setdefault("deployment", []).extend(of_lines((ROOT / name).read_text()))
    return {name: "\n".join(texts) for name, texts in found.items()}


# --- prose ------------------------------------------------------------------------------------------------


def pages() -> dict[str, str]:
    names = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"]
    names += [f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))]
    found = {name: (ROOT / name).read_text() for name in names if (ROOT / name).exists()}
    for path in ours("examples", "*.py"):
        text = "\n\n".join(of_python(path.read_text()))
        found[f"examples/{path.name}"] = re.sub(r"^    .*$", "", text, flags=re.MULTILINE)  # indented lines are code
    return found


def blocks(page: str) -> Iterator[str]:
    """The paragraphs, items and cells of a Markdown page, without code."""
    page = re.sub(r"^```.*?^```$", "\n", page, flags=re.MULTILINE | re.DOTALL)
    page = re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "`", page))
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*|]|\d+\.) )", page):
        yield from block.split("|") if block.lstrip().startswith("|") else [re.sub(r"\s+", " ", block).strip("#*- ")]


def sentences(page: str) -> Iterator[str]:
    """The sentences of a page. A colon before a list or a clause ends one, as a semicolon does."""
    for block in blocks(page):
        yield from filter(None, re.split(r"(?<=[.!?:;])[*_)\"”]*\s+", block))


def size(sentence: str) -> int:
    """How many words; code in backticks is one."""
    return len(words(sentence)) + sentence.count("`")


def helps() -> dict[str, str]:
    """The help of each command: its own text, and that of each option."""
    from pgsched.cli import cli

    found: dict[str, str] = {}

    def add(name: str, command: click.Command) -> None:
        texts = [command.help or ""]
        texts += [each.help for each in command.params if isinstance(each, click.Option) and each.help]
        if isinstance(command, click.Group):
            context = click.Context(command, info_name=name)
            for part in command.list_commands(context):
                below = command.get_command(context, part)
                assert below is not None
                add(f"{name} {part}", below)
        found[name] = "\n\n".join(text.replace("\b", "") for text in texts)

    add("pgsched", cli)
    return found


def prose() -> dict[str, str]:
    """All prose without code. Options that many commands have count once."""
    written = {"README and docs": pages(), "--help": helps()}
    return {
        name: "\n".join(dict.fromkeys(block for page in of.values() for block in blocks(page)))
        for name, of in written.items()
    }


def long_sentences(texts: dict[str, str]) -> list[tuple[str, int, str]]:
    return [
        (name, size(sentence), sentence)
        for name, page in texts.items()
        for sentence in sentences(page)
        if size(sentence) > LONGEST
    ]


def main() -> None:
    print(f"{'':16}{'words':>7}" + "".join(f"{kind:>10}" for kind in PATTERNS))
    texts = {**packages(), **prose()}
    texts["all code"] = "\n".join(packages().values())
    for name, text in texts.items():
        print(f"{name:16}{len(words(text)):7}" + "".join(f"{rate:10.1f}" for rate in rates(text).values()))
    for name, number, sentence in long_sentences({**pages(), **helps()}):
        print(f"{name}: {number} words: {sentence}")


if __name__ == "__main__":
    sys.exit(main())
