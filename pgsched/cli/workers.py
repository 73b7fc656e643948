"""`pgsched workers`: shows the live workers."""

from __future__ import annotations

import click

from pgsched.cli.options import database_options, json_option, with_client
from pgsched.cli.show.output import instant, print_json, print_table, say
from pgsched.config import Settings

_FIELDS = (
    "id",
    "host",
    "pid",
    "app",
    "version",
    "state",
    "running",
    "trouble",
    "left_behind",
    "started_at",
    "seen_at",
    "tzdata",
    "tzdata_from",
    "connected",
)


@click.command()
@json_option
@database_options
def workers(settings: Settings, as_json: bool) -> None:
    """Show the workers, and whether the server sees a session of each.

    An idle worker is seen about once a minute. A worker that is neither seen nor connected is dead.
    trouble is what the database does not answer it, such as "ends not written for 40 s".
    tzdata is the release of the time zone rules that a worker reads, and tzdata_from their source.
    """
    rows = with_client(settings, lambda client: client.list_workers())
    if as_json:
        print_json(rows)
    elif not rows:
        say("No workers.")
    else:
        heads = [name.removesuffix("_at") for name in _FIELDS]
        print_table(heads, [[_shown(row[name]) for name in _FIELDS] for row in rows])


def _shown(value: object) -> object:
    return instant(value) if hasattr(value, "astimezone") else value  # type: ignore[arg-type]
