"""`pgsched runs`: shows runs and their logs, cancels them, queues them again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import click

from pgsched.cli.options import a_past, database_options, find_schedule, in_past, json_option, with_client
from pgsched.cli.retry import retry_many
from pgsched.cli.show.details import LAST_LINES, print_line, print_runs, show_run
from pgsched.cli.show.output import complain, print_json, print_json_line, say, warn, write
from pgsched.client.client import Client, Row
from pgsched.client.runs import REACH
from pgsched.config import Settings
from pgsched.errors import PgschedError
from pgsched.model import RunStatus

_ids = click.argument("ids", metavar="ID...", type=int, nargs=-1, required=True)


@click.group()
def runs() -> None:
    """Look at runs, cancel them, queue them again."""


@runs.command("list")
@click.option("--schedule", help="Only runs of this schedule.")
@click.option("--status", type=click.Choice([str(status) for status in RunStatus]), help="Only runs in this status.")
@click.option("--entrypoint", help="Only runs of this entrypoint.")
@click.option(
    "--since",
    type=a_past,
    metavar="WHEN",
    help="Only runs that ended after this, or are still live: an instant, or an age such as 2h.",
)
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=50, help="List at most this many runs.  [50]")
@json_option
@database_options
def list_(
    *,
    settings: Settings,
    schedule: str | None,
    status: str | None,
    entrypoint: str | None,
    since: datetime | timedelta | None,
    limit: int,
    as_json: bool,
) -> None:
    """List the newest runs, including skipped fire times."""

    async def read(client: Client) -> tuple[list[Row], bool]:
        name = schedule and (await find_schedule(client, schedule))["name"]
        rows = await client.list_runs(name, status, entrypoint, limit, since=await in_past(client, since))
        searched = _searches(schedule, status, entrypoint, since)
        return rows, searched and len(rows) < limit and await client.runs.beyond_reach()

    rows, cut = with_client(settings, read)
    if cut:
        warn(f"Searched only the newest {REACH:,} runs and all live runs.")
    if as_json:
        print_json(rows)
    elif not rows:
        say("No runs.")
    else:
        print_runs(rows)


def _searches(schedule: str | None, status: str | None, entrypoint: str | None, since: object) -> bool:
    """Whether list_runs() has no index for these filters and stops after the newest REACH runs."""
    if status in ("queued", "running"):
        return False
    if status in ("failed", "cancelled"):
        return bool(schedule and entrypoint)
    return bool(entrypoint or (schedule and (since or status == "succeeded")))


@runs.command()
@click.argument("run_id", metavar="ID", type=int)
@json_option
@database_options
def show(settings: Settings, run_id: int, as_json: bool) -> None:
    """Show everything about a run: fields, result, progress, the end of each attempt, errors with tracebacks, and log.

    The log is cut to the last 20 lines, or 1000 with --json. `pgsched runs logs ID` shows all lines.
    """

    async def read(client: Client) -> tuple[Row, list[Row]]:
        most = 1000 if as_json else LAST_LINES + 1
        return await client.get_run(run_id), await client.runs.log(run_id, limit=most)

    show_run(*with_client(settings, read), as_json)


@runs.command()
@click.argument("run_id", metavar="ID", type=int)
@click.option("-f", "--follow", is_flag=True, help="Keep printing new lines until the run has ended.")
@click.option("--attempt", type=click.IntRange(1, 2**31 - 1), help="Only this attempt's lines.")
@json_option
@database_options
def logs(settings: Settings, run_id: int, follow: bool, attempt: int | None, as_json: bool) -> None:
    """Show a run's log, oldest line first: time, attempt, level and text.

    With --follow, keep printing new lines, through all attempts. The exit code is 0 when the run has ended, even if
    it failed. With --follow and --json, each line is one JSON object.
    """

    async def read(client: Client) -> list[Row]:
        return await client.runs.log(run_id, attempt=attempt)

    async def go_on(client: Client) -> None:
        async for line in client.runs.follow(run_id, attempt=attempt):
            print_json_line(line) if as_json else print_line(line)

    if follow:
        with_client(settings, go_on, None)
        return
    lines = with_client(settings, read)
    if as_json:
        print_json(lines)
    elif not lines:
        say(f"Run {run_id} has logged nothing.")
    for line in [] if as_json else lines:
        print_line(line)


@runs.command()
@_ids
@json_option
@database_options
def cancel(settings: Settings, ids: tuple[int, ...], as_json: bool) -> int:
    """Cancel runs. Prints `cancelled` for a queued run, `requested` if a worker was asked to stop the run."""
    return _each(settings, ids, lambda client, run_id: client.cancel(run_id), as_json)


@runs.command()
@click.argument("ids", metavar="[ID...]", type=int, nargs=-1)
@click.option("--failed", is_flag=True, help="Retry all failed runs.")
@click.option("--cancelled", is_flag=True, help="Retry all cancelled runs.")
@click.option("--entrypoint", help="Only runs of this entrypoint.")
@click.option("--schedule", help="Only runs of this schedule.")
@click.option(
    "--since", type=a_past, metavar="WHEN", help="Only runs that ended after this: an instant, or an age such as 2h."
)
@click.option(
    "--until", type=a_past, metavar="WHEN", help="Only runs that ended by this time: an instant, or an age such as 2h."
)
@click.option("--dry-run", is_flag=True, help="Only show the runs that would be queued.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@database_options
def retry(
    *,
    settings: Settings,
    ids: tuple[int, ...],
    failed: bool,
    cancelled: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    **which: Any,
) -> int:
    """Queue failed or cancelled runs again, with at least one more attempt each.

    Name runs by their IDs, or take all --failed or --cancelled runs and narrow them down with the other options.
    Without IDs, the command shows the runs and asks before it queues them.
    """
    if ids and (failed or cancelled or any(value is not None for value in which.values())):
        raise click.UsageError("Give either the IDs of runs or filters such as --failed, not both.")
    if ids and dry_run:
        return _each(settings, ids, _would_retry, as_json)
    if ids:
        return _each(settings, ids, _retry, as_json)
    statuses = {name for name, wanted in (("failed", failed), ("cancelled", cancelled)) if wanted}
    if not statuses:
        raise click.UsageError("Name the runs to retry: give IDs, or --failed or --cancelled.")
    return retry_many(settings, statuses=statuses, yes=yes, dry_run=dry_run, as_json=as_json, **which)


async def _retry(client: Client, run_id: int) -> str:
    await client.retry(run_id)
    waits = (await client.get_run(run_id))["detail"]
    return f"queued; {waits}" if waits else "queued"


async def _would_retry(client: Client, run_id: int) -> str:
    if not await client.runs.list_dead([run_id]):
        status = (await client.get_run(run_id))["status"]
        raise PgschedError(f"Run {run_id} is {status}: only a failed or cancelled one can be retried.")
    return "would be queued"


def _each(settings: Settings, ids: tuple[int, ...], act: Callable[[Client, int], Awaitable[str]], as_json: bool) -> int:
    """Does it to each run; one that cannot be keeps no other from it. The exit code is the first failure's."""
    done: list[dict[str, Any]] = []
    failures: list[PgschedError] = []

    async def work(client: Client) -> None:
        for run_id in ids:
            try:
                done.append({"id": run_id, "result": await act(client, run_id)})
            except PgschedError as error:
                if error.exit_code not in (1, 3):  # not about this run
                    raise
                failures.append(error)

    with_client(settings, work)
    if as_json:
        print_json(done)
    else:
        for entry in done:
            write(f"{entry['id']} {entry['result']}")
    for failure in failures:
        complain(str(failure))
    return failures[0].exit_code if failures else 0
