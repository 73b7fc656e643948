"""`pgsched runs retry` for many runs: shows them, asks, and queues them again."""

from __future__ import annotations

import sys
from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import click

from pgsched.cli.backfill import bar
from pgsched.cli.options import find_schedule, in_past, with_client
from pgsched.cli.show.details import why
from pgsched.cli.show.output import instant, print_json, print_table, say, write
from pgsched.client.client import Client, Row
from pgsched.config import Settings
from pgsched.errors import PgschedError

_SHOWN = 5
_LONG = 600.0  # seconds that queueing may take

Past = datetime | timedelta | None


def retry_many(settings: Settings, *, yes: bool, dry_run: bool, as_json: bool, **which: Any) -> int:
    """Shows the runs that match the filters, asks, and queues them again. Returns the exit code.

    Raises PgschedError if the answer is no, click's UsageError if there is no terminal to ask on.
    """
    if not (yes or dry_run) and not (sys.stdin and sys.stdin.isatty()):
        raise click.UsageError("There is no terminal to ask on: add --yes to retry without being asked, or --dry-run.")
    rows = with_client(settings, lambda client: _look(client, **which))
    if dry_run or not rows:
        _show(rows, as_json)
        return 0
    if not yes:
        _show(rows, False, err=True)
        if not click.confirm(f"Queue {_count(len(rows))} again?", err=True):
            raise PgschedError("Nothing was queued.")
    queued = _queue(settings, [row["id"] for row in rows])
    alone = sorted({row["id"] for row in rows} - {*queued})
    if as_json:
        print_json({"queued": queued, "left_alone": alone})
    else:
        write(f"Queued {_count(len(queued))} again" + (f"; left {_count(len(alone))} alone" if alone else "") + ".")
    if alone:
        say("Runs are left alone if they changed meanwhile, are locked, or share a unique key with a live run.")
    return 0


async def _look(
    client: Client, *, statuses: set[str], entrypoint: str | None, schedule: str | None, since: Past, until: Past
) -> list[Row]:
    return await client.runs.list_dead(
        status=None if len(statuses) == 2 else min(statuses),
        entrypoint=entrypoint,
        schedule=None if schedule is None else (await find_schedule(client, schedule))["name"],
        since=await in_past(client, since),
        until=await in_past(client, until),
    )


def _queue(settings: Settings, ids: list[int]) -> list[int]:
    with bar("queueing") as progress:
        return with_client(settings, lambda client: client.runs.retry_many(ids, progress=progress), _LONG)


def _count(number: int) -> str:
    return f"{number} run" if number == 1 else f"{number} runs"


def _show(rows: list[Row], as_json: bool, *, err: bool = False) -> None:
    """The number of runs per entrypoint and status, and the first few runs."""
    if as_json:
        print_json(rows)
        return
    if not rows:
        say("No runs match.")
        return
    counts = Counter((row["entrypoint"], row["status"]) for row in rows)
    print_table(["entrypoint", "status", "runs"], [[*key, count] for key, count in sorted(counts.items())], err=err)
    heads = ["id", "what", "status", "attempt", "ended", "why"]
    first = [
        [row["id"], row["schedule"] or row["entrypoint"], row["status"], row["attempt"], instant(row["finished_at"]),
         why(row)]
        for row in rows[:_SHOWN]
    ]  # fmt: skip
    write(err=err)
    print_table(heads, first, err=err)
    if len(rows) > _SHOWN:
        write(f"… and {len(rows) - _SHOWN} more", err=err)
