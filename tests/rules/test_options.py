"""The options of schedules and jobs: which values are accepted, how they are stored, and what a refusal says."""

import json
from collections import UserDict
from datetime import UTC, datetime, timedelta, timezone

import pytest

from pgsched.errors import InvalidArguments, InvalidExpression, NotFound
from pgsched.model import RunStatus, ScheduleStatus
from pgsched.rules.options import (
    check_stored,
    columns,
    instant,
    job,
    json_object,
    keys,
    name_of,
    one_of,
    parsed,
    run_id,
    whole,
)
from pgsched.rules.retry import Retry

NAIVE = datetime(2031, 1, 1)  # noqa: DTZ001 - refused
NEW_YEAR = datetime(2031, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
CENTURY = timedelta(days=36500)

# --- the options of a schedule ----------------------------------------------------------------------------

STORED = {
    "none": ({}, {}),
    "an entrypoint": ({"entrypoint": "send mail"}, {"entrypoint": "send mail"}),
    "an expression": ({"expression": " 0 9 * * * "}, {"expression": "0 9 * * *"}),
    "a time zone": ({"timezone": "Europe/Paris"}, {"timezone": "Europe/Paris"}),
    "arguments": ({"args": {"a": [1, None]}}, {"args": {"a": [1, None]}}),
    "no arguments": ({"args": None}, {"args": {}}),
    "an overlap in a word": ({"overlap": "queue"}, {"overlap": "queue"}),
    "an overlap as a number": ({"overlap": 3}, {"overlap": "3"}),
    "an overlap as a text": ({"overlap": "007"}, {"overlap": "7"}),
    "the greatest overlap": ({"overlap": 100_000}, {"overlap": "100000"}),
    "a catch-up": ({"catch_up": "none"}, {"catch_up": "none"}),
    "a catch-up limit": ({"catch_up_limit": 1_000_000}, {"catch_up_limit": 1_000_000}),
    "a grace": ({"grace": timedelta(days=2, minutes=61, microseconds=5)}, {"grace": "49:01:00.000005"}),
    "no grace": ({"grace": None}, {"grace": None}),
    "a grace of nothing": ({"grace": timedelta(0)}, {"grace": "0:00:00.000000"}),
    "a jitter": ({"jitter": 90 * SECOND}, {"jitter": "0:01:30.000000"}),
    "no jitter": ({"jitter": None}, {"jitter": "0:00:00.000000"}),
    "the shortest timeout": ({"timeout": timedelta(microseconds=1)}, {"timeout": "0:00:00.000001"}),
    "the longest timeout": ({"timeout": CENTURY}, {"timeout": "876000:00:00.000000"}),
    "no timeout": ({"timeout": None}, {"timeout": None}),
    "a retry": (
        {"retry": Retry(attempts=5, backoff=2 * SECOND, max_backoff=60 * SECOND)},
        {"max_attempts": 5, "backoff": "0:00:02.000000", "max_backoff": "0:01:00.000000"},
    ),
    "no retry": ({"retry": None}, {"max_attempts": None, "backoff": None, "max_backoff": None}),
    "a start in another zone": (
        {"starts_at": datetime(2031, 1, 1, 5, 30, tzinfo=timezone(timedelta(hours=5.5)))},
        {"starts_at": "2031-01-01T00:00:00+00:00"},
    ),
    "no end": ({"ends_at": None}, {"ends_at": None}),
    "a number of runs": ({"max_runs": 2**31 - 1}, {"max_runs": 2**31 - 1}),
    "any number of runs": ({"max_runs": None}, {"max_runs": None}),
    "the lowest priority": ({"priority": -100}, {"priority": -100}),
    "an application": ({"app": "shop"}, {"app": "shop"}),
    "no application": ({"app": None}, {"app": None}),
    "several": ({"priority": 1, "overlap": "skip"}, {"priority": 1, "overlap": "skip"}),
}


@pytest.mark.parametrize("case", STORED)
def test_columns(case):
    given, expected = STORED[case]
    assert columns(given) == expected


REFUSED = {
    "an unknown option": ({"colour": 1}, r"^A schedule has no option 'colour': the options are entrypoint, expression"),
    "two unknown options": ({"colour": 1, "size": 2}, "no option 'colour', 'size'"),
    "an empty entrypoint": ({"entrypoint": " "}, r"^entrypoint must be a non-empty text, not ' '\.$"),
    "a time zone that there is not": ({"timezone": "Europe/Pariss"}, "Europe/Pariss"),
    "an expression that cannot be read": ({"expression": "61 * * * *"}, "61"),
    "arguments that are a list": ({"args": [1]}, r"^args must be a dict whose keys are parameter names, not list\.$"),
    "an overlap that is no policy": ({"overlap": "never"}, "^overlap must be 'skip', 'queue', 'allow', 'cancel' or a"),
    "an overlap of none": ({"overlap": 0}, r"a number from 1 to 100000, not 0\.$"),
    "an overlap beyond the greatest": ({"overlap": "100001"}, "not 100001"),
    "an overlap that is a bool": ({"overlap": True}, "not True"),
    "an overlap in other digits": ({"overlap": "٣"}, "^overlap must be"),
    "a catch-up that is none": ({"catch_up": "some"}, r"^catch_up must be 'latest', 'all' or 'none', not 'some'\.$"),
    "a catch-up limit of none": ({"catch_up_limit": 0}, "^catch_up_limit must be a whole number from 1 to 1000000"),
    "a grace that is a number": ({"grace": 5}, r"^grace must be a timedelta, not 5\.$"),
    "a grace in the past": ({"grace": -SECOND}, r"^grace must be 0 s or more and at most a hundred years, not -1 s\.$"),
    "a timeout of nothing": ({"timeout": timedelta(0)}, "^timeout must be more than 0 s and at most"),
    "a jitter beyond a hundred years": ({"jitter": CENTURY + SECOND}, "^jitter must be 0 s or more and at most"),
    "a retry that is a number": ({"retry": 3}, r"^retry must be a Retry\(\.\.\.\), not 3\.$"),
    "a start without a zone": ({"starts_at": NAIVE}, "^starts_at must be a datetime with a time zone"),
    "an end after all fire times": (
        {"ends_at": datetime(2200, 1, 1, tzinfo=UTC)},
        "^ends_at must be in the years 1900",
    ),
    "no run at all": ({"max_runs": 0}, "^max_runs must be a whole number from 1"),
    "a priority beyond the highest": ({"priority": 101}, "^priority must be a whole number from -100 to 100, not 101"),
    "an application that is a number": ({"app": 3}, "^app must be a non-empty text"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_columns_refuse(case):
    given, sentence = REFUSED[case]
    with pytest.raises((InvalidArguments, InvalidExpression), match=sentence):
        columns(given)


IN_CODE = {
    "no retry": ({}, None),
    "all of it can be stored": ({"retry": Retry(attempts=9)}, None),
    "a share": ({"retry": Retry(jitter=0)}, r"^Retry\(jitter=…\) cannot be stored with a schedule"),
    "errors": ({"retry": Retry(on=OSError)}, r"^Retry\(on=…\) cannot be stored"),
}


@pytest.mark.parametrize("case", IN_CODE)
def test_a_retry_that_only_code_can_keep_is_not_stored(case):
    given, sentence = IN_CODE[case]
    if sentence is None:
        check_stored(given)
    else:
        with pytest.raises(InvalidArguments, match=sentence):
            check_stored(given)


# --- single values ----------------------------------------------------------------------------------------


def nested(levels: int) -> list:
    found: list = []
    for _ in range(levels - 1):
        found = [found]
    return found


ACCEPTED = {
    "a name": (lambda: name_of("n", "nightly report"), "nightly report"),
    "the longest name": (lambda: name_of("n", "x" * 200), "x" * 200),
    "no object is the empty one": (lambda: json_object("args", None), "{}"),
    "an object": (lambda: json_object("args", {"a": "ü"}), '{"a": "ü"}'),
    "as deep as may be": (lambda: json_object("args", {"x": nested(499)}), '{"x": ' + "[" * 499 + "]" * 499 + "}"),
    "any mapping": (lambda: json_object("args", UserDict(a=1)), '{"a": 1}'),
    "an escaped backslash before u0000": (lambda: json_object("args", {"a": "\\u0000"}), r'{"a": "\\u0000"}'),
    "no instant": (lambda: instant("due_at", None), None),
    "an instant": (lambda: instant("due_at", NEW_YEAR), NEW_YEAR),
    "the first year": (lambda: instant("due_at", NEW_YEAR.replace(year=1900)), NEW_YEAR.replace(year=1900)),
    "the least number": (lambda: whole("limit", 1, 1, 9), 1),
    "the greatest number": (lambda: whole("limit", 9, 1, 9), 9),
    "no keys": (lambda: keys("unique_keys", None, 3), None),
    "a key for each": (lambda: keys("unique_keys", ("a", None), 2), ["a", None]),
    "the greatest id": (lambda: run_id(2**63 - 1), 2**63 - 1),
    "any status": (lambda: one_of(RunStatus, None), None),
    "a status": (lambda: one_of(ScheduleStatus, "paused"), "paused"),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepts(case):
    call, expected = ACCEPTED[case]
    assert call() == expected


WRONG = {
    "no name": (lambda: name_of("n", ""), InvalidArguments, r"^n must be a non-empty text, not ''\.$"),
    "a name that is too long": (lambda: name_of("n", "x" * 201), InvalidArguments, "at most 200 characters"),
    "a control character": (lambda: name_of("n", "a\nb"), InvalidArguments, "no control characters"),
    "a key that is a number": (lambda: json_object("args", {1: 2}), InvalidArguments, "keys are parameter names"),
    "a number that JSON does not know": (
        lambda: json_object("args", {"x": float("nan")}), InvalidArguments, "^args cannot be written as JSON",
    ),
    "an object of a class": (lambda: json_object("args", {"x": object()}), InvalidArguments, "written as JSON"),
    "half a character": (lambda: json_object("args", {"x": "\ud800"}), InvalidArguments, "written as JSON"),
    "a level too deep": (
        lambda: json_object("args", {"x": nested(500)}), InvalidArguments, "^args must not have more than 500 levels",
    ),
    "too deep for any Python": (
        lambda: json_object("args", {"x": nested(100_000)}), InvalidArguments, "^args must not have more than 500 lev",
    ),
    "a NUL": (lambda: json_object("args", {"x": "a\0b"}), InvalidArguments, "^args holds a NUL character"),
    "an instant without a zone": (lambda: instant("due_at", NAIVE), InvalidArguments, "with a time zone"),
    "a date": (lambda: instant("due_at", NEW_YEAR.date()), InvalidArguments, "with a time zone"),
    "a year before 1900": (lambda: instant("due_at", NEW_YEAR.replace(year=1899)), InvalidArguments, "1900 to 2199"),
    "a year before all in UTC": (
        lambda: instant("due_at", datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=9)))), InvalidArguments, "1900",
    ),
    "less than the least": (lambda: whole("limit", 0, 1, 9), InvalidArguments, r"^limit must be .* to 9, not 0\.$"),
    "more than the greatest": (lambda: whole("limit", 10, 1, 9), InvalidArguments, "not 10"),
    "a bool": (lambda: whole("limit", True, 1, 9), InvalidArguments, "not True"),
    "a fraction": (lambda: whole("limit", 2.0, 1, 9), InvalidArguments, r"not 2\.0"),
    "keys that are one text": (lambda: keys("ks", "ab", 2), InvalidArguments, "^ks must be a sequence of texts"),
    "too few keys": (lambda: keys("ks", ["a"], 2), InvalidArguments, r"as many as the jobs' arguments, 2, not 1\.$"),
    "a key that is no text": (lambda: keys("ks", [None, 3], 2), InvalidArguments, "^ks number 1 must be a text"),
    "an id that is a text": (lambda: run_id("7"), InvalidArguments, r"^A run's id must be a whole number, not '7'\.$"),
    "an id that is a bool": (lambda: run_id(True), InvalidArguments, "whole number"),
    "an id that no run has": (lambda: run_id(0), NotFound, r"^There is no run 0\.$"),
    "an id that no column holds": (lambda: run_id(2**63), NotFound, "There is no run"),
    "a status of something else": (
        lambda: one_of(ScheduleStatus, "queued"), InvalidArguments, "^status must be one of active, paused",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_refuses(case):
    call, error, sentence = WRONG[case]
    with pytest.raises(error, match=sentence):
        call()


# --- jobs -------------------------------------------------------------------------------------------------


def test_the_options_of_a_job():
    assert job("mail", NEW_YEAR, 5, "shop", "waiting") == {
        "entrypoint": "mail", "due_at": NEW_YEAR, "priority": 5, "app": "shop", "unique": "waiting",
    }  # fmt: skip
    assert job("mail", None, 0) == {"entrypoint": "mail", "due_at": None, "priority": 0, "app": None, "unique": "live"}


WRONG_JOBS = {
    "an empty entrypoint": (("", None, 0), "^entrypoint must be"),
    "an instant without a zone": (("mail", NAIVE, 0), "^due_at must be"),
    "a priority beyond the lowest": (("mail", None, -101), "^priority must be"),
    "an empty application": (("mail", None, 0, ""), "^app must be"),
    "unique in another way": (("mail", None, 0, None, "ever"), r"^unique must be 'live' or 'waiting', not 'ever'\.$"),
}


@pytest.mark.parametrize("case", WRONG_JOBS)
def test_jobs_refuse(case):
    given, sentence = WRONG_JOBS[case]
    with pytest.raises(InvalidArguments, match=sentence):
        job(*given)


# --- stored values ----------------------------------------------------------------------------------------

MANY_DIGITS = "1" * 5000
READ = {
    "nothing": (None, None),
    "an object": ('{"a": [1, 2.5, "x", null]}', {"a": [1, 2.5, "x", None]}),
    "a number beyond a float": ('{"a": 1e999}', {"a": "1e999"}),
    "a whole number beyond Python's digits": (MANY_DIGITS, MANY_DIGITS),
    "no JSON": ("{", "{"),
    "as deep as may be": ("[" * 500 + "]" * 500, nested(500)),
    "a level too deep": ("[" * 501 + "]" * 501, "[" * 501 + "]" * 501),
    "too deep for any Python": ("[" * 100_000, "[" * 100_000),
    "brackets in texts": (json.dumps(["[{" * 1000, '"[' * 1000]), ["[{" * 1000, '"[' * 1000]),
    "many lists side by side": (json.dumps([[]] * 1000), [[]] * 1000),
}


@pytest.mark.parametrize("case", READ)
def test_reads_stored_values(case):
    text, expected = READ[case]
    assert parsed(text) == expected
