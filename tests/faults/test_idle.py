"""With nothing due and nothing running a worker asks the database at most once a minute, and still hears at once."""

import psycopg
import pytest

SECONDS = 110  # fewer than two minutes hold at most two resyncs


@pytest.fixture
def dsn(server):
    """A server that logs every statement."""
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        for setting, value in {"log_statement": "all", "log_line_prefix": "<%a> "}.items():
            connection.execute(f"alter system set {setting} = '{value}'")
        connection.execute("select pg_reload_conf()")
    return server.dsn


@pytest.mark.slow
async def test_an_idle_worker_sends_one_statement_a_minute_and_hears_of_a_change_at_once(daemons, db, server):
    daemons.app("""
@sc.entrypoint("job")
async def job(run: Run):
    mark(run, "began")
""")
    await db.all("""
        insert into pgsched.schedules (name, entrypoint, expression)
        select 'idle ' || n, 'job', '@at ' || to_char(
            clock_timestamp() at time zone 'UTC' + interval '5 h' + n * interval '1 s', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
        from generate_series(1, 100) n
    """)
    daemon = await daemons.ready(heartbeat_interval="1s", stall_timeout="30s")
    await db.until("select count(*) = 100 from pgsched.schedules where next_run > now() + interval '4 h'")
    worker = await daemon.worker_id()

    def said() -> list[str]:
        return [line for line in server.log() if line.startswith(f"<pgsched {worker}>") and "LOG:" in line]

    assert said(), "the server's log must show the worker's statements"
    # What the start still has under way ends first: the worker's sessions have nothing to do then.
    await db.until("""
        select count(*) = 2 and bool_and(state = 'idle' and clock_timestamp() - state_change > '2 s')
        from pg_stat_activity where application_name = 'pgsched ' || %s
    """, worker)  # fmt: skip
    before = len(said())
    since = await db.value("select clock_timestamp()")
    await db.until(
        "select clock_timestamp() > %s::timestamptz + %s * interval '1 s'", since, SECONDS, limit=SECONDS + 30
    )
    sent = said()[before:]
    assert len(sent) <= 2, sent
    assert sent, "not even the resync came, so this counts nothing"

    await db.all(
        "insert into pgsched.schedules (name, entrypoint, expression) values ('now', 'job', '@at 2020-01-01T00:00:00Z')"
    )
    await db.until("select count(*) = 1 from pgsched.marks", limit=5)
    assert await daemon.stop() == 0
