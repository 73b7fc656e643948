"""`pgsched import-crontab FILE`: shows the schedules that a crontab would become, asks, and makes all or none."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from pgsched.cli.options import database_options, json_option, with_client
from pgsched.cli.show.output import instant, print_json, print_table, say, warn
from pgsched.client.client import Client, Row
from pgsched.config import Settings
from pgsched.errors import ConfigurationError, PgschedError
from pgsched.executors.command import ENTRYPOINT
from pgsched.expression.crontab import Crontab, Job, read
from pgsched.expression.expression import parse
from pgsched.rules.retry import Retry


@click.command("import-crontab")
@click.argument("crontab", metavar="FILE", type=click.Path(allow_dash=True, path_type=Path))
@click.option("--user-column", is_flag=True, help="Each line names a user before the command, as in /etc/crontab.")
@click.option("--prefix", default="", metavar="TEXT", help="Begin the schedules' names with this text.")
@click.option("--tz", "timezone", metavar="ZONE", help="The time zone of lines without CRON_TZ.  [this machine's]")
@click.option("--entrypoint", default=ENTRYPOINT, help=f"The entrypoint that runs commands.  [{ENTRYPOINT}]")
@click.option(
    "--overlap",
    default="skip",
    metavar="POLICY",
    help="If an earlier run is live: skip, queue, cancel, allow (as cron), or how many may run at once.  [skip]",
)
@click.option(
    "--attempts", type=click.IntRange(1, 1000), default=1, help="How many times to try a failing command.  [1, as cron]"
)
@click.option("--update", is_flag=True, help="Also change existing schedules whose lines have changed.")
@click.option("--skip-unreadable", is_flag=True, help="If lines cannot be imported, import the rest.")
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
    update: bool,
    skip_unreadable: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Turn the crontab FILE (- is standard input) into schedules that run its commands.

    It shows the schedules first and asks. Without a terminal to ask on, add --yes to import or --dry-run to look.
    It makes all schedules or none: unreadable lines stop it, and so do names that belong to other schedules.
    Schedules that are already up to date are left alone. If a line has changed, --update changes its schedule's
    expression, time zone and command, and nothing else.

    The commands are run by workers that allow it: `pgsched run pgsched.commands:create_scheduler`, or a factory that
    calls allow_commands(). They run as the worker's user, with the worker's environment; cron gives its commands
    little more than a PATH. If no HOME is set, they run in the worker's directory.

    Exit codes: 0 imported, or nothing in the way in a dry run; 1 something prevents it, or you declined; 2 usage.
    """
    found = read(_text(crontab), timezone=timezone or local_timezone(), prefix=prefix, user_column=user_column)
    if not (dry_run or yes) and (crontab == Path("-") or not (sys.stdin and sys.stdin.isatty())):
        raise click.UsageError("There is no terminal to ask on: look with --dry-run, then import with --yes.")
    there = _There()
    if not dry_run or settings.names_a_database:
        there = with_client(settings, lambda client: _look(client, found.jobs, options["entrypoint"], prefix))
    _show(found, there, update, as_json)
    obstacles = _obstacles(found, there, update, skip_unreadable)
    if dry_run:
        return int(bool(obstacles))
    if obstacles:
        raise PgschedError(f"Nothing was imported: {' and '.join(obstacles)}.")
    if not found.jobs:
        raise PgschedError("Nothing was imported: the file has no command.")
    new = [job for job in found.jobs if there.state(job) == "new"]
    changed = [job for job in found.jobs if there.state(job) == "changed"]
    if not new and not changed:
        say(f"All {len(found.jobs)} schedules already exist and are up to date.")
        return 0
    doing = " and ".join(f"{verb} {len(jobs)}" for verb, jobs in (("make", new), ("change", changed)) if jobs)
    if not yes and not click.confirm(f"{doing.capitalize()} schedules?", err=True):
        raise PgschedError("Nothing was imported.")
    with_client(settings, lambda client: _write(client, new, changed, **options))
    done = " and ".join(f"{verb} {len(jobs)}" for verb, jobs in (("made", new), ("changed", changed)) if jobs)
    say(f"{done.capitalize()} schedules of the entrypoint {options['entrypoint']!r}.")
    return 0


@dataclass(frozen=True, slots=True)
class _There:
    """The schedules that the database already has.

    states: by name, "same", "changed", or "taken" by something else.
    others: names of the entrypoint's schedules that have no line.
    """

    states: Mapping[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()

    def state(self, job: Job) -> str:
        """The state of a job's name: one of `states`, or "new" if no schedule has the name."""
        return self.states.get(job.name, "new")

    def names(self, state: str) -> list[str]:
        """The names in a state."""
        return sorted(name for name, its in self.states.items() if its == state)


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
    """The name of this machine's time zone, which its cron uses; UTC if it has none."""
    if name := os.environ.get("TZ", "").removeprefix(":"):
        return name
    _, zoneinfo, name = os.path.realpath("/etc/localtime").rpartition("zoneinfo/")
    return name if zoneinfo and name else "UTC"


async def _look(client: Client, jobs: list[Job], entrypoint: str, prefix: str) -> _There:
    rows = {row["name"]: row for row in await client.list_schedules()}
    ours = {name for name, row in rows.items() if row["entrypoint"] == entrypoint and row["owner"] == "api"}
    states = {job.name: _state(job, rows[job.name], job.name in ours) for job in jobs if job.name in rows}
    return _There(states, tuple(sorted(name for name in ours - {job.name for job in jobs} if name.startswith(prefix))))


def _state(job: Job, row: Row, ours: bool) -> str:
    if not ours:
        return "taken"
    same = (row["expression"], row["timezone"], row["args"]) == (job.expression, job.timezone, job.args)
    return "same" if same else "changed"


async def _write(
    client: Client, new: list[Job], changed: list[Job], *, entrypoint: str, overlap: str, attempts: int
) -> None:
    async with client.transaction() as connection:
        for job in new:
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
        for job in changed:
            await client.alter(
                job.name, expression=job.expression, timezone=job.timezone, args=job.args, connection=connection
            )


def _obstacles(found: Crontab, there: _There, update: bool, skip_unreadable: bool) -> list[str]:
    obstacles = []
    if taken := there.names("taken"):
        obstacles.append(f"other schedules already have the names {', '.join(taken[:10])} (choose a --prefix)")
    if (changed := there.names("changed")) and not update:
        obstacles.append(
            f"the schedules {', '.join(changed[:10])} already exist with another time or command (add --update to "
            "change them, or choose a --prefix to make others)"
        )
    if found.problems and not skip_unreadable:
        obstacles.append("some lines cannot be imported (add --skip-unreadable to leave them out)")
    return obstacles


def _show(found: Crontab, there: _There, update: bool, as_json: bool) -> None:
    now = datetime.now(UTC)
    coming = {job.name: parse(job.expression, job.timezone, name=job.name).next(now) for job in found.jobs}
    if as_json:
        jobs = [
            {"line": job.line, "name": job.name, "expression": job.expression, "timezone": job.timezone,
             "args": job.args, "user": job.user, "next_run": coming[job.name], "state": there.state(job)}
            for job in found.jobs
        ]  # fmt: skip
        notes = {
            kind: [{"line": note.line, "text": note.text} for note in list_]
            for kind, list_ in (("problems", found.problems), ("remarks", found.remarks))
        }
        print_json({"schedules": jobs, **notes})
    elif found.jobs:
        rows = [
            [job.line, job.name, there.state(job), job.expression, job.timezone, instant(coming[job.name]), job.command]
            for job in found.jobs
        ]
        print_table(["line", "name", "is", "expression", "zone", "next run", "command"], rows)
    for note in found.remarks:
        say(f"Line {note.line}: {note.text}.")
    if users := sorted({job.user for job in found.jobs if job.user}):
        say(f"The commands of {', '.join(users)} will run as the worker's user.")
    for note in found.problems:
        warn(f"line {note.line} cannot be imported: {note.text.removesuffix('.')}.")
    for name in there.names("taken"):
        warn(f'another schedule already has the name "{name}".')
    if update and there.others:
        warn(
            f"the file has no line for {', '.join(there.others[:20])}: if their lines were deleted, remove them with "
            "`pgsched schedules remove NAME`."
        )
