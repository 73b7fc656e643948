"""README fits on a few screens and leads to every page, links lead somewhere, and settings are those of the code."""

import ast
import re
import textwrap
from collections.abc import Callable
from dataclasses import fields
from datetime import timedelta
from pathlib import Path

import pytest

from pgsched import Scheduler
from pgsched.config import Settings
from pgsched.expression.duration import format_duration

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *ROOT.glob("CONTRIBUTING.md")]
SCREEN = 70  # lines
LONGER = {"scaling.md", "schema.md", "testing.md"}


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head).strip().lower().replace(" ", "-") for head in heads}


def test_readme_is_short_and_leads_to_every_page():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    missing = [page.name for page in PAGES[1:] if f"({page.relative_to(ROOT)})" not in text]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", [p for p in ROOT.glob("docs/*.md") if p.name not in LONGER], ids=lambda p: p.name)
def test_a_page_is_a_screen(page):
    assert len(page.read_text().splitlines()) <= SCREEN


def test_the_settings_are_those_of_the_code():
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*) \|$", (ROOT / "docs" / "settings.md").read_text(), re.MULTILINE)
    written = {name: default.strip("`") for name, default, _ in rows}
    assert list(written) == [field.name for field in fields(Settings)]
    for field in fields(Settings):
        if field.default is None:  # the page says in words what happens
            continue
        default = format_duration(field.default) if isinstance(field.default, timedelta) else str(field.default)
        assert written[field.name] == default


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_examples_are_python(page):
    for block in blocks(page, "python"):
        compile(textwrap.dedent(block), page.name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_the_first_app_of_readme_builds_its_scheduler():
    names: dict[str, Callable[[], Scheduler]] = {}
    exec(blocks(ROOT / "README.md", "python")[0], names)
    scheduler = names["create_scheduler"]()
    assert set(scheduler.declared) == {"fetch_db * * * * *", "morning-report", "poll @every 30s"}
    assert set(scheduler.entrypoints) == {"fetch_db", "report", "poll", "send_email"}
