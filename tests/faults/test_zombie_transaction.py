"""A worker that stood still inside run.transaction() and comes back: of its writes there is nothing."""

import signal

APP = """
INSERT = sql.SQL("insert into {}.paid values (1, %s)").format(
    sql.Identifier(os.environ["FAULTS_SCHEMA"].replace("%", "%%"))
)

@sc.entrypoint("pay", retry=Retry(attempts=3, backoff=timedelta(0)))
ASYNC def pay(run: Run):
    ASYNC with run.transaction() as connection:
        AWAIT connection.execute(INSERT, (run.attempt,))
        mark(run, "wrote")
        if run.attempt == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
            while not (FOLDER / "gate").exists():  # the signal stops another thread first, and this one a moment later
                time.sleep(0.01)
            note(run, "woke")
    note(run, "committed")
    return run.attempt
"""


async def replaced(daemons, db, source):
    """The key is unique: while the zombie's transaction is open, the next attempt's insert would wait for it."""
    daemons.app(source)
    await db.all("create table pgsched.paid (n int primary key, attempt int)")
    zombie = await daemons.ready()
    await db.all("select pgsched.enqueue('pay')")
    await db.until("select count(*) = 1 from pgsched.marks")
    other = await daemons.ready()
    await db.until("select result is not null from pgsched.runs")
    before = await db.value("select r::text from pgsched.runs r")

    daemons.open("gate")
    zombie.send(signal.SIGCONT)
    await zombie.event("claim_lost", attempt=1)
    assert await zombie.stop() == 0
    assert [found["pid"] for found in daemons.notes("woke")] == [zombie.pid]
    assert [found["pid"] for found in daemons.notes("committed")] == [other.pid]
    assert await db.value("select r::text from pgsched.runs r") == before
    status, attempt, result, committed = await db.one(
        "select status, attempt, result, committed_at is not null from pgsched.runs"
    )
    assert (status, attempt, result, committed) == ("succeeded", 2, 2, True)
    assert await db.all("select n, attempt from pgsched.paid") == [(1, 2)]


async def test_a_zombie_inside_its_transaction_leaves_exactly_the_other_workers_writes(daemons, db):
    await replaced(daemons, db, APP.replace("ASYNC", "async").replace("AWAIT", "await"))


async def test_a_zombie_thread_inside_its_transaction_leaves_exactly_the_other_workers_writes(daemons, db):
    await replaced(daemons, db, APP.replace("ASYNC ", "").replace("AWAIT ", ""))


async def test_a_zombie_whose_session_nobody_could_end_is_refused_at_the_end_of_its_block(daemons, db):
    """As behind a pooler: the session goes by another name, and the claim alone has to fence it."""
    daemons.app("""
NAME = sql.Identifier(os.environ["FAULTS_SCHEMA"].replace("%", "%%"))

@sc.entrypoint("pay", retry=Retry(attempts=3, backoff=timedelta(0)))
async def pay(run: Run):
    try:
        async with run.transaction() as connection:
            await connection.execute("set local application_name = 'somebody'")
            await connection.execute(sql.SQL("insert into {}.paid values (%s)").format(NAME), (run.attempt,))
            mark(run, "wrote")
            if run.attempt == 1:
                os.kill(os.getpid(), signal.SIGSTOP)
    except BaseException as error:
        note(run, type(error).__name__)
        raise
    return run.attempt
""")
    await db.all("create table pgsched.paid (attempt int)")
    zombie = await daemons.ready()
    await db.all("select pgsched.enqueue('pay')")
    await db.until("select count(*) = 1 from pgsched.marks")
    await daemons.ready()
    await db.until("select result is not null from pgsched.runs")
    assert await db.all("select attempt from pgsched.paid") == [(2,)]
    assert await db.value("select count(*) = 1 from pg_stat_activity where application_name = 'somebody'")

    zombie.send(signal.SIGCONT)
    await zombie.event("claim_lost", attempt=1)
    assert await zombie.stop() == 0
    assert daemons.notes("ClaimLost") or daemons.notes("CancelledError")
    assert await db.all("select attempt from pgsched.paid") == [(2,)]
    assert await db.one("select status, attempt, result from pgsched.runs") == ("succeeded", 2, 2)
