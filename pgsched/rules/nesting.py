"""How deep JSON may nest. Python's own limits differ between its versions, and with the depth of the caller."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

DEPTH = 500  # levels of lists and dicts; Python 3.11, the strictest, can write and read some 900
TOO_DEEP = f"more than {DEPTH} levels of lists and dicts"

_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|([\[{])|([\]}])', re.DOTALL)


def too_deep(text: str) -> bool:
    """Whether a JSON text has more than DEPTH levels of lists and objects."""
    if text.count("[") + text.count("{") <= DEPTH:  # nearly always, and at the speed of C
        return False
    level = 0
    for found in _BRACKETS.finditer(text):
        if found[1]:
            level += 1
            if level > DEPTH:
                return True
        elif found[2]:
            level -= 1
    return False


def read(text: str, parse_float: Callable[[str], Any] | None = None) -> Any:
    """A JSON value. Raises ValueError if the text is not JSON, nests too deep or has a number with too many digits."""
    if too_deep(text):
        raise ValueError(f"it has {TOO_DEEP}")
    try:
        return json.loads(text, parse_float=parse_float)
    except RecursionError:  # the caller itself is nearly too deep
        raise ValueError("it nests too deep for the rest of Python's stack") from None
