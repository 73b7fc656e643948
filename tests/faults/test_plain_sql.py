"""Any client may write schedules, in plain SQL, well or badly: it takes effect at once, and breaks nothing.

The resync is switched off throughout, so that no timer can help a lost wake-up.
"""

import json

ADD = "insert into pgsched.schedules (name, entrypoint, expression) values (%s, 'job', %s)"
MARKED = "select count(*) >= %s from pgsched.marks m join pgsched.runs r on r.id = m.run_id where r.args ->> 'k' = %s"
JOB = """
@sc.entrypoint("job")
async def job(run: Run, **anything):
    mark(run, "began")
"""


async def runs_of(db, name):
    return await db.value(
        "select count(*) from pgsched.runs r join pgsched.schedules s on s.id = r.schedule_id "
        "where s.name = %s and r.status = 'succeeded'",
        name,
    )


async def until_run(db, name, count=1):
    await db.until(
        "select count(*) >= %s from pgsched.runs r join pgsched.schedules s on s.id = r.schedule_id "
        "where s.name = %s and r.status = 'succeeded'",
        count, name, limit=10,
    )  # fmt: skip


async def test_changes_take_effect_as_soon_as_they_commit(daemons, db):
    daemons.app(JOB)
    daemon = await daemons.ready(resync_interval="0")

    # Inserted; not before the commit, at once after it.
    await db.all("begin")
    await db.all(ADD, "new", "@at 2020-01-01T00:00:00Z")
    await db.all(ADD, "yearly", "0 0 1 1 *")
    await db.all("commit")
    await until_run(db, "new")
    await db.until("select next_run > now() from pgsched.schedules where name = 'yearly'")

    # Moved earlier: by next_run, then by another expression.
    await db.all("update pgsched.schedules set next_run = now() where name = 'yearly'")
    await until_run(db, "yearly")
    await db.until("select next_run > now() from pgsched.schedules where name = 'yearly'")
    await db.all("update pgsched.schedules set expression = '* * * * * *' where name = 'yearly'")
    await until_run(db, "yearly", 3)

    # Paused: what was claimed ahead goes too, and nothing starts after the commit but what was due then.
    await db.all("update pgsched.schedules set status = 'paused' where name = 'yearly'")
    paused_at = await db.value("select paused_at from pgsched.schedules where name = 'yearly'")
    await db.until("select clock_timestamp() > %s::timestamptz + interval '2.5 s'", paused_at)
    assert await db.value("select count(*) from pgsched.runs where fire_time > %s", paused_at) == 0
    assert await db.value("select count(*) from pgsched.marks where fire_time > %s", paused_at) == 0

    # Resumed: goes on, and what lay in the pause is recorded.
    before = await runs_of(db, "yearly")
    await db.all("update pgsched.schedules set status = 'active' where name = 'yearly'")
    await until_run(db, "yearly", before + 2)
    assert await db.value("select sum(skipped_count) from pgsched.runs where reason = 'paused'") >= 2

    # Removed.
    await db.all("delete from pgsched.schedules where name = 'yearly'")
    removed_at = await db.value("select clock_timestamp()")
    await db.until("select clock_timestamp() > %s::timestamptz + interval '1.5 s'", removed_at)
    assert await db.value("select count(*) from pgsched.marks where fire_time > %s", removed_at) == 0
    assert await daemon.stop() == 0


async def test_rows_that_cannot_be_planned_are_marked_and_stop_nothing(daemons, db):
    daemons.app(JOB)
    daemon = await daemons.ready(resync_interval="0")
    broken = {
        "words": ("every now and then", "UTC", "skip"),
        "empty": ("", "UTC", "skip"),
        "never": ("0 0 30 2 *", "UTC", "skip"),
        "random": ("R * * * *", "UTC", "skip"),
        "zone": ("* * * * *", "Mars/Olympus", "skip"),
        "no-zone": ("* * * * *", "", "skip"),
        "path": ("* * * * *", "../../../../etc/passwd", "skip"),
        "absolute": ("* * * * *", "/etc/localtime", "skip"),
        "long": ("*/7," * 249, "UTC", "skip"),
        "control": ("* * *\x1b[31m * *", "U\x07TC", "skip"),
        "year": ("@at 999999-01-01T00:00:00Z", "UTC", "skip"),
        "every": ("@every 99999999999999999999h", "UTC", "skip"),
        "digits": ("9" * 900 + " * * * *", "UTC", "skip"),
        "wide": ("٣ ٣ * * *", "UTC", "skip"),
        "surrogate-like": ("\\ud800 * * * *", "UTC", "skip"),
    }
    await db.all("begin")
    for name, (expression, zone, overlap) in broken.items():
        await db.all(
            "insert into pgsched.schedules (name, entrypoint, expression, timezone, overlap) "
            "values (%s, 'job', %s, %s, %s)",
            name, expression, zone, overlap,
        )  # fmt: skip
    await db.all(ADD, "good", "@at 2020-01-01T00:00:00Z")
    await db.all("commit")
    await until_run(db, "good")
    await db.until("select count(*) = 0 from pgsched.schedules where status = 'active' and next_run is null")
    rows = {row[0]: row[1:] for row in await db.all("select name, status, note, next_run from pgsched.schedules")}
    for name in broken:
        status, note, next_run = rows[name]
        assert (status, next_run) == ("invalid", None), (name, status, note)
        assert note and len(note) > 10, name
    assert "Mars/Olympus" in rows["zone"][1]
    assert len(daemon.events("schedule_invalid")) == len(broken)

    # Put right, it goes on.
    await db.all("update pgsched.schedules set expression = '@at 2021-01-01T00:00:00Z' where name = 'words'")
    await until_run(db, "words")
    # Broken later, it stops.
    await db.all(ADD, "later", "* * * * * *")
    await until_run(db, "later")
    await db.all("update pgsched.schedules set timezone = 'Nowhere' where name = 'later'")
    await db.until("select status = 'invalid' and note like '%%Nowhere%%' from pgsched.schedules where name = 'later'")
    assert await daemon.stop() == 0


async def test_hostile_rows_are_not_executed_and_stop_nothing(daemons, db):
    daemons.app(JOB)
    daemon = await daemons.ready(resync_interval="0")
    pwned = daemons.folder / "pwned"
    await db.all(
        "insert into pgsched.schedules (name, entrypoint, expression, args) "
        "values ('system', 'os:system', '@at 2020-01-01', %s), ('dotted', 'os.system', '@at 2020-01-01', %s)",
        *[json.dumps({"command": f"touch {pwned}"})] * 2,
    )
    for entrypoint in ("os:system", "os.system", "builtins.exec", "job; drop table x", "__class__", "' or true --"):
        await db.all("select pgsched.enqueue(%s, %s::jsonb)", entrypoint, json.dumps({"command": f"touch {pwned}"}))
    deep = '{"a": ' * 5000 + "1" + "}" * 5000
    hostile = {
        "deep": deep,
        "number": '{"n": 1e100000}',
        "negative": '{"n": -1e-16000}',
        "digits": '{"n": ' + "9" * 10_000 + "}",
        "many": json.dumps({f"k{i}": i for i in range(20_000)}),
        "names": json.dumps({"run": 1, "self": 2, "": 3, "a b": 4, "__class__": 5}),
        "long": json.dumps({"x": "y" * 5_000_000}),
        "text": json.dumps({"x": "\u202e\x1b[2J\u2028"}),
    }
    for name, args in hostile.items():
        await db.all(
            "insert into pgsched.schedules (name, entrypoint, expression, args) values (%s, 'job', %s, %s::jsonb)",
            name, "@at 2020-01-01T00:00:00Z", args,
        )  # fmt: skip
    await db.all(
        "insert into pgsched.schedules (name, entrypoint, expression, next_run, jitter, grace, timeout, max_attempts, "
        "backoff, max_backoff, starts_at, ends_at, priority, overlap, max_runs) values "
        "('extreme', 'job', '* * * * * *', '1900-01-01Z', '36500 days', '1 month', '36500 days', 1000, "
        "'36500 days', '0', '1900-01-01Z', '2199-12-31Z', -100, '999999', 2147483647), "
        "('far', 'job', '* * * * * *', '2199-12-31 23:59:59Z', '0', null, null, null, null, null, null, null, 0, "
        "'allow', null), "
        "('old', 'job', '* * * * * *', '1900-01-01Z', '0', null, null, null, null, null, null, null, 0, "
        "'skip', null)"
    )
    await db.until(
        "select count(*) >= %s from pgsched.runs where schedule_id is not null and status in ('succeeded', 'failed')",
        len(hostile),
    )
    await until_run(db, "old", 2)
    await db.all(ADD, "good", "@at 2020-01-01T00:00:00Z")
    await until_run(db, "good")
    statuses = dict(await db.all(
        "select s.name, r.status from pgsched.runs r join pgsched.schedules s on s.id = r.schedule_id "
        "where s.name = any(%s)", list(hostile),
    ))  # fmt: skip
    # What Python's reader refuses is a failure of the run, and says so.
    assert {name for name, status in statuses.items() if status == "failed"} == {"deep", "number", "digits", "names"}
    unknown = await db.all("select status, attempt from pgsched.runs where entrypoint <> 'job'")
    assert unknown == [("queued", 0)] * 6
    assert (
        await db.value("select count(*) from pgsched.schedules where entrypoint like 'os%%' and next_run is null") == 2
    )
    assert not pwned.exists()
    assert await daemon.stop() == 0


async def test_defaults_of_the_role_or_database_do_not_break_it(daemons, db, dsn):
    daemons.app(JOB + """
@sc.schedule("tick", "* * * * * *", name="tick", timeout=timedelta(minutes=1))
async def tick(): ...
""")  # fmt: skip
    options = {
        "intervalstyle": "iso_8601", "datestyle": "German", "timezone": "Asia/Kathmandu",
        "default_transaction_isolation": "serializable", "bytea_output": "escape", "search_path": "nowhere",
        "statement_timeout": "1ms", "extra_float_digits": "0", "client_min_messages": "debug1",
        "standard_conforming_strings": "off", "idle_session_timeout": "1s",
        "array_nulls": "off",
    }  # fmt: skip
    given = "%20".join(f"-c%20{name}%3D{value}" for name, value in options.items())
    hostile = f"{dsn}{'&' if '?' in dsn else '?'}options={given}"
    daemon = await daemons.ready(dsn=hostile, resync_interval="0")
    await until_run(db, "tick", 3)
    await db.all(ADD, "new", "@at 2020-01-01T00:00:00Z")
    await until_run(db, "new")
    assert daemon.events("database_lost") == []
    assert await daemon.stop() == 0
