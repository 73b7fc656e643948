"""`pgsched import-crontab FILE`: shows what a crontab would become, asks, and makes all of it or nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from pgsched.cli.options import database_options, json_option, with_client
from pgsched.cli.output import instant, print_json, print_table, say, warn
from pgsched.client import Client
from pgsched.commands import ENTRYPOINT
from pgsched.config import Settings
from pgsched.crontab import Crontab, Job, read
from pgsched.errors import ConfigurationError, PgschedError
from pgsched.expression import parse
from pgsched.model import Retry


@click.command("import-crontab")
@click.argument("crontab", metavar="FILE", type=click.Path(allow_dash=True, path_type=Path))
@click.option("--user-column", is_flag=True, help="A user stands before each command, as in /etc/crontab.")
@click.option("--prefix", default="", metavar="TEXT", help="What the schedules' names begin with.")
@click.option("--tz", "timezone", metavar="ZONE", help="The zone of lines without CRON_TZ.  [this machine's]")
@click.option("--entrypoint", default=ENTRYPOINT, help=f"The entrypoint that runs commands.  [{ENTRYPOINT}]")
@click.option("--overlap", default="skip", metavar="POLICY", help="skip, queue, cancel, allow (as cron), or N.  [skip]")
@click.option(
    "--attempts", type=click.IntRange(1, 1000), default=1, help="How often a failed command is tried.  [1, as cron]"
)
@click.option("--skip-unreadable", is_flag=True, help="Import the rest where lines cannot be imported.")
@click.option("--dry-run", is_flag=True, help="Only show what would be made.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@database_options
def import_crontab(
    *,
    settings: Settings,
    crontab: Path,
    user_column: bool,
    prefix: str,
    timezone: str | None,
    skip_unreadable: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Turn the crontab FILE (- is standard input) into schedules that run its commands.

    Shows them first and asks; where there is no terminal to ask on, --yes makes them and --dry-run does not. It makes
    all of them or none: names that exist and lines that cannot be read stop it. The commands are run by workers that
    allow it: `pgsched run pgsched.commands:create_scheduler`, or a factory that calls allow_commands(); as their
    user, and in their directory where no HOME is set.

    Exit codes: 0 made, or all well in a dry run; 1 something stands against it, or declined; 2 usage.
    """
    found = read(_text(crontab), timezone=timezone or local_timezone(), prefix=prefix, user_column=user_column)
    if not (dry_run or yes) and (crontab == Path("-") or not (sys.stdin and sys.stdin.isatty())):
        raise click.UsageError("There is no terminal to ask on: look with --dry-run, then import with --yes.")
    taken: set[str] = set()
    if not dry_run or settings.names_a_database:
        taken = with_client(settings, lambda client: _taken(client, found.jobs))
    _show(found, taken, as_json)
    stopped = bool(taken) or (bool(found.problems) and not skip_unreadable)
    if dry_run:
        return int(stopped)
    if stopped:
        raise PgschedError(f"Nothing was imported: {_obstacles(found, taken, skip_unreadable)}.")
    if not found.jobs:
        raise PgschedError("Nothing was imported: there is no command in it.")
    if not yes and not click.confirm(f"Make these {len(found.jobs)} schedules?", err=True):
        raise PgschedError("Nothing was imported.")
    with_client(settings, lambda client: _make(client, found.jobs, **options))
    say(f"Made {len(found.jobs)} schedules of the entrypoint {options['entrypoint']!r}.")
    return 0


def _text(file: Path) -> str:
    try:
        data = sys.stdin.buffer.read() if file == Path("-") else file.read_bytes()
        return data.decode()
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigurationError(f"{file} is not UTF-8 in line {line}.") from None


def local_timezone() -> str:
    """The name of this machine's time zone, by which its cron goes; UTC where it has none."""
    if name := os.environ.get("TZ", "").removeprefix(":"):
        return name
    _, zoneinfo, name = os.path.realpath("/etc/localtime").rpartition("zoneinfo/")
    return name if zoneinfo and name else "UTC"


async def _taken(client: Client, jobs: list[Job]) -> set[str]:
    names = {row["name"] for row in await client.list_schedules()}
    return names & {job.name for job in jobs}


async def _make(client: Client, jobs: list[Job], *, entrypoint: str, overlap: str, attempts: int) -> None:
    async with client.transaction() as connection:
        for job in jobs:
            await client.create_schedule(
                job.name,
                entrypoint,
                job.expression,
                timezone=job.timezone,
                args=job.args,
                overlap=overlap,
                retry=Retry(attempts),
                connection=connection,
            )


def _obstacles(found: Crontab, taken: Collection[str], skip_unreadable: bool) -> str:
    told = []
    if taken:
        listed = ", ".join(sorted(taken)[:10])
        told.append(f"there are schedules already that are named {listed} (choose a --prefix)")
    if found.problems and not skip_unreadable:
        told.append("lines cannot be imported (to leave them out, say --skip-unreadable)")
    return " and ".join(told)


def _show(found: Crontab, taken: Collection[str], as_json: bool) -> None:
    now = datetime.now(UTC)
    coming = {job.name: parse(job.expression, job.timezone, name=job.name).next(now) for job in found.jobs}
    if as_json:
        jobs = [
            {"line": job.line, "name": job.name, "expression": job.expression, "timezone": job.timezone,
             "args": job.args, "user": job.user, "next_run": coming[job.name], "exists": job.name in taken}
            for job in found.jobs
        ]  # fmt: skip
        notes = {
            kind: [{"line": note.line, "text": note.text} for note in list_]
            for kind, list_ in (("problems", found.problems), ("remarks", found.remarks))
        }
        print_json({"schedules": jobs, **notes})
    elif found.jobs:
        rows = [
            [job.line, job.name, job.expression, job.timezone, instant(coming[job.name]), job.command]
            for job in found.jobs
        ]
        print_table(["line", "name", "expression", "zone", "next run", "command"], rows)
    for note in found.remarks:
        say(f"Line {note.line}: {note.text}.")
    if users := sorted({job.user for job in found.jobs if job.user}):
        say(f"The commands of {', '.join(users)} will run as the worker's user.")
    for note in found.problems:
        warn(f"line {note.line} cannot be imported: {note.text.removesuffix('.')}.")
    for name in sorted(taken):
        warn(f'there is a schedule "{name}" already.')
