"""Log lines: one an event, past tense, and nothing in them that is nobody's business."""

import io
import json
import logging
import threading

import pytest
import structlog
from psycopg.conninfo import make_conninfo
from support.workers import working

from pgsched import Retry, Scheduler, log
from pgsched.db.mishaps import one_line

CANARY = "canary-7f3a"


@pytest.fixture
def lines():
    stream, root, last = io.StringIO(), logging.getLogger(), logging.lastResort
    before, root.handlers = root.handlers, []  # those of pytest: an application's would be left alone
    structlog.reset_defaults()
    log.configure("debug", "json", stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    structlog.reset_defaults()
    root.handlers, logging.lastResort = before, last


async def test_no_payload_local_or_password_is_logged(settings, db, lines):
    sc = Scheduler(resources={"password": CANARY})
    once = Retry(attempts=1)

    @sc.entrypoint("raises", retry=once)
    async def raises(secret: str):
        local = secret
        raise ValueError(local)

    @sc.entrypoint("returns")
    def returns(secret: str):
        return {"secret": secret}

    @sc.entrypoint("unstorable")
    async def unstorable(secret: str):
        return secret + "\0"

    dsn = make_conninfo(settings.dsn, password=CANARY)
    async with working(sc, settings.merged({"dsn": dsn}, "test")) as worker:
        for name in (*sc.entrypoints, "raises"):
            await db.all("select pgsched.enqueue(%s, jsonb_build_object('secret', %s::text))", name, CANARY)
        await db.all("select pgsched.enqueue('raises', jsonb_build_object(%s::text, 1))", CANARY)
        name = f"pgsched {worker.kit.worker}"
        await db.all("select pg_terminate_backend(pid) from pg_stat_activity where application_name = %s", name)
        await db.until("select count(*) = 5 from pgsched.runs where status in ('succeeded', 'failed')")
    told = lines()
    assert CANARY not in json.dumps(told)
    events = {line["event"] for line in told}
    assert {"worker_ready", "run_finished", "run_failed_for_good", "result_not_stored", "drain_finished"} <= events
    assert all({"event", "level", "timestamp"} <= line.keys() for line in told)


def test_control_characters_stay_in_their_line(lines):
    log.get().info("schedule_retired", schedule="a\nb\x1b[31m")
    logging.getLogger("app").warning("from the\nstandard library")
    first, second = lines()
    assert first["schedule"] == "a\\nb\\x1b[31m"
    assert second["event"] == "from the\\nstandard library"


def test_an_exception_of_the_application_is_shown_without_locals(lines):
    secret = CANARY  # noqa: F841
    try:
        raise ValueError("shown")
    except ValueError:
        logging.getLogger("app").exception("it failed")
    assert CANARY not in json.dumps(lines()) and "ValueError: shown" in json.dumps(lines())


async def test_row_data_in_a_database_error_is_left_out(db):
    insert = "insert into pgsched.schedules (name, entrypoint, expression) values ('canary-name', 'x', '@daily')"
    await db.all(insert)
    with pytest.raises(Exception) as caught:
        await db.all(insert)
    assert "canary-name" in str(caught.value), "psycopg tells the row"
    assert "canary-name" not in one_line(caught.value) and "23505" in one_line(caught.value)


def test_lines_that_are_written_together_keep_their_order_and_lose_none_when_it_fails(lines):
    events = log.get()
    with pytest.raises(ZeroDivisionError), log.together():
        events.info("first")
        logging.getLogger("app").warning("second")
        assert lines() == []
        raise ZeroDivisionError
    events.info("third")
    assert [line["event"] for line in lines()] == ["first", "second", "third"]


def test_two_workers_in_two_threads_may_both_write_lines_together(lines):
    events, go = log.get(), [threading.Event() for _ in range(3)]

    def other():
        go[0].wait(10)
        with log.together(), log.together():
            events.info("b1")
            go[1].set()
            go[2].wait(10)
            events.info("b2")

    thread = threading.Thread(target=other)
    thread.start()
    with log.together():
        events.info("a1")
        go[0].set()
        assert go[1].wait(10)
        events.info("a2")
    go[2].set()
    thread.join()
    assert [line["event"] for line in lines()] == ["a1", "a2", "b1", "b2"]


def test_what_is_told_often_looks_as_all_else(lines):
    fields = {"run": 1, "entrypoint": 'a "b" ü', "took_s": 0.25, "late_ms": float("inf"), "nothing": None}
    with log.together():
        log.get().info("run_finished", **fields)
        log.event_logger("run_finished")(**fields)
    first, second = lines()
    assert first.pop("timestamp")[:10] == second.pop("timestamp")[:10]
    assert first == second and list(first) == list(second)


@pytest.mark.parametrize("when", ["level", "processor"])
def test_what_is_told_often_keeps_to_the_level_and_to_the_applications_processors(lines, when):
    seen = []
    if when == "level":
        stream = io.StringIO()
        log.configure("warning", "json", stream)
    else:
        structlog.configure(processors=[lambda _l, _m, event: seen.append(event["run"]) or "told"])
    log.event_logger("run_finished")(run=7)
    assert seen == ([] if when == "level" else [7])
    assert when != "level" or stream.getvalue() == ""


def test_what_is_told_often_has_what_is_bound_to_the_context_and_goes_where_a_test_captures_it(lines):
    told = log.event_logger("run_finished")
    with structlog.contextvars.bound_contextvars(service="billing"):
        told(run=1)
    with structlog.testing.capture_logs() as captured:
        told(run=2)
    told(run=3)
    assert [(line["run"], line.get("service")) for line in lines()] == [(1, "billing"), (3, None)]
    assert captured == [{"run": 2, "event": "run_finished", "log_level": "info"}]
