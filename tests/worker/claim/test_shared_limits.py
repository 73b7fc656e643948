"""Limits of several applications: each keeps its own, or they share them by name."""

import contextlib

import pytest
from structlog.testing import capture_logs
from support.limits import END, JOBS, claims
from support.workers import Parts

from pgsched import Limits, RegistrationError, Scheduler
from pgsched.worker.upkeep.reconciler import Reconciler


def application(app: str, **limits) -> Scheduler:
    """An application whose entrypoint has the same name as those of others."""
    scheduler = Scheduler(app=app)

    @scheduler.entrypoint("job", limits=Limits(**limits))
    async def job(tenant: str = ""): ...

    return scheduler


async def declared(parts: Parts) -> None:
    async with parts.kit.control.use() as connection:
        await Reconciler(parts.kit).start(connection)


@contextlib.asynccontextmanager
async def applications(settings, **limits):
    """A worker of each application, whose claims nobody starts, with the limits declared."""
    parts = {app: Parts(settings, application(app, **each)) for app, each in limits.items()}
    for each in parts.values():
        await declared(each)
    yield tuple(parts.values())
    for each in parts.values():
        await each.__aexit__()


async def test_two_applications_that_limit_one_entrypoint_keep_their_own_limits(settings, db):
    version = "select app, concurrency, xmin::text from pgsched.limits order by app"
    async with applications(settings, a={"concurrency": 1}, b={"concurrency": 3}) as (a, b):
        before = await db.all(version)
        assert [row[:2] for row in before] == [("a", 1), ("b", 3)]
        for parts in (a, b):
            await declared(parts)
        assert await db.all(version) == before, "nor does a start write the other's"
        for app in ("a", "b"):
            await db.all("select pgsched.enqueue('job', app => %s) from generate_series(1, 5)", app)
        assert (await claims(a), await claims(b), await claims(a), await claims(b)) == (1, 3, 0, 0)
        await db.all(END, b.taken[0].id)
        assert (await claims(a), await claims(b)) == (0, 1)


async def test_limits_shared_by_name_count_all_entrypoints_of_all_applications(settings, db):
    sharing = {"concurrency": 3, "shared": "smtp"}
    scheduler = application("a", **sharing)

    @scheduler.entrypoint("other", limits=Limits(**sharing))
    async def other(): ...

    async with applications(settings, b=sharing, c={}) as (b, c), Parts(settings, scheduler) as a:
        await declared(a)
        for app in ("a", "b", "c"):
            await db.all("select pgsched.enqueue('job', app => %s) from generate_series(1, 2)", app)
        await db.all("select pgsched.enqueue('other', app => 'a') from generate_series(1, 2)")
        assert await claims(b) == 2
        assert await claims(a) == 1
        assert await claims(c) == 2, "it has no part in it"
        assert (await claims(a), await claims(b)) == (0, 0)
        await db.all(END, b.taken[0].id)
        assert await claims(a) == 1


async def test_of_different_limits_under_one_name_the_last_start_wins_and_warns(settings, db):
    with capture_logs() as events:
        async with applications(
            settings, a={"concurrency": 1, "shared": "smtp"}, b={"concurrency": 2, "shared": "smtp"}
        ):
            assert await db.all("select gate, concurrency, owner from pgsched.limits") == [('["smtp"]', 2, "code:b")]
    [warning] = [event for event in events if event["event"] == "shared_limits_differ"]
    assert (warning["shared"], warning["declared_before_by"], warning["log_level"]) == ("smtp", "code:a", "warning")


async def test_an_entrypoint_that_leaves_a_shared_name_lets_go_of_those_in_its_line(settings, db):
    async with applications(settings, a={"concurrency": 1, "shared": "smtp"}) as (a,):
        await db.all(JOBS, "a", 0, 4)
        assert await claims(a) == 1
    for limits, more in (({"concurrency": 2}, 1), ({}, 2)):
        async with applications(settings, a=limits) as (a,):
            assert await claims(a) == more


def test_one_application_declares_the_same_limits_under_one_name():
    scheduler = application("a", concurrency=1, shared="smtp")
    with pytest.raises(RegistrationError, match="its limits and those of 'job' share the name 'smtp', but differ"):
        scheduler.entrypoint("other", limits=Limits(concurrency=2, shared="smtp"))(lambda: None)


async def test_a_job_that_names_no_application_stands_in_the_only_line_there_is(settings, db):
    row = "select limited_by, line is not null, gated from pgsched.runs where status = 'queued' order by id"
    async with applications(settings, a={"concurrency": 1}) as (a,):
        await db.all("select pgsched.enqueue('job')")
        assert await db.all(row) == [("a", True, True)]
        await db.all(
            "insert into pgsched.workers (id, app, host, pid, version, entrypoints, direct, heartbeat_interval,"
            " stall_timeout) values (gen_random_uuid(), 'b', 'h', 1, '0', '{job}', true, '1s', '30s')"
        )
        await db.all("select pgsched.enqueue('job')")
        assert (await db.all(row))[1] == (None, False, False), "either application may do it"
        assert await claims(a) == 1
        await claims(a)
        assert await db.all(row) == [("a", True, True)], "a came by, and its limits are full"
        await db.all(END, a.taken[0].id)
        assert await claims(a) == 1


async def test_an_application_without_limits_takes_jobs_of_none_beside_one_that_has_some(settings, db):
    """And what it runs does not count at the other's limits."""
    async with applications(settings, a={"concurrency": 1}, b={}) as (a, b):
        for parts, app in ((a, "a"), (b, "b")):
            await db.all(
                "insert into pgsched.workers (id, app, host, pid, version, entrypoints, direct, heartbeat_interval,"
                " stall_timeout) values (%s, %s, 'h', 1, '0', '{job}', true, '1s', '30s')",
                parts.kit.worker, app,
            )  # fmt: skip
        await db.all("select pgsched.enqueue('job') from generate_series(1, 3)")
        assert await claims(b) == 3
        await db.all("select pgsched.enqueue('job', app => 'a')")
        assert await claims(a) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"a": "x\\u001fy", "b": "z"}', '{"a": "x", "b": "y\\u001fz"}'),
        ('{"a": null, "b": "z"}', '{"a": "", "b": "z"}'),
        ('{"b": "z"}', '{"a": null, "b": "z"}'),
        ('{"b": "z"}', '{"a": "", "b": "z"}'),
        ('{"a": "[\\"x\\"]"}', '{"a": ["x"]}'),
        ('{"a": 1}', '{"a": "1"}'),
    ],
)
async def test_no_two_arguments_have_one_key(db, one, other):
    keys = await db.one("select pgsched.key_of(%s::jsonb, '{a,b}'), pgsched.key_of(%s::jsonb, '{a,b}')", one, other)
    assert keys[0] != keys[1]


async def test_runs_that_stand_in_line_follow_their_schedules_application(settings, db):
    async with applications(settings, a={"concurrency": 1}, b={"concurrency": 1}) as (a, b):
        await db.all("select pgsched.create_schedule('s', 'job', '@yearly', options => '{\"app\": \"a\"}')")
        await db.all("select pgsched.trigger('s')")
        assert await db.one("select app, limited_by from pgsched.runs") == ("a", "a")
        await db.all("update pgsched.schedules set app = 'b'")
        assert await db.one("select app, limited_by from pgsched.runs") == ("b", "b")
        assert (await claims(a), await claims(b)) == (0, 1)


async def test_jobs_in_line_are_taken_over_with_their_application(settings, db):
    async with applications(settings, old={"concurrency": 1}, new={"concurrency": 2}) as (_, new):
        await db.all("select pgsched.enqueue('job', app => 'old') from generate_series(1, 3)")
        async with new.kit.control.use() as connection, connection.transaction():
            assert await new.kit.store.declarations.adopt(connection, "old", "new") == ([], 3)
        assert [await claims(new) for _ in range(3)] == [0, 2, 0], "first they go and stand in the new one's line"
