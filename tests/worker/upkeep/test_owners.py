"""Whose a schedule, a run and an entrypoint are: applications that share a schema keep to their own work."""

import asyncio

import psycopg
import pytest
from support.workers import Parts, working

from pgsched import Limits, Scheduler, connect
from pgsched.db.statements.queries import Queries, in_schema

EVERY = "* * * * * *"


def application(app: str, names: list[str], ran: list[tuple], *, expression: str = EVERY, **options) -> Scheduler:
    """An application whose one entrypoint, `job`, has these schedules, and writes down whose code ran."""
    sc = Scheduler(app=app)

    @sc.entrypoint("job", limits=options.pop("limits", None))
    async def job(name: str = "-") -> str:
        ran.append((app, name))
        return app

    for name in names:
        sc.schedule("job", expression, name=name, args={"name": name}, **options)(job)
    return sc


# --- each runs its own ----------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", ["skip", "allow"])
async def test_two_applications_with_the_same_entrypoint_run_their_own_code_only(settings, db, overlap):
    ran: list[tuple] = []
    one = application("one", ["one's"], ran, overlap=overlap)
    two = application("two", ["two's"], ran, overlap=overlap)
    async with working(one, settings), working(two, settings):
        await db.all("select pgsched.trigger('one''s'), pgsched.trigger('two''s') from generate_series(1, 5)")
        await db.until("select count(*) >= 14 from pgsched.runs where status = 'succeeded'")
    rows = await db.all(
        "select distinct s.name, r.app, r.result #>> '{}' from pgsched.runs r"
        " join pgsched.schedules s on s.id = r.schedule_id where r.status = 'succeeded'"
    )
    assert sorted(rows) == [("one's", "one", "one"), ("two's", "two", "two")]
    assert set(ran) == {("one", "one's"), ("two", "two's")}


QUEUED = {
    "fire time": "update pgsched.schedules set next_run = now() - interval '1 second', planned_at = now()",
    "waiting": "select pgsched.trigger('one''s')",
    "backfill": None,
    "retry": "insert into pgsched.runs (schedule_id, app, entrypoint, fire_time, attempt, status, finished_at)"
    " select id, app, 'job', '2020-01-01Z', 1, 'failed', now() from pgsched.schedules;"
    " select pgsched.retry(max(id)) from pgsched.runs",
    "job": "insert into pgsched.runs (entrypoint, app) values ('job', 'one')",
}


@pytest.mark.parametrize("kind", QUEUED)
@pytest.mark.parametrize("limited", [False, True])
async def test_what_is_another_applications_is_left_to_it_however_it_came(settings, db, kind, limited):
    ran: list[tuple] = []
    limits = Limits(concurrency=5) if limited else None
    async with working(application("one", ["one's"], ran, expression="@yearly", limits=limits), settings):
        pass
    if kind == "backfill":
        async with connect(settings.dsn, schema=settings.schema) as client:
            fire_time = (await client.get_schedule("one's"))["next_run"].replace(year=2020)
            assert (await client.backfill("one's", fire_time, fire_time)).queued
    else:
        for statement in QUEUED[kind].split(";"):
            await db.all(statement)
    two = Scheduler(app="two")
    one = Scheduler(app="one")
    for sc in (one, two):
        sc.entrypoint("job", limits=limits)(nothing)
    async with Parts(settings, two) as parts:
        assert await parts.dispatcher.claim_pass() == 0
        assert await parts.dispatcher.claim_pass() == 0
        assert parts.dispatcher.next.at is None, "and it does not even wait for it"
    async with Parts(settings, one) as parts:
        for _ in range(2):
            await parts.dispatcher.claim_pass()
        (run,) = parts.taken
    assert await db.value("select app from pgsched.runs where id = %s", run.id) == "one"


async def nothing() -> None: ...


async def test_work_that_names_no_application_goes_to_whoever_has_the_entrypoint(settings, db):
    await db.all("select pgsched.create_schedule('api', 'job', '@yearly'), pgsched.enqueue('job')")
    await db.all("select pgsched.trigger('api')")
    assert await db.all("select app from pgsched.schedules union all select app from pgsched.runs") == [(None,)] * 3
    two = Scheduler(app="two")
    two.entrypoint("job")(nothing)
    async with Parts(settings, two) as parts:
        await parts.dispatcher.claim_pass()
        assert len(parts.taken) == 2


async def test_an_api_schedule_may_name_an_application_and_another_one_later(settings, db):
    async with connect(settings.dsn, schema=settings.schema) as client:
        await client.create_schedule("s", "job", "@yearly", app="one")
        await client.trigger("s")
        assert (await client.get_schedule("s"))["app"] == "one"
        await client.alter("s", app="two")
        (row,) = await client.list_runs("s")
        assert row["app"] == "two", "what is queued follows"
        await client.alter("s", app=None)
        assert (await client.get_run(row["id"]))["app"] is None
    await db.all("select pgsched.create_schedule('t', 'job', '@yearly', options => '{\"app\": \"one\"}')")
    assert await db.value("select app from pgsched.schedules where name = 't'") == "one"


@pytest.mark.parametrize("bad", ['""', '"a\\nb"', "1", "[]"])
async def test_no_application_has_such_a_name(db, bad):
    made = "select pgsched.create_schedule('t', 'job', '@daily', options => jsonb_build_object('app', %s::jsonb))"
    with pytest.raises(psycopg.Error, match="app must be a text of 1 to 200 characters"):
        await db.all(made, bad)


@pytest.mark.parametrize("at", ["running", "queued"])
async def test_a_run_that_changes_its_state_while_its_schedule_changes_hands_follows(settings, db, dsn, schema, at):
    """Its end is under way, not committed, when the schedule's change looks for live runs."""
    await db.all("select pgsched.create_schedule('s', 'job', '@yearly', options => '{\"app\": \"one\"}')")
    await db.all("select pgsched.trigger('s')")
    states = {"running": "status = 'running', worker = gen_random_uuid(), heartbeat_at = now(), claimed_at = now()"}
    states["queued"] = "status = 'queued', worker = null"
    other = "queued" if at == "running" else "running"
    await db.all(f"update pgsched.runs set {states[at]}")

    def of(text: str) -> bytes:
        return in_schema(text.encode(), schema, parametrised=False)

    async with (
        await psycopg.AsyncConnection.connect(dsn) as ending,
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as changing,
    ):
        await ending.execute(of(f"update pgsched.runs set {states[other]}"))
        change = asyncio.create_task(changing.execute(of("update pgsched.schedules set app = 'two'")))
        await db.until("select exists (select from pg_locks where pid = %s and not granted)", changing.info.backend_pid)
        await ending.commit()
        await change
    assert await db.one("select status, app from pgsched.runs") == (other, "two")


async def test_health_names_the_application_whose_work_nobody_alive_can_do(settings, db):
    sc = Scheduler(app="two")
    sc.entrypoint("job")(nothing)
    await db.all(
        "insert into pgsched.schedules (name, entrypoint, expression, app, next_run, planned_at)"
        " select app, 'job', '@yearly', app, now() - interval '1 hour', now() from unnest('{one,two}'::text[]) app"
    )
    async with working(sc, settings):
        await db.until("select next_run > now() from pgsched.schedules where name = 'two'")
        async with connect(settings.dsn, schema=settings.schema) as client:
            served = {name: (await client.situation(name)).served for name in ("one", "two")}
        (row,) = await Queries(settings.schema).rows(db.connection, "read_health", {})
    assert served == {"one": False, "two": True}
    assert (row["unserved"], row["unserved_names"], row["overdue"]) == (1, ["job of one"], 0)
