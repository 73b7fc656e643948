"""Captures the log lines of a run's code, from the standard library's logging and from structlog, in the run's journal.

A context variable says which run is logging. It is set in the run's tasks and in its function's thread, but not in
threads that a function starts itself.

The standard library's records are captured in Logger.callHandlers, not by a handler of the root logger. A handler would
change the host's logging: logging.basicConfig() does nothing if the root logger has one, and the handler of last resort
is silent. And basicConfig(force=True) or dictConfig in a job would remove it.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
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
    """Captures records. In a run's own process it is a plain handler.

    journal: returns the journal of the logging run, or None if no run is logging.
    """

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
    """The number of active workers in this process, the handler for them, and Logger.callHandlers with it."""

    workers = 0
    handler = Handler(JOURNAL.get)
    wrapper: Any = None


def _wrapped(call_handlers: Callable[[logging.Logger, logging.LogRecord], None]) -> Any:
    """Logger.callHandlers with the capture before it. A logger's own filters have passed the record by then."""

    @functools.wraps(call_handlers)
    def capture_and_call(self: logging.Logger, record: logging.LogRecord) -> None:
        if _Captures.workers and JOURNAL.get() is not None:
            _Captures.handler.handle(record)
        call_handlers(self, record)

    return capture_and_call


def keep_on() -> None:
    """Called when a run starts: an earlier job may have reconfigured structlog."""
    if _Captures.workers:
        _join_structlog()


def _join_structlog() -> list[Any]:
    """Adds our processor to structlog's, and returns them.

    The list is changed in place, so that this also applies to loggers that have been used already. If structlog logs to
    the standard library, the standard library's records are enough.
    """
    config = structlog.get_config()
    processors = config["processors"]
    if not isinstance(processors, list):  # structlog takes any iterable
        structlog.configure(processors=(processors := list(processors)))
    if _take_event not in processors and not isinstance(config["logger_factory"], structlog.stdlib.LoggerFactory):
        processors.insert(0, _take_event)
    return processors


@contextlib.contextmanager
def capturing() -> Iterator[None]:
    """Captures logs for as long as the block runs, with any logging configuration of the application."""
    if _Captures.wrapper is None:
        _Captures.wrapper = _wrapped(logging.Logger.callHandlers)
        logging.Logger.callHandlers = _Captures.wrapper  # type: ignore[method-assign]
    _Captures.workers += 1
    processors = _join_structlog()
    try:
        yield
    finally:
        _Captures.workers -= 1
        if not _Captures.workers:
            # If an error tracker has wrapped it in turn, it stays, does nothing, and serves the next worker.
            if logging.Logger.callHandlers is _Captures.wrapper:
                logging.Logger.callHandlers = _Captures.wrapper.__wrapped__  # type: ignore[method-assign,attr-defined]
                _Captures.wrapper = None
            for each in (processors, structlog.get_config()["processors"]):
                with contextlib.suppress(ValueError, AttributeError):  # the application has reconfigured it
                    each.remove(_take_event)
