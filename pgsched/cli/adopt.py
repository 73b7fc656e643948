"""`pgsched schedules adopt`: gives the schedules of an application to another one, whose name it has now."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import click
from psycopg import sql

from pgsched.cli.options import database, database_options, json_option, run_async
from pgsched.cli.show.output import print_json, say, visible, write
from pgsched.config import Settings
from pgsched.db import migrate, session
from pgsched.db.failures import reach, told
from pgsched.db.session import Connection
from pgsched.db.statements.store import Store
from pgsched.errors import NotFound, PgschedError
from pgsched.rules.deploy import Holder
from pgsched.rules.options import name_of


@dataclass(frozen=True, slots=True)
class Adopted:
    """What changed hands: the names of schedules, how many live runs of no schedule, and the old name's workers."""

    schedules: list[str]
    runs: int
    workers: list[Holder]


class _DryRun(Exception):
    """Takes the transaction back."""

    def __init__(self, found: Adopted) -> None:
        self.found = found


@click.command()
@click.argument("old")
@click.argument("new")
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@click.option("--yes", is_flag=True, help="Take them over although workers of the application OLD are alive.")
@json_option
@database_options
def adopt(*, settings: Settings, old: str, new: str, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Give the schedules and queued runs of the application OLD to the application NEW.

    For an application that has another name now, because its project, its factory or Scheduler(app=...) has been
    renamed. Schedules keep their history and their state. The next start of NEW retires those that it does not
    declare. Stop the workers of OLD first: this command refuses while one is alive, unless it has --yes.
    """
    for name in (old, new):
        name_of("An application's name", name)
    if old == new:
        raise click.UsageError("OLD and NEW are the same application.")

    async def work(dsn: str | None) -> Adopted:
        async with await reach(session.conninfo_for(dsn, "pgsched adopt")) as connection:
            with told(settings.schema):
                await session.prepare(connection)
                await migrate.check(connection, settings.schema)
                try:
                    return await _adopt(connection, Store(settings.schema), old, new, dry_run=dry_run, force=yes)
                except _DryRun as end:
                    return end.found

    with database(settings) as dsn:
        found = run_async(work(dsn))
    if as_json:
        print_json({"old": old, "new": new, "dry_run": dry_run, **asdict(found)})
    else:
        _print(found, old, new, dry_run=dry_run)


async def _adopt(connection: Connection, store: Store, old: str, new: str, *, dry_run: bool, force: bool) -> Adopted:
    async with connection.transaction():
        # In the order of a start, which takes both locks when it takes over by itself.
        for app in sorted((old, new)):
            await store.lock_declarations(connection, app)
        workers = await store.read_holders(connection, old, in_force=False)
        if workers and not force and not dry_run:
            raise PgschedError(
                f"Nothing was changed: {_workers(workers)} of the application {old!r} alive ({workers[0]}). "
                "Stop them first, or add --yes to take its schedules over all the same."
            )
        names, runs = await store.adopt(connection, old, new)
        if not names and not runs:
            apps = sorted({row["app"] for row in await store.rows(connection, "list_applications", {})} - {old})
            known = f"there are {', '.join(map(repr, apps))}" if apps else "there is none"
            raise NotFound(f"There is no application {old!r} that has schedules or queued runs: {known}.")
        found = Adopted(names, runs, workers)
        if dry_run:
            raise _DryRun(found)
        await connection.execute(sql.SQL("notify {}").format(store.channel))
    return found


def _print(found: Adopted, old: str, new: str, *, dry_run: bool) -> None:
    for name in found.schedules:
        write(visible(name))
    done = "Would take" if dry_run else "Took"
    runs = f" and {_many(found.runs, 'job')}" if found.runs else ""
    say(f'{done} over {_many(len(found.schedules), "schedule")}{runs} of "{visible(old)}" for "{visible(new)}".')
    if found.workers:
        say(f'{_workers(found.workers)} of "{visible(old)}" alive ({visible(str(found.workers[0]))}).')


def _workers(workers: list[Holder]) -> str:
    return f"{_many(len(workers), 'worker')} {'is' if len(workers) == 1 else 'are'}"


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
