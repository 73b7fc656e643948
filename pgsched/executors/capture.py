"""Captures the log lines of a run's code, from the standard library's logging and from structlog, in the run's journal.

A context variable says which run is logging. It is set in the run's tasks and in its function's thread, but not in
threads that a function starts itself.
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
    """Captures records. journal: returns the journal of the logging run, or None if no run is logging."""

    def __init__(self, journal: Callable[[], Journal | None]) -> None:
        super().__init__()
        self._journal = journal
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Called by the standard library for each record."""
        journal = self._journal()
        if journal is None:
            return
        levels = ((logging.ERROR, "error"), (logging.WARNING, "warning"), (logging.INFO, "info"))
        level = next((name for number, name in levels if record.levelno >= number), "debug")
        try:
            # structlog passes events on as dicts if its formatter should render them.
            text = _rendered(record.msg) if isinstance(record.msg, dict) else self.format(record)
            journal.add(text, level)
        except RecursionError:  # as in the standard library's handlers: a value that logs when shown would never end
            raise
        except Exception:
            self.handleError(record)


def _take_event(_logger: Any, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """A processor of structlog that captures events and passes them on unchanged."""
    journal = JOURNAL.get()
    if journal is not None:
        token = JOURNAL.set(None)  # a value that logs when it is shown would log again and again
        try:
            with contextlib.suppress(Exception):  # a value that cannot be shown must not cost the run
                journal.add(_rendered(event), _LEVELS.get(method, "error"))
        finally:
            JOURNAL.reset(token)
    return event


_take_event.passes_on = True  # type: ignore[attr-defined]  # log.event_logger() may skip it


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
    """The number of active workers in this process, and the handler for them."""

    workers = 0
    handler = Handler(JOURNAL.get)


def keep_on() -> None:
    """Called before each run: an earlier job may have reconfigured logging and removed our handlers."""
    if _Captures.workers:
        _take_in()


def _take_in() -> list[Any]:
    """Connects both kinds of logging to the handler. Returns structlog's processors."""
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
    """Captures logs for as long as the block runs, with any logging configuration of the application.

    It changes structlog's list of processors in place, so that it also applies to loggers that have been used already.
    If structlog logs to the standard library, the standard library's records are enough.
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
                with contextlib.suppress(ValueError, AttributeError):  # the application has reconfigured it
                    each.remove(_take_event)
