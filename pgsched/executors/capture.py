"""Takes what a run's code logs, with the standard library's logging and with structlog, into the run's journal.

Whose run it is tells a context variable: the run's tasks have it, and the thread of its function. Threads that a
function starts itself do not.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import structlog

from pgsched.journal import Journal

JOURNAL: contextvars.ContextVar[Journal | None] = contextvars.ContextVar("pgsched_journal", default=None)
_LEVELS = {"debug": "debug", "info": "info", "warn": "warning", "warning": "warning"}
_NOT_SHOWN = frozenset({"event", "exc_info", "exception", "stack", "stack_info", "level", "timestamp"})


class Handler(logging.Handler):
    """Takes records in. journal: whose they are; None of nobody."""

    def __init__(self, journal: Callable[[], Journal | None]) -> None:
        super().__init__()
        self._journal = journal
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """The standard library's."""
        journal = self._journal()
        if journal is None:
            return
        levels = ((logging.ERROR, "error"), (logging.WARNING, "warning"), (logging.INFO, "info"))
        level = next((name for number, name in levels if record.levelno >= number), "debug")
        try:
            # structlog hands events over as they are where its formatter is to render them.
            text = _rendered(record.msg) if isinstance(record.msg, dict) else self.format(record)
            journal.add(text, level)
        except RecursionError:  # as the standard library's handlers: one that logs as it is shown would go on for ever
            raise
        except Exception:
            self.handleError(record)


def _take_event(_logger: Any, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """A processor of structlog that lets everything pass as it is."""
    journal = JOURNAL.get()
    if journal is not None:
        token = JOURNAL.set(None)  # what a value logs as it is shown, it would log again and again
        try:
            with contextlib.suppress(Exception):  # a value that cannot be shown must not cost the run
                journal.add(_rendered(event), _LEVELS.get(method, "error"))
        finally:
            JOURNAL.reset(token)
    return event


_take_event.passes_on = True  # type: ignore[attr-defined]  # log.teller() may do without it


def _rendered(event: Mapping[str, Any]) -> str:
    shown = [str(event.get("event", ""))]
    for name, value in event.items():
        if name not in _NOT_SHOWN and not name.startswith("_"):
            plain = isinstance(value, str) and value.isprintable() and " " not in value
            shown.append(f"{name}={value if plain else repr(value)}")
    lines = [" ".join(shown)]
    error = event.get("exc_info")
    error = sys.exc_info()[1] if error is True else error[1] if isinstance(error, tuple) else error
    if isinstance(error, BaseException):
        lines.append("".join(traceback.format_exception(error)).rstrip())
    lines += [str(event[name]) for name in ("exception", "stack") if event.get(name)]
    return "\n".join(lines)


class _Captures:
    """How many workers of this process are at work, and what is set up for them."""

    workers = 0
    handler = Handler(JOURNAL.get)


def keep_on() -> None:
    """Called before each run: a job before it may have configured logging anew, and so have thrown us out."""
    if _Captures.workers:
        _take_in()


def _take_in() -> list[Any]:
    """Has both kinds of logging lead to us. Returns structlog's processors."""
    root = logging.getLogger()
    if _Captures.handler not in root.handlers:
        root.addHandler(_Captures.handler)
    config = structlog.get_config()
    processors = config["processors"]
    if not isinstance(processors, list):  # structlog takes any iterable
        structlog.configure(processors=(processors := list(processors)))
    if _take_event not in processors and not isinstance(config["logger_factory"], structlog.stdlib.LoggerFactory):
        processors.insert(0, _take_event)
    return processors


@contextlib.contextmanager
def capturing() -> Iterator[None]:
    """Has it taken in for as long as the block runs, whatever the application has configured before.

    Of structlog it changes the list of processors in place, so that loggers that have been used already go by it, too;
    where structlog leads to the standard library, its records are enough.
    """
    _Captures.workers += 1
    processors = _take_in()
    try:
        yield
    finally:
        _Captures.workers -= 1
        if not _Captures.workers:
            logging.getLogger().removeHandler(_Captures.handler)
            for each in (processors, structlog.get_config()["processors"]):
                with contextlib.suppress(ValueError, AttributeError):  # the application has configured it anew
                    each.remove(_take_event)
