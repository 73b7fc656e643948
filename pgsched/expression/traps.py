"""Finds the parts of an expression's text that often mean something else to its writer. Pure, without calendar years.

daylight warns about daylight saving.
"""

import calendar
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from pgsched.errors import InvalidExpression
from pgsched.expression.cron import Cron
from pgsched.expression.days import Days
from pgsched.expression.expression import Expression, parse
from pgsched.expression.grammar import Fields
from pgsched.expression.words import date_words, in_words, month, rows, runs, weekday, weekday_words

_SHORT = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_STEP = re.compile(r"(?:\*|[0-9]+)/([0-9]+)")
_FEW_DAYS = re.compile(r"[0-7](?:[-,][0-7])+")
_WEEKS = {tuple(range(first, min(first + 7, 32))): first // 7 + 1 for first in range(1, 32, 7)}


def traps(expression: Expression) -> list[str]:
    """A sentence for each trap. `@every`, `@at` and macros have none: nobody misreads them."""
    if not isinstance(expression.times, Cron) or expression.text.startswith("@"):
        return []
    fields = expression.times.fields
    return [*_seconds_first(expression), *_either(expression, fields), *_steps(fields), *_rare_days(fields)]


# -- Six fields ---------------------------------------------------------------------------------------------


def _seconds_first(expression: Expression) -> Iterator[str]:
    """Six or seven fields that were probably written with the seconds in front, as in Quartz and Spring."""
    texts = expression.text.upper().split()
    if len(texts) < 6 or not _likely_seconds_first(texts):
        return
    meant = " ".join([*expression.text.split()[1:6], texts[0], *texts[6:]])
    try:
        read = parse(meant, expression.timezone)
    except InvalidExpression:
        return
    words = "" if "H" in meant.upper() else f", {_clause(read)}"
    yield (
        f"The seconds come last here, so this means: {_clause(expression)}; "
        f"if the first field means the seconds, write {meant!r}{words}"
    )


def _clause(expression: Expression) -> str:
    words = in_words(expression).removesuffix(f", {expression.timezone}")
    return words[0].lower() + words[1:]


def _likely_seconds_first(texts: list[str]) -> bool:
    first, second, third, fourth, _, last = texts[:6]
    if first == "*":
        return False  # every second, or every minute: either way the last field is the seconds
    if last == "*":
        return True  # every second of some minutes only, which hardly anybody wants
    if _FEW_DAYS.fullmatch(last):
        return True  # looks like days of the week
    # Like `0 0 9 * * 1`: a time of day, and then a day of the week.
    return first == "0" and second.isdigit() and third.isdigit() and fourth == "*" and last in {*"1234567"}


# -- Two day fields -----------------------------------------------------------------------------------------


def _either(expression: Expression, fields: Fields) -> Iterator[str]:
    if len(fields.sides) < 2:
        return
    dates, weekdays = fields.sides
    for side, text, other in (
        (dates, f"day of month {fields.written.date}", "day of week"),
        (weekdays, f"day of week {fields.written.weekday}", "day of month"),
    ):
        if side not in fields.days:
            yield f"No date fits {text} in {runs(fields.months, month)}: only the {other} counts"
            return
    either = f"{date_words(dates) or 'any day'} or on {weekday_words(weekdays) or 'any day'}"
    texts = expression.text.split()
    if both := _both(dates, weekdays, texts[2], texts[4]):
        texts[2], texts[4] = both
        written = " ".join(texts)
        advice = f"to run only if both fit, write {written!r}" if _fires(written) else "both together never fit"
    else:
        texts[4] = "*"
        advice = f"to run only if both fit, write {' '.join(texts)!r} and let the job check the day of the week"
    yield f"Both day fields are set, and either one is enough: this runs on {either}; {advice}"


def _fires(text: str) -> bool:
    try:
        return bool(parse(text))
    except InvalidExpression:
        return False


def _both(dates: Days, weekdays: Days, date: str, day: str) -> tuple[str, str] | None:
    """The two day fields that mean both, if they can be written.

    Both must fit if one begins with a star, so the trick is a star that adds only a wanted day: `*/7` is Sunday, and
    `*/31` is day 1.
    """
    plain_dates = dates.nearest is None and not dates.last
    if plain_dates and len(dates.dates) == 31:
        return "*", day
    if not weekdays.nth and len(weekdays.weekdays) == 7:
        return date, "*"
    if plain_dates and not weekdays.nth and (weeks := _whole_weeks(dates)):
        return "*", ",".join(f"{_SHORT[each]}#{week}" for week in weeks for each in sorted(weekdays.weekdays))
    if 0 in weekdays.weekdays:
        return date, ",".join(["*/7", *(_SHORT[each] for each in sorted(weekdays.weekdays) if each)])
    if dates.nearest is None and 1 in dates.dates:
        others = [f"{row[0]}-{row[-1]}" if len(row) > 1 else str(row[0]) for row in rows(sorted(dates.dates - {1}))]
        return ",".join(["*/31", *others, *["L"] * dates.last]), day
    return None


def _whole_weeks(dates: Days) -> list[int]:
    """The weeks from day 1, 8, 15, 22 or 29 on that the dates consist of; none if there is anything else."""
    weeks = [week for days, week in _WEEKS.items() if dates.dates.issuperset(days)]
    covered = {day for days, week in _WEEKS.items() if week in weeks for day in days}
    return weeks if covered == dates.dates else []


# -- Steps --------------------------------------------------------------------------------------------------


def _steps(fields: Fields) -> Iterator[str]:
    """Steps that do not come out even: every field starts again from its beginning, and cuts the last step short."""
    written, side = fields.written, fields.sides[0]
    any_day = len(fields.months) == 12 and len(side.dates) == 31 and len(side.weekdays) == 7 and not side.nearest
    hourly = any_day and len(fields.hours) == 24
    minutely = hourly and len(fields.minutes) == 60
    # @every keeps an even pace: possible if only this field and single values below it are set.
    even = {
        "second": "s" * minutely,
        "minute": "m" * (hourly and len(fields.seconds) == 1),
        "hour": "h" * (any_day and len(fields.minutes) == len(fields.seconds) == 1),
    }
    date = written.date if len(side.weekdays) == 7 else ""  # with days of the week, no pace is meant
    weekday_ = written.weekday if written.weekday.startswith("*") else ""  # from a given day on, the end is meant
    numbers: list[tuple[str, str, str, Iterable[int], int, Callable[[int], str]]] = [
        ("second", written.second, "minute", fields.seconds, 60, "second {}".format),
        ("minute", written.minute, "hour", fields.minutes, 60, "minute {}".format),
        ("hour", written.hour, "day", fields.hours, 24, "hour {}".format),
        ("day of month", date, "month", side.dates, 31, "day {}".format),
        ("month", written.month, "year", fields.months, 12, month),
        ("day of week", weekday_, "week", fields.sides[-1].weekdays, 7, weekday),
    ]
    for name, text, whole, values, size, named in numbers:
        match = _STEP.fullmatch(text)
        if match and (fault := _uneven(sorted(values), int(match[1]), size, named, whole)):
            advice = f"; for an even pace write @every {match[1]}{even[name]}" if even.get(name) else ""
            yield f"{text} in the {name} field {fault}{advice}"


def _uneven(values: Sequence[int], step: int, size: int, named: Callable[[int], str], whole: str) -> str | None:
    """How the step over the end of the whole differs from the others, if it does."""
    first, last = values[0], values[-1]
    a_whole = f"an {whole}" if whole == "hour" else f"a {whole}"
    if step > size:
        return f"is longer than {a_whole}: it comes once {a_whole}, at {named(first)}"
    gap = first + size - last
    if whole == "month" and gap == step:  # even in a month of 31 days, so not in one of 30
        gap, size = gap - 1, 30
    counted_from = 1 if whole in ("month", "year") else 0
    if len(values) == 1 or gap == step or first - counted_from >= step:
        return None  # with so late a start, a part of the whole is meant
    of_days = f" of {size} days" if whole == "month" else ""
    unit = {"minute": "second", "hour": "minute", "day": "hour", "year": "month"}.get(whole, "day")
    return (
        f"starts again with every {whole}: at the end of {a_whole}{of_days}, from {named(last)} to {named(first)}, "
        f"it is {gap} {unit}{'s' * (gap != 1)} and not {step}"
    )


# -- Dates that are rare ------------------------------------------------------------------------------------


def _rare_days(fields: Fields) -> Iterator[str]:
    for side in fields.days:
        if side.nth and all(nth == 5 for _, nth in side.nth):
            last = ",".join(f"{_SHORT[day]}L" for day, _ in sorted(side.nth))
            yield (
                f"{fields.written.weekday} comes in some months only, because most have no fifth one; "
                f"for the last one of every month write {last}"
            )
        if side.nearest in (29, 30) and 2 in fields.months:  # 31W reads as the last working day
            yield f"Day {side.nearest}W also comes in shorter months: there it is the last working day"
        if side.nearest is not None or side.last or min(side.dates, default=0) < 29:
            continue
        day = min(side.dates)
        enough = [each for each in fields.months if calendar.monthrange(2027, each)[1] >= day]
        if not enough:
            yield f"Day of month {fields.written.date} comes in leap years only; for the last day of February write L"
        elif len(enough) < len(fields.months):
            yield (
                f"Day of month {fields.written.date} comes in {len(enough)} of {len(fields.months)} months"
                f"{', and in February of leap years' if day == 29 else ''}; for the last day of every month write L"
            )
