"""`pgsched schedules adopt`: gives the schedules of a renamed application to its new name."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import click
from psycopg import sql

from pgsched.cli.options import database_options, json_option, run_async
from pgsched.cli.show.output import print_json, say, visible, write
from pgsched.config import Settings
from pgsched.db import migrate, session
from pgsched.db.failures import in_sentences, reach
from pgsched.db.session import Connection
from pgsched.db.statements.declarations import DeclarationStatements
from pgsched.db.target import database
from pgsched.errors import NotFound, PgschedError
from pgsched.rules.deploy import Holder
from pgsched.rules.options import name_of


@dataclass(frozen=True, slots=True)
class Adopted:
    """The names of the schedules that were taken over, the number of live jobs, and the old application's workers."""

    schedules: list[str]
    runs: int
    workers: list[Holder]


class _DryRun(Exception):
    """Rolls the transaction back."""

    def __init__(self, found: Adopted) -> None:
        self.found = found


@click.command()
@click.argument("old")
@click.argument("new")
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@click.option("--yes", is_flag=True, help="Take schedules over even if workers of OLD are alive.")
@json_option
@database_options
def adopt(*, settings: Settings, old: str, new: str, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Give the schedules and queued runs of the application OLD to the application NEW.

    Use it after an application's name has changed, because its project, its factory or Scheduler(app=...) was
    renamed. Schedules keep their history and their state. The next start of NEW retires schedules that NEW does not
    declare. Stop the workers of OLD first: while one is alive, this command refuses unless you add --yes.
    """
    for name in (old, new):
        name_of("An application's name", name)
    if old == new:
        raise click.UsageError("OLD and NEW are the same application.")

    async def work(dsn: str | None) -> Adopted:
        info, limit = session.conninfo_for(dsn, "pgsched adopt"), session.STATEMENT_LIMIT.total_seconds()
        async with await reach(info, answer=limit) as connection:
            with in_sentences(settings.schema):
                await migrate.check(connection, settings.schema)
                try:
                    return await _adopt(
                        connection, DeclarationStatements(settings.schema), old, new, dry_run=dry_run, force=yes
                    )
                except _DryRun as end:
                    return end.found

    with database(settings) as dsn:
        found = run_async(work(dsn))
    if as_json:
        print_json({"old": old, "new": new, "dry_run": dry_run, **asdict(found)})
    else:
        _print(found, old, new, dry_run=dry_run)


async def _adopt(
    connection: Connection, statements: DeclarationStatements, old: str, new: str, *, dry_run: bool, force: bool
) -> Adopted:
    async with connection.transaction():
        # The order in which a start locks them when it takes schedules over by itself.
        for app in sorted((old, new)):
            await statements.lock_declarations(connection, app)
        workers = await statements.read_holders(connection, old, in_force=False)
        if workers and not force and not dry_run:
            raise PgschedError(
                f"Nothing was changed: {_workers(workers)} of the application {old!r} alive ({workers[0]}). "
                "Stop them first, or add --yes to take its schedules over anyway."
            )
        names, runs = await statements.adopt(connection, old, new)
        if not names and not runs:
            apps = sorted({row["app"] for row in await statements.rows(connection, "list_applications", {})} - {old})
            known = f"the others are {', '.join(map(repr, apps))}" if apps else "no other application has any"
            raise NotFound(f"The application {old!r} has no schedules and no queued runs: {known}.")
        found = Adopted(names, runs, workers)
        if dry_run:
            raise _DryRun(found)
        await connection.execute(sql.SQL("notify {}").format(statements.channel))
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


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
