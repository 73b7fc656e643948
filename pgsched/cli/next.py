"""`pgsched next EXPRESSION`: when an expression fires. Asks no database."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from pgsched.cli.options import an_instant, json_option
from pgsched.cli.output import instant, local, print_json, print_table, say
from pgsched.expression import parse


@click.command()
@click.argument("expression")
@click.option("--tz", "timezone", default="UTC", metavar="ZONE", help="The time zone it is read in.  [UTC]")
@click.option(
    "--after",
    type=an_instant,
    metavar="INSTANT",
    help="Fire times after this instant, such as 2027-01-01T09:00:00Z.  [now]",
)
@click.option("--count", type=click.IntRange(1, 10_000), default=5, help="How many.  [5]")
@click.option("--name", default="", help="The schedule's name, from which H draws.")
@json_option
def next(*, expression: str, timezone: str, after: datetime | None, count: int, name: str, as_json: bool) -> None:
    """Show when EXPRESSION fires next, in UTC and in its time zone.

    EXPRESSION is a cron expression of five fields (six with seconds last, seven with the year), "@every 30s",
    "@at 2027-01-01T00:00:00Z", or a macro such as @daily. "@every" counts from --after.
    """
    found: datetime | None = after or datetime.now(UTC)
    parsed = parse(expression, timezone, name=name, anchor=found)
    times: list[datetime] = []
    while found is not None and len(times) < count:
        found = parsed.next(found)
        if found is not None:
            times.append(found)
    if as_json:
        print_json([{"fire_time": time, "local": local(time, timezone)} for time in times])
    elif times:
        print_table(["UTC", timezone], [[instant(time, exact=True), local(time, timezone)] for time in times])
    if len(times) < count:
        say("There is no further fire time." if times else "There is no fire time any more.")
