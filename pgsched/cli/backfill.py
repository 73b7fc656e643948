"""`pgsched schedules backfill`: shows a bar while it queues and waits, then the result."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

from pgsched.cli.options import find_schedule, with_client
from pgsched.cli.show.moments import Moment
from pgsched.cli.show.output import instant, local, print_json, print_table, say, write
from pgsched.client.client import Client, Row
from pgsched.config import Settings
from pgsched.rules.backfill import Backfill

_LOOK = 0.3  # seconds between looks while it waits for runs to end
_QUEUEING = 600.0  # seconds that queueing may take
_ENDED = ("succeeded", "failed", "cancelled")


def run_backfill(
    settings: Settings, name: str, start: Moment, end: Moment, *, wait: bool, as_json: bool, **options: Any
) -> int:
    """Backfills, and returns the exit code: 1 if it waited and a run did not succeed."""

    async def queue(client: Client) -> tuple[Row, Backfill]:
        row = await find_schedule(client, name)
        zone = row["timezone"]
        for moment in (start, end):
            if remark := moment.remark(zone):
                say(f"{remark}.")
        with bar("queueing") as progress:
            first, last = start.start(zone), end.through(zone) if end.whole_day else end.start(zone)
            return row, await client.backfill(row["name"], first, last, progress=progress, **options)

    row, done = with_client(settings, queue, _QUEUEING)
    ids = [run_id for run_id in done.queued.values() if run_id is not None]
    statuses = with_client(settings, lambda client: _until_ended(client, ids), None) if wait and ids else {}
    if as_json:
        print_json(_as_json(row, done, options["dry_run"], statuses))
    else:
        _print(row, done, options["dry_run"], statuses)
    return int(any(status != "succeeded" for status in statuses))


async def _until_ended(client: Client, ids: list[int]) -> dict[str, int]:
    """Waits until runs have ended; returns their number by status. Ctrl-C ends the wait, not the runs."""
    with bar("running") as progress:
        while True:
            counts = await client.runs.count(ids)
            ended = sum(counts.get(status, 0) for status in _ENDED)
            progress(ended, len(ids))
            if ended >= sum(counts.values()):  # a run whose row is gone has ended too
                return counts
            await asyncio.sleep(_LOOK)


@contextlib.contextmanager
def bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, or nothing if that is not a terminal."""
    if not (sys.stderr and sys.stderr.isatty()):
        yield lambda done, total: None
        return
    with contextlib.ExitStack() as stack:
        bars: list[Any] = []

        def progress(done: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(click.progressbar(length=total, label=label, file=sys.stderr)))
            bars[0].update(done - bars[0].pos)

        yield progress


def _as_json(row: Row, done: Backfill, dry_run: bool, statuses: dict[str, int]) -> dict[str, Any]:
    fates = {**{time: ("queued", run_id) for time, run_id in done.queued.items()},
             **{time: ("left alone", run_id) for time, run_id in done.left_alone.items()}}  # fmt: skip
    return {
        "schedule": row["name"],
        "dry_run": dry_run,
        "fire_times": [
            {"fire_time": time, "local": local(time, row["timezone"]), "result": result, "run_id": run_id}
            for time, (result, run_id) in sorted(fates.items())
        ],
        "ended": statuses,
    }


def _print(row: Row, done: Backfill, dry_run: bool, statuses: dict[str, int]) -> None:
    if dry_run and (done.queued or done.left_alone):
        fates = {**dict.fromkeys(done.queued, "would be queued"),
                 **{time: f"has run {run_id}" for time, run_id in done.left_alone.items()}}  # fmt: skip
        print_table(
            ["UTC", row["timezone"], "result"],
            [[instant(time, exact=True), local(time, row["timezone"]), fate] for time, fate in sorted(fates.items())],
        )
    count, alone = len(done.queued), len(done.left_alone)
    verb = "Would queue" if dry_run else "Queued"
    line = f'{verb} {count} {"run" if count == 1 else "runs"} of "{row["name"]}"'
    if alone:
        line += f"; {alone} {'fire time already has' if alone == 1 else 'fire times already have'} a run"
    if not count and not alone:
        line = f'"{row["name"]}" has no fire time in that range'
    if statuses:
        line += ". Ended: " + ", ".join(f"{number} {status}" for status, number in sorted(statuses.items()))
    write(f"{line}.")
