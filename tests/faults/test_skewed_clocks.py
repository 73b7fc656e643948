"""Two daemons whose wall clocks are an hour off, one ahead and one behind, and are set meanwhile: nobody notices."""

SKEW = """
import os, time
real, real_ns = time.time, time.time_ns
skew = float(os.environ.get("SKEW", "0"))

def off():
    # Once they are at work somebody sets the clock by another hour.
    return skew * (2 if os.path.exists(os.environ["SET_AGAIN"]) else 1)

time.time = lambda: real() + off()
time.time_ns = lambda: real_ns() + int(off() * 1e9)
"""


async def test_wall_clocks_decide_nothing(daemons, db, monkeypatch, tmp_path):
    folder = tmp_path / "skew"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SKEW)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("SET_AGAIN", str(folder / "again"))
    daemons.app("""
@sc.entrypoint("job")
async def job(run: Run):
    note(run, "ran")
    if run.fire_time.second % 3 == 0:
        await asyncio.sleep(0.5)
""")
    workers = []
    for skew in ("3600", "-3600"):
        monkeypatch.setenv("SKEW", skew)
        workers.append(await daemons.ready())
    await db.all(
        "insert into pgsched.schedules (name, entrypoint, expression, overlap)"
        " values ('s', 'job', '* * * * * *', 'allow')"
    )
    await db.until("select count(*) >= 3 from pgsched.runs where status = 'succeeded'")
    (folder / "again").touch()
    for worker in workers:
        await worker.event("clocks_jumped")
    await db.until("select count(*) >= 8 from pgsched.runs where status = 'succeeded'")
    await db.all("select pgsched.pause('s')")
    await db.until("select count(*) = 0 from pgsched.runs where status in ('queued', 'running')")
    rows = await db.all(
        "select fire_time, started_at >= fire_time, finished_at >= started_at, attempt, status,"
        " finished_at < clock_timestamp() + interval '1 second' from pgsched.runs order by fire_time"
    )
    assert all(row[1:] == (True, True, 1, "succeeded", True) for row in rows), rows
    seconds = [row[0].timestamp() for row in rows]
    assert seconds == [seconds[0] + n for n in range(len(seconds))], "none is missing, none ran twice"
    assert len(daemons.notes("ran")) == len(rows)
    assert not any(worker.events(event) for worker in workers for event in ("claim_lost", "run_reaped"))
    for worker in workers:
        assert await worker.stop() == 0
