"""The interface in plain SQL: what each function refuses, with which SQLSTATE and sentence, and who may use it."""

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from psycopg import sql

from pgsched import Scheduler
from pgsched.db.statements.queries import in_schema
from pgsched.testing import Harness

LONG = "x" * 201


@pytest.fixture
async def world(db):
    """One schedule in each status, one run in each; the ended ones share a unique key with the queued one."""
    for name in ("active", "paused", "finished", "invalid"):
        await db.all("select pgsched.create_schedule(%s, 'job', '0 0 1 1 *')", name)
        await db.all("update pgsched.schedules set status = %s where name = %s", name, name)
    await db.all(
        "insert into pgsched.runs (entrypoint, status, unique_key, worker, claimed_at, heartbeat_at)"
        " select 'job', s, nullif('k', case when s = 'running' then 'k' end), gen_random_uuid(), now(), now()"
        " from unnest('{queued,running,succeeded,failed,cancelled,skipped}'::text[]) s"
    )
    return db


async def everything(db) -> list[tuple]:
    return await db.all(
        "select 's', to_jsonb(s)::text from pgsched.schedules s union all"
        " select 'r', to_jsonb(r)::text from pgsched.runs r order by 1, 2"
    )


def run(status: str) -> str:
    return f"(select min(id) from pgsched.runs where status = '{status}')"


ISO = "an instant in ISO 8601 with its UTC offset, such as 2027-01-01T09:00:00Z (add Z or +01:00)"
LENGTH = "an interval from 0 to a hundred years, such as 5 minutes"
OPTIONS = [
    ('{"overlap": "never"}', 'overlap must be skip, queue, allow, cancel, or a number from 1 to 100000, not "never".'),
    ('{"overlap": 0}', "overlap must be skip, queue, allow, cancel, or a number from 1 to 100000, not 0."),
    ('{"overlap": 100001}', "overlap must be skip, queue, allow, cancel, or a number from 1 to 100000, not 100001."),
    ('{"catch_up": "some"}', 'catch_up must be latest, all or none, not "some".'),
    ('{"catch_up": []}', "catch_up must be latest, all or none, not []."),
    ('{"catch_up_limit": 0}', "catch_up_limit must be a whole number from 1 to 1000000, not 0."),
    ('{"catch_up_limit": 1.5}', "catch_up_limit must be a whole number from 1 to 1000000, not 1.5."),
    ('{"grace": "-1s"}', f'grace must be {LENGTH}, not "-1s".'),
    ('{"grace": "soon"}', f'grace must be {LENGTH}, not "soon".'),
    ('{"grace": {}}', f"grace must be {LENGTH}, not {{}}."),
    ('{"jitter": "200 years"}', f'jitter must be {LENGTH}, not "200 years".'),
    ('{"timeout": "0s"}', 'timeout must be an interval of more than 0 and at most a hundred years, not "0s".'),
    ('{"timeout": true}', "timeout must be an interval of more than 0 and at most a hundred years, not true."),
    ('{"max_attempts": 1001}', "max_attempts must be a whole number from 1 to 1000, not 1001."),
    ('{"max_attempts": 99999999999}', "max_attempts must be a whole number from 1 to 1000, not 99999999999."),
    ('{"backoff": "1 parsec"}', f'backoff must be {LENGTH}, not "1 parsec".'),
    ('{"max_backoff": [1]}', f"max_backoff must be {LENGTH}, not [1]."),
    ('{"starts_at": "2300-01-01T00Z"}', f'starts_at must be {ISO}, not "2300-01-01T00Z".'),
    (
        '{"starts_at": "2300-01-01T00:00Z"}',
        'starts_at must be an instant in the years 1900 to 2199, not "2300-01-01T00:00Z".',
    ),
    (
        '{"starts_at": "2027-02-30 00:00Z"}',
        'starts_at must be an instant in the years 1900 to 2199, not "2027-02-30 00:00Z".',
    ),
    ('{"ends_at": "infinity"}', f'ends_at must be {ISO}, not "infinity".'),
    ('{"ends_at": 5}', f"ends_at must be {ISO}, not 5."),
    ('{"max_runs": 0}', "max_runs must be a whole number from 1 to 2147483647, not 0."),
    ('{"priority": 101}', "priority must be a whole number from -100 to 100, not 101."),
    ('{"priority": "high"}', 'priority must be a whole number from -100 to 100, not "high".'),
    ('{"note": 3}', "note must be a text, not 3."),
    ('{"colour": 1, "priority": 3}', "A schedule has no option colour: the options are entrypoint, "),
    ("[1]", "The options of a schedule must be a JSON object."),
    ("3", "The options of a schedule must be a JSON object."),
    ('["args"]', "parameters of create_schedule|JSON object"),
]  # fmt: skip

ONE = "array['{}']::jsonb[]"

ALTERS = [
    ('{"entrypoint": ""}', 'entrypoint must be a text of 1 to 200 characters without control characters, not "".'),
    ('{"entrypoint": null}', "entrypoint must be a text of 1 to 200 characters without control characters, not null."),
    ('{"expression": null}', "expression must be a text of 1 to 1000 characters, not null."),
    ('{"expression": 5}', "expression must be a text of 1 to 1000 characters, not 5."),
    ('{"timezone": ""}', 'timezone must be the name of a time zone, such as Europe/Berlin, not "".'),
    ('{"args": ["secret"]}', "args must be a JSON object whose keys are parameter names, not a JSON array."),
]

ENDED = ("succeeded", "failed", "skipped")
CALLS = [
    # --- schedules
    *[(f"create_schedule('n', 'job', '@daily', options => '{given}')", "PS422", says) for given, says in OPTIONS],
    *[(f"alter('active', '{given}')", "PS422", says) for given, says in OPTIONS[:-1] + ALTERS],
    ("create_schedule(null, 'job', '@daily')", "PS422", "name must be a text of 1 to 200 characters"),
    ("create_schedule('', 'job', '@daily')", "PS422", "name must be a text of 1 to 200 characters"),
    (f"create_schedule('{LONG}', 'job', '@daily')", "PS422", "name must be a text of 1 to 200 characters"),
    (r"create_schedule(E'a\nb', 'job', '@daily')", "PS422", "name must be a text of 1 to 200 characters"),
    ("create_schedule('n', null, '@daily')", "PS422", "entrypoint must be a text of 1 to 200 characters"),
    ("create_schedule('n', 'job', null)", "PS422", "expression must be a text of 1 to 1000 characters, not null."),
    ("create_schedule('n', 'job', '@daily', '[\"secret\"]')", "PS422", "args must be a JSON object"),
    ("create_schedule('n', 'job', '@daily', timezone => '')", "PS422", "timezone must be the name of a time zone"),
    (
        "create_schedule('n', 'job', '@daily', options => '{\"args\": {}}')",
        "PS422",
        "entrypoint, expression, args and timezone are parameters of create_schedule(), not options.",
    ),
    ("create_schedule('active', 'job', '@daily')", "PS409", 'A schedule named "active" exists already.'),
    ("alter('active', null)", "PS422", "The options of a schedule must be a JSON object."),
    ("alter('nobody', '{}')", "PS404", 'There is no schedule "nobody".'),
    ("pause('nobody')", "PS404", 'There is no schedule "nobody".'),
    ("pause('finished')", "PS409", 'Schedule "finished" is finished: only an active or a paused one can be paused.'),
    ("pause('invalid')", "PS409", 'Schedule "invalid" is invalid: only an active or a paused one can be paused.'),
    ("pause('active', until => 'infinity')", "PS422", "in the years 1900 to 2199, or null, not infinity."),
    ("pause('active', until => '1899-12-30Z')", "PS422", "until must be an instant in the years 1900 to 2199"),
    ("resume('nobody')", "PS404", 'There is no schedule "nobody".'),
    ("resume('finished')", "PS409", '"finished" is finished and cannot be resumed: nothing more'),
    ("trigger('nobody')", "PS404", 'There is no schedule "nobody".'),
    ("remove('nobody')", "PS404", 'There is no schedule "nobody".'),
    *[
        (f"{call}", "PS422", "The name of a schedule must be a text, not null.")
        for call in ("alter(null, '{}')", "pause(null)", "resume(null)", "trigger(null)", "remove(null)")
    ],
    # --- runs
    *[
        (f"{function}('{entrypoint}', {args})", "PS422", "entrypoint must be a text of 1 to 200 characters")
        for function, args in (("enqueue", "'{}'"), ("enqueue_many", "array['{}']::jsonb[]"))
        for entrypoint in ("", LONG)
    ],
    ("enqueue(null)", "PS422", "without control characters, not null."),
    ("enqueue('job', '[\"secret\"]')", "PS422", "whose keys are parameter names, not a JSON array."),
    ("enqueue('job', 'null')", "PS422", "args must be a JSON object whose keys are parameter names, not a JSON null."),
    ("enqueue('job', due_at => 'infinity')", "PS422", "in the years 1900 to 2199, not infinity."),
    ("enqueue('job', due_at => '-infinity')", "PS422", "due_at must be an instant in the years 1900 to 2199"),
    ("enqueue('job', priority => 101)", "PS422", "priority must be a whole number from -100 to 100, not 101."),
    ("enqueue('job', unique_key => repeat('x', 501))", "PS422", "a text of at most 500 characters, not of 501."),
    ("enqueue_many('job', array['{}', '1']::jsonb[])", "PS422", "args number 2 must be a JSON object"),
    (f"enqueue_many('job', {ONE}, priority => -101)", "PS422", "priority must be a whole number"),
    (f"enqueue_many('job', {ONE}, '2200-01-01Z')", "PS422", "due_at must be an instant"),
    (f"enqueue_many('job', {ONE}, unique_keys => array['a', 'b'])", "PS422", "as many elements as args, 1, not 2."),
    (f"enqueue_many('job', {ONE}, unique_keys => array[repeat('x', 501)])", "PS422", "number 1 must be a text of"),
    ("cancel(0)", "PS404", "There is no run 0."),
    ("cancel(null)", "PS422", "The id of a run must be a whole number, not null."),
    *[(f"cancel({run(status)})", "PS409", f"ended: {status}.") for status in ENDED],
    ("retry(-5)", "PS404", "There is no run -5."),
    ("retry(null)", "PS422", "The id of a run must be a whole number, not null."),
    *[
        (f"retry({run(status)})", "PS409", f"is {status}: only a failed or cancelled one can be retried.")
        for status in ("queued", "running", "succeeded", "skipped")
    ],
    (f"retry({run('failed')})", "PS409", "cannot be retried: a live run has its unique key."),
]  # fmt: skip


async def test_every_refusal_is_a_sentence_with_its_code_and_changes_nothing(world):
    """One test for the whole table: a schema takes longer to make than all of these calls."""
    before = await everything(world)
    wrong = []
    for call, state, says in CALLS:
        try:
            await world.all(f"select pgsched.{call}")
        except psycopg.Error as error:
            told = error.diag.message_primary or ""
            if error.sqlstate != state or not any(s in told for s in says.split("|")):
                wrong.append((call, error.sqlstate, told))
            if "secret" in told or not told.endswith(".") or "\n" in told:
                wrong.append((call, "no sentence for everybody", told))
        else:
            wrong.append((call, "passed", ""))
        if await everything(world) != before:
            wrong.append((call, "changed something", ""))
            before = await everything(world)
    assert wrong == []


async def test_retry_many_passes_over_what_it_may_not(world):
    before = await everything(world)
    assert (
        await world.all(
            "select pgsched.retry_many((select array_agg(id) from pgsched.runs where status <> 'cancelled'))"
        )
        == []
    )
    assert await world.all("select pgsched.retry_many(null)") == []
    assert await everything(world) == before


async def test_null_sets_an_option_back_to_its_default(db):
    given = """{"overlap": 3, "catch_up": "all", "catch_up_limit": 7, "grace": 90, "jitter": "5 s",
        "timeout": "PT5M", "max_attempts": 4, "backoff": "2 s", "max_backoff": "1 h", "starts_at": "2031-01-01 00:00Z",
        "ends_at": "2032-01-01T00:00:00Z", "max_runs": 9, "priority": -3, "note": "mine"}"""
    columns = """overlap, catch_up, catch_up_limit, grace::text, jitter::text, timeout::text, max_attempts,
        backoff::text, max_backoff::text, starts_at, ends_at, max_runs, priority, note, args::text, timezone"""
    await db.all("select pgsched.create_schedule('plain', 'job', '@daily')")
    await db.all("select pgsched.create_schedule('a', 'job', '@daily', '{\"x\": 1}', 'Europe/Berlin', %s)", given)
    read = f"select {columns} from pgsched.schedules where name = %s"
    first = datetime(2031, 1, 1, tzinfo=UTC)
    assert await db.one(read, "a") == (
        "3", "all", 7, "00:01:30", "00:00:05", "00:05:00", 4, "00:00:02", "01:00:00", first, first.replace(year=2032),
        9, -3, "mine", '{"x": 1}', "Europe/Berlin",
    )  # fmt: skip
    await db.all(
        "select pgsched.alter('a', (select jsonb_object_agg(key, null) from jsonb_object_keys(%s::jsonb) key)"
        ' || \'{"args": null, "timezone": null}\')',
        given,
    )
    assert await db.one(read, "a") == await db.one(read, "plain")


async def test_alter_changes_only_what_it_names(db):
    await db.all("select pgsched.create_schedule('a', 'job', '@daily', '{\"x\": 1}', options => '{\"priority\": 5}')")
    await db.all("update pgsched.schedules set next_run = '2031-01-01Z', planned_at = clock_timestamp()")
    [before] = await db.all("select to_jsonb(s) from pgsched.schedules s")
    await db.all("select pgsched.alter('a', '{}')")
    assert await db.all("select to_jsonb(s) from pgsched.schedules s") == [before], "it is no change to change nothing"
    await db.all("select pgsched.alter('a', '{\"entrypoint\": \"other\"}')")
    [after] = await db.all("select to_jsonb(s) from pgsched.schedules s")
    assert {key for key in after[0] if after[0][key] != before[0][key]} == {"entrypoint", "updated_at", "version"}
    await db.all("select pgsched.alter('a', '{\"expression\": \"@hourly\"}')")
    assert await db.value("select next_run from pgsched.schedules") is None


async def test_a_name_is_taken_by_whoever_commits_first(db, dsn, schema):
    """The second waits for the first, and is told by name, not by a constraint."""
    create = in_schema(b"select pgsched.create_schedule('a', 'job', '@daily')", schema, parametrised=False)
    async with (
        await psycopg.AsyncConnection.connect(dsn) as first,
        await psycopg.AsyncConnection.connect(dsn) as second,
    ):
        await first.execute(create)
        waiting = asyncio.create_task(second.execute(create))
        await db.until("select exists (select from pg_locks where pid = %s and not granted)", second.info.backend_pid)
        await first.commit()
        with pytest.raises(psycopg.Error) as told:
            await waiting
    assert (told.value.sqlstate, told.value.diag.message_primary) == ("PS409", 'A schedule named "a" exists already.')


async def test_a_trigger_at_anothers_microsecond_is_the_next(dsn):
    """On a clock that stands, the second is made to read the instant of the first."""
    scheduler = Scheduler()

    @scheduler.schedule("job", "@daily", name="s")
    async def job(): ...

    async with Harness(scheduler, dsn) as t, await psycopg.AsyncConnection.connect(dsn, autocommit=True) as mine:
        await mine.execute(in_schema(b"alter sequence pgsched.test_tick restart", t.schema, parametrised=False))
        first = await t.client.trigger("s")
        await mine.execute(in_schema(b"alter sequence pgsched.test_tick restart", t.schema, parametrised=False))
        second = await t.client.trigger("s")
        instants = [(await t.client.get_run(run_id))["fire_time"] for run_id in (first, second)]
        assert instants[0] - instants[1] == timedelta(microseconds=1)


# --- enqueue_many -----------------------------------------------------------------------------------------


async def test_keys_of_a_batch_are_deduplicated_within_it_and_against_what_is_live(db):
    live = await db.value("select pgsched.enqueue('job', unique_key => 'live')")
    over = await db.value("select pgsched.enqueue('job', unique_key => 'over')")
    other = await db.value("select pgsched.enqueue('other', unique_key => 'a')")
    await db.all("select pgsched.cancel(%s)", over)
    [ids] = await db.one(
        "select pgsched.enqueue_many('job', array(select jsonb_build_object('n', n) from generate_series(1, 8) n),"
        " unique_keys => array['b', null, 'a', 'live', 'b', null, 'over', 'a'])"
    )
    assert ids[3] == live and ids[0] == ids[4] and ids[2] == ids[7] and len({*ids}) == 6
    assert not {over, other} & {*ids}
    rows = await db.all("select id, (args ->> 'n')::int from pgsched.runs where id = any (%s)", ids)
    assert dict(rows) == {ids[0]: 1, ids[1]: 2, ids[2]: 3, live: None, ids[5]: 6, ids[6]: 7}
    claimed = await db.all(
        "select args ->> 'n' from pgsched.runs where args <> '{}' order by priority desc, due_at, id"
    )
    assert [n for (n,) in claimed] == ["1", "2", "3", "6", "7"], "they run in the batch's order"
    assert await db.one(
        "select pgsched.enqueue_many('job', '{}', unique_keys => '{}'), pgsched.enqueue_many('job', '{}')"
    ) == ([], [])


async def test_batches_that_share_keys_wait_in_one_order(db, dsn, schema):
    """The first holds a; the second, whose keys stand the other way round, must wait for a before it takes b."""
    batch = in_schema(b"select pgsched.enqueue_many('job', '{\"{}\",\"{}\"}', unique_keys => %s)", schema)
    async with (
        await psycopg.AsyncConnection.connect(dsn) as first,
        await psycopg.AsyncConnection.connect(dsn) as second,
    ):
        await first.execute(in_schema(b"select pgsched.enqueue('job', unique_key => 'a')", schema), ())
        waiting = asyncio.create_task(second.execute(batch, (["b", "a"],)))
        await db.until("select exists (select from pg_locks where pid = %s and not granted)", second.info.backend_pid)
        await first.execute(in_schema(b"select pgsched.enqueue('job', unique_key => 'b')", schema), ())
        await first.commit()
        [b, a] = (await (await waiting).fetchone())[0]
        await second.commit()
    assert await db.all("select id, unique_key from pgsched.runs order by id") == [(a, "a"), (b, "b")]


# --- transactions and rights ------------------------------------------------------------------------------

WRITES = [
    "pgsched.create_schedule('new', 'job', '@daily')",
    "pgsched.alter('active', '{\"priority\": 3}')",
    "pgsched.alter('active', '{\"expression\": \"@hourly\"}')",
    "pgsched.pause('active')",
    "pgsched.resume('paused')",
    "pgsched.trigger('active')",
    "pgsched.remove('active')",
    "pgsched.enqueue('job')",
    "pgsched.enqueue_many('job', array['{}']::jsonb[])",
    f"pgsched.cancel({run('queued')})",
    f"pgsched.cancel({run('running')})",
    f"pgsched.retry({run('cancelled')})",
    f"pgsched.retry_many(array[{run('cancelled')}])",
]


@pytest.fixture
async def ears(dsn, schema) -> AsyncIterator[psycopg.AsyncConnection]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute(sql.SQL("listen {}").format(sql.Identifier(schema)))
        yield connection


async def heard(ears, db, schema) -> int:
    """How many wake-ups came until now. A last one is sent to mark the end: they come in the order of the commits."""
    await db.connection.execute("select pg_notify(%s, 'end')", (schema,))
    count = 0
    async for note in ears.notifies(timeout=20):
        if note.payload == "end":
            return count
        count += 1
    raise AssertionError("no notification came")


async def test_a_rollback_leaves_nothing_and_wakes_nobody(world, ears, dsn, schema):
    await world.all("update pgsched.runs set unique_key = null")
    before = await everything(world)
    await heard(ears, world, schema)
    async with await psycopg.AsyncConnection.connect(dsn) as mine:
        for call in WRITES:
            await mine.execute(in_schema(f"select {call}".encode(), schema, parametrised=False))
            await mine.rollback()
    assert await heard(ears, world, schema) == 0
    assert await everything(world) == before


@pytest.mark.parametrize("call", [call for call in WRITES if "'queued'" not in call])
async def test_a_commit_wakes_the_workers(world, ears, dsn, schema, call):
    await world.all("update pgsched.runs set unique_key = null")
    await heard(ears, world, schema)
    async with await psycopg.AsyncConnection.connect(dsn) as mine:
        await mine.execute(in_schema(f"select {call}".encode(), schema, parametrised=False))
        assert await heard(ears, world, schema) == 0, "not before it commits"
        await mine.commit()
        assert await heard(ears, world, schema) == 1


RIGHTS = {
    # Who only enqueues, and looks whether it was done.
    "enqueue": [
        "insert (entrypoint, args, due_at, priority, unique_key, unique_while, app) on pgsched.runs",
        "select (id, entrypoint, unique_key, unique_while, app, status) on pgsched.runs",
    ],
    # Who does everything that the functions do.
    "all": [
        "select on pgsched.limits, pgsched.limit_members, pgsched.workers",
        "select, insert, update, delete on pgsched.schedules, pgsched.runs",
    ],
}


@pytest.fixture
async def role(db, schema) -> AsyncIterator[sql.Identifier]:
    """A role that may nothing."""
    name = sql.Identifier(f"pgsched test {os.getpid()}")
    await db.connection.execute(sql.SQL("create role {}").format(name))
    yield name
    await db.connection.execute("reset role")
    await db.connection.execute(sql.SQL("drop owned by {}; drop role {}").format(name, name))


async def grant(db, role: sql.Identifier, rights: list[str]) -> None:
    for right in ["usage on schema pgsched", *rights]:
        text = f"grant {right} to ".encode().replace(
            b"schema pgsched", b"schema " + sql.Identifier(db.schema).as_bytes()
        )
        await db.connection.execute(in_schema(text, db.schema, parametrised=False) + role.as_bytes())
    await db.connection.execute(sql.SQL("set role {}").format(role))


async def test_a_role_with_few_rights_enqueues_and_can_do_nothing_else(world, role):
    await grant(world, role, RIGHTS["enqueue"])
    made = await world.value("select pgsched.enqueue('job', '{}', unique_key => 'mine')")
    assert await world.value("select pgsched.enqueue('job', '{}', unique_key => 'mine')") == made
    assert len(await world.value("select pgsched.enqueue_many('job', array['{}', '{}']::jsonb[])")) == 2
    for call in WRITES:
        if "enqueue" not in call:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await world.all(f"select {call}")


async def test_the_functions_need_no_right_but_these(world, role):
    await world.all("update pgsched.runs set unique_key = null")
    await grant(world, role, RIGHTS["all"])
    for call in WRITES:
        async with world.connection.transaction(force_rollback=True):
            await world.all(f"select {call}")
            await world.all("set constraints all immediate")


async def test_without_a_right_nothing_is_done_as_the_owner(world, role):
    """Security invoker: the functions lend nobody the rights of whoever migrated."""
    await grant(world, role, [])
    for call in WRITES:
        if "select min" not in call:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await world.all(f"select {call}")


async def test_every_function_is_pinned_commented_and_lends_no_rights(db, schema):
    rows = await db.all(
        "select p.proname, p.prosecdef and p.prorettype <> 'trigger'::regtype, p.prosqlbody is null,"
        " p.proconfig, obj_description(p.oid, 'pg_proc') from pg_proc p"
        " join pg_namespace n on n.oid = p.pronamespace where n.nspname = %s",
        schema,
    )
    assert len(rows) > 15
    assert [
        row
        for row in rows
        # A body that was resolved when the function was made needs no search_path.
        if row[1]
        or (row[2] and "search_path=pg_catalog, pg_temp" not in (row[3] or []))
        or not (row[4] or "").endswith(".")
    ] == []
