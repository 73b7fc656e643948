"""`pgsched check APP`: how the code's declarations differ from the database. Changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import click

from pgsched import config, log
from pgsched.cli.options import bounded, json_option, run_async, setting_flags
from pgsched.cli.run import built
from pgsched.cli.show.output import heading, instant, local, plain, print_json, visible, warn, write
from pgsched.config import Settings
from pgsched.db import migrate, session
from pgsched.db.failures import in_sentences, reach
from pgsched.db.session import Connection
from pgsched.db.statements.declarations import DeclarationStatements
from pgsched.db.target import database
from pgsched.executors.executor import Executor
from pgsched.executors.home import is_gone
from pgsched.expression.expression import parse
from pgsched.expression.zone_files import outdated, source_of
from pgsched.expression.zones import Rules, newer
from pgsched.model import ScheduleStatus
from pgsched.rules import deploy
from pgsched.rules.deploy import Difference, Kind, Next, Other, Standing, Verdict
from pgsched.scheduler import Scheduler
from pgsched.worker.claim.zone_rules import in_force, known

Limits = dict[str, dict[str, tuple[Any, Any]]]


@dataclass(frozen=True, slots=True)
class Zone:
    """A time zone whose schedules were planned with other rules than this code reads. Releases are tzdata's."""

    name: str
    ours: str | None
    planned: str | None

    @property
    def newer(self) -> bool:
        """Whether a start replans its schedules; if not, it leaves them to other workers."""
        return newer(self.ours, self.planned)


@dataclass(frozen=True, slots=True)
class Look:
    """The result of a check.

    standing: the declarations' place in the application's history.
    differences, limits: the changes that a start would make.
    earlier: the application under earlier names.
    refusal: why a start would be refused, or None.
    zones: time zones with other rules than the code reads.
    """

    standing: Standing
    differences: list[Difference]
    limits: Limits
    earlier: list[Other]
    refusal: str | None
    zones: list[Zone]


@click.command()
@click.argument("app")
@click.option("--exit-zero", is_flag=True, help="Exit 0 even if something differs.")
@json_option
@setting_flags("dsn", "schema", "data_dir")
def check(*, app: str, exit_zero: bool, as_json: bool, flags: dict[str, Any], file: str | None) -> int:
    """Show how the schedules and limits of the factory APP differ from those in the database. Show also how
    a start of this code would change the next runs. Changes nothing, and locks nothing.

    APP is the import path that `pgsched run` takes. Next runs are computed as of now; a start plans a changed
    expression from the moment of the change. The output also names the time zone rules that this code reads, and the
    time zones that a start would replan because of them.

    Exit codes: 0 nothing differs; 1 something differs; 69 no database; 78 wrong configuration, or a database whose
    schema does not serve this version: run `pgsched migrate`.
    """
    early = config.load(flags, file=file)
    log.begin(early.log_level, early.log_format)
    scheduler, found = run_async(_check(app, flags, file), limit=None)
    verdict = deploy.verdict(scheduler.fingerprint, found.standing)
    different = (
        bool(found.limits)
        or any(each.kind is not Kind.UNCHANGED for each in found.differences)
        or any(each.newer for each in found.zones)
    )
    if as_json:
        print_json(_as_json(scheduler, found, verdict, different))
    else:
        _print(scheduler.app_name, found, verdict)
    for zone in sorted({str(row["timezone"]) for row in scheduler.rows()}):
        if old := outdated(zone):
            warn(f"{old}.")
    return 1 if different and not exit_zero else 0


async def _check(app: str, flags: dict[str, Any], file: str | None) -> tuple[Scheduler, Look]:
    async with built(app) as scheduler:  # may take long; only the database's time is bounded
        settings = config.load(flags, scheduler.settings, file=file)
        log.configure(settings.log_level, settings.log_format)
        with database(settings) as dsn:
            return scheduler, await bounded(_look(scheduler, settings, dsn))


async def _look(scheduler: Scheduler, settings: Settings, dsn: str | None) -> Look:
    info, limit = session.conninfo_for(dsn, "pgsched check"), session.STATEMENT_LIMIT.total_seconds()
    async with await reach(info, answer=limit) as connection:
        with in_sentences(settings.schema):
            async with session.snapshot(connection):
                await migrate.check(connection, settings.schema)
                return await look(connection, DeclarationStatements(settings.schema), scheduler)


async def look(connection: Connection, statements: DeclarationStatements, scheduler: Scheduler) -> Look:
    """The application's declarations, compared with the database, and the effect of a start on each schedule."""
    rows = {name: declared.row for name, declared in scheduler.declared.items()}
    standing = await statements.read_declarations(connection, scheduler.app_name, scheduler.fingerprint)
    others = await statements.read_owners(connection, scheduler.owner, list(rows))
    earlier = [x for x in others if deploy.is_ours(x, scheduler.home.project, scheduler.former_names, is_gone)]
    ours = [f"code:{other.app}" for other in earlier if not other.alive]
    awaited = [f"code:{other.app}" for other in earlier if other.alive]
    compared = await statements.compare_schedules(connection, [scheduler.owner, *ours], scheduler.rows())
    holders = await statements.read_holders(connection, scheduler.app_name, in_force=True)

    def times_of(row: Mapping[str, Any], anchor: datetime) -> Next | None:
        executor = scheduler.executor_for(row["entrypoint"], row["name"])
        if executor is not None and type(executor).next_fire_time is not Executor.next_fire_time:
            return None
        return parse(row["expression"], row["timezone"], name=row["name"], anchor=anchor)

    differences = [
        deploy.difference(
            each, rows.get(each.name), scheduler.owner, standing.now, times_of, ours=ours, awaited=awaited
        )
        for each in compared
    ]
    limits = await statements.compare_limits(connection, scheduler.owner, scheduler.limit_rows())
    refusal = None
    if standing.alive and deploy.verdict(scheduler.fingerprint, standing) is Verdict.NEW:
        refusal = deploy.why_refused(scheduler.app_name, compared, holders, scheduler.home.project)
    return Look(standing, differences, limits, earlier, refusal, await _zones(connection, statements, scheduler))


async def _zones(connection: Connection, statements: DeclarationStatements, scheduler: Scheduler) -> list[Zone]:
    used = {row["timezone"] for row in scheduler.rows()}
    found = []
    for zone in await statements.rows(connection, "read_zones", {}):
        ours = known(zone["name"]) if zone["name"] in used else None
        noted = None if zone["digest"] is None else Rules(zone["release"], zone["digest"])
        counts = in_force(noted, map(Rules.read, zone["planned_by"] or ()))
        if ours is not None and counts is not None and counts.digest != ours.digest:
            found.append(Zone(zone["name"], ours.release, counts.release))
    return found


# --- for programs ---------------------------------------------------------------------------------------


def _as_json(
    scheduler: Scheduler,
    look: Look,
    verdict: Verdict,
    different: bool,
) -> dict[str, Any]:
    standing = look.standing
    return {
        "app": scheduler.app_name,
        "now": standing.now,
        "different": different,
        "version": str(verdict),
        "in_force_since": standing.applied_at,
        "workers_in_force": standing.alive,
        "schedules": [
            {
                "name": found.name,
                "difference": str(found.kind),
                "owner": found.owner,
                "changes": {option: {"from": old, "to": new} for option, (old, new) in found.changes.items()},
                "status": {"before": found.status_before, "after": found.status_after},
                "timezone": {"before": found.timezone_before, "after": found.timezone_after},
                "next_run": {"before": found.next_run_before, "after": found.next_run_after},
                "paused_until": found.paused_until,
            }
            for found in look.differences
        ],
        "limits": [
            {"entrypoint": entrypoint, "changes": {name: {"from": old, "to": new} for name, (old, new) in each.items()}}
            for entrypoint, each in look.limits.items()
        ],
        "refused": look.refusal,
        "tzdata": dict(zip(("from", "release"), source_of(), strict=True)),
        "time_zones": [
            {"name": zone.name, "planned_with": zone.planned, "planned_anew": zone.newer} for zone in look.zones
        ],
        "earlier_names": [
            {"app": each.app, "schedules": each.schedules, "workers": each.alive} for each in look.earlier
        ],
    }


# --- for people -----------------------------------------------------------------------------------------


def _print(app: str, look: Look, verdict: Verdict) -> None:
    differences, limits = look.differences, look.limits
    differing = [each for each in differences if each.kind is not Kind.UNCHANGED]
    unchanged = len(differences) - len(differing)
    elsewhere = "limits" if limits else "time zone rules" if any(zone.newer for zone in look.zones) else None
    if differing:
        write(f"{_many(len(differing))} of {visible(app)} differ{'s' * (len(differing) == 1)}, {unchanged} unchanged.")
    elif elsewhere:
        write(f"No schedule of {visible(app)} differs, {unchanged} unchanged; {elsewhere} do.")
    else:
        write(f"Nothing differs: the database has {_many(unchanged)} of {visible(app)} as the code declares.")
    if look.refusal is not None:
        write(f"A start of this code would be refused. {visible(look.refusal)}")
    elif (differing or limits) and (effect := _effect(look.standing, verdict)):
        write(effect)
    for other in look.earlier:
        write(_moved(other, app))
    for each in differing:
        heading(f"{visible(each.name)}: {_difference(each, app)}")
        for option, (old, new) in each.changes.items():
            write(f"  {option.replace('_', ' ')}: {visible(plain(old))} -> {visible(plain(new))}")
        if each.kind is Kind.CHANGED and each.status_before != each.status_after:
            write(f"  status: {each.status_before} -> {each.status_after}")
        if each.kind is not Kind.FOREIGN:
            write(f"  next run before: {_before(each)}")
            write(f"  next run after:  {_after(each)}")
    for entrypoint, changes in limits.items():
        heading(f"limits of {visible(entrypoint)}")
        for name, (old, new) in changes.items():
            write(f"  {name.replace('_', ' ')}: {visible(plain(old))} -> {visible(plain(new))}")
    _print_zones(look.zones)


def _print_zones(zones: list[Zone]) -> None:
    for zone in zones:
        heading(f"time zone {visible(zone.name)}")
        follows = "a start replans its schedules" if zone.newer else "a start leaves its schedules to other workers"
        write(f"  planned with tzdata {zone.planned or 'unknown'}, this code reads {zone.ours or 'unknown'}: {follows}")
    place, release = source_of()
    write(f"Time zones: tzdata {release or 'unknown'} from {visible(place)}.")


def _effect(standing: Standing, verdict: Verdict) -> str | None:
    """The effect of a start that does not simply apply a new version, else None."""
    since = instant(standing.applied_at)
    if verdict is Verdict.DEFERRED:
        many = standing.alive > 1
        workers = f"{standing.alive} live worker{'s run' if many else ' runs'} the version"
        return (
            f"A start would change nothing yet: the database has had this version before, and {workers} that has been "
            f"in force since {since}. These changes take effect once {'they are' if many else 'it is'} gone."
        )
    if verdict is Verdict.BACK:
        return (
            "The database has had this version before, and no live worker runs the version that has been in force "
            f"since {since}: a start rolls back to this one."
        )
    return None


def _moved(other: Other, app: str) -> str:
    """When a start takes over the schedules that the application has under an earlier name."""
    schedules = f"The application used to be called {visible(other.app)}. Its {_many(other.schedules)}"
    if not other.alive:
        return f"{schedules} will be taken over by the next start."
    command = visible(deploy.adopt_command(other.app, app))
    return f"{schedules} will be taken over once its {_workers(other.alive)} gone. To do it now, run `{command} --yes`."


def _workers(count: int) -> str:
    return f"{count} live worker{'s are' if count > 1 else ' is'}"


def _difference(found: Difference, app: str) -> str:
    owner = (found.owner or "").removeprefix("code:")
    whose = "the API" if found.owner == "api" else f"the application {visible(owner)}"
    if found.kind is Kind.FOREIGN and found.owner != "api":
        command = visible(deploy.adopt_command(owner, app))
        return (
            f"not ours (the name belongs to {whose}, and is left alone; if this application used to have that name, "
            f"`{command}` takes it over)"
        )
    return {
        Kind.NEW: "new",
        Kind.CHANGED: "changed",
        Kind.RETURNING: "returns (it was retired, its history goes on)",
        Kind.RETIRED: "will be retired (the code no longer declares it; its history stays)",
        Kind.FOREIGN: f"not ours (the name belongs to {whose}, and is left alone)",
        Kind.UNCHANGED: "unchanged",
    }[found.kind]


def _before(found: Difference) -> str:
    if found.status_before is None:
        return "-"
    if found.status_before == ScheduleStatus.PAUSED:
        return _paused(found)
    if found.next_run_before is None:
        active = found.status_before == ScheduleStatus.ACTIVE
        return "not planned yet" if active else f"none, it is {found.status_before}"
    return _time(found.next_run_before, found.timezone_before)


def _after(found: Difference) -> str:
    if found.kind is Kind.RETIRED:
        return "-"
    if found.status_after == ScheduleStatus.PAUSED:
        return _paused(found)
    if found.own_times:
        return "computed by its executor"
    if found.next_run_after is None:
        active = found.status_after == ScheduleStatus.ACTIVE
        return "not planned yet" if active else "none, no fire time is left"
    return _time(found.next_run_after, found.timezone_after)


def _paused(found: Difference) -> str:
    return f"paused until {instant(found.paused_until)}" if found.paused_until else "paused"


def _time(time: datetime, timezone: str | None) -> str:
    if timezone in (None, "UTC"):
        return instant(time, exact=True)
    return f"{instant(time, exact=True)}, {local(time, timezone)} in {visible(timezone)}"


def _many(count: int) -> str:
    return f"{count} schedule{'' if count == 1 else 's'}"
