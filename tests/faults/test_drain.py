"""A stop loses nothing: runs finish in the grace, or are given back without costing an attempt."""

import signal

import pytest

RUNNING = "select count(*) = %s from pgsched.runs where status = 'running' and started_at is not null"

GATED = """
@sc.schedule("job", at(PAST))
async def job(run: Run):
    mark(run, "began")
    await opened("gate")
    mark(run, "ended")
"""


async def test_a_run_longer_than_the_stall_timeout_finishes_in_the_grace(daemons, db):
    daemons.app(GATED)
    first = await daemons.ready(drain_timeout="20s")
    await db.until(RUNNING, 1)
    other = await daemons.ready()  # would reap it if it could
    first.send(signal.SIGTERM)
    await first.event("drain_started", running=1)
    stopped_at = await db.value("select clock_timestamp()")
    beaten = "heartbeat_at > %s::timestamptz + interval '3 s'"  # longer than the stall timeout of 2 s
    await db.until(f"select status <> 'running' or {beaten} from pgsched.runs", stopped_at)
    assert await db.one("select status, attempt, worker::text from pgsched.runs") == (
        "running", 1, await first.worker_id(),
    )  # fmt: skip
    daemons.open("gate")
    assert await first.exit_code() == 0
    assert await db.one("select status, attempt, errors from pgsched.runs") == ("succeeded", 1, [])
    assert await db.all("select what, pid from pgsched.marks order by id") == [
        ("began", first.pid), ("ended", first.pid),
    ]  # fmt: skip
    assert other.events("run_reaped") == []
    assert await db.value("select count(*) from pgsched.workers") == 1
    assert await other.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_past_the_grace_runs_are_given_back_and_started_elsewhere_with_the_same_attempt(daemons, db, number):
    daemons.app("""
@sc.schedule("job", at(PAST), retry=Retry(attempts=1))
async def job(run: Run):
    mark(run, "began")
    try:
        await opened("gate")
    except asyncio.CancelledError:
        mark(run, "cancelled")
        raise
""")
    first = await daemons.ready(drain_timeout="300ms")
    await db.until("select count(*) = 1 from pgsched.marks")
    # Neither a resync nor a stall timeout can help this one: only the notification does.
    other = await daemons.ready(resync_interval="0", stall_timeout="1h")
    first.send(number)
    await db.until("select count(*) = 3 from pgsched.marks")
    assert await db.all("select what, attempt, pid from pgsched.marks order by id") == [
        ("began", 1, first.pid), ("cancelled", 1, first.pid), ("began", 1, other.pid),
    ]  # fmt: skip
    assert await first.exit_code() == 75
    assert first.events("run_given_back")
    daemons.open("gate")
    await db.until("select status = 'succeeded' from pgsched.runs")
    assert await db.one("select attempt, errors from pgsched.runs") == (1, [])


async def test_a_second_signal_ends_it_at_once(daemons, db):
    daemons.app(GATED)
    first = await daemons.ready(drain_timeout="1h")
    await db.until("select count(*) = 1 from pgsched.marks")
    first.send(signal.SIGTERM)
    await first.event("drain_started")
    first.send(signal.SIGTERM)
    assert await first.exit_code() == 128 + signal.SIGTERM
    assert first.events("worker_ended_hard", running=1)
    # Nothing was given back in that hurry, so it costs an attempt; but another worker takes over at once.
    daemons.open("gate")
    await daemons.ready()
    await db.until("select status = 'succeeded' from pgsched.runs")
    assert await db.one("select attempt, jsonb_array_length(errors) from pgsched.runs") == (2, 1)


async def test_a_run_held_ahead_of_its_instant_is_given_back(daemons, db):
    daemons.app("""
@sc.entrypoint("job")
async def job(run: Run):
    mark(run, "began")
""")
    first = await daemons.ready(lookahead="10s")
    await db.all("""
        insert into pgsched.schedules (name, entrypoint, expression)
        select 's', 'job', '@at ' || to_char(clock_timestamp() at time zone 'UTC' + interval '4 s',
                                             'YYYY-MM-DD"T"HH24:MI:SS"Z"')
    """)
    await db.until("select status = 'running' and started_at is null from pgsched.runs")
    assert await first.stop() == 0
    given_back = await db.one("select status, attempt, due_at > clock_timestamp() from pgsched.runs")
    assert given_back == ("queued", 0, True)
    await daemons.ready()
    await db.until("select status = 'succeeded' from pgsched.runs")
    assert await db.one("select attempt, started_at >= fire_time, errors from pgsched.runs") == (1, True, [])
    assert await db.value("select bool_and(at >= fire_time) from pgsched.marks")


@pytest.mark.parametrize(
    "stubborn",
    [
        """
@sc.schedule("job", at(PAST))
def job(run: Run):
    mark(run, "began")
    if (FOLDER / "gate").exists():
        return
    time.sleep(3600)
""",
        """
@sc.schedule("job", at(PAST))
async def job(run: Run):
    mark(run, "began")
    while not (FOLDER / "gate").exists():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
            return
""",
    ],
    ids=["thread", "coroutine"],
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_what_ignores_its_cancellation_does_not_keep_the_process(daemons, db, stubborn, number):
    daemons.app(stubborn)
    first = await daemons.ready(drain_timeout="200ms", cancel_timeout="500ms")
    await db.until("select count(*) = 1 from pgsched.marks")
    first.send(number)
    assert await first.exit_code(15) == 75
    assert await db.one("select status, attempt, errors from pgsched.runs") == ("queued", 0, [])
    assert await db.value("select count(*) from pgsched.workers") == 0
    daemons.open("gate")
    await daemons.ready()
    await db.until("select status = 'succeeded' from pgsched.runs")
    assert await db.value("select attempt from pgsched.runs") == 1
