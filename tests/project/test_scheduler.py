"""Registration: what is refused, and with which sentence."""

import functools
from datetime import UTC, datetime, timedelta

import pytest

from pgsched import ConfigurationError, Executor, InvalidExpression, RegistrationError, Retry, Run, Schedule, Scheduler
from pgsched.executors.executor import Place

MINUTE = timedelta(minutes=1)


def test_an_entrypoint_may_have_many_schedules():
    sc = Scheduler()

    @sc.schedule("fetch", "* * * * *")
    @sc.schedule("fetch", "@daily")
    @sc.schedule("fetch", "@daily", name="again", timezone="Europe/Berlin")
    async def fetch(schedule: Schedule) -> None: ...

    assert list(sc.declared) == ["again", "fetch @daily", "fetch * * * * *"]
    assert list(sc.entrypoints) == ["fetch"]


def test_the_function_stays_what_it_was():
    sc = Scheduler()

    def plain() -> int:
        return 1

    assert sc.schedule("a", "@daily")(plain) is plain
    assert sc.entrypoint("a")(plain) is plain


def test_entrypoint_rules_serve_both_orders():
    sc = Scheduler()

    def plain() -> None: ...

    sc.schedule("a", "@daily")(plain)
    sc.entrypoint("a", retry=Retry(7), timeout=MINUTE)(plain)
    sc.schedule("a", "@hourly")(plain)
    assert sc.entrypoints["a"].retry.attempts == 7 and sc.entrypoints["a"].timeout == MINUTE


async def ok() -> None: ...
def needs(x: int) -> None: ...
def by_position(x: int, /) -> None: ...
def star(*x: int) -> None: ...
def generator():
    yield 1


def injected(run: Run) -> None: ...
def strings(run: "Run", schedule: "Schedule | None") -> None: ...


class Callable_:
    async def __call__(self, x: int) -> None: ...


@pytest.mark.parametrize("function", [ok, functools.partial(needs, x=1), Callable_(), strings, lambda **kw: kw])
def test_accepted(function):
    sc = Scheduler()
    args = {"x": 1} if isinstance(function, Callable_) else None
    sc.schedule("a", "@daily", args=args)(function)
    assert sc.entrypoints["a"].executor.place is (
        None if function is ok or isinstance(function, Callable_) else Place.THREAD
    )


@pytest.mark.parametrize(
    ("function", "options", "sentence"),
    [
        (needs, {}, "needs() needs the argument 'x', which args does not give"),
        (ok, {"args": {"x": 1}}, "ok() has no parameter 'x', which args gives"),
        (injected, {"args": {"run": 1}}, "gets 'run' from pgsched"),
        (by_position, {"args": {"x": 1}}, "by position only"),
        (star, {}, "takes *x"),
        (generator, {}, "is a generator"),
        (3, {}, "an entrypoint is a function"),
        (Run, {}, "an entrypoint is a function"),
        (ok, {"args": [1]}, "args must be a dict"),
        (ok, {"args": {1: 1}}, "args must be a dict whose keys"),
        (ok, {"args": {"x": object()}}, "cannot be written as JSON"),
        (ok, {"args": {"x": float("nan")}}, "cannot be written as JSON"),
        (ok, {"args": {"x": "a\0"}}, "NUL character"),
        (ok, {"name": "a\nb"}, "no control characters"),
        (ok, {"name": ""}, "a non-empty text"),
        (ok, {"name": "x" * 201}, "at most 200 characters"),
        (ok, {"overlap": "sometimes"}, "from 1 to 100000, not 'sometimes'"),
        (ok, {"overlap": "wait"}, "'skip', 'queue', 'allow', 'cancel' or a number"),
        (ok, {"catch_up_limit": 0}, "catch_up_limit must be a whole number from 1"),
        (ok, {"overlap": 0}, "from 1 to 100000, not 0"),
        (ok, {"catch_up": "most"}, "'latest', 'all' or 'none'"),
        (ok, {"grace": 5}, "grace must be a timedelta"),
        (ok, {"grace": -MINUTE}, "grace must be 0 s or more and at most a hundred years, not -60 s"),
        (ok, {"timeout": timedelta(0)}, "timeout must be more than 0 s"),
        (ok, {"jitter": "1m"}, "jitter must be a timedelta"),
        (ok, {"retry": 3}, "retry must be a Retry(...)"),
        (ok, {"starts_at": datetime(2027, 1, 1)}, "a datetime with a time zone"),  # noqa: DTZ001
        (ok, {"ends_at": "tomorrow"}, "a datetime with a time zone"),
        (ok, {"max_runs": 0}, "max_runs must be a whole number from 1"),
        (ok, {"priority": 101}, "priority must be a whole number from -100 to 100, not 101"),
        (ok, {"priority": True}, "not True"),
        (ok, {"executor": "thread"}, "neither a subclass of Executor"),
        (ok, {"timezone": "Europe/Berlinn"}, "Berlin"),
    ],
)
def test_refused(function, options, sentence):
    sc = Scheduler()
    with pytest.raises(ValueError) as caught:
        sc.schedule("a", "@daily", **options)(function)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not sc.declared and not sc.entrypoints, "a refusal changes nothing"


@pytest.mark.parametrize(
    "expression", ["", "61 * * * *", "* * * *", "0 0 30 2 *", "@every 0s", "@reboot", None, 5, b"*"]
)
def test_invalid_expressions_are_refused_at_registration(expression):
    sc = Scheduler()
    with pytest.raises(InvalidExpression):
        sc.schedule("a", expression)(ok)
    assert not sc.declared


def test_the_same_pair_without_a_name_is_refused():
    sc = Scheduler()
    sc.schedule("a", "@daily")(ok)
    with pytest.raises(RegistrationError, match="declared twice: give the second schedule another name"):
        sc.schedule("a", "@daily")(ok)
    with pytest.raises(RegistrationError, match="the name 'a @daily' is already taken"):
        sc.schedule("a", "@hourly", name="a @daily")(ok)
    assert list(sc.declared) == ["a @daily"]


def test_one_entrypoint_is_one_function():
    sc = Scheduler()
    sc.schedule("a", "@daily")(ok)
    with pytest.raises(RegistrationError, match="is already another function"):
        sc.entrypoint("a")(needs)


def test_an_executor_object_serves_one_function():
    class Own(Executor):
        async def execute(self, run: Run) -> None: ...

    own, sc = Own(), Scheduler()
    sc.schedule("a", "@daily", executor=own)(ok)
    with pytest.raises(RegistrationError, match="cannot serve two functions"):
        sc.schedule("b", "@daily", executor=own, args={"x": 1})(needs)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"stall_timeuot": 3}, "there is no setting 'stall_timeuot'"),
        ({"max_running": 0}, "max_running must be between 1 and 1000000, not 0"),
        ({"heartbeat_interval": "soon"}, "heartbeat_interval must be a duration such as"),
        ({"drain_timeout": -1}, "drain_timeout must be a duration"),
        ({"drain_timeout": timedelta(seconds=-1)}, "drain_timeout must be between"),
        ({"log_level": "loud"}, "must be one of debug, info, warning, error"),
        ({"schema": "pg_x"}, "not start with pg_"),
        ({"app": "a\nb"}, "printable"),
    ],
)
def test_settings_are_checked_when_they_are_given(settings, sentence):
    with pytest.raises(ConfigurationError, match="(?s)" + sentence.replace("(", r"\(")):
        Scheduler(**settings)


def test_starts_at_may_be_aware_anywhere():
    sc = Scheduler()
    sc.schedule("a", "@daily", starts_at=datetime(2027, 1, 1, tzinfo=UTC))(ok)
    assert sc.declared["a @daily"].row["starts_at"] == "2027-01-01T00:00:00+00:00"
