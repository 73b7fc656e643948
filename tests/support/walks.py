"""Checks fire times against a walk."""

from datetime import datetime

from pgsched.expression.expression import Expression


def agrees(parsed: Expression, after: datetime, until: datetime, expected: list[datetime]) -> None:
    """next(), count() and latest() all find exactly the expected fire times."""
    found = []
    now: datetime | None = after
    while now is not None and (now := parsed.next(now)) is not None and now <= until:
        assert now > (found[-1] if found else after)
        found.append(now)
    assert found == expected
    assert parsed.count(after, until) == len(expected)
    assert parsed.latest(after, until) == (expected[-1] if expected else None)
