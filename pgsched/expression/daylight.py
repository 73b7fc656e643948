"""Warns people about expressions: above all, about the effects of daylight saving on their fire times. Pure.

words puts an expression into a sentence, and traps finds the traps in its text. Here the effects of daylight saving
are computed from the same counts and stretches as the fire times themselves.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from pgsched.errors import InvalidExpression
from pgsched.expression.cron import Cron
from pgsched.expression.expression import Expression
from pgsched.expression.instants import DAY, END, EPOCH, FIRST_YEAR, LAST_YEAR, NEVER, as_utc, moment, seconds
from pgsched.expression.traps import traps
from pgsched.expression.words import in_words, join
from pgsched.expression.zones import Stretch, changes, check_timezone, stretch

__all__ = ["at_local", "in_words", "mark", "warnings"]

_NAMED = 3  # up to this many wall-clock times are named, more are counted


def warnings(expression: Expression, now: datetime, years: int = 2) -> list[str]:
    """Surprises for the writer of the expression, one sentence each, without a full stop.

    Traps in the text, an end of all fire times, and the effects of daylight saving on fire times in the next `years`
    years from `now` (aware). An interval schedule gets no warning if a change leaves its pace as it is. The effort
    depends on the changes of the zone's clock, not on how dense the schedule is.
    """
    now = as_utc(now, "now")
    if not isinstance(expression.times, Cron):
        return []
    until = min(seconds(now) + round(years * 365.2425 * DAY), NEVER)
    return [*traps(expression), *_end(expression, now, until), *_touched(expression.times, seconds(now), until)]


def mark(expression: Expression, fire_time: datetime) -> str | None:
    """The effect of daylight saving on one fire time of the expression, or on times just before it; else None."""
    fire_time = as_utc(fire_time, "fire_time")
    if not isinstance(expression.times, Cron):
        return None
    return _mark(expression.times, seconds(fire_time))


def at_local(naive: datetime, timezone: str) -> tuple[datetime, str | None]:
    """The instant, in UTC, when a zone's clock shows `naive`, and a remark unless there is exactly one.

    If the clock skips it, the instant is the end of the skip; if it comes twice, the first. Raises InvalidExpression
    for an aware datetime, for an unknown zone, and outside the years 1970 to 2099.
    """
    zone = check_timezone(timezone)
    if not isinstance(naive, datetime) or naive.tzinfo is not None:
        raise InvalidExpression("a wall-clock time must be a datetime without a time zone or offset")
    if not EPOCH.replace(tzinfo=None) <= naive <= END.replace(tzinfo=None):
        raise InvalidExpression(f"a wall-clock time must be in the years {FIRST_YEAR} to {LAST_YEAR}, not {naive}")
    first, second = (naive.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    shown = f"{_clock(seconds(naive.replace(tzinfo=UTC)))} {{}} on {naive.date()} in {timezone}"
    if second > first:
        return first, f"{shown.format('comes twice')}: the first is meant, the second is {second:%Y-%m-%d %H:%M:%S} UTC"
    if second == first:
        return first, None
    # In the skip, fold 0 and 1 take the offsets before and after it: the change is between the two readings.
    change = next(changes(zone, seconds(second), seconds(first)))
    skip = _span(change.shown, change.clock)
    return moment(change.start), f"{shown.format('does not exist')}: the clock goes from {skip}"


# -- Changes of the clock -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Effect:
    """The effect of a change on a schedule: "{cause} on {day}: {then}". `day` is empty if `cause` names it."""

    cause: str
    day: str
    then: str


def _touched(cron: Cron, now: int, until: int) -> Iterator[str]:
    """A sentence for the changes in (now, until] that touch a fire time; equal effects share one sentence."""
    days: dict[tuple[str, str], list[str]] = {}
    for change in changes(cron.zone, now, until):
        effect = None if _keeps_pace(cron, change) else _effect(cron, change)
        if effect:
            days.setdefault((effect.cause, effect.then), []).append(effect.day)
    for (cause, then), days_ in days.items():
        on = f" on {join(days_)}" if all(days_) else ""
        yield f"{cause[0].upper()}{cause[1:]}{on} in {cron.zone.key}: {then}"


def _effect(cron: Cron, change: Stretch) -> _Effect | None:
    """None if no fire time is among the times that the clock skips or repeats."""
    low, high = sorted((change.shown, change.clock))
    count = cron.before(high) - cron.before(low)
    if not count:
        return None
    times, day = _times(cron, low, high, count), _day(cron.match(low - 1))
    many = count > 1
    if change.clock < change.shown:
        how = "the first time only" if cron.fields.fixed else "both times"
        return _Effect(f"{times} come{'s' * (not many)} twice", day, f"run{'s' * (not many)} {how}")
    if not cron.fields.fixed:
        day = _day(low) if _day(low) == _day(high) else ""
        return _Effect(f"the clock skips {_span(low, high)}", day, f"{_counted(count, 'are')} not run")
    at = _on_day(high, _day(low))
    if cron.match(high - 1) == high:
        then = f"fall{'s' * (not many)} together with the run at {at}"
    else:
        then = f"run once, at {at}" if many else f"runs at {at} instead"
    return _Effect(f"{times} do{'' if many else 'es'} not exist", day, then)


def _keeps_pace(cron: Cron, change: Stretch) -> bool:
    """Whether an interval keeps its pace over a change: every 15 minutes stays every 15 minutes."""
    fields = cron.fields
    if fields.fixed or len(fields.hours) < 24:
        return False
    period = 3600 if len(fields.minutes) < 60 else 60 if len(fields.seconds) < 60 else 1
    low, high = sorted((change.shown, change.clock))
    first, last = (low - 1) // DAY, high // DAY + 1  # the days before and after too, if the change is at midnight
    a_day = len(fields.hours) * len(fields.minutes) * len(fields.seconds)
    all_days = cron.before(last * DAY) - cron.before(first * DAY) == (last - first) * a_day
    return all_days and (high - low) % period == 0


def _mark(cron: Cron, instant: int) -> str | None:
    here = stretch(cron.zone, instant)
    wall, fixed = instant + here.offset, cron.fields.fixed
    if fixed and here.start == instant and here.shown < here.clock and (effect := _effect(cron, here)):
        return f"{effect.cause} on {effect.day}, {effect.then.removesuffix(' instead')}"
    ahead = next(changes(cron.zone, instant, instant + 2 * DAY), None)
    if ahead and ahead.clock <= wall < ahead.shown:
        if fixed:
            return f"{_clock(wall)} comes twice on {_day(wall)}, runs the first time only"
        return f"{_clock(wall)} comes for the first of two times"
    if fixed:
        return None
    return f"{_clock(wall)} comes for the second time" if wall < here.shown else _swallowed(cron, instant)


def _swallowed(cron: Cron, instant: int) -> str | None:
    """The times that a skip took from an interval schedule since the fire time before `instant`."""
    here = stretch(cron.zone, instant)
    day, end = _day(instant + here.offset), instant
    while cron.before(end + here.offset) == cron.before(here.clock):  # nothing ran since `here` began
        if here.shown < here.clock and (count := cron.before(here.clock) - cron.before(here.shown)):
            shown = _day(here.shown)
            on = f" on {shown}" if shown == _day(here.clock) != day else ""  # otherwise it is clear, or already there
            return f"the clock skipped {_span(here.shown, here.clock)}{on}: {_counted(count, 'were')} not run"
        end = here.start
        if end <= 0:
            break
        here = stretch(cron.zone, end - 1)
    return None


# -- The end of all fire times ------------------------------------------------------------------------------


def _end(expression: Expression, now: datetime, until: int) -> Iterator[str]:
    years = expression.times.fields.years if isinstance(expression.times, Cron) else ()
    if not years or years[-1] == LAST_YEAR:
        return
    last = expression.latest(now, END)
    if last is None:
        yield f"It never fires again: its year field ends with {years[-1]}"
    elif seconds(last) <= until:
        yield f"It never fires after {last:%Y-%m-%d %H:%M:%S} UTC: its year field ends with {years[-1]}"


# -- Wall-clock times in words ------------------------------------------------------------------------------


def _times(cron: Cron, low: int, high: int, count: int) -> str:
    """The matches from `low` on and before `high`; if they are many, their number and the ends."""
    found = [cron.match(low - 1)]
    if count > _NAMED:
        return f"{count} times from {_clock(found[0])} to {_clock(_last(cron, low, high))}"
    while len(found) < count:
        found.append(cron.match(found[-1]))
    return join(map(_clock, found))


def _last(cron: Cron, low: int, high: int) -> int:
    """The last match from `low` on and before `high`, if there is one."""
    wanted = cron.before(high)
    while high - low > 1:  # it is at `low` or after it, and before `high`
        middle = (low + high) // 2
        low, high = (middle, high) if cron.before(middle) < wanted else (low, middle)
    return low


def _counted(count: int, verb: str) -> str:
    return f"{count} time{'s' * (count > 1)} {verb if count > 1 else {'are': 'is', 'were': 'was'}[verb]}"


def _clock(wall: int) -> str:
    return f"{moment(wall):%H:%M:%S}".removesuffix(":00")


def _day(wall: int) -> str:
    return f"{moment(wall):%Y-%m-%d}"


def _on_day(wall: int, day: str) -> str:
    """The time, with its day unless that is `day`."""
    return _clock(wall) if _day(wall) == day else f"{_day(wall)} {_clock(wall)}"


def _span(low: int, high: int) -> str:
    """The two readings between which a clock jumps."""
    return f"{_on_day(low, _day(high))} to {_on_day(high, _day(low))}"
