"""Shared by the commands: the options that name a database, and the way from them to a client."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import Field, fields
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias, TypeVar

import click

from pgsched import config
from pgsched.client.client import Client, Row, connect
from pgsched.config import Settings
from pgsched.db.target import database
from pgsched.errors import DatabaseUnavailable, InvalidExpression, NotFound
from pgsched.expression.duration import parse_duration
from pgsched.rules.nesting import read

T = TypeVar("T")
Command = Callable[..., Any]
Setting: TypeAlias = "Field[Any]"
_LIMIT = 60.0  # seconds that a look at the database may take, a frozen network included


def setting_options(*names: str) -> Callable[[Command], Command]:
    """A flag for each of these settings, and --config. The command gets the checked ones as `settings`.

    Before the command is called, raises ConfigurationError with every problem.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def resolved(flags: dict[str, Any], file: str | None, **given: Any) -> Any:
            return command(settings=config.load(flags, file=file), **given)

        return setting_flags(*names)(resolved)

    return decorate


def setting_flags(
    *names: str, note: Callable[[Setting], str] = lambda setting: f"[PGSCHED_{setting.name.upper()}]"
) -> Callable[[Command], Command]:
    """The same flags, unchecked, for a command that also reads the factory's settings before it can check them.

    The command gets the given values as `flags`, and --config as `file`. config checks the values, so that every
    source of settings has the same error messages.

    note: returns what follows a setting's help; by default its environment variable.
    """
    known = {field.name: field for field in fields(Settings)}

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def gathered(file: str | None, **given: Any) -> Any:
            return command(flags={name: given.pop(name) for name in names}, file=file, **given)

        options = [
            click.option(
                f"--{name.replace('_', '-')}",
                name,
                metavar="TEXT",
                help=f"{known[name].metadata['help']}  {note(known[name])}".rstrip(),
            )
            for name in names
        ]
        options.append(
            click.option("--config", "file", metavar="FILE", help="Read settings from FILE instead of pgsched.toml.")
        )
        # Decorators apply from the inside out; the first name should be first in the help.
        return functools.reduce(lambda made, option: option(made), reversed(options), gathered)

    return decorate


database_options = setting_options("dsn", "schema", "data_dir")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def an_instant(text: str) -> datetime:
    """For click: an ISO 8601 instant with its offset."""
    try:
        found = datetime.fromisoformat(text)
        if found.tzinfo is not None:
            return found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text!r} is not an instant such as 2027-01-01T09:00:00Z.") from None
    raise click.BadParameter(f"{text!r} has no UTC offset: add Z, or an offset such as +02:00.")


def a_duration(text: str) -> timedelta:
    """For click: a duration, written as in the settings."""
    try:
        return parse_duration(text)
    except InvalidExpression:
        raise click.BadParameter(f"{text!r} is not a duration such as 500ms, 30s, 5m, 2h.") from None


def a_past(text: str) -> datetime | timedelta:
    """For click: an instant, or an age such as 2h. in_past() turns an age into an instant."""
    try:
        return parse_duration(text)
    except InvalidExpression:
        pass
    try:
        return an_instant(text)
    except click.BadParameter:
        raise click.BadParameter(
            f"{text!r} is neither an instant such as 2027-01-01T09:00:00Z, nor an age such as 2h or 30m."
        ) from None


async def in_past(client: Client, given: datetime | timedelta | None) -> datetime | None:
    """The instant that a_past() read, by the database's clock."""
    return await client.now() - given if isinstance(given, timedelta) else given


def a_json_object(text: str) -> dict[str, Any]:
    """For click: a JSON object."""
    try:
        found = read(text)
    except ValueError as error:
        raise click.BadParameter(f"it cannot be read as JSON: {error}.") from None
    if not isinstance(found, dict):
        raise click.BadParameter('it is not a JSON object such as {"format": "pdf"}.')
    return found


async def bounded(work: Awaitable[T], limit: float | None = _LIMIT) -> T:
    """Awaits the work and returns its result.

    limit: in seconds; None for no limit.
    Raises DatabaseUnavailable if the work takes longer.
    """
    try:
        async with asyncio.timeout(limit):
            return await work
    except TimeoutError:
        raise DatabaseUnavailable(f"The database did not answer within {limit:g} s.") from None


def run_async(work: Coroutine[Any, Any, T], limit: float | None = _LIMIT) -> T:
    """Runs a coroutine to its end, in its own event loop. Raises DatabaseUnavailable like bounded()."""
    # psycopg cannot use the event loop that Windows has by default.
    factory = asyncio.SelectorEventLoop if sys.platform == "win32" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(bounded(work, limit))


def with_client(settings: Settings, work: Callable[[Client], Awaitable[T]], limit: float | None = _LIMIT) -> T:
    """Calls `work` with a client of the settings' database and returns its result; limit as in run_async()."""

    async def go(dsn: str | None) -> T:
        async with connect(dsn, schema=settings.schema) as client:
            return await work(client)

    with database(settings) as dsn:
        return run_async(go(dsn), limit)


async def find_schedule(client: Client, name: str) -> Row:
    """The schedule with that name, or the only schedule of the entrypoint with that name. Raises NotFound."""
    try:
        return await client.get_schedule(name)
    except NotFound:
        rows = await client.list_schedules(entrypoint=name)
        if len(rows) > 1:
            names = ", ".join(f'"{row["name"]}"' for row in rows[:10])
            raise NotFound(
                f'There is no schedule "{name}", and the entrypoint "{name}" has {len(rows)} schedules: '
                f"name one of {names}."
            ) from None
        if not rows:
            raise
        return rows[0]
