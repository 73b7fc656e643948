"""A daemon that holds claims stands still while a client changes their schedule: each fire time is decided once."""

import signal

import pytest

FIRST = "(select starts_at from pgsched.schedules)"
CHANGES = {
    "alter": "select pgsched.alter('s', '{\"args\": {\"v\": 1}}')",
    "pause": "select pgsched.pause('s', 'audit')",
    "retime": (
        "select pgsched.alter('s', jsonb_build_object('ends_at', ends_at + interval '1 s')) from pgsched.schedules"
    ),
}
# How many records each second from the first fire time to the last one has, and how many calls.
BOOKS = """
    select extract(epoch from t - s.starts_at)::int,
        (select count(*) from pgsched.runs r
         where t between r.fire_time and coalesce(r.skipped_through, r.fire_time) and r.withdrawn_at is null),
        (select count(*) from pgsched.marks m where m.fire_time = t)
    from pgsched.schedules s cross join lateral generate_series(s.starts_at, s.ends_at, '1 s') t
    order by 1
"""
DECIDED = f"select count(*) > 0 and bool_and(records = 1) from ({BOOKS}) b (n, records, calls)"


async def decided(db, change):
    if change == "pause":
        await db.all("select pgsched.resume('s') from pgsched.schedules where status = 'paused'")
    await db.until(DECIDED)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("answer", ["a reaper", "the holder, late"])
async def test_a_change_while_the_holder_stands_still(daemons, db, change, answer):
    daemons.app("""
@sc.entrypoint("job")
async def job(run: Run, v: int = 0):
    mark(run, f"v{v}")
""")
    # The holder's own stall timeout counts for its claims.
    patience = {"stall_timeout": "2s" if answer == "a reaper" else "30s", "lookahead": "10s"}
    holder = await daemons.ready(**patience)
    await db.all(
        "insert into pgsched.schedules (name, entrypoint, expression, overlap, catch_up, starts_at, ends_at)"
        " select 's', 'job', '* * * * * *', 'allow', 'all', t, t + interval '1 s'"
        " from (select date_trunc('second', clock_timestamp()) + interval '3 s' as t) first"
    )
    await db.until("select count(*) > 0 from pgsched.runs where status = 'running'")
    holder.send(signal.SIGSTOP)
    await db.all(CHANGES[change])
    assert await db.value(f"select clock_timestamp() < {FIRST}"), "nothing has begun"
    assert await db.value("select count(*) from pgsched.marks") == 0
    other = await daemons.ready(**patience)
    held = "exists (select from pgsched.runs where worker = %s and status = 'running')"
    if answer == "a reaper":
        await db.until(f"select not {held}", await holder.worker_id())
    await db.until("select clock_timestamp() > ends_at from pgsched.schedules")
    if answer == "a reaper":
        await decided(db, change)
    else:
        assert await db.value(f"select {held}", await holder.worker_id())
        assert await db.value("select count(*) from pgsched.marks") == 0, "until the holder answers nobody plans"
    holder.send(signal.SIGCONT)
    if answer == "a reaper":
        await holder.event("claim_dropped")
    await db.until(f"select not {held}", await holder.worker_id())
    await decided(db, change)
    await db.until("select not exists (select from pgsched.runs where status in ('queued', 'running'))")
    assert [await holder.stop(), await other.stop()] == [0, 0]
    called = change != "pause"
    assert await db.all(BOOKS) == [(n, 1, called) for n in range(3 if change == "retime" else 2)]
    assert {what for (what,) in await db.all("select distinct what from pgsched.marks")} == (
        {"v1"} if change == "alter" else {"v0"} if called else set()
    )
    assert await db.value(
        "select bool_and(status = %s) from pgsched.runs where withdrawn_at is null"
        " and fire_time >= (select starts_at from pgsched.schedules)",
        "succeeded" if called else "skipped",
    )
