"""Our English stays plain: README, docs/ and the help texts keep the limits, and code comes closer to them.

english.py counts. Run `python tests/support/english.py` for the numbers.
"""

import pytest
from support import english

# The rates of the code, in the order of english.PATTERNS: a thousand words may not have more. Lower them when they have
# fallen, and remove a line when its package keeps the limits.
NOW = {
    "cli": (0.1, 0.1, 0.0, 0.0, 0.8, 0.0),
    "db": (10.4, 4.1, 1.8, 2.8, 2.4, 0.2),
    "expression": (0.1, 0.1, 0.0, 0.0, 1.3, 0.0),
    "rules": (0.3, 0.1, 0.2, 0.0, 1.3, 0.0),
    "testing": (17.8, 6.0, 1.0, 4.0, 3.0, 0.0),
    "worker": (9.1, 2.6, 0.4, 3.2, 3.0, 0.0),
    "migrations": (1.1, 0.2, 0.0, 0.2, 1.7, 0.0),
    "queries": (9.9, 2.3, 0.9, 1.8, 3.2, 0.2),
}
LONG_HELP = {"pgsched check", "pgsched next"}  # commands whose help has a long sentence now; a new one may not
TEXTS = {**english.packages(), **english.prose()}


@pytest.mark.parametrize("name", TEXTS)
def test_hard_words_are_rare(name):
    now = dict(zip(english.PATTERNS, NOW.get(name, [0.0] * len(english.PATTERNS)), strict=True))
    found = english.rates(TEXTS[name])
    many = {kind: rate for kind, rate in found.items() if rate > max(english.LIMITS[kind], now[kind])}
    assert many == {}, "in a thousand words; `python tests/support/english.py` shows all numbers"


def test_each_line_of_the_table_is_still_needed():
    assert set(NOW) <= set(TEXTS)
    kept = [name for name in NOW if all(v <= english.LIMITS[k] for k, v in english.rates(TEXTS[name]).items())]
    assert kept == [], "these keep the limits: remove their lines"


def test_sentences_are_short():
    assert english.long_sentences(english.pages()) == []
    assert {name for name, _, _ in english.long_sentences(english.helps())} <= LONG_HELP


# --- the counter itself -----------------------------------------------------------------------------------


def test_it_counts_docstrings_and_comments_and_no_code():
    source = '"""What it does."""\nwhat = "what"  # told what\n# noqa: what\n\n\ndef f():\n    """Where it is."""\n'
    assert english.counts("\n".join(english.of_python(source))) == {
        "what": 2, "where": 1, "tell": 1, "who": 0, "of which": 0, "shall": 0,
    }  # fmt: skip
    assert list(english.of_sql("-- What.\nselect 1; -- where\ncomment on table t is\n    'It''s told.';\n")) == [
        "What.", "where", "It''s told.",
    ]  # fmt: skip


def test_it_finds_the_sentences_of_a_page():
    page = "# A head\n\nOne, `two words`. Three:\n\n- four\n- five\n\n```\nselect 6;\n```\n\n| seven | eight nine |\n"
    found = [sentence.strip() for sentence in english.sentences(page) if sentence.strip()]
    assert found == ["A head", "One, `.", "Three:", "four", "five", "seven", "eight nine"]
    assert english.size("One, ` and two") == 4
