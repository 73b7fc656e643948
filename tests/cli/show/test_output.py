"""How tables and values look. Needs no database."""

import json
import os
import pty
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from support.shell import isolate, spawn

from pgsched.cli.show import output

INSTANT = datetime(2027, 1, 1, 9, 0, 0, 123456, tzinfo=UTC)


@pytest.fixture
def terminal(monkeypatch):
    """Standard output counts as a terminal of 40 columns, without colours."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(output, "_is_terminal", lambda: True)


def table(capsys, *rows: list, heads=("name", "n")) -> list[str]:
    output.print_table(heads, rows)
    return capsys.readouterr().out.splitlines()


def test_text_is_to_the_left_and_numbers_are_to_the_right(capsys):
    assert table(capsys, ["a", 5], ["bcd", 1000], ["e", None]) == [
        "name     n",
        "a        5",
        "bcd   1000",
        "e        -",
    ]


def test_a_pipe_gets_all_of_a_long_value(capsys):
    assert table(capsys, ["x" * 500, 1])[1] == "x" * 500 + "  1"


def test_a_terminal_gets_a_line_a_row_with_the_widest_column_cut(capsys, terminal):
    lines = table(capsys, ["x" * 500, 12345, "short"], heads=("name", "n", "other"))
    assert lines[1] == "x" * (40 - 5 - 5 - 4 - 1) + "…  12345  short"
    assert all(len(line) <= 40 for line in lines)
    wide = table(capsys, ["日" * 500, 1])[1]
    assert wide.startswith("日" * 18 + "…")
    assert len(wide) + 18 == 40


def test_a_terminal_too_small_for_its_columns_is_no_error(capsys, terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "5")
    assert len(table(capsys, ["x" * 50, "y" * 50])) == 2


@pytest.mark.parametrize(("variable", "bold"), [("COLUMNS", True), ("NO_COLOR", False)])
def test_bold_is_for_terminals_and_no_color_is_obeyed(tmp_path, monkeypatch, variable, bold):
    isolate(monkeypatch, tmp_path)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(variable, "1")
    ours, theirs = pty.openpty()
    with spawn("next", "@daily", stdout=theirs) as process:
        os.close(theirs)
        shown = b""
        while b"\n20" not in shown:  # the first fire time, after the heads
            shown += os.read(ours, 1000)
        assert (b"\x1b[1m" in shown) is bold
        os.close(ours)
        process.communicate(timeout=30)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain täglich 日", "plain täglich 日"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("two\r\nlines\t", "two\\r\\nlines\\t"),
        ("\u202eevil\u2028\x9b", "\\u202eevil\\u2028\\x9b"),
        ("\udcff", "\\udcff"),
    ],
)
def test_what_a_terminal_would_obey_is_made_visible(capsys, text, shown):
    assert output.visible(text) == shown
    assert table(capsys, [text, 1])[1].startswith(shown)
    output.complain(text)
    assert "\x1b" not in capsys.readouterr().err


def test_instants_are_utc_and_exact_only_where_asked():
    assert output.instant(INSTANT) == "2027-01-01 09:00:00Z"
    assert output.instant(INSTANT, exact=True) == "2027-01-01 09:00:00.123Z"
    assert output.instant(INSTANT.replace(microsecond=0), exact=True) == "2027-01-01 09:00:00Z"
    assert output.instant(None) == "-"
    assert output.local(INSTANT, "America/St_Johns") == "2027-01-01 05:30:00.123 -03:30 (Fri)"
    assert output.local(INSTANT, "Mars") == "(no time zone Mars)"


def test_plain_values():
    assert [output.plain(value) for value in (None, "", True, False, 0, timedelta(minutes=90), {"a": [None]})] == [
        *("-", "-", "yes", "no", "0", "1h30m", '{"a": [null]}'),
    ]


def test_json_is_ascii_and_round_trips(capsys):
    value = {
        "at": INSTANT,
        "for": timedelta(milliseconds=1500),
        "id": UUID(int=1),
        "text": "日\x1b\u202e",
        "none": None,
    }
    output.print_json(value)
    text = capsys.readouterr().out
    assert text.isascii()
    assert "\x1b" not in text
    assert json.loads(text) == {
        "at": "2027-01-01T09:00:00.123456Z",
        "for": "1s500ms",
        "id": str(UUID(int=1)),
        "text": "日\x1b\u202e",
        "none": None,
    }
