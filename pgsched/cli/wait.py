"""Waits for a run on the command line: shows how it ended, and returns the exit code."""

from __future__ import annotations

from datetime import timedelta

from pgsched.cli.options import with_client
from pgsched.cli.show.details import print_end
from pgsched.cli.show.output import print_json
from pgsched.client.client import Client, Row
from pgsched.config import Settings
from pgsched.errors import PgschedError


def wait_for(settings: Settings, run_id: int, timeout: timedelta | None, as_json: bool) -> int:
    """Waits for a run's end and shows it. Returns 0 if it succeeded, else 1.

    Raises PgschedError if that takes longer than the timeout.
    """

    async def work(client: Client) -> Row:
        try:
            return await client.runs.wait(run_id, timeout)
        except TimeoutError as error:  # caught here, so that nobody mistakes it for the database's
            raise PgschedError(str(error)) from None

    row = with_client(settings, work, None)
    if as_json:
        print_json({"run_id": run_id, **row})
    else:
        print_end(row)
    return int(row["status"] != "succeeded")
