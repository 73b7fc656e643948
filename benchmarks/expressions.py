"""The part `expressions`: how many next fire times an expression gives in a second. pgsched alone; needs no server."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from figures import Figures, percentile
from rig import Server
from rounds import Sizes

from pgsched.expression import expression

EXPRESSIONS = (
    ("* * * * *", "UTC"),
    ("*/5 * * * *", "Europe/Paris"),
    ("30 2 * * *", "Europe/Paris"),
    ("0 9 * * MON-FRI", "America/New_York"),
    ("* * * * * */10", "UTC"),
    ("0 0 13 * FRI", "UTC"),
    ("0 0 LW * *", "Australia/Lord_Howe"),
    ("0 0 29 2 *", "UTC"),
)


def expressions(_: Server, sizes: Sizes, figures: Figures) -> None:
    """Measures an expression that is kept, and one that is read again each time, in a second of processor time."""
    for _ in range(sizes.rounds):
        kept, anew = [], []
        for text, zone in EXPRESSIONS:
            parsed = expression.parse(text, zone)
            kept.append(rate(sizes.fire_times // 4, lambda after, of=parsed: of.next(after)))
            anew.append(rate(sizes.fire_times // 80, lambda after, of=(text, zone): unread(*of).next(after)))
        for how, rates in (("kept", kept), ("from the text", anew)):
            figures.add("expressions", f"{how}, median", "pgsched", "/s", percentile(rates, 0.5))
            figures.add("expressions", f"{how}, slowest", "pgsched", "/s", min(rates))


def unread(text: str, zone: str) -> expression.Expression:
    """An expression, read without the cache."""
    expression._parse.cache_clear()
    return expression.parse(text, zone)


def rate(count: int, following: Callable[[datetime], datetime | None]) -> float:
    """Fire times a second of this thread's processor time, from 2027 on."""
    start = after = datetime(2027, 1, 1, tzinfo=UTC)
    began = time.thread_time()
    for _ in range(count):
        after = following(after) or start  # the rarest expressions have no fire time after 2099
    return count / (time.thread_time() - began)
