"""Ten thousand fire times, two workers, killed again and again: the books must balance."""

import asyncio
import random

import pytest

FIRE_TIMES = 4_000
SPREAD = 10  # seconds
KILLS = 5

# Every line must give no row. The invariants at the end of the list of faults, in SQL.
INVARIANTS = {
    "a fire time has exactly one run": """
        select s.id, count(r.id) from pgsched.schedules s left join pgsched.runs r on r.schedule_id = s.id
        where s.entrypoint = 'once' group by s.id having count(r.id) <> 1
    """,
    "no fire time has two runs": """
        select schedule_id, fire_time from pgsched.runs group by 1, 2 having count(*) > 1
    """,
    "a run is of its schedule's very fire time": """
        select r.id from pgsched.schedules s join pgsched.runs r on r.schedule_id = s.id
        where s.entrypoint = 'once' and s.expression
            <> '@at ' || to_char(r.fire_time at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
    """,
    "every run is done": "select id, status from pgsched.runs where status not in ('succeeded', 'skipped')",
    "no fire time is unaccounted for": """
        select schedule_id from pgsched.runs where entrypoint = 'often' group by schedule_id
        having sum(coalesce(skipped_count, 1)) <>
            extract(epoch from max(coalesce(skipped_through, fire_time)) - min(fire_time)) + 1
    """,
    "what succeeded was executed": """
        select r.id from pgsched.runs r where r.status = 'succeeded' and not exists (
            select from pgsched.marks m where m.run_id = r.id and m.what = 'ended' and m.attempt = r.attempt)
    """,
    "an attempt is executed at most once": """
        select run_id, attempt, what from pgsched.marks group by 1, 2, 3 having count(*) > 1
    """,
    "no attempt writes after it was replaced": """
        select m.run_id, m.attempt from pgsched.marks m join pgsched.marks n
            on n.run_id = m.run_id and n.attempt > m.attempt and n.at <= m.at
    """,
    "the run ends with the last attempt that was executed": """
        select r.id, r.attempt, max(m.attempt) from pgsched.runs r join pgsched.marks m on m.run_id = r.id
        group by r.id having max(m.attempt) <> r.attempt
    """,
    "no attempt costs more than its limit": "select id from pgsched.runs where attempt > max_attempts",
    "each lost attempt is told": """
        select id from pgsched.runs where status = 'succeeded' and jsonb_array_length(errors) <> attempt - 1
    """,
    "no run starts before its fire time": """
        select id, attempt, fire_time - started_at from pgsched.runs where started_at < fire_time
    """,
    "no function is called before its fire time": """
        select run_id, attempt, what, fire_time - at from pgsched.marks where at < fire_time
    """,
    "next_run only grows": "select * from pgsched.shrunk",
    "no schedule is left": "select id from pgsched.schedules where status <> 'finished' and entrypoint = 'once'",
}


@pytest.mark.slow
async def test_the_books_balance_when_workers_are_killed(daemons, db):
    daemons.app("""
lots = Retry(attempts=1000, backoff=timedelta(milliseconds=50), max_backoff=timedelta(milliseconds=200))
waiting = []

async def marked(run, what):
    # Many marks go out in one statement, so that the test's own writing does not slow down what it watches.
    done = asyncio.get_running_loop().create_future()
    waiting.append((done, (run.id, run.attempt, what, run.fire_time, os.getpid())))
    if len(waiting) == 1:
        asyncio.get_running_loop().create_task(write())
    await done

async def write():
    async with lock:
        if not hasattr(own, "shared"):
            own.shared = await psycopg.AsyncConnection.connect(os.environ["FAULTS_DSN"], autocommit=True)
        batch, waiting[:] = list(waiting), []
        rows = MARK.as_string().rsplit("values", 1)[0] + "values " + ", ".join(["(%s, %s, %s, %s, %s)"] * len(batch))
        await own.shared.execute(rows.encode(), [value for _, values in batch for value in values])
        for done, _ in batch:
            done.done() or done.set_result(None)

lock = asyncio.Lock()

@sc.entrypoint("once", retry=lots)
@sc.entrypoint("often", retry=lots)
async def job(run: Run):
    await marked(run, "began")
    await asyncio.sleep(random.uniform(0, 0.1))
    await marked(run, "ended")
""")
    await db.all("""
        create table pgsched.shrunk (name text, before timestamptz, after timestamptz);
        create function pgsched.note_shrunk() returns trigger language plpgsql as $$ begin
            insert into pgsched.shrunk values (new.name, old.next_run, new.next_run);
            return null;
        end $$;
        create trigger shrunk after update on pgsched.schedules
            for each row when (new.next_run < old.next_run and new.status = 'active')
            execute function pgsched.note_shrunk()
    """)
    daemon_settings = {"max_running": "2000", "log_level": "warning"}
    workers = [daemons.start(**daemon_settings), daemons.start(**daemon_settings)]
    await db.until("select count(*) = 2 from pgsched.workers")
    await db.all("""
        insert into pgsched.schedules (name, entrypoint, expression)
        select 'once ' || n, 'once', '@at ' || to_char(
            clock_timestamp() at time zone 'UTC' + interval '1 s' + n * %s / %s::float * interval '1 s',
            'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
        from generate_series(1, %s) n
    """, SPREAD, FIRE_TIMES, FIRE_TIMES)  # fmt: skip
    await db.all("""
        insert into pgsched.schedules (name, entrypoint, expression, overlap, catch_up)
        select 'often ' || n, 'often', '* * * * * *', (array['skip', 'allow', '2'])[n %% 3 + 1],
            (array['latest', 'all', 'none'])[n / 3 + 1]
        from generate_series(0, 8) n
    """)
    dice = random.Random(1993)
    for _ in range(KILLS):
        await asyncio.sleep(dice.uniform(0.5, 3))  # the moment is meant to be any
        which = dice.randrange(2)
        await workers[which].kill()
        workers[which] = daemons.start(**daemon_settings)
    await db.until(
        "select count(*) = 0 from pgsched.schedules where entrypoint = 'once' and status = 'active'", limit=180
    )
    # No pause: what waits for its turn would wait for its end.
    await db.all("update pgsched.schedules set ends_at = clock_timestamp() where entrypoint = 'often'")
    await db.until("select count(*) = 0 from pgsched.schedules where status = 'active'", limit=180)
    await db.until("select count(*) = 0 from pgsched.runs where status in ('queued', 'running')", limit=180)
    broken = {}
    for name, query in INVARIANTS.items():
        if rows := await db.all(query + " limit 5"):
            broken[name] = rows
    assert not broken
    assert await db.value("select count(*) from pgsched.runs where entrypoint = 'once'") == FIRE_TIMES
    assert await db.value("select count(*) from pgsched.runs where attempt > 1") > 0, "no kill hit anything"
    assert [await worker.stop() for worker in workers] == [0, 0]
    assert await db.value("select count(*) from pgsched.shrunk") == 0
