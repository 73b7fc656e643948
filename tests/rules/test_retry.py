"""Whether and when an attempt is made again, and when a silent worker counts as dead, as tables."""

from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import pytest
from support.schedules import MINUTE, NINE

from pgsched.model import Process, RunStatus
from pgsched.rules.retry import Retry, Seen, Silent, after_loss, is_stalled, retry_delay, spread

SECOND = timedelta(seconds=1)

# --- the rules of a retry ---------------------------------------------------------------------------------

REFUSED = {
    "no attempt": ({"attempts": 0}, r"^Retry\(attempts=0\) is out of range: use 1 to 1000\.$"),
    "too many": ({"attempts": 1001}, "out of range"),
    "attempts that are a bool": ({"attempts": True}, r"^Retry\(attempts=…\) must be a whole number, not True\.$"),
    "attempts that are no whole number": ({"attempts": 1.5}, "whole number"),
    "a wait in the past": ({"backoff": -SECOND}, r"^Retry\(backoff=…\) must be from 0 s to a hundred years"),
    "a wait that is a number": ({"backoff": 3}, r"^Retry\(backoff=…\) must be a timedelta, not 3\.$"),
    "a wait beyond a hundred years": ({"max_backoff": timedelta(days=99999)}, r"^Retry\(max_backoff=…\) must be from"),
    "a share above 1": ({"jitter": 1.5}, r"^Retry\(jitter=…\) must be a number from 0 to 1, not 1\.5\.$"),
    "a share that is a bool": ({"jitter": True}, "from 0 to 1"),
    "on the name of an error": (
        {"on": "TimeoutError"},
        r"^Retry\(on=…\) must be an exception class or a tuple of them",
    ),
    "never a number": ({"never": (TimeoutError, 3)}, r"^Retry\(never=…\) must be an exception class"),
    "on no error": ({"on": ()}, "would never try again: use attempts=1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_rules_that_make_no_sense_are_refused(case):
    wrong, sentence = REFUSED[case]
    with pytest.raises(ValueError, match=sentence):
        Retry(**wrong)


def test_bounds_are_accepted():
    Retry(attempts=1, backoff=timedelta(0), max_backoff=timedelta(0), jitter=0)
    Retry(attempts=1000, backoff=timedelta(days=36500), max_backoff=timedelta(days=36500), jitter=1)


ALLOWED = {
    "any error": (Retry(), ValueError, True),
    "one of them": (Retry(on=(ValueError, OSError)), ValueError, True),
    "a kind of one of them": (Retry(on=OSError), ConnectionResetError, True),
    "another one": (Retry(on=OSError), ValueError, False),
    "one of never": (Retry(never=OSError), ConnectionResetError, False),
    "none of never": (Retry(never=OSError), ValueError, True),
    "never wins over on": (Retry(on=OSError, never=ConnectionError), ConnectionResetError, False),
    "a wider never wins, too": (Retry(on=ConnectionError, never=OSError), ConnectionResetError, False),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_which_errors_allow_another_attempt(case):
    retry, error, again = ALLOWED[case]
    assert retry.allows(error) is again


ONLY_IN_CODE = {
    "nothing": (Retry(attempts=9, backoff=SECOND, max_backoff=SECOND), []),
    "the share": (Retry(jitter=0), ["jitter"]),
    "the errors": (Retry(on=OSError, never=ConnectionError), ["on", "never"]),
}


@pytest.mark.parametrize("case", ONLY_IN_CODE)
def test_options_that_only_code_can_keep(case):
    retry, names = ONLY_IN_CODE[case]
    assert retry.only_in_code == names


# --- the wait ---------------------------------------------------------------------------------------------

CENTURY = timedelta(days=36500)

# backoff, max_backoff and the attempt that failed -> the wait before the next.
WAITS = {
    "no attempt has failed": (SECOND, 10 * SECOND, 0, timedelta(0)),
    "the first": (SECOND, 10 * SECOND, 1, SECOND),
    "the second: twice as long": (SECOND, 10 * SECOND, 2, 2 * SECOND),
    "the third": (SECOND, 10 * SECOND, 3, 4 * SECOND),
    "the fourth": (SECOND, 10 * SECOND, 4, 8 * SECOND),
    "the fifth: the longest wait": (SECOND, 10 * SECOND, 5, 10 * SECOND),
    "and no longer": (SECOND, 10 * SECOND, 999, 10 * SECOND),
    "a longest wait below the first": (10 * SECOND, SECOND, 1, SECOND),
    "no wait at all": (timedelta(0), CENTURY, 999, timedelta(0)),
    "more than a timedelta holds": (CENTURY, CENTURY, 900, CENTURY),
}


@pytest.mark.parametrize("case", WAITS)
def test_how_long_it_waits(case):
    backoff, max_backoff, attempt, expected = WAITS[case]
    assert retry_delay(backoff, max_backoff, attempt) == expected


def test_a_wait_is_shortened_by_up_to_its_share():
    waits = [spread(8 * SECOND, 0.25, run, 1) for run in range(200)]
    assert 6 * SECOND <= min(waits) < 6.1 * SECOND and 7.9 * SECOND < max(waits) <= 8 * SECOND
    assert spread(8 * SECOND, 0, 1, 1) == 8 * SECOND


def test_a_share_is_the_same_each_time_and_another_for_each_run_and_attempt():
    assert spread(SECOND, 1, 7, 1) == spread(SECOND, 1, 7, 1)
    assert len({spread(SECOND, 1, run, attempt) for run in range(10) for attempt in range(10)}) == 100
    # Pinned: it is the same in every process.
    assert spread(SECOND, 1, 7, 1) == timedelta(microseconds=770759)


# --- a silent worker --------------------------------------------------------------------------------------

SILENT = Silent(
    id=1, attempt=1, token=1, worker=uuid4(), entrypoint="e", heartbeat_at=NINE, alive_at=NINE, max_attempts=3,
    backoff=SECOND, max_backoff=timedelta(hours=1), direct=True, connected=True, heartbeat_interval=None,
    stall_timeout=None,
)  # fmt: skip
GONE = {"connected": False}
POOLED = {"connected": False, "direct": False}
ENDED, ALIVE = Process.ENDED, Process.ALIVE


@pytest.mark.parametrize(
    ("what", "silence", "changes", "seen", "stalled"),
    [
        ("connected and silent for a while", 29.9, {}, {}, False),
        ("connected and silent for the stall timeout", 30, {}, {}, True),
        ("no sessions, which proves nothing", 29.9, GONE, {}, False),
        ("no sessions for the stall timeout", 30, GONE, {}, True),
        ("its process has ended, two beats missed", 2.9, GONE, {"process": ENDED}, False),
        ("its process has ended, three beats missed", 3, GONE, {"process": ENDED}, True),
        ("its process has ended, right after an outage", 3, GONE, {"process": ENDED, "steady": SECOND}, True),
        ("its process has ended, its sessions are still to go", 3, {}, {"process": ENDED}, False),
        ("its process has ended, behind a pooler", 3, POOLED, {"process": ENDED}, True),
        ("no sessions while others of its route are well", 3, {**GONE, "vouched": True}, {}, True),
        ("the same, right after an outage", 3, {**GONE, "vouched": True}, {"steady": 29 * SECOND}, False),
        ("the same, but its process is there", 29.9, {**GONE, "vouched": True}, {"process": ALIVE}, False),
        ("its process is there and silent for the stall timeout", 30, GONE, {"process": ALIVE}, True),
        ("behind a pooler nothing can be seen", 29.9, {**POOLED, "vouched": True}, {}, False),
        ("behind a pooler the stall timeout decides", 30, POOLED, {}, True),
        ("right after an outage nothing is", 3600, {}, {"steady": 29 * SECOND}, False),
        ("outages again and again", 3600, {}, {"steady": SECOND, "beatable": 59.9 * SECOND}, False),
        ("two stall timeouts missed between them", 3600, {}, {"steady": SECOND, "beatable": MINUTE}, True),
        (
            "the same in its own stall timeouts",
            3600,
            {"stall_timeout": 2 * SECOND},
            {"steady": SECOND, "beatable": 4 * SECOND},
            True,
        ),
        ("silent for an hour, seen for a moment", 3600, GONE, {"process": ENDED, "watched": 1.9 * SECOND}, False),
        ("it beats every ten seconds", 29, {**GONE, "heartbeat_interval": 10 * SECOND}, {"process": ENDED}, False),
        ("its own stall timeout counts", 59, {"stall_timeout": MINUTE}, {}, False),
        ("a beat that found the row locked", 3600, {"alive_at": NINE + 3599 * SECOND}, {}, False),
    ],
)
def test_is_stalled(what, silence, changes, seen, stalled):
    run = replace(SILENT, **changes)
    process = seen.get("process", Process.UNKNOWN)
    times = {"watched": MINUTE, "steady": MINUTE, "beatable": 0 * SECOND, **seen}
    found = Seen(*(times[name] for name in ("watched", "steady", "beatable")))
    now = NINE + silence * SECOND
    assert is_stalled(run, now, SECOND, 30 * SECOND, seen=found, process=process) is stalled, what


# The attempt that lost its worker, of how many -> the status and the wait in seconds.
LOST = {
    "the first loss costs no wait": (1, 5, RunStatus.QUEUED, 0),
    "the second waits": (2, 5, RunStatus.QUEUED, 1),
    "the third waits longer": (3, 5, RunStatus.QUEUED, 2),
    "the last": (5, 5, RunStatus.FAILED, 0),
    "beyond the last: max_attempts was lowered": (9, 5, RunStatus.FAILED, 0),
    "the only one": (1, 1, RunStatus.FAILED, 0),
}


@pytest.mark.parametrize("case", LOST)
def test_after_loss(case):
    attempt, max_attempts, status, seconds = LOST[case]
    run = replace(SILENT, attempt=attempt, max_attempts=max_attempts)
    assert after_loss(run) == (status, seconds * SECOND)
