"""What the client promises to applications, against a real server."""

import json
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone

import psycopg
import pytest

from pgsched.client.client import Client, connect
from pgsched.errors import InvalidArguments, InvalidExpression, NotFound, PgschedError
from pgsched.rules.retry import Retry

HOSTILE = "We\"ird; %s {x} \\ $1 ' täglich 日"
NAIVE = datetime(2031, 1, 1)  # noqa: DTZ001 - what must be refused
SOON = datetime(2031, 1, 1, 9, tzinfo=timezone(timedelta(hours=2)))


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    for name in ("PGSCHED_DSN", "PGSCHED_SCHEMA", "PGHOST", "PGDATABASE", "PGUSER", "PGSERVICE", "PGPORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def client(dsn, schema) -> AsyncIterator[Client]:
    async with connect(dsn, schema=schema) as made:
        yield made


# --- schedules ------------------------------------------------------------------------------------------


async def test_every_option_of_a_schedule_arrives_as_it_was_given(client):
    args = {"format": "pdf", "text": HOSTILE, "deep": [1, {"a": None}], "escape": "\\u0000"}
    made = await client.create_schedule(
        HOSTILE,
        "report é",
        "  0 9 * * mon-fri ",
        timezone="Europe/Berlin",
        args=args,
        overlap=3,
        catch_up="all",
        grace=timedelta(hours=1),
        jitter=timedelta(milliseconds=1500),
        timeout=timedelta(days=36500),
        retry=Retry(attempts=5, backoff=timedelta(microseconds=1), max_backoff=timedelta(days=2)),
        starts_at=SOON,
        ends_at=SOON + timedelta(days=1),
        max_runs=7,
        priority=-5,
    )
    row = await client.get_schedule(HOSTILE)
    given = {
        "id": made,
        "name": HOSTILE,
        "entrypoint": "report é",
        "expression": "0 9 * * mon-fri",
        "timezone": "Europe/Berlin",
        "args": args,
        "overlap": "3",
        "catch_up": "all",
        "grace": timedelta(hours=1),
        "jitter": timedelta(milliseconds=1500),
        "timeout": timedelta(days=36500),
        "max_attempts": 5,
        "backoff": timedelta(microseconds=1),
        "max_backoff": timedelta(days=2),
        "starts_at": SOON,
        "ends_at": SOON + timedelta(days=1),
        "max_runs": 7,
        "priority": -5,
        "status": "active",
        "owner": "api",
        "next_run": None,
    }
    assert {key: row[key] for key in given} == given
    assert row["starts_at"].tzinfo is not None


async def test_defaults_leave_to_the_entrypoint_what_is_its_own(client):
    await client.create_schedule("plain", "f", "@daily")
    row = await client.get_schedule("plain")
    assert (row["max_attempts"], row["backoff"], row["max_backoff"], row["timeout"], row["grace"]) == (None,) * 5
    assert (row["overlap"], row["catch_up"], row["jitter"], row["args"]) == ("skip", "latest", timedelta(0), {})


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"expression": "0 0 30 2 *"}, InvalidExpression, "never"),
        ({"timezone": "Europe/Berln"}, InvalidExpression, "Europe/Berlin"),
        ({"name": ""}, InvalidArguments, "name"),
        ({"name": "a\nb"}, InvalidArguments, "control"),
        ({"name": "x" * 201}, InvalidArguments, "200"),
        ({"entrypoint": 3}, InvalidArguments, "entrypoint"),
        ({"args": [1]}, InvalidArguments, "dict"),
        ({"args": {1: 2}}, InvalidArguments, "parameter names"),
        ({"args": {"x": float("nan")}}, InvalidArguments, "JSON"),
        ({"args": {"x": object()}}, InvalidArguments, "JSON"),
        ({"args": {"x": "a\0b"}}, InvalidArguments, "NUL"),
        ({"args": {"x": "\ud800"}}, InvalidArguments, "JSON"),
        ({"overlap": "never"}, InvalidArguments, "overlap"),
        ({"overlap": "wait"}, InvalidArguments, "'queue', 'allow', 'cancel'"),
        ({"catch_up_limit": 0}, InvalidArguments, "catch_up_limit"),
        ({"overlap": True}, InvalidArguments, "overlap"),
        ({"catch_up": "some"}, InvalidArguments, "catch_up"),
        ({"grace": 5}, InvalidArguments, "grace must be a timedelta"),
        ({"grace": timedelta(seconds=-1)}, InvalidArguments, "grace"),
        ({"timeout": timedelta(0)}, InvalidArguments, "timeout"),
        ({"retry": 3}, InvalidArguments, "Retry"),
        ({"starts_at": NAIVE}, InvalidArguments, "time zone"),
        ({"ends_at": datetime(2300, 1, 1, tzinfo=UTC)}, InvalidArguments, "2199"),
        ({"max_runs": 0}, InvalidArguments, "max_runs"),
        ({"priority": 101}, InvalidArguments, "priority"),
    ],
)
async def test_bad_input_gets_a_sentence_and_makes_nothing(client, options, error, says):
    given = {"name": "n", "entrypoint": "e", "expression": "@daily", **options}
    with pytest.raises(error, match=says):
        await client.create_schedule(given.pop("name"), given.pop("entrypoint"), given.pop("expression"), **given)
    assert await client.list_schedules() == []


async def test_a_taken_name_is_told_by_name(client):
    await client.create_schedule(HOSTILE, "e", "@daily")
    with pytest.raises(PgschedError, match="exists already") as told:
        await client.create_schedule(HOSTILE, "e", "@hourly")
    assert HOSTILE in str(told.value)
    assert told.value.exit_code == 1


async def test_alter_changes_what_is_named_and_leaves_the_rest(client, db):
    await client.create_schedule("a", "e", "@daily", args={"x": 1}, timeout=timedelta(minutes=5), retry=Retry(4))
    await db.all("update pgsched.schedules set next_run = '2031-01-01Z', planned_at = clock_timestamp()")
    before = await client.get_schedule("a")
    await client.alter("a", priority=9, timeout=None, args={"y": {"z": [None]}})
    after = await client.get_schedule("a")
    changed = {key for key in after if after[key] != before[key]}
    assert changed == {"priority", "timeout", "args", "updated_at"}
    assert (after["priority"], after["timeout"], after["args"]) == (9, None, {"y": {"z": [None]}})
    assert after["next_run"] is not None


async def test_alter_of_the_expression_has_it_planned_anew(client, db):
    await client.create_schedule("a", "e", "@daily")
    await db.all("update pgsched.schedules set next_run = '2031-01-01Z', planned_at = clock_timestamp()")
    await client.alter("a", expression="@hourly", timezone="Asia/Tokyo")
    row = await client.get_schedule("a")
    assert (row["expression"], row["timezone"], row["next_run"]) == ("@hourly", "Asia/Tokyo", None)


async def test_alter_refuses_what_it_does_not_know(client):
    await client.create_schedule("a", "e", "@daily")
    with pytest.raises(InvalidArguments, match=r"no option 'colour'.*priority"):
        await client.alter("a", colour="red", priority=3)
    with pytest.raises(InvalidExpression):
        await client.alter("a", expression="every day")
    assert (await client.get_schedule("a"))["priority"] == 0
    with pytest.raises(NotFound, match='"b"'):
        await client.alter("b", priority=3)


async def test_pause_and_resume(client):
    await client.create_schedule("a", "e", "@daily")
    await client.pause("a", "holidays\n", until=SOON)
    row = await client.get_schedule("a")
    assert (row["status"], row["note"], row["paused_until"]) == ("paused", "holidays\n", SOON)
    await client.resume("a")
    row = await client.get_schedule("a")
    assert (row["status"], row["note"], row["paused_until"]) == ("active", None, None)
    with pytest.raises(InvalidArguments, match="until"):
        await client.pause("a", until=NAIVE)


async def test_a_finished_schedule_is_neither_paused_nor_resumed(client, db):
    await client.create_schedule("a", "e", "@daily")
    await db.all("update pgsched.schedules set status = 'finished'")
    for act in (client.pause, client.resume):
        with pytest.raises(PgschedError, match=r'^Schedule "a" is .*\.$') as told:
            await act("a")
        assert told.value.exit_code == 1


async def test_trigger_makes_a_run_with_the_schedules_arguments(client):
    await client.create_schedule("a", "e", "@daily", args={"x": 1}, priority=4)
    run = await client.get_run(await client.trigger("a"))
    assert (run["schedule"], run["entrypoint"], run["args"], run["priority"]) == ("a", "e", {"x": 1}, 4)
    assert run["status"] == "queued"


async def test_remove_keeps_the_history(client):
    await client.create_schedule("a", "e", "@daily")
    run_id = await client.trigger("a")
    await client.remove("a")
    run = await client.get_run(run_id)
    assert (run["status"], run["reason"], run["schedule"]) == ("cancelled", "schedule removed", None)


@pytest.mark.parametrize("method", ["pause", "resume", "trigger", "remove", "get_schedule", "list_runs"])
async def test_an_unknown_name_is_not_found(client, method):
    with pytest.raises(NotFound, match=r"^There is no schedule ") as told:
        await getattr(client, method)(HOSTILE)
    assert HOSTILE in str(told.value)
    assert told.value.exit_code == 3


async def test_lists_of_schedules_are_filtered(client, db):
    for name, entrypoint in (("b", "one"), ("a", "two"), ("c", "one")):
        await client.create_schedule(name, entrypoint, "@daily")
    await client.pause("c")
    assert [row["name"] for row in await client.list_schedules()] == ["a", "b", "c"]
    assert [row["name"] for row in await client.list_schedules(entrypoint="one")] == ["b", "c"]
    assert [row["name"] for row in await client.list_schedules(entrypoint="one", status="paused")] == ["c"]
    with pytest.raises(InvalidArguments, match="active, paused"):
        await client.list_schedules(status="asleep")


# --- runs -----------------------------------------------------------------------------------------------


async def test_enqueue(client):
    run = await client.get_run(await client.enqueue("send", {"to": HOSTILE}, due_at=SOON, priority=7, unique_key="k"))
    assert (run["entrypoint"], run["args"], run["due_at"], run["priority"]) == ("send", {"to": HOSTILE}, SOON, 7)
    assert (run["status"], run["unique_key"], run["schedule"], run["result"], run["errors"]) == (
        "queued",
        "k",
        None,
        None,
        [],
    )


async def test_a_unique_key_gives_the_live_run_until_that_has_ended(client):
    first = await client.enqueue("send", unique_key="k")
    assert await client.enqueue("send", unique_key="k") == first
    assert await client.enqueue("other", unique_key="k") != first
    await client.cancel(first)
    assert await client.enqueue("send", unique_key="k") != first


async def test_enqueue_many_keeps_the_order_in_one_transaction(client, db):
    ids = await client.enqueue_many("send", [{"n": n} for n in range(500)], due_at=SOON, priority=3)
    rows = await db.all("select id, (args ->> 'n')::int, due_at, priority from pgsched.runs order by id")
    assert rows == [(run_id, n, SOON, 3) for n, run_id in enumerate(ids)]
    assert len({xmin for (xmin,) in await db.all("select xmin::text from pgsched.runs")}) == 1
    assert await client.enqueue_many("send", []) == []


async def test_enqueue_many_is_all_or_none(client, db):
    with pytest.raises(InvalidArguments, match="args number 1"):
        await client.enqueue_many("send", [{}, {"x": "\0"}])
    assert await db.value("select count(*) from pgsched.runs") == 0


async def test_enqueue_many_gives_the_live_run_of_a_key_in_its_place(client, db):
    live = await client.enqueue("send", unique_key="b")
    ids = await client.enqueue_many("send", [{"n": n} for n in range(5)], unique_keys=["a", "b", None, "a", None])
    assert ids[1] == live and ids[0] == ids[3] and len({*ids}) == 4
    assert await db.value("select count(*) from pgsched.runs") == 4
    assert await client.enqueue_many("send", [], unique_keys=[]) == []
    for keys, says in ((["a"], "as many as the jobs' arguments, 2, not 1"), ("ab", "a sequence of texts"),
                       ([None, 3], "number 1 must be a text or None, not 3"), (["x" * 501, None], "500"),
                       (["a\0b", None], "NUL"), (["\ud800", None], "surrogate")):  # fmt: skip
        with pytest.raises(InvalidArguments, match=says):
            await client.enqueue_many("send", [{}, {}], unique_keys=keys)
    assert await db.value("select count(*) from pgsched.runs") == 4


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"entrypoint": ""}, "entrypoint"),
        ({"priority": 1000}, "priority"),
        ({"due_at": NAIVE}, "due_at"),
        ({"unique_key": "x" * 501}, "at most 500"),
        ({"unique_key": "a\0b"}, "NUL"),
        ({"unique_key": "\ud800"}, "surrogate"),
        ({"args": {"x": {"y": float("inf")}}}, "JSON"),
    ],
)
async def test_bad_jobs_get_a_sentence(client, db, options, says):
    given = {"entrypoint": "send", **options}
    with pytest.raises(InvalidArguments, match=says) as told:
        await client.enqueue(**given)
    assert "DETAIL" not in str(told.value)
    assert await db.value("select count(*) from pgsched.runs") == 0


async def test_a_sentence_never_quotes_the_row(client):
    with pytest.raises(InvalidArguments) as told:
        await client.enqueue("send", {"password": "hunter2"}, unique_key="x" * 501)
    assert "hunter2" not in str(told.value)
    assert told.value.__cause__ is None and told.value.__suppress_context__


async def test_cancel_tells_a_queued_run_from_a_running_one(client, db):
    queued, running, ended = await client.enqueue_many("send", [{}, {}, {}])
    await db.all(
        "update pgsched.runs set status = 'running', worker = gen_random_uuid(), claimed_at = now(),"
        " heartbeat_at = now() where id = %s", running
    )  # fmt: skip
    await db.all("update pgsched.runs set status = 'succeeded', finished_at = now() where id = %s", ended)
    assert await client.cancel(queued) == "cancelled"
    assert await client.cancel(running) == "requested"
    assert (await client.get_run(running))["cancel_requested_at"] is not None
    with pytest.raises(PgschedError, match=f"^Run {ended} has already ended: succeeded"):
        await client.cancel(ended)


async def test_retry_queues_what_failed_and_only_that(client, db):
    run_id = await client.enqueue("send")
    with pytest.raises(PgschedError, match="only a failed or cancelled one"):
        await client.retry(run_id)
    await db.all("update pgsched.runs set status = 'failed', finished_at = now(), attempt = 3, max_attempts = 3")
    await client.retry(run_id)
    run = await client.get_run(run_id)
    assert (run["status"], run["max_attempts"]) == ("queued", 4)


@pytest.mark.parametrize("method", ["cancel", "retry", "get_run"])
@pytest.mark.parametrize("run_id", [12345, 0, -1, 2**63, 10**30])
async def test_an_unknown_run_is_not_found(client, method, run_id):
    with pytest.raises(NotFound, match=f"no run {run_id}"):
        await getattr(client, method)(run_id)


@pytest.mark.parametrize("run_id", ["1; drop table x", 1.5, True, None])
async def test_an_id_is_a_number(client, run_id):
    with pytest.raises(InvalidArguments, match="whole number"):
        await client.get_run(run_id)


async def test_lists_of_runs_are_filtered_newest_first(client, db):
    await client.create_schedule("a", "e", "@daily")
    of_a = await client.trigger("a")
    first, second = await client.enqueue_many("send", [{}, {}])
    await db.all(
        "update pgsched.runs set status = 'failed', finished_at = now(), errors = %s::jsonb where id = %s",
        json.dumps([{"message": "first"}, {"message": "x" * 1000}]),
        second,
    )
    await db.all(
        "insert into pgsched.runs (schedule_id, entrypoint, fire_time, status, reason, skipped_count, finished_at)"
        " select id, 'e', now(), 'skipped', 'missed', 3, now() from pgsched.schedules"
    )
    everything = await client.list_runs()
    skip = everything[0]
    assert [row["id"] for row in everything] == [skip["id"], second, first, of_a]
    assert (skip["status"], skip["reason"], skip["skipped_count"], skip["schedule"]) == ("skipped", "missed", 3, "a")
    assert everything[1]["error"] == "x" * 500
    assert [row["id"] for row in await client.list_runs("a")] == [skip["id"], of_a]
    assert [row["id"] for row in await client.list_runs(status="failed")] == [second]
    assert [row["id"] for row in await client.list_runs(entrypoint="send", limit=1)] == [second]
    with pytest.raises(InvalidArguments, match="limit"):
        await client.list_runs(limit=0)
    with pytest.raises(InvalidArguments, match="status"):
        await client.list_runs(status="dead")


@pytest.mark.parametrize(
    "value",
    ["1" * 5000, "[" * 3000 + "]" * 3000, "1" * 400 + ".5", '"\\u202e evil"', '{"a": {"b": 1e300}}'],
    ids=["digits", "deep", "overflow", "bidi", "plain"],
)
async def test_no_stored_json_breaks_a_page(client, db, value):
    run_id = await client.enqueue("send")
    await db.all("update pgsched.runs set result = %s::jsonb, errors = jsonb_build_array(%s::jsonb)", value, value)
    run = await client.get_run(run_id)
    assert json.dumps([run["result"], run["errors"]], allow_nan=False)
    assert run["result"] not in (None, [])
    assert [row["id"] for row in await client.list_runs()] == [run_id]


async def test_workers_are_connected_while_the_server_sees_their_session(client, db, dsn):
    ids = sorted(uuid.uuid4() for _ in range(2))
    for worker in ids:
        await db.all(
            "insert into pgsched.workers (id, app, host, pid, version, entrypoints, direct, heartbeat_interval,"
            " stall_timeout, started_at) values (%s, 'app', 'h', 1, '0', '{e}', true, '1s', '30s', '2026-01-01Z')",
            worker,
        )
    async with await psycopg.AsyncConnection.connect(dsn, application_name=f"pgsched {ids[1]}"):
        rows = await client.list_workers()
    assert [(row["id"], row["connected"]) for row in rows] == [(ids[0], False), (ids[1], True)]
    assert (rows[0]["app"], rows[0]["entrypoints"], rows[0]["stall_timeout"]) == ("app", ["e"], timedelta(seconds=30))
