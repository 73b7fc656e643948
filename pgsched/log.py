"""Writes events to standard error, one line each: JSON, or text on a terminal.

An event is a past-tense name with fields. The fields never hold arguments, local variables or passwords.

The application's own configuration always wins:

- `pgsched run` configures structlog before it imports the factory (begin()), and the rest after that (configure()), but
  only the parts that the application has left alone.
- In somebody else's process (be_guest()) nothing is configured. Events go to structlog if the host has configured it,
  to the standard library's logger "pgsched" if that has handlers, and else to standard error.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii as _quoted
from math import isfinite
from typing import Any, TextIO

import structlog

Logger = structlog.typing.FilteringBoundLogger
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def get() -> Logger:
    """The logger of the daemon's own events, as logging is configured now."""
    if _guest is not None and not structlog.is_configured():
        return _guest
    logger: Logger = structlog.get_logger("pgsched").bind()
    return logger


def event_logger(event: str) -> Callable[..., object]:
    """A function that logs an event at the level info, with fields, as logging is configured now.

    It does the same as get().info(), in half the time if lines are JSON and the application has added no processors.
    """
    config = structlog.get_config()
    slowly = functools.partial(get().info, event)
    if _out is None or config["logger_factory"] is not _factory or not get().is_enabled_for(logging.INFO):
        return slowly
    out, processors, seen = _out, config["processors"], list[Any]()

    def write(**fields: Any) -> None:
        nonlocal seen
        if processors != seen:  # they are changed in place, as by capture.capturing()
            if [each for each in processors if not getattr(each, "passes_on", False)] != _plain:
                slowly(**fields)
                return
            seen = list(processors)
        fields["event"] = event
        structlog.contextvars.merge_contextvars(None, "info", fields)
        fields["level"] = "info"
        out.line(_json(_stamp(None, "info", fields)))

    return write


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Writes the lines that this thread logs in the block at its end, in one piece: one write per run is expensive when
    a thousand end at once."""
    with _out.held() if _out is not None else contextlib.nullcontext():
        yield


class _Thread(threading.local):
    """The lines that a thread holds back; None if it writes at once."""

    held: list[str] | None = None


class _Stream:
    """Standard error. If its reader goes away, there is nobody left to work for, and the daemon drains.

    ours: whether this process is the daemon.
    """

    def __init__(self, stream: TextIO, *, ours: bool = True) -> None:
        self._stream = stream
        self._ours = ours
        self._broken = False
        self._thread = _Thread()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Holds back this thread's lines until the block ends. Other threads may belong to another worker."""
        outer, self._thread.held = self._thread.held, []
        try:
            yield
        finally:
            held, self._thread.held = self._thread.held, outer
            self.write("".join(held))
            self.flush()

    def line(self, text: str) -> None:
        """Writes a line at once, or with the lines that are held back."""
        self.write(f"{text}\n")
        self.flush()

    def write(self, text: str) -> int:
        if self._thread.held is not None:
            self._thread.held.append(text)
            return len(text)
        if not self._broken:
            try:
                return self._stream.write(text)
            except BrokenPipeError:
                self._break()
            except (OSError, ValueError):  # a full disk, a closed stream: losing a line is the smaller harm
                pass
        return len(text)

    def flush(self) -> None:
        if not self._broken and self._thread.held is None:
            try:
                self._stream.flush()
            except BrokenPipeError:
                self._break()
            except (OSError, ValueError):
                pass

    def _break(self) -> None:
        self._broken = True
        if self._ours:
            os.kill(os.getpid(), signal.SIGTERM)

    def isatty(self) -> bool:
        return self._stream.isatty()


class _EventLogger:
    """Takes structlog's rendered events."""

    def __init__(self, out: _Stream) -> None:
        self.msg = self.log = out.line
        self.debug = self.info = self.warn = self.warning = out.line  # the line says which
        self.error = self.err = self.failure = self.critical = self.fatal = self.exception = out.line


_out: _Stream | None = None
_plain: list[Any] | None = None  # the processors of lines that are JSON
_factory: Callable[..., Any] | None = None  # of the loggers that we have set up
_ours: dict[str, Any] = {}  # structlog's configuration as we have left it
_guest: Logger | None = None  # the logger in somebody else's process


def begin(level: str = "info", form: str = "auto", stream: TextIO | None = None) -> None:
    """Before the application is imported: sends structlog's events to `stream` (default: standard error).

    The root logger gets no handler yet: logging.basicConfig() would do nothing then. Until somebody configures the
    standard library, its warnings go through the handler of last resort.

    level: debug, info, warning or error. form: json, console, or auto (console on a terminal).
    """
    global _out, _plain, _factory, _ours  # noqa: PLW0603 - as structlog's and logging's own configuration
    out = _out = _Stream(stream or sys.stderr)
    shared, renderer = _rendering(out, form)
    _factory = lambda *_: _EventLogger(out)  # noqa: E731
    _plain = [*shared, renderer] if isinstance(renderer, structlog.processors.JSONRenderer) else None
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=_factory,
        cache_logger_on_first_use=False,
    )
    _ours = structlog.get_config()
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.processors.format_exc_info],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.lastResort = handler


def configure(level: str = "info", form: str = "auto", stream: TextIO | None = None) -> None:
    """Configures all logging that the application has not configured. The parameters are those of begin().

    If the root logger has handlers, they stay its only ones.
    """
    if not structlog.is_configured() or all(_ours.get(key) is value for key, value in structlog.get_config().items()):
        begin(level, form, stream)
    root = logging.getLogger()
    if not root.handlers and logging.lastResort is not None:
        root.addHandler(logging.lastResort)
        if root.level == logging.WARNING:  # the standard library's default
            root.setLevel(max(_LEVELS[level], logging.INFO))
    for name in ("psycopg", "psycopg.pool"):  # their warnings quote servers' messages; pgsched logs its own events
        if logging.getLogger(name).level == logging.NOTSET:
            logging.getLogger(name).setLevel(logging.CRITICAL)


def be_guest(level: str = "info", form: str = "auto", stream: TextIO | None = None) -> None:
    """In somebody else's process: makes a logger of our own and configures nothing."""
    global _guest  # noqa: PLW0603 - one process, one host
    out = _Stream(stream or sys.stderr, ours=False)
    shared, renderer = _rendering(out, form)

    def hand_on(logger: Any, method: str, event: structlog.typing.EventDict) -> str:
        """Gives the event to the host's handlers, if there are any."""
        standard = logging.getLogger("pgsched")
        if standard.hasHandlers():
            standard.log(_LEVELS[event["level"]], "%s", _words(event))
            raise structlog.DropEvent
        line: str = renderer(logger, method, event)
        return line

    _guest = structlog.wrap_logger(
        _EventLogger(out),
        processors=[*shared, hand_on],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        context_class=dict,
    ).bind()


def _rendering(out: _Stream, form: str) -> tuple[list[Any], Any]:
    """The processors of structlog and the renderer."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _stamp,
        _one_line,
    ]
    if form == "console" or (form == "auto" and out.isatty()):
        shared[2] = structlog.processors.TimeStamper(fmt="%H:%M:%S.%f", utc=False)
        return shared, structlog.dev.ConsoleRenderer(
            colors=out.isatty() and "NO_COLOR" not in os.environ,
            exception_formatter=structlog.dev.plain_traceback,
            pad_event_to=18,
        )
    return shared, structlog.processors.JSONRenderer(serializer=_json)


def _words(event: structlog.typing.EventDict) -> str:
    """An event as one line for handlers that add the time and the level themselves."""
    fields = [f"{name}={value!r}" for name, value in event.items() if name not in ("event", "level", "timestamp")]
    return " ".join([str(event["event"]), *fields])


_encode = json.JSONEncoder(default=repr).encode
_second = (0, "")  # the second of the last stamp, and its text


def _stamp(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Adds the time, in UTC. Most lines are of the same second as the one before."""
    global _second  # noqa: PLW0603 - threads exchange it whole
    now = time.time()
    second, written = _second
    if int(now) != second:
        second, written = _second = int(now), datetime.fromtimestamp(int(now), UTC).strftime("%Y-%m-%dT%H:%M:%S")
    event["timestamp"] = f"{written}.{int((now - second) * 1e6):06d}Z"
    return event


def _json(event: structlog.typing.EventDict, **_options: Any) -> str:
    """An event as JSON, quickly: there is one line per run, and most fields are words and numbers."""
    return "{" + ", ".join([f"{_quoted(name)}: {_value(value)}" for name, value in event.items()]) + "}"


def _value(value: Any) -> str:
    kind = type(value)
    if kind is str:
        return _quoted(value)
    return repr(value) if kind is int or (kind is float and isfinite(value)) else _encode(value)


def _one_line(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Replaces control characters in every text, which a renderer would pass on to the terminal raw."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[key] = "".join(c if c.isprintable() else repr(c)[1:-1] for c in value)
    return event
