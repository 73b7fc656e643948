"""`pgsched next EXPRESSION`: an expression in words, its next fire times, and its traps. Needs no database."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from pgsched.cli.options import an_instant, json_option
from pgsched.cli.show.output import instant, local, print_json, print_table, say, warn, write
from pgsched.expression.daylight import in_words, mark, warnings
from pgsched.expression.expression import parse
from pgsched.expression.zone_files import outdated, source_of


@click.command()
@click.argument("expression")
@click.option("--tz", "timezone", default="UTC", metavar="ZONE", help="The expression's time zone.  [UTC]")
@click.option(
    "--after",
    type=an_instant,
    metavar="INSTANT",
    help="Show fire times after this instant, such as 2027-01-01T09:00:00Z.  [now]",
)
@click.option("--count", type=click.IntRange(1, 10_000), default=5, help="How many fire times to show.  [5]")
@click.option("--name", default="", help="The schedule's name, which decides the values of H.")
@json_option
def next(*, expression: str, timezone: str, after: datetime | None, count: int, name: str, as_json: bool) -> None:
    """Show EXPRESSION in words, its next fire times in UTC and in its time zone, and its traps.

    EXPRESSION is a cron expression, "@every 30s", "@at 2027-01-01T00:00:00Z", or a macro such as @daily. A cron
    expression has five fields; a sixth one holds seconds, and a seventh one the year. "@every" counts from --after.

    Fire times that daylight saving moves or repeats are marked. Warnings go to standard error: common misreadings,
    and the effects of daylight saving in the next two years.
    """
    start = after or datetime.now(UTC)
    parsed = parse(expression, timezone, name=name, anchor=start)
    times: list[datetime] = []
    found: datetime | None = start
    while found is not None and len(times) < count:
        found = parsed.next(found)
        if found is not None:
            times.append(found)
    sentence, traps = in_words(parsed), warnings(parsed, start)
    if old := outdated(timezone):
        traps = [*traps, old]
    place, release = source_of(timezone)
    rows = [(time, local(time, timezone), mark(parsed, time)) for time in times]
    if as_json:
        print_json(
            {
                "expression": parsed.text,
                "timezone": timezone,
                "in_words": sentence,
                "fire_times": [{"fire_time": time, "local": there, "mark": mark} for time, there, mark in rows],
                "warnings": traps,
                "tzdata": {"release": release, "from": place},
            }
        )
    else:
        write(f"{sentence}.")
        _print(rows, timezone)
    for trap in traps:
        warn(f"{trap}.")
    if len(times) < count:
        say("There is no further fire time." if times else "No fire time is left.")


def _print(rows: list[tuple[datetime, str, str | None]], timezone: str) -> None:
    """One fire time a line, with a column for marks if there are any."""
    marked = any(mark for _, _, mark in rows)
    if rows:
        print_table(
            ["UTC", timezone, *["daylight saving"] * marked],
            [[instant(time, exact=True), there, *[mark or ""] * marked] for time, there, mark in rows],
        )
