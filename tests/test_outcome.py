"""What becomes of an attempt that ended, as a table."""

import asyncio
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from harness import working

from pgsched import Discard, InvalidArguments, RetryLater, Scheduler, connect
from pgsched.model import Claim, ClaimedRun, RunStatus
from pgsched.outcome import End, Stop, decide

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def end(error: BaseException | None = None, *, stop: Stop | None = None, attempt: int = 1, **more):
    run = ClaimedRun(1, None, "e", "{}", None, None, NOW, attempt, 3, 10 * SECOND, 3600 * SECOND, 60 * SECOND)
    told = {"result": None, "noticed": False, "threaded": False, **more}
    return decide(run, Claim(1, attempt, uuid.uuid4()), End(NOW, NOW + SECOND, error=error, stop=stop, **told))


class Mine(RetryLater):
    pass


def group(*errors: Exception) -> ExceptionGroup:
    return ExceptionGroup("of tasks", list(errors))


# What happened -> status, wait, error type, reason, whether the attempt is taken back.
CASES = {
    "returned": (end(), "succeeded", 0, None, None, False),
    "raised": (end(OSError("x")), "queued", 10, "OSError", None, False),
    "raised again": (end(OSError("x"), attempt=2), "queued", 20, "OSError", None, False),
    "raised at its last attempt": (end(OSError("x"), attempt=3), "failed", 0, "OSError", None, False),
    "arguments do not fit": (
        end(InvalidArguments("x")), "failed", 0, "pgsched.errors.InvalidArguments", None, False,
    ),
    "asked for later": (end(RetryLater(90)), "queued", 90, "pgsched.errors.RetryLater", None, False),
    "asked for later at its last attempt": (
        end(RetryLater(90), attempt=3), "failed", 0, "pgsched.errors.RetryLater", None, False,
    ),
    "of a kind of later": (end(Mine(5 * SECOND)), "queued", 5, "test_outcome.Mine", None, False),
    "two tasks asked for later": (
        end(group(RetryLater(5), group(RetryLater(7)))), "queued", 7, "ExceptionGroup", None, False,
    ),
    "later, and a real error beside it": (
        end(group(RetryLater(500), OSError())), "queued", 10, "ExceptionGroup", None, False,
    ),
    "discarded": (end(Discard("no such customer")), "cancelled", 0, None, "no such customer", False),
    "discarded by a task": (end(group(Discard("gone"))), "cancelled", 0, None, "gone", False),
    "discarded, and a real error beside it": (
        end(group(Discard("gone"), OSError())), "queued", 10, "ExceptionGroup", None, False,
    ),
    "timed out, whatever it raised then": (
        end(Discard("late"), stop=Stop.TIMEOUT), "queued", 10, "Timeout", None, False,
    ),
    "a thread that did not stop": (
        end(asyncio.CancelledError(), stop=Stop.TIMEOUT, threaded=True), "failed", 0, "Timeout", None, False,
    ),
    "cancelled": (
        end(asyncio.CancelledError(), stop=Stop.REQUESTED), "cancelled", 0, None, "cancelled on request", False,
    ),
    "cancelled, and done all the same": (end(stop=Stop.REQUESTED), "succeeded", 0, None, None, False),
    "saw that it was cancelled": (
        end(stop=Stop.REQUESTED, noticed=True), "cancelled", 0, None, "cancelled on request", False,
    ),
    "drained": (end(asyncio.CancelledError(), stop=Stop.DRAIN), "queued", 0, None, None, True),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_becomes(case: str) -> None:
    found, status, wait, error, reason, refund = CASES[case]
    assert (str(found.status), found.delay.total_seconds(), found.error and found.error.type) == (status, wait, error)
    assert (found.reason, found.refund) == (reason, refund)


@pytest.mark.parametrize("delay", [-1, timedelta(days=400)])
def test_a_delay_out_of_range_is_refused(delay) -> None:
    with pytest.raises(ValueError, match="from 0 s to 366 days"):
        RetryLater(delay)


async def test_both_are_written(settings, db) -> None:
    scheduler = Scheduler()

    @scheduler.entrypoint("later")
    def later() -> None:
        raise RetryLater(timedelta(hours=1), "the bank is closed")

    @scheduler.entrypoint("discarded")
    async def discarded() -> None:
        raise Discard("no such customer")

    async with connect(settings.dsn, schema=settings.schema) as client, working(scheduler, settings):
        first, second = await client.enqueue("later"), await client.enqueue("discarded")
        await db.until("select status = 'queued' and attempt = 1 from pgsched.runs where id = %s", first)
        await db.until("select status = 'cancelled' from pgsched.runs where id = %s", second)
        run = await client.get_run(first)
        assert run["due_at"] - run["created_at"] >= timedelta(hours=1)
        assert run["errors"][0]["message"] == "the bank is closed"
        run = await client.get_run(second)
        assert (run["reason"], run["errors"], run["status"]) == ("no such customer", [], RunStatus.CANCELLED)
