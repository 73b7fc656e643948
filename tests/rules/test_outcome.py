"""What becomes of an attempt that ended, as a table."""

import asyncio
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from support.workers import working

from pgsched import Discard, InvalidArguments, RetryLater, Scheduler, connect
from pgsched.model import Claim, ClaimedRun, RunStatus
from pgsched.rules.outcome import End, Stop, decide
from pgsched.rules.retry import Retry

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def end(
    error: BaseException | None = None, *, stop: Stop | None = None, attempt: int = 1, retry: Retry | None = None,
    run_id: int = 1, **more,
):  # fmt: skip
    run = ClaimedRun(run_id, None, "e", "{}", None, None, NOW, attempt, 1, 3, 10 * SECOND, 3600 * SECOND, 60 * SECOND)
    told = {"result": None, "noticed": False, "threaded": False, **more}
    how = End(NOW, NOW + SECOND, error=error, stop=stop, **told)
    return decide(run, Claim(run_id, attempt, uuid.uuid4()), how, retry or Retry(jitter=0))


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
        end(InvalidArguments("x")), "failed", 0, "pgsched.InvalidArguments", None, False,
    ),
    "asked for later": (end(RetryLater(90)), "queued", 90, "pgsched.RetryLater", None, False),
    "asked for later at its last attempt": (
        end(RetryLater(90), attempt=3), "failed", 0, "pgsched.RetryLater", None, False,
    ),
    "asked for later, and it does not count": (
        end(RetryLater(90, "not there yet", counts=False), attempt=3), "queued", 90, None, "not there yet", True,
    ),
    "two tasks asked for later, and one of it counts": (
        end(group(RetryLater(5, counts=False), RetryLater(3))), "queued", 5, "ExceptionGroup", None, False,
    ),
    "of a kind of later": (end(Mine(5 * SECOND)), "queued", 5, f"{__name__}.Mine", None, False),
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
    "swallowed its cancellation, and stopped at last": (
        end(asyncio.CancelledError(), stop=Stop.REQUESTED, ignored=2), "cancelled", 0, None,
        "cancelled on request, having swallowed its cancellation 2 times", False,
    ),
    "swallowed its cancellation, and did its work": (
        end(stop=Stop.REQUESTED, ignored=2), "succeeded", 0, None,
        "finished, having swallowed its cancellation 2 times", False,
    ),
    "its thread does not stop": (
        end(asyncio.CancelledError(), stop=Stop.REQUESTED, threaded=True), "cancelled", 0, None,
        "cancelled on request, but its thread goes on", False,
    ),
    "drained": (end(asyncio.CancelledError(), stop=Stop.DRAIN), "queued", 0, None, None, True),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_becomes(case: str) -> None:
    found, status, wait, error, reason, refund = CASES[case]
    assert (str(found.status), found.delay.total_seconds(), found.error and found.error.type) == (status, wait, error)
    assert (found.reason, found.refund) == (reason, refund)


PICKY = Retry(jitter=0, on=(TimeoutError, ConnectionError), never=ConnectionRefusedError)

# What happened under PICKY -> whether there is another attempt.
PICKED = {
    "one of them": (end(TimeoutError(), retry=PICKY), True),
    "a kind of one of them": (end(ConnectionResetError(), retry=PICKY), True),
    "another one": (end(ValueError(), retry=PICKY), False),
    "one of never, although it is a kind of one of them": (end(ConnectionRefusedError(), retry=PICKY), False),
    "its timeout counts as TimeoutError": (end(asyncio.CancelledError(), stop=Stop.TIMEOUT, retry=PICKY), True),
    "its timeout, where only others count": (
        end(asyncio.CancelledError(), stop=Stop.TIMEOUT, retry=Retry(on=ValueError)), False,
    ),
    "its timeout, where it never counts": (
        end(stop=Stop.TIMEOUT, noticed=True, retry=Retry(never=TimeoutError)), False,
    ),
    "a group of them": (end(group(TimeoutError(), group(ConnectionResetError())), retry=PICKY), True),
    "a group with another one": (end(group(TimeoutError(), ValueError()), retry=PICKY), False),
    "a group with one of never": (end(group(ConnectionRefusedError(), TimeoutError()), retry=PICKY), False),
    "later, whatever the rules": (end(RetryLater(1), retry=PICKY), True),
    "a group of one of them and later": (end(group(RetryLater(1), TimeoutError()), retry=PICKY), True),
    "later at the last attempt": (end(RetryLater(1), retry=PICKY, attempt=3), False),
    "one of them at the last attempt": (end(TimeoutError(), retry=PICKY, attempt=3), False),
    "cancelled by itself": (end(asyncio.CancelledError(), retry=PICKY), False),
    "SystemExit by default": (end(SystemExit(3), retry=Retry()), True),
    "any error but never": (end(KeyError(), retry=Retry(never=(KeyError, ValueError))), False),
}  # fmt: skip


@pytest.mark.parametrize("case", PICKED)
def test_is_tried_again(case: str) -> None:
    found, again = PICKED[case]
    assert found.status is (RunStatus.QUEUED if again else RunStatus.FAILED)
    assert found.error is not None


def test_waits_are_spread_below_what_doubles_and_each_run_always_waits_the_same() -> None:
    waits = [end(OSError(), run_id=n, attempt=2, retry=Retry(jitter=0.5)).delay.total_seconds() for n in range(1, 200)]
    assert all(10 <= wait <= 20 for wait in waits)
    assert min(waits) < 11
    assert max(waits) > 19
    assert len(set(waits)) == len(waits)
    assert waits[0] == end(OSError(), attempt=2, retry=Retry(jitter=0.5)).delay.total_seconds()
    assert end(OSError(), attempt=2, retry=Retry(jitter=0)).delay == 20 * SECOND
    # What a function asks for is not spread.
    assert end(RetryLater(90), retry=Retry(jitter=1)).delay == 90 * SECOND


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


async def test_a_look_in_vain_costs_no_attempt(settings, db) -> None:
    scheduler = Scheduler()
    looks = 0

    @scheduler.entrypoint("look", retry=Retry(attempts=1))
    def look() -> None:
        nonlocal looks
        looks += 1
        if looks < 4:
            raise RetryLater(timedelta(milliseconds=30), "not there yet", counts=False)

    async with connect(settings.dsn, schema=settings.schema) as client, working(scheduler, settings):
        run_id = await client.enqueue("look")
        await db.until("select status = 'succeeded' and attempt = 1 from pgsched.runs where id = %s", run_id)
        run = await client.get_run(run_id)
    assert [(each["attempt"], each["end"], each["why"]) for each in run["attempts"]] == [
        *[(1, "given_back", "not there yet")] * 3, (1, "succeeded", None),
    ]  # fmt: skip
    assert run["due_at"] - run["created_at"] >= 3 * timedelta(milliseconds=30)


async def test_the_codes_rules_meet_the_rows_numbers(settings, db) -> None:
    """on= and never= of the declared schedule win over those of its entrypoint; the numbers are the row's."""
    scheduler = Scheduler()

    @scheduler.entrypoint("job", retry=Retry(attempts=2, backoff=timedelta(0), never=LookupError))
    async def job(kind: str) -> None:
        # As a group of tasks raises it, and out of a thread.
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.to_thread(fail, kind))

    def fail(kind: str) -> None:
        raise {"lookup": KeyError, "value": ValueError, "later": Mine}[kind](0)

    own = Retry(attempts=4, backoff=timedelta(0), on=KeyError)
    scheduler.schedule("job", "@yearly", name="own", args={"kind": "lookup"}, retry=own)(job)
    async with connect(settings.dsn, schema=settings.schema) as client, working(scheduler, settings):
        await db.until("select count(*) = 1 from pgsched.schedules")
        await db.all("update pgsched.schedules set max_attempts = 3")
        ids = [await client.enqueue("job", {"kind": kind}) for kind in ("lookup", "value", "later")]
        ids.append(await client.trigger("own"))
        await db.until("select count(*) = 4 from pgsched.runs where status = 'failed'")
        runs = [await client.get_run(run_id) for run_id in ids]
    assert [run["attempt"] for run in runs] == [1, 2, 2, 3]
    assert [[error["type"] for error in run["errors"]] for run in runs[:3]] == [
        ["ExceptionGroup"], ["ExceptionGroup"] * 2, ["ExceptionGroup"] * 2,
    ]  # fmt: skip


@pytest.mark.parametrize("rule", [{"on": OSError}, {"never": OSError}, {"jitter": 0}])
async def test_what_only_code_can_keep_is_not_stored(settings, db, rule) -> None:
    async with connect(settings.dsn, schema=settings.schema) as client:
        with pytest.raises(InvalidArguments, match=r"cannot be stored with a schedule: set it when"):
            await client.create_schedule("s", "job", "@daily", retry=Retry(**rule))
        await client.create_schedule("s", "job", "@daily")
        with pytest.raises(InvalidArguments, match=f"{next(iter(rule))}=…"):
            await client.alter("s", retry=Retry(**rule))
