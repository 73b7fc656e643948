"""`pgsched schedules`: shows schedules and changes them. NAME may be an entrypoint that has only one schedule."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta
from typing import Any

import click

from pgsched.cli.adopt import adopt
from pgsched.cli.backfill import run_backfill
from pgsched.cli.options import (
    a_duration,
    a_json_object,
    an_instant,
    database_options,
    find_schedule,
    json_option,
    with_client,
)
from pgsched.cli.show.details import show_schedule
from pgsched.cli.show.moments import Moment, a_moment
from pgsched.cli.show.output import instant, print_json, print_table, say, write
from pgsched.cli.show.why import Answer, show_answer
from pgsched.cli.wait import wait_for
from pgsched.client.client import Client, Row
from pgsched.client.why import Situation
from pgsched.config import Settings
from pgsched.errors import PgschedError
from pgsched.model import ScheduleStatus
from pgsched.rules.backfill import MOST
from pgsched.rules.retry import Retry

_COLUMNS = {
    "name": "name",
    "entrypoint": "entrypoint",
    "expression": "expression",
    "timezone": "zone",
    "status": "status",
    "next_run": "next run",
    "last_run": "last run",
    "last_status": "last status",
}


@click.group()
def schedules() -> None:
    """Look at schedules and change them.

    A NAME may also be the name of an entrypoint that has exactly one schedule.
    """


schedules.add_command(adopt)


@schedules.command("list")
@click.option("--entrypoint", help="Only schedules of this entrypoint.")
@click.option(
    "--status", type=click.Choice([str(status) for status in ScheduleStatus]), help="Only schedules in this status."
)
@json_option
@database_options
def list_(settings: Settings, entrypoint: str | None, status: str | None, as_json: bool) -> None:
    """List schedules, by name."""
    rows = with_client(settings, lambda client: client.list_schedules(entrypoint=entrypoint, status=status))
    if as_json:
        print_json(rows)
    elif not rows:
        say("No schedules.")
    else:
        print_table(list(_COLUMNS.values()), [[_cell(row[name]) for name in _COLUMNS] for row in rows])


def _cell(value: Any) -> Any:
    return instant(value) if isinstance(value, datetime) else value


@schedules.command()
@click.argument("name")
@click.option(
    "--at",
    "moment",
    type=a_moment,
    metavar="MOMENT",
    help="Explain the schedule's fire times at this past or future MOMENT.",
)
@json_option
@database_options
def show(settings: Settings, name: str, moment: Moment | None, as_json: bool) -> None:
    """Show everything about a schedule: its fields, its next fire times, and its last runs and skipped fire times.

    With --at, show why it did or did not run at that moment. A MOMENT is a date, a time on the schedule's own clock
    (2027-03-28T02:30), or an instant with its offset.
    """

    async def read(client: Client) -> tuple[Row, list[Row], Situation]:
        row = await find_schedule(client, name)
        return row, await client.list_runs(row["name"], limit=10), await client.situation(row["name"])

    async def look(client: Client) -> Answer:
        row = await find_schedule(client, name)
        assert moment is not None
        start, through = moment.start(row["timezone"]), moment.through(row["timezone"])
        records = await client.list_runs_between(row["name"], start, through)
        return Answer(row, moment, start, through, records, await client.situation(row["name"]))

    if moment is None:
        show_schedule(*with_client(settings, read), as_json)
    else:
        show_answer(with_client(settings, look), as_json)


@schedules.command()
@click.argument("name")
@click.argument("entrypoint")
@click.argument("expression")
@click.option("--tz", "timezone", default="UTC", metavar="ZONE", help="The expression's time zone.  [UTC]")
@click.option(
    "--args", type=a_json_object, metavar="JSON", help='The function\'s arguments, such as {"format": "pdf"}.'
)
@click.option(
    "--overlap",
    default="skip",
    metavar="POLICY",
    help="If an earlier run is live: skip, queue, cancel, allow, or how many may run at once.  [skip]",
)
@click.option(
    "--catch-up",
    type=click.Choice(["latest", "all", "none"]),
    default="latest",
    help="Which missed fire times to run.  [latest]",
)
@click.option(
    "--catch-up-limit",
    type=click.IntRange(1, 1_000_000),
    default=1000,
    help="With --catch-up all, run at most this many missed fire times.  [1000]",
)
@click.option("--grace", type=a_duration, metavar="DURATION", help="A fire time older than this is missed.")
@click.option("--jitter", type=a_duration, metavar="DURATION", help="Delay each start by up to this much.")
@click.option("--timeout", type=a_duration, metavar="DURATION", help="How long a run may take.")
@click.option("--attempts", type=click.IntRange(1, 1000), help="How many times to try a failing run.")
@click.option("--backoff", type=a_duration, metavar="DURATION", help="The wait before the second attempt.  [1s]")
@click.option("--max-backoff", type=a_duration, metavar="DURATION", help="The longest wait between attempts.  [1h]")
@click.option(
    "--starts-at", type=an_instant, metavar="INSTANT", help="Do not fire before this, such as 2027-01-01T09:00:00Z."
)
@click.option("--ends-at", type=an_instant, metavar="INSTANT", help="Do not fire after this instant.")
@click.option("--max-runs", type=click.IntRange(min=1), help="Finish the schedule after this many runs.")
@click.option(
    "--priority", type=click.IntRange(-100, 100), default=0, help="Due runs of a higher priority start first.  [0]"
)
@click.option(
    "--app", metavar="NAME", help="Only workers of this application run it.  [every worker that has the entrypoint]"
)
@json_option
@database_options
def add(
    *,
    settings: Settings,
    name: str,
    entrypoint: str,
    expression: str,
    attempts: int | None,
    backoff: timedelta | None,
    max_backoff: timedelta | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Make a schedule NAME that runs ENTRYPOINT whenever EXPRESSION fires. Prints its id."""
    retry = _retry(attempts, backoff, max_backoff)
    made = with_client(
        settings, lambda client: client.create_schedule(name, entrypoint, expression, retry=retry, **options)
    )
    if as_json:
        print_json({"id": made, "name": name})
    else:
        write(str(made))


def _retry(attempts: int | None, backoff: timedelta | None, max_backoff: timedelta | None) -> Retry | None:
    if attempts is None:
        if backoff is not None or max_backoff is not None:
            raise click.UsageError("--backoff and --max-backoff need --attempts.")
        return None
    try:
        usual = Retry(attempts)
        return Retry(
            attempts,
            usual.backoff if backoff is None else backoff,
            usual.max_backoff if max_backoff is None else max_backoff,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None


@schedules.command()
@click.argument("name")
@click.option("--note", help="The reason for the pause, shown with the schedule.")
@click.option("--until", type=an_instant, metavar="INSTANT", help="Resume at this instant; a fire time then runs.")
@click.option(
    "--backlog",
    is_flag=True,
    help="On resume, treat fire times that fell into the pause as missed and apply --catch-up.",
)
@database_options
def pause(settings: Settings, name: str, note: str | None, until: datetime | None, backlog: bool) -> None:
    """Pause a schedule, until an instant or until you resume it. Fire times during the pause are skipped."""

    async def work(client: Client) -> str:
        title = str((await find_schedule(client, name))["name"])
        await client.pause(title, note, until, backlog=backlog)
        return title

    title = with_client(settings, work)
    say(f'Paused "{title}"' + (f" until {instant(until)}." if until else "."))


@schedules.command()
@click.argument("name")
@click.option(
    "--backlog/--no-backlog",
    default=None,
    help="Treat fire times that fell into the pause as missed, or skip them.  [as chosen when pausing]",
)
@database_options
def resume(settings: Settings, name: str, backlog: bool | None) -> None:
    """Resume a paused schedule. Fire times during the pause are recorded as skipped, unless --backlog is set."""

    async def work(client: Client) -> str:
        title = str((await find_schedule(client, name))["name"])
        await client.resume(title, backlog=backlog)
        return title

    say(f'Resumed "{with_client(settings, work)}".')


@schedules.command()
@click.argument("name")
@click.option("--wait", is_flag=True, help="Wait until the run has ended; exit with 1 if it did not succeed.")
@click.option("--timeout", type=a_duration, metavar="DURATION", help="With --wait, wait no longer than this.")
@json_option
@database_options
def trigger(settings: Settings, name: str, wait: bool, timeout: timedelta | None, as_json: bool) -> int:
    """Run a schedule now, in any status. Prints the run's id; with --wait, how the run ended.

    Ctrl-C ends the wait, not the run.
    """
    if timeout is not None and not wait:
        raise click.UsageError("--timeout needs --wait.")

    async def work(client: Client) -> int:
        return await client.trigger((await find_schedule(client, name))["name"])

    run_id = with_client(settings, work)
    if wait:
        return wait_for(settings, run_id, timeout, as_json)
    if as_json:
        print_json({"run_id": run_id})
    else:
        write(str(run_id))
    return 0


@schedules.command()
@click.argument("name")
@click.option(
    "--from", "start", type=a_moment, required=True, metavar="MOMENT", help="The first fire time, or earlier."
)
@click.option(
    "--to",
    "end",
    type=a_moment,
    required=True,
    metavar="MOMENT",
    help="The last fire time, or later; a date includes the whole day.",
)
@click.option(
    "--again", is_flag=True, help="Run fire times again that already have a run, unless that run is still live."
)
@click.option(
    "--limit",
    type=click.IntRange(1, MOST),
    default=10_000,
    help="Refuse a range with more fire times than this.  [10000]",
)
@click.option(
    "--priority",
    type=click.IntRange(-100, 100),
    help="Due runs of a higher priority start first.  [ten less than the schedule's]",
)
@click.option("--dry-run", is_flag=True, help="Only show the runs that would be queued.")
@click.option("--wait", is_flag=True, help="Wait until all runs have ended; exit with 1 if a run did not succeed.")
@json_option
@database_options
def backfill(
    *, settings: Settings, name: str, start: Moment, end: Moment, wait: bool, as_json: bool, **options: Any
) -> int:
    """Run the fire times of a past range, one run for each.

    A MOMENT is a date, a time on the schedule's own clock (2027-03-28T02:30), or an instant with its offset. A fire
    time that already has a run is left alone, so repeating the command does nothing. The runs obey the schedule's
    overlap and let its regular fire times go first.
    """
    return run_backfill(settings, name, start, end, wait=wait, as_json=as_json, **options)


@schedules.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@database_options
def remove(settings: Settings, name: str, yes: bool) -> None:
    """Remove a schedule and its queued runs. Its history stays."""
    if not yes and not (sys.stdin and sys.stdin.isatty()):
        raise click.UsageError("There is no terminal to ask on: add --yes to remove it without being asked.")

    async def look(client: Client) -> Row:
        return await find_schedule(client, name)

    row = with_client(settings, look)
    title = row["name"]
    if row["owner"].startswith("code:"):
        say(
            f'"{title}" is declared by {row["owner"].removeprefix("code:").strip()}, which adds it again when it '
            "starts next."
        )
    if not yes and not click.confirm(f"Remove the schedule {title!r}?", err=True):
        raise PgschedError("Nothing was removed.")
    with_client(settings, lambda client: client.remove(title))
    say(f'Removed "{title}".')
