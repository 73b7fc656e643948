"""Time zone rules that change between two fire times, and workers with different ones.

Two made trees of zone files: by the older release America/Edmonton goes back to -07:00 on 1 November 2026, by the newer
one it stays at -06:00.
"""

import contextlib
import functools
import importlib.resources
import itertools
import os
import subprocess
import sys
import time
import zoneinfo
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import tzdata
from support.schedules import BASE
from support.workers import Parts

from pgsched import Scheduler
from pgsched.cli.health import judged
from pgsched.db.statements.queries import Queries, in_schema
from pgsched.db.statements.values import Share
from pgsched.expression import expression, zone_files
from pgsched.expression.zones import Rules, digest_of, newer
from pgsched.model import Schedule, ScheduleStatus
from pgsched.rules.plan import Occupancy, Plan, fire_times, plan
from pgsched.worker.claim import zone_rules

ZONE = "America/Edmonton"
OLD, NEW = "2025b", "2026b"
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


LIKE = {OLD: "Denver", NEW: "Regina", None: "Phoenix"}  # zones that are today as it was, or is, there


def file_like(city: str) -> Any:
    return importlib.resources.files("tzdata").joinpath("zoneinfo", "America", city)


@functools.cache
def loaded(release: str | None) -> tuple[zoneinfo.ZoneInfo, Rules]:
    with file_like(LIKE[release]).open("rb") as stream:
        zone = zoneinfo.ZoneInfo.from_file(stream, key=ZONE)
    return zone, Rules(release, digest_of(zone))


@pytest.fixture
def reads(monkeypatch) -> Callable[[str | None], None]:
    """Has this process read the rules of a release from now on, for this one zone."""
    now = [OLD]
    for module in (zone_rules, expression):
        monkeypatch.setattr(module, "check_timezone", lambda name: loaded(now[0])[0])
    monkeypatch.setattr(zone_rules, "known", lambda name: loaded(now[0])[1])
    return lambda release: now.__setitem__(0, release)


# --- the plan -------------------------------------------------------------------------------------------


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"2026-{text}").replace(tzinfo=UTC)


class Row:
    """A schedule's row, and what has fired of it."""

    def __init__(self, expression: str, **columns: object) -> None:
        self.schedule = replace(
            BASE, expression=expression, timezone=ZONE, next_run=None, created_at=at("10-27T00:00"),
            timed_at=at("10-27T00:00"), accounted_through=None, **columns,
        )  # fmt: skip
        self.fired: list[datetime] = []
        self.skipped = 0

    def passes(self, now: datetime) -> None:
        """A claim pass of a worker with this process's rules."""
        old = self.schedule
        shifted = zone_rules.ZoneRules.shifted(old)
        decided: Plan = plan(old, fire_times(old), Occupancy(), now, now, shifted=shifted)
        noted = zone_rules.zoned(old, decided.next_run, decided.accounted_through, shifted=shifted)
        self.fired += [run.fire_time for run in decided.runs]
        self.skipped += sum(skip.count for skip in decided.skips)
        self.schedule = replace(
            old, next_run=decided.next_run, last_run=self.fired[-1] if self.fired else None,
            accounted_through=decided.accounted_through or old.accounted_through, moved_from=None,
            zone_rules=noted.rules, next_wall=noted.next_wall,
            accounted_wall=noted.accounted_wall or old.accounted_wall,
        )  # fmt: skip
        assert decided.status is ScheduleStatus.ACTIVE

    def moves(self) -> None:
        """A look at the zones by a worker whose rules are newer."""
        old = self.schedule
        self.schedule = replace(old, next_run=None, moved_from=old.next_run, zone_rules=str(zone_rules.known(ZONE)))

    def is_due(self, now: datetime) -> bool:
        return self.schedule.next_run is None or self.schedule.next_run <= now


def days(row: Row, hours: list[int], minute: int) -> dict[datetime, int]:
    """How often each listed time of each local day came, be it by the clock of -06:00 or of -07:00."""
    counts = {}
    for day, hour in itertools.product(range(28, 38), hours):
        first = at("10-01T00:00") + (day - 1) * DAY + hour * HOUR + minute * HOUR / 60 + 6 * HOUR
        counts[first] = sum(first <= fired <= first + HOUR for fired in row.fired)
    return {slot: count for slot, count in counts.items() if at("10-28T00:00") < slot < at("11-06T10:00")}


@pytest.mark.parametrize("catch_up", ["latest", "none", "all"])
@pytest.mark.parametrize("expression", ["30 3 * * *", "30 0 * * *", "30 23 * * *", "0 4,16 * * *"])
@pytest.mark.parametrize("pattern", ["ON", "NO", "ONONONONO"])
def test_no_local_day_comes_twice_or_is_left_out(reads, expression, catch_up, pattern):
    """The fleet goes over from rules to rules, at each quarter of an hour in turn, with a look or without."""
    minute, hours = expression.split()[:2]
    for looks, begin in itertools.product((True, False), range(0, 30 * 4, 5)):
        switches = [at("10-31T12:00") + (begin + 7 * n) * HOUR / 4 for n in range(len(pattern) - 1)]
        row = fired(reads, Row(expression, catch_up=catch_up), pattern, switches, looks=looks)
        counts = days(row, [int(hour) for hour in hours.split(",")], int(minute))
        assert set(counts.values()) == {1}, (looks, *(f"{s:%d %H:%M}" for s in [*switches, *row.fired]))
        assert row.skipped == 0


def fired(reads, row: Row, pattern: str, switches: list[datetime], *, looks: bool) -> Row:
    """The row after ten days of passes, each when it is due."""
    stage, now = 0, at("10-27T00:00")
    reads(OLD if pattern[0] == "O" else NEW)
    while now < at("11-06T12:00"):
        while stage < len(switches) and switches[stage] <= now:
            stage += 1
            reads(OLD if pattern[stage] == "O" else NEW)
            if looks and pattern[stage] == "N":
                row.moves()
        if row.is_due(now):
            row.passes(now)
        now = max(now, min([*switches[stage:], row.schedule.next_run]))
    return row


# --- two workers ----------------------------------------------------------------------------------------

YEARLY = "select pgsched.create_schedule(%s, %s, '0 9 15 1 *', timezone => 'America/Edmonton')"
PLANNED = "select extract(hour from next_run at time zone 'UTC')::int from pgsched.schedules where name = %s"
BY_OLD, BY_NEW = 16, 15  # 09:00 in January


class Node:
    """A worker with rules of its own, whose passes a test calls."""

    def __init__(self, db, settings, reads, release: str | None, scheduler: Scheduler | None = None) -> None:
        self.parts = Parts(settings, scheduler)
        self.db, self.reads, self.release = db, reads, release
        self.zones = self.parts.dispatcher.zones

    async def starts(self) -> "Node":
        kit = self.parts.kit
        await self.db.all(
            "insert into pgsched.workers (id, app, host, pid, version, entrypoints, direct, heartbeat_interval,"
            " stall_timeout, tzdata, tzdata_from) values (%s, %s, 'host', 1, '0', %s, false, '1s', '30s', %s, 'here')",
            kit.worker, kit.scheduler.app_name, list(kit.scheduler.entrypoints), self.release,
        )  # fmt: skip
        await self.looks()
        return self

    async def looks(self) -> None:
        self.reads(self.release)
        async with self.parts.kit.control.use() as connection:
            await self.zones.look(connection)

    async def passes(self) -> int:
        self.reads(self.release)
        return await self.parts.dispatcher.claim_pass()

    async def goes(self) -> None:
        await self.db.all("delete from pgsched.workers where id = %s", self.parts.kit.worker)


@pytest.fixture
async def node(db, settings, reads) -> AsyncIterator[Callable[..., Node]]:
    async with contextlib.AsyncExitStack() as stack:

        def make(release: str | None, scheduler: Scheduler | None = None) -> Node:
            made = Node(db, settings, reads, release, scheduler)
            stack.push_async_exit(made.parts)
            return made

        yield make


def noted(db) -> Any:
    return db.one("select release, digest from pgsched.zones")


async def test_a_worker_with_older_rules_leaves_the_zone_to_one_with_newer_until_that_is_gone(db, node):
    """The older one comes first after each step; what it must not plan it has locked before it knows."""
    await db.all(YEARLY, "s", "job")
    old = await node(OLD).starts()
    await old.passes()
    assert await db.value(PLANNED, "s") == BY_OLD and await noted(db) == loaded(OLD)[1]
    new = await node(NEW).starts()
    assert await noted(db) == loaded(NEW)[1]
    assert await db.value(PLANNED, "s") is None, "it is to be planned anew"
    await old.passes()
    assert await db.value(PLANNED, "s") is None, "by the newer rules, whoever comes first"
    await old.passes()
    assert old.zones.withheld == ((ZONE,), ("job",))
    assert await db.value("select withheld from pgsched.workers where tzdata = %s", OLD) == [ZONE]
    await new.passes()
    assert await db.value(PLANNED, "s") == BY_NEW
    await db.all("update pgsched.schedules set next_run = now(), planned_at = clock_timestamp()")
    assert await old.passes() == 0
    assert await new.passes() == 1
    assert await db.value(PLANNED, "s") == BY_NEW

    await old.looks()
    assert await noted(db) == loaded(NEW)[1], "the newer one is alive"
    await new.goes()
    await old.looks()
    assert await noted(db) == loaded(OLD)[1] and old.zones.withheld == ((), ())
    await old.passes()
    assert await db.value(PLANNED, "s") == BY_OLD


async def test_newer_rules_whose_worker_dies_before_it_plans_leave_nothing_behind(db, node):
    await db.all(YEARLY, "s", "job")
    old = await node(OLD).starts()
    await old.passes()
    new = await node(NEW).starts()
    await new.goes()
    assert await db.value(PLANNED, "s") is None
    await old.passes()
    assert old.zones.due
    await old.looks()
    assert await db.value("select moved_from is not null from pgsched.schedules"), "what was planned first is known"
    await old.passes()
    assert await db.value(PLANNED, "s") == BY_OLD


async def test_a_worker_whose_sessions_are_gone_keeps_no_zone_however_lately_it_was_seen(db, node):
    await db.all(YEARLY, "s", "job")
    new = await node(NEW).starts()
    await new.passes()
    old = await node(OLD).starts()
    assert old.zones.withheld == ((ZONE,), ("job",))
    # As the server sees a worker that speaks to it directly.
    await db.all("update pgsched.workers set direct = true")
    await old.looks()
    assert old.zones.withheld == ((ZONE,), ("job",)), "its session is there"
    await new.parts.kit.control.discard()
    await db.until("select count(*) = 1 from pg_stat_activity where application_name ~ '^pgsched .*-'")
    await old.looks()
    assert old.zones.withheld == ((), ()) and await noted(db) == loaded(OLD)[1]
    await old.passes()
    assert await db.value(PLANNED, "s") == BY_OLD
    # It was only cut off: what it finds planned by older rules it plans again.
    await new.looks()
    await new.passes()
    assert await db.value(PLANNED, "s") == BY_NEW and await noted(db) == loaded(NEW)[1]


async def test_an_older_worker_that_starts_beside_a_newer_one_changes_nothing(db, node):
    await db.all(YEARLY, "s", "job")
    new = await node(NEW).starts()
    await new.passes()
    before = await db.all("select to_jsonb(s) from pgsched.schedules s")
    old = await node(OLD).starts()
    await old.passes()
    assert await db.all("select to_jsonb(s) from pgsched.schedules s") == before
    assert await noted(db) == loaded(NEW)[1]


async def test_of_rules_whose_release_nobody_knows_the_first_stay(db, node):
    await db.all(YEARLY, "s", "job")
    first = await node(OLD).starts()
    await first.passes()
    unknown = await node(None).starts()
    assert unknown.zones.withheld == ((ZONE,), ("job",))
    await unknown.passes()
    assert await db.value(PLANNED, "s") == BY_OLD and await noted(db) == loaded(OLD)[1]
    check = {each.name: each for each in judged((await db_rows(db, "read_health"))[0])}["time zones"]
    assert check.status == "warning" and ZONE in check.message and "on host" in check.message


async def db_rows(db, name: str) -> list[dict[str, Any]]:
    return await Queries(db.schema).rows(db.connection, name, {})


async def test_what_only_a_worker_with_older_rules_can_run_does_not_starve(db, node):
    """The newer rules are another application's worker's, which does not know the entrypoint."""
    other = Scheduler(app="other")

    @other.entrypoint("elsewhere")
    async def elsewhere(): ...

    await db.all(YEARLY, "s", "job")
    await node(NEW, other).starts()
    old = await node(OLD).starts()
    assert old.zones.withheld == ((ZONE,), ())
    await old.passes()
    assert await db.value(PLANNED, "s") == BY_OLD
    assert await noted(db) == loaded(NEW)[1]
    # A worker of the application that has the newer rules plans it again, although they are noted already.
    new = await node(NEW).starts()
    await new.passes()
    assert await db.value(PLANNED, "s") == BY_NEW
    # It goes. What it planned is done by the older one, since the other application's worker cannot.
    await new.goes()
    await old.looks()
    assert old.zones.withheld == ((ZONE,), ())
    await db.all("update pgsched.schedules set next_run = now(), planned_at = clock_timestamp()")
    assert await old.passes() == 1


async def test_a_schedule_that_somebody_has_locked_is_planned_anew_later(db, dsn, schema, node):
    await db.all(YEARLY, "s", "job")
    await db.all(YEARLY, "t", "job")
    old = await node(OLD).starts()
    await old.passes()
    async with await psycopg.AsyncConnection.connect(dsn) as other:
        lock = b"select from pgsched.schedules where name = 's' for update"
        await other.execute(in_schema(lock, schema, parametrised=False))
        new = await node(NEW).starts()
        await new.passes()
        assert (await db.value(PLANNED, "s"), await db.value(PLANNED, "t")) == (BY_OLD, BY_NEW)
        await other.rollback()
    assert new.zones.due_at < time.monotonic() + 5
    await new.looks()
    await new.passes()
    assert await db.value(PLANNED, "s") == BY_NEW
    await new.looks()
    assert new.zones.due_at == float("inf"), "nothing is left to look for"


async def test_the_newest_rules_that_planned_anything_count_before_any_are_noted(db, node):
    """The zone's first schedule is made while both run: nobody has noted the zone yet."""
    old, new = await node(OLD).starts(), await node(NEW).starts()
    await db.all(YEARLY, "s", "job")
    await old.passes()
    assert await db.value(PLANNED, "s") == BY_OLD
    await db.all("update pgsched.schedules set next_run = now(), planned_at = clock_timestamp()")
    assert await new.passes() == 1
    assert await db.value(PLANNED, "s") == BY_NEW
    await old.looks()
    await old.passes()
    assert await db.value(PLANNED, "s") == BY_NEW
    await new.looks()
    assert await noted(db) == loaded(NEW)[1]


@pytest.mark.parametrize("paused", [False, True])
async def test_rules_of_another_timing_say_nothing_of_the_new_one(db, node, paused):
    """A change of the zone or the expression, also of what is to be planned anew by newer rules."""
    await db.all(YEARLY, "s", "job")
    old = await node(OLD).starts()
    await old.passes()
    if paused:
        await db.all("select pgsched.pause('s')")
    new = await node(NEW).starts()
    assert await db.value("select moved_from is not null and next_run is null from pgsched.schedules")
    await db.all("select pgsched.alter('s', '{\"expression\": \"0 9 16 1 *\"}')")
    if paused:
        await db.all("select pgsched.resume('s')")
    await new.passes()
    assert await db.value(PLANNED, "s") == BY_NEW
    assert await db.value("select extract(day from next_run)::int from pgsched.schedules") == 16
    # By the same rules, and nobody newer is there.
    await db.all("select pgsched.alter('s', '{\"timezone\": \"America/Phoenix\"}')")
    new.reads(None)  # what this process knows of the other zone
    assert new.zones.may_plan(await locked(new))


async def locked(node: Node) -> Schedule:
    store = node.parts.kit.store
    async with node.parts.kit.control.use() as connection:
        [found] = await store.claims.lock_due_schedules(connection, [Share(["job"], 10, fresh=True)], timedelta(0))
    return found


# --- where rules come from ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "text", "release"),
    [
        ("tzdata.zi", "# version 2025b\n# redo\n", "2025b"),
        ("+VERSION", "2026f\n", "2026f"),
        ("tzdata.zi", "# version unknown\n", None),
        ("README", "2025b\n", None),
    ],
)
def test_the_release_of_a_hosts_files_is_read_from_them(tmp_path, file, text, release):
    (tmp_path / "America").mkdir()
    (tmp_path / ZONE).write_bytes(file_like("Denver").read_bytes())
    (tmp_path / file).write_text(text)
    names = "source_of('America/Edmonton'), source_of('Asia/Tokyo')"
    code = f"from pgsched.expression.zone_files import *; print({names}, sep='\\n')"
    environment = {**os.environ, "PYTHONTZPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    host, package = done.stdout.splitlines()
    assert host == repr(zone_files.Source(str(tmp_path), release))
    assert package == repr(zone_files.Source(zone_files.PACKAGE, tzdata.IANA_VERSION))


def test_a_zone_whose_host_file_is_older_and_says_otherwise_is_warned_of(tmp_path, monkeypatch):
    monkeypatch.setattr(zone_files, "source_of", lambda name="": zone_files.Source("/there", "2001a"))
    assert zone_files.outdated("Asia/Tokyo") is None, "the rules are the same"
    monkeypatch.setattr(zone_files, "digest", lambda name: "other")
    assert (zone_files.outdated("Asia/Tokyo") or "").startswith(
        "the rules of Asia/Tokyo come from /there, tzdata 2001a, and "
    )
    assert "older than the package's" in (zone_files.outdated_host() or "")
    monkeypatch.setattr(zone_files, "source_of", lambda name="": zone_files.Source("/there", "2999a"))
    assert zone_files.outdated("Asia/Tokyo") is zone_files.outdated_host() is None


def test_releases_in_their_order():
    order = ["1999z", "2025a", "2025b", "2025z", "2025aa", "2026a"]
    assert [(newer(b, a), newer(a, b)) for a, b in itertools.pairwise(order)] == [(True, False)] * 5
    assert not newer(None, "2025b") and not newer("2025b", None) and not newer("2025b", "2025b")
