"""Code that blocks the event loop keeps its claim, and the log names it."""


async def test_a_function_that_blocks_the_loop_past_the_stall_timeout_keeps_its_claim(daemons, db):
    daemons.app("""
def deep():
    time.sleep(4)  # twice the stall timeout

@sc.entrypoint("blocker")
async def blocker(run: Run):
    mark(run, "began")
    deep()
    mark(run, "ended")
""")
    first = await daemons.ready()
    await db.all("select pgsched.enqueue('blocker')")
    await db.until("select count(*) = 1 from pgsched.marks")
    other = await daemons.ready()  # would take the run away
    await db.until("select status not in ('running', 'queued') from pgsched.runs")
    assert await db.one("select status, attempt, errors from pgsched.runs") == ("succeeded", 1, [])
    assert await db.all("select what, attempt, pid from pgsched.marks order by id") == [
        ("began", 1, first.pid), ("ended", 1, first.pid),
    ]  # fmt: skip
    told = await first.event("event_loop_blocked")
    assert told["function"] == "blocker" and told["entrypoint"] == "blocker"
    assert told["file"].endswith("app.py") and told["line"] == daemons.line("    deep()")
    await first.event("event_loop_unblocked")
    assert other.events("run_reaped") == []
    assert await first.stop() == 0
