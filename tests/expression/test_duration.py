"""Lengths of time: what is read, what is refused, and that writing is the inverse of reading."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.skew import cases

from pgsched.errors import InvalidExpression
from pgsched.expression.duration import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("500ms", timedelta(milliseconds=500)),
        ("30s", timedelta(seconds=30)),
        ("5m", timedelta(minutes=5)),
        ("2h", timedelta(hours=2)),
        ("1d", timedelta(days=1)),
        ("1h30m", timedelta(minutes=90)),
        ("1d2h3m4s5ms", timedelta(days=1, hours=2, minutes=3, seconds=4, milliseconds=5)),
        ("90", timedelta(seconds=90)),
        ("0.25", timedelta(milliseconds=250)),
        ("0", timedelta()),
        ("0s", timedelta()),
        (" 30S ", timedelta(seconds=30)),
    ],
)
def test_durations(text: str, duration: timedelta) -> None:
    assert parse_duration(text) == duration
    assert parse_duration(format_duration(duration)) == duration


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "-5s",
        "-1",
        "+5",
        "5x",
        "30m1h",
        "1h1h",
        "1h 30m",
        "1.5h",
        ".5",
        "5.",
        "1e3",
        "9" * 5000,
        "٣s",
        "nan",
    ],
)
def test_durations_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["999999999999d", "999999999999h"])
def test_durations_that_overflow(text: str) -> None:
    with pytest.raises(InvalidExpression, match="too long"):
        parse_duration(text)


@pytest.mark.parametrize("value", [5, None, b"5s", 1.5])
def test_durations_that_are_not_text(value: Any) -> None:
    with pytest.raises(InvalidExpression):
        parse_duration(value)


@cases(200)
@given(st.timedeltas(timedelta(), timedelta.max))
def test_format_duration_is_the_inverse(duration: timedelta) -> None:
    assert parse_duration(format_duration(duration)) == duration


@pytest.mark.parametrize("value", [timedelta(seconds=-1), 5, None])
def test_format_duration_refuses(value: Any) -> None:
    with pytest.raises(InvalidExpression):
        format_duration(value)
