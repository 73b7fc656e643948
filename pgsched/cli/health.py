"""`pgsched health`: whether the work gets done, by the database; with --live, whether the daemon here turns."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import click

from pgsched.cli.options import database, json_option, run_async, setting_options
from pgsched.cli.show.output import print_json, visible, write
from pgsched.config import Settings
from pgsched.db import migrate
from pgsched.db.failures import reach, told
from pgsched.db.session import conninfo_for
from pgsched.db.statements.store import Store
from pgsched.errors import ConfigurationError, DatabaseUnavailable, SchemaError, Unhealthy
from pgsched.expression.duration import format_duration
from pgsched.expression.zone_files import REMEDY

STALE = 60.0  # seconds after which the loop of a daemon that has written nothing counts as stuck
_LIMIT = 20.0


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: Literal["ok", "warning", "failed"]
    message: str


@click.command()
@click.option("--live", is_flag=True, help="Only look whether the daemon on this machine turns; asks no database.")
@json_option
@setting_options("dsn", "schema", "data_dir", "health_file")
def health(settings: Settings, live: bool, as_json: bool) -> int:
    """Tell whether everything is well: the database, its schema, the workers, runs and schedules.

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
    """Adds what it finds; returns the exit code where it could not look at all."""

    async def work(dsn: str | None) -> list[Check]:
        async with await reach(conninfo_for(dsn, "pgsched health")) as connection:
            checks.append(Check("database", "ok", "it answers"))
            with told(settings.schema):
                await migrate.check(connection, settings.schema)
                checks.append(Check("schema", "ok", f'"{settings.schema}" is of this version'))
                store = Store(settings.schema)
                [row] = await store.rows(connection, "read_health", {})
                return judged(row, await store.rows(connection, "read_waits", {}))

    try:
        with database(settings) as dsn:
            checks.extend(run_async(work(dsn), _LIMIT))
    except (DatabaseUnavailable, SchemaError) as error:
        name = "schema" if isinstance(error, SchemaError) else "database"
        checks.append(Check(name, "failed", str(error)))
        return error.exit_code
    return 0


def judged(row: dict[str, Any], waits: Sequence[dict[str, Any]] = ()) -> list[Check]:
    """What the one row of read_health means, and the rows of read_waits."""
    workers, silent, overdue, invalid = (row[name] for name in ("workers", "silent", "overdue", "invalid"))
    return [
        Check("workers", "ok", f"{_many(workers, 'worker')} alive")
        if workers
        else Check("workers", "failed", "none is alive: start one with `pgsched run`"),
        Check(
            "runs", "failed", f"{_many(silent, 'run')} without a sign of life for 2 minutes: {_some(row['silent_ids'])}"
        )
        if silent
        else Check("runs", "ok", "all that run show signs of life"),
        Check(
            "cancellation",
            "warning",
            f"{_many(row['stubborn'], 'run')} going on a minute after the time to stop: {_some(row['stubborn_ids'])}",
        )
        if row["stubborn"]
        else Check("cancellation", "ok", "no run goes on a minute after it was to stop"),
        Check(
            "schedules", "failed", f"{_many(overdue, 'schedule')} overdue by 2 minutes: {_some(row['overdue_names'])}"
        )
        if overdue
        else Check("schedules", "ok", "none is overdue"),
        Check(
            "entrypoints",
            "failed",
            f"{_many(row['unserved'], 'entrypoint')} with work that no live worker can do, due for 2 minutes: "
            f"{_some(row['unserved_names'])}",
        )
        if row["unserved"]
        else Check("entrypoints", "ok", "what is due has a worker that can do it"),
        _waiting(waits),
        Check(
            "applications",
            "warning",
            f"{_many(row['deserted'], 'application')} with active schedules and no live worker: "
            f"{_some(row['deserted_names'])}. Start a worker of it; if it has another name now, run "
            "`pgsched schedules adopt OLD NEW`",
        )
        if row["deserted"]
        else Check("applications", "ok", "each one with active schedules has a live worker"),
        _zones(row),
        Check(
            "threads",
            "failed",
            f"{_many(row['left_behind'], 'function')} going on in a thread though the run has ended: "
            f"{_some(row['left_behind_runs'])}; restart the worker",
        )
        if row["left_behind"]
        else Check("threads", "ok", "no thread goes on after its run"),
        Check("expressions", "warning", f"{_many(invalid, 'schedule')} invalid: {_some(row['invalid_names'])}")
        if invalid
        else Check("expressions", "ok", "no schedule is invalid"),
        Check(
            "rows",
            "failed",
            f"{_many(row['refused'], 'row')} that the database refuses to change: {_some(row['refused_rows'])}. "
            "Mend the trigger or constraint that refuses. A row is tried again when it changes, or within ten minutes",
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
    """The one run that waits with the least hope: it fails if all that holds what the run needs does not stop. That
    workers are too busy is a warning. An overlap, a limit or a rate that is in use does what it is for."""

    def status(wait: dict[str, Any]) -> Literal["ok", "warning", "failed"]:
        if wait["hanging"] and wait["hanging"] == wait["holding"]:
            return "failed"
        return "warning" if wait["hanging"] or wait["kind"] == "place" else "ok"

    if not waits:
        return Check("waiting", "ok", "no run has been due for 2 minutes")
    worst = min(waits, key=lambda wait: (-_SERIOUS.index(status(wait)), wait["due_at"]))
    waited = format_duration(timedelta(seconds=worst["waited"] // timedelta(seconds=1)))
    what = _WAITS_FOR[worst["kind"]].format(workers=_many(worst["workers"], "worker"))
    message = f"run {worst['run_id']} ({worst['entrypoint']}) has been due for {waited} and waits for {what}"
    if worst["kind"] == "itself":
        message += ", which goes on in a thread: restart its worker"
    elif worst["holding"]:
        message += f"; {_many(worst['holding'], 'run')} in the way: {_some(worst['ids'])}"
        if worst["hanging"]:
            message += f", {worst['hanging']} of which {'does' if worst['hanging'] == 1 else 'do'} not stop"
    return Check("waiting", status(worst), message)


def _zones(row: dict[str, Any]) -> Check:
    """Which tzdata the workers read, and whether some read older rules than others, or than they could."""
    read = f"tzdata {_some(row['tzdata'])}" if row["tzdata"] else "no worker names its tzdata"
    if row["withheld_zones"]:
        return Check(
            "time zones",
            "warning",
            f"workers on {_some(row['withheld_hosts'])} have other rules than the noted ones for "
            f"{_some(row['withheld_zones'])}, and leave these zones to other workers ({read}): {REMEDY}",
        )
    if row["outdated_hosts"]:
        hosts = _some(row["outdated_hosts"])
        return Check("time zones", "warning", f"time zone files older than the package's on {hosts}: {REMEDY}")
    return Check("time zones", "ok", read)


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _some(names: list[Any]) -> str:
    return ", ".join(map(str, names)) + (", …" if len(names) == 5 else "")


def _live(file: str | None) -> Check:
    """Whether the daemon's loop has turned of late. The file holds its time.monotonic(), one clock a machine."""
    if file is None:
        raise ConfigurationError(
            "`health --live` needs the setting health_file, the same as the daemon's: --health-file or "
            "PGSCHED_HEALTH_FILE."
        )
    try:
        age = time.monotonic() - _stamp(Path(file))
    except OSError as error:
        return Check("daemon", "failed", f"the health file {file} cannot be read: {error.strerror}")
    except ValueError:
        return Check("daemon", "failed", f"the health file {file} holds no time: is it the daemon's?")
    if age < 0:
        return Check("daemon", "failed", f"the health file {file} is from before this machine started")
    if age > STALE:
        return Check("daemon", "failed", f"its event loop has not turned for {age:.0f} s")
    return Check("daemon", "ok", f"its event loop turned {age:.0f} s ago")


def _stamp(path: Path) -> float:
    """The stamp in the file. The daemon may be writing it at this very moment, so an empty file is read again."""
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
