"""`pgsched health`: checks whether the work gets done; with --live, whether the daemon here is alive."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import click

from pgsched.cli.options import json_option, run_async, setting_options
from pgsched.cli.show.output import print_json, visible, write
from pgsched.config import Settings
from pgsched.db import migrate
from pgsched.db.failures import in_sentences, reach
from pgsched.db.session import conninfo_for
from pgsched.db.statements.queries import Queries
from pgsched.db.target import database
from pgsched.errors import ConfigurationError, DatabaseUnavailable, SchemaError, Unhealthy
from pgsched.expression.duration import format_duration
from pgsched.expression.zone_files import REMEDY

STALE = 60.0  # seconds; a daemon's loop with an older stamp counts as stuck
_LIMIT = 20.0
_ANSWER = 8.0  # for each statement: to cancel one at the end of _LIMIT would wait for the same server


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check."""

    name: str
    status: Literal["ok", "warning", "failed"]
    message: str


@click.command()
@click.option("--live", is_flag=True, help="Only check that the daemon on this machine is alive, without the database.")
@json_option
@setting_options("dsn", "schema", "data_dir", "health_file")
def health(settings: Settings, live: bool, as_json: bool) -> int:
    """Check whether everything is well: the database, its schema, the workers, runs and schedules.

    Exit codes: 0 healthy; 4 unhealthy; 69 no database; 78 a schema of another version, or wrong configuration.
    """
    code = 0
    checks: list[Check] = []
    if live:
        checks.append(_live(settings.health_file))
    else:
        code = _look(settings, checks)
    if code == 0 and any(check.status == "failed" for check in checks):
        code = Unhealthy.exit_code
    if as_json:
        print_json({"healthy": code == 0, "checks": [asdict(check) for check in checks]})
    else:
        for check in checks:
            write(f"{check.status:<7}  {check.name}: {visible(check.message)}")
    return code


def _look(settings: Settings, checks: list[Check]) -> int:
    """Adds the checks; returns 0, or an exit code if the database or its schema cannot be used."""

    async def work(dsn: str | None) -> list[Check]:
        async with await reach(conninfo_for(dsn, "pgsched health"), answer=_ANSWER) as connection:
            checks.append(Check("database", "ok", "it answers"))
            with in_sentences(settings.schema):
                version = await migrate.check(connection, settings.schema)
                checks.append(
                    Check("schema", "ok", f'"{settings.schema}" is at version {version}, which serves this pgsched')
                )
                queries = Queries(settings.schema)
                [row] = await queries.rows(connection, "read_health", {})
                return judged(row, await queries.rows(connection, "read_waits", {}))

    try:
        with database(settings) as dsn:
            checks.extend(run_async(work(dsn), _LIMIT))
    except (DatabaseUnavailable, SchemaError) as error:
        name = "schema" if isinstance(error, SchemaError) else "database"
        checks.append(Check(name, "failed", str(error)))
        return error.exit_code
    return 0


def judged(row: dict[str, Any], waits: Sequence[dict[str, Any]] = ()) -> list[Check]:
    """The checks that follow from the row of read_health and the rows of read_waits."""
    workers, silent, overdue, invalid = (row[name] for name in ("workers", "silent", "overdue", "invalid"))
    return [
        Check("workers", "ok", f"{_many(workers, 'worker')} alive")
        if workers
        else Check("workers", "failed", "none is alive: start one with `pgsched run`"),
        Check(
            "connections",
            "failed",
            f"{_many(row['troubled'], 'worker')} that the database does not fully answer: {_some(row['troubles'])}",
        )
        if row["troubled"]
        else Check("connections", "ok", "the database answers every worker fully"),
        Check("runs", "failed", f"{_many(silent, 'run')} without a heartbeat for 2 minutes: {_some(row['silent_ids'])}")
        if silent
        else Check("runs", "ok", "all running runs have a recent heartbeat"),
        Check(
            "cancellation",
            "warning",
            f"{_many(row['stubborn'], 'run')} still going a minute after being asked to stop: "
            f"{_some(row['stubborn_ids'])}",
        )
        if row["stubborn"]
        else Check("cancellation", "ok", "no run is still going a minute after it was asked to stop"),
        Check(
            "schedules", "failed", f"{_many(overdue, 'schedule')} overdue by 2 minutes: {_some(row['overdue_names'])}"
        )
        if overdue
        else Check("schedules", "ok", "none is overdue"),
        Check(
            "entrypoints",
            "failed",
            f"{_many(row['unserved'], 'entrypoint')} with work that has been due for 2 minutes and that no live worker "
            f"can run: {_some(row['unserved_names'])}",
        )
        if row["unserved"]
        else Check("entrypoints", "ok", "every due job has a live worker that can run it"),
        _waiting(waits),
        Check(
            "applications",
            "warning",
            f"{_many(row['deserted'], 'application')} with active schedules and no live worker: "
            f"{_some(row['deserted_names'])}. Start a worker of the application; if the application was renamed, run "
            "`pgsched schedules adopt OLD NEW`",
        )
        if row["deserted"]
        else Check("applications", "ok", "every application with active schedules has a live worker"),
        _zones(row),
        Check(
            "threads",
            "failed",
            f"{_many(row['left_behind'], 'function')} still going in a thread after the run has ended: "
            f"{_some(row['left_behind_runs'])}; restart the worker",
        )
        if row["left_behind"]
        else Check("threads", "ok", "no function is still going after its run has ended"),
        Check("expressions", "warning", f"{_many(invalid, 'schedule')} invalid: {_some(row['invalid_names'])}")
        if invalid
        else Check("expressions", "ok", "no schedule is invalid"),
        Check(
            "rows",
            "failed",
            f"{_many(row['refused'], 'row')} that the database refuses to change: {_some(row['refused_rows'])}. "
            "Fix the trigger or constraint that refuses. A row is tried again when it changes, or within ten minutes",
        )
        if row["refused"]
        else Check("rows", "ok", "the database refuses no row"),
    ]


_WAITS_FOR = {
    "place": "a free place on {workers}",
    "overlap": "the overlap of its schedule",
    "limits": "a free place at its limits",
    "key": "a free place of its concurrency key",
    "rate": "its limits, which let no more runs start in this period",
    "itself": "its own earlier attempt",
}
_SERIOUS = ("ok", "warning", "failed")


def _waiting(waits: Sequence[dict[str, Any]]) -> Check:
    """The check of the run that waits with the least hope.

    failed: every run in its way does not stop. warning: some of them do not, or the workers are too busy.
    ok: an overlap, a limit or a rate is in use and does its job.
    """

    def status(wait: dict[str, Any]) -> Literal["ok", "warning", "failed"]:
        if wait["hanging"] and wait["hanging"] == wait["holding"]:
            return "failed"
        return "warning" if wait["hanging"] or wait["kind"] == "place" else "ok"

    if not waits:
        return Check("waiting", "ok", "no run has been due for 2 minutes")
    worst = min(waits, key=lambda wait: (-_SERIOUS.index(status(wait)), wait["due_at"]))
    waited = format_duration(timedelta(seconds=worst["waited"] // timedelta(seconds=1)))
    awaited = _WAITS_FOR[worst["kind"]].format(workers=_many(worst["workers"], "worker"))
    message = f"run {worst['run_id']} ({worst['entrypoint']}) has been due for {waited} and waits for {awaited}"
    if worst["kind"] == "itself":
        message += ", which is still going in a thread: restart its worker"
    elif worst["holding"]:
        message += f"; {_many(worst['holding'], 'run')} in the way: {_some(worst['ids'])}"
        if worst["hanging"]:
            message += f", and {_many(worst['hanging'], 'run')} will not stop"
    return Check("waiting", status(worst), message)


def _zones(row: dict[str, Any]) -> Check:
    """The tzdata releases of the workers, and whether some read older rules than others do or than they could."""
    read = f"tzdata {_some(row['tzdata'])}" if row["tzdata"] else "no worker names its tzdata"
    if row["withheld_zones"]:
        return Check(
            "time zones",
            "warning",
            f"workers on {_some(row['withheld_hosts'])} have other rules than the recorded ones for "
            f"{_some(row['withheld_zones'])}, and leave these zones to other workers ({read}): {REMEDY}",
        )
    if row["outdated_hosts"]:
        hosts = _some(row["outdated_hosts"])
        return Check("time zones", "warning", f"time zone files are older than the package's on {hosts}: {REMEDY}")
    return Check("time zones", "ok", read)


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _some(names: list[Any]) -> str:
    return ", ".join(map(str, names)) + (", …" if len(names) == 5 else "")


def _live(file: str | None) -> Check:
    """Whether the daemon's loop has turned recently. The file holds its time.monotonic(), one clock per machine."""
    if file is None:
        raise ConfigurationError(
            "`health --live` needs the setting health_file: give the daemon's value with --health-file or "
            "PGSCHED_HEALTH_FILE."
        )
    try:
        age = time.monotonic() - _stamp(Path(file))
    except OSError as error:
        return Check("daemon", "failed", f"the health file {file} cannot be read: {error.strerror}")
    except ValueError:
        return Check("daemon", "failed", f"the health file {file} holds no time: check that it is the daemon's file")
    if age < 0:
        return Check("daemon", "failed", f"the health file {file} is from before this machine started")
    if age > STALE:
        return Check("daemon", "failed", f"its event loop has not turned for {age:.0f} s")
    return Check("daemon", "ok", f"its event loop turned {age:.0f} s ago")


def _stamp(path: Path) -> float:
    """The stamp in the file. The daemon may be writing it right now, so an empty file is read again."""
    for _ in range(5):
        with path.open("rb") as stream:
            text = stream.read(100)
        if text.strip():
            break
        time.sleep(0.05)
    stamp = float(text)
    if not abs(stamp) < 1e12:
        raise ValueError
    return stamp
