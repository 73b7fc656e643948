"""What an attempt says is taken in, however it is said: run.log(), logging, structlog."""

import logging

import pytest
import structlog

from pgsched import Run
from pgsched.executors.capture import JOURNAL, Handler, capturing
from pgsched.journal import Journal, Said

pytestmark = pytest.mark.usefixtures("quiet_structlog")


def events_of(journal: Journal) -> list[tuple[str, str]]:
    return [(line.level, line.text) for line in journal.read().lines]


def test_structlog_is_listened_to_however_the_application_has_configured_it():
    journal, printed = Journal(), []

    def printer(_logger, _method, event):
        printed.append(event["event"])
        raise structlog.DropEvent

    structlog.configure(processors=[printer], cache_logger_on_first_use=True)
    used = structlog.get_logger()
    used.info("before")  # it has its processors now
    token = JOURNAL.set(journal)
    try:
        with capturing(), capturing():  # two workers in one process
            used.info("hello", n=1, name="x y")
            try:
                raise ValueError("bad")
            except ValueError:
                used.exception("oops")
        used.info("after")
    finally:
        JOURNAL.reset(token)
    found = events_of(journal)
    assert found[0] == ("info", "hello n=1 name='x y'")
    assert found[1] == ("error", "oops") and found[-1] == ("error", "ValueError: bad")
    assert printed == ["before", "hello", "oops", "after"]
    assert "after" not in [text for _, text in found]


def test_structlogs_processors_may_be_no_list():
    journal, printed = Journal(), []

    def printer(_logger, _method, event):
        printed.append(event["event"])
        raise structlog.DropEvent

    structlog.configure(processors=(printer,))
    token = JOURNAL.set(journal)
    try:
        with capturing():
            structlog.get_logger().info("hello")
            structlog.configure(processors=(printer,))
        structlog.get_logger().info("after")
    finally:
        JOURNAL.reset(token)
    assert events_of(journal) == [("info", "hello")] and printed == ["hello", "after"]


def test_a_value_that_logs_as_it_is_shown_ends_with_the_loggers_own_error():
    shown = []

    class Odd:
        def __repr__(self):
            shown.append(1)
            assert len(shown) < 10_000  # there are fewer frames, but no end of ways through them
            structlog.get_logger().info("again", it=self)
            return "odd"

    structlog.configure(processors=[structlog.processors.JSONRenderer(default=repr)])
    token = JOURNAL.set(Journal())
    try:
        with capturing(), pytest.raises(RecursionError):
            structlog.get_logger().info("hello", it=Odd())
    finally:
        JOURNAL.reset(token)
    handler = Handler(Journal)
    record = logging.makeLogRecord({"levelno": logging.INFO, "msg": "%r", "args": (Odd(),)})
    Odd.__repr__ = lambda self: handler.emit(record)
    with pytest.raises(RecursionError):
        handler.emit(record)


def test_structlog_that_leads_to_the_standard_library_is_taken_in_once():
    journal = Journal()
    structlog.configure(
        processors=[structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    token = JOURNAL.set(journal)
    try:
        with capturing():
            structlog.get_logger("lib").warning("told", n=1)
    finally:
        JOURNAL.reset(token)
    assert events_of(journal) == [("warning", "told n=1")]


def test_a_flood_is_capped_and_told_at_the_end():
    journal = Journal()
    for _ in range(3):
        journal.add("x" * 30_000, "info")  # a line is cut to 8 KiB
    journal.add("\n" * 100_000, "info")
    said = journal.read(1 << 30)
    assert [len(line.text) for line in said.lines[:3]] == [8192] * 3 and said.lines[0].text.endswith("…")
    assert len(said.lines) == Journal.LINES
    journal.close()
    journal.add("late", "info")
    journal.close()
    last = journal.read(1 << 30).lines[-1]
    assert (last.level, last.text) == (
        "warning",
        "80,003 more lines were dropped: at most 64 KiB are kept per attempt.",
    )
    full = Journal()
    for _ in range(20):
        full.add("y" * 8000, "info")
    assert sum(len(line.text) + 1 for line in full.read(1 << 30).lines) <= Journal.LIMIT and full.dropped == 12


def test_what_is_said_while_it_is_written_is_written_next():
    journal = Journal()
    journal.add("a\nb", "info")
    said = journal.read()
    journal.add("c", "info")
    journal.wrote(said)
    journal.wrote(said)  # two have sent it
    assert journal.read() == Said(3, journal.read().lines, None) and [x.text for x in journal.read().lines] == ["c"]


def test_a_thread_that_is_left_behind_says_nothing_more():
    journal = Journal()
    journal.progress = (1.0, None)
    journal.close()
    journal.progress = (2.0, None)
    journal.close()
    journal.add("still here", "info")
    said = journal.read()
    assert (said.lines, said.progress) == ([], (1.0, None))
    journal.wrote(said)
    assert not journal.unwritten


@pytest.mark.parametrize("value", ["half", float("nan"), float("inf"), None, 10**400])
def test_progress_is_a_number(value):
    run = Run(1, "job", None, None, None, 1, {}, None, None)
    with pytest.raises(ValueError, match=r"run.progress\(\) takes finite numbers, not "):
        run.progress(value)
    with pytest.raises(ValueError, match="finite"):
        run.progress(1, "many")
    assert run.journal.progress is None
