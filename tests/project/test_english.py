"""Our English stays plain: all pages, the help texts, and the comments of code and deployment files keep the limits.

english.py counts. Run `python tests/support/english.py` for the numbers.
"""

import pytest
from support import english

TEXTS = {**english.packages(), **english.prose()}


@pytest.mark.parametrize("name", TEXTS)
def test_hard_words_are_rare(name):
    found = english.rates(TEXTS[name])
    many = {kind: rate for kind, rate in found.items() if rate > english.LIMITS[kind]}
    assert many == {}, "in a thousand words; `python tests/support/english.py` shows all numbers"


def test_sentences_are_short():
    assert english.long_sentences({**english.pages(), **english.helps()}) == []


# --- the counter itself -----------------------------------------------------------------------------------


def test_it_counts_docstrings_and_comments_and_no_code():
    source = '"""What it does."""\nwhat = "what"  # told what\n# noqa: what\n\n\ndef f():\n    """Where it is."""\n'
    assert english.counts("\n".join(english.of_python(source))) == {
        "what": 2, "where": 1, "tell": 1, "who": 0, "of which": 0, "shall": 0,
    }  # fmt: skip
    assert list(english.of_sql("-- What.\nselect 1; -- where\ncomment on table t is\n    'It''s told.';\n")) == [
        "What.", "where", "It''s told.",
    ]  # fmt: skip


def test_it_counts_the_comments_of_a_dockerfile():
    assert list(english.of_lines("# One.\n#\n#   two\nFROM three\n")) == ["One.", "", "two"]


def test_it_counts_the_texts_outside_the_package():
    packages, pages = english.packages(), english.pages()
    assert {"benchmarks", "examples", "deployment"} <= packages.keys()
    assert {"CHANGELOG.md", "benchmarks/README.md", "examples/quickstart.py"} <= pages.keys()
    assert "site-packages" not in packages["benchmarks"]


def test_it_finds_the_sentences_of_a_page():
    page = "# A head\n\nOne, `two words`. Three:\n\n- four\n- five\n\n```\nselect 6;\n```\n\n| seven | eight nine |\n"
    found = [sentence.strip() for sentence in english.sentences(page) if sentence.strip()]
    assert found == ["A head", "One, `.", "Three:", "four", "five", "seven", "eight nine"]
    assert english.size("One, ` and two") == 4
