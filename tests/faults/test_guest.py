"""A scheduler in a plain asyncio program drains on every end of it, and takes no signal away from it."""

import signal

import pytest
from daemons import until
from hosts import host

ALONE = """
async def main():
    try:
        say("returned", given_back=await sc.run())
    except asyncio.CancelledError:
        say("cancelled")
        raise
    finally:
        say("tidied")

sc = scheduler()
asyncio.run(main())
say("ended")
"""

BESIDE = """
async def main():
    running = asyncio.create_task(sc.run())
    await asyncio.Event().wait()

sc = scheduler()
asyncio.run(main())
"""

OWN_HANDLER = """
async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: (say("handled"), sc.shutdown()))
    say("returned", given_back=await sc.run())
    os.kill(os.getpid(), signal.SIGTERM)
    await opened("gate-2")
    say("still_mine")

sc = scheduler()
asyncio.run(main())
"""

TWO = """
async def main():
    one, two = scheduler("host"), scheduler("other")
    await asyncio.gather(one.run(), two.run())

asyncio.run(main())
"""

FORGOTTEN = """
async def main():
    running = asyncio.create_task(sc.run())
    await opened("leave")
    say("leaving")

sc = scheduler(drain_timeout=DRAIN)
asyncio.run(main())
say("ended")
"""

STUBBORN = """
async def main():
    running = asyncio.create_task(sc.run())
    await opened("leave")
    running.cancel()
    try:
        await running
    except asyncio.CancelledError:
        say("cancelled")
    os._exit(0)

sc = scheduler(drain_timeout="200ms", cancel_timeout="200ms")

@sc.entrypoint("stubborn")
async def stubborn(run: Run):
    note(run, "began")
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

asyncio.run(main())
"""

JOBS = "select pgsched.enqueue('host-async'), pgsched.enqueue('host-sync')"
DONE = [("host-async", "succeeded", 1), ("host-sync", "succeeded", 1)]
RUNS = "select entrypoint, status, attempt from pgsched.runs order by 1"


async def busy(daemons, db, source, jobs=JOBS, *, many=2, ready=1):
    """The program, once its jobs have begun."""
    program = host(daemons, source)
    await until(lambda: len(program.events("worker_ready")) == ready, "readiness")
    await db.all(jobs)
    await until(lambda: len(daemons.notes("began")) == many, "start of the jobs")
    return program


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda number: number.name)
async def test_a_program_that_only_runs_it_drains_and_ends_in_its_own_way(daemons, db, number):
    program = await busy(daemons, db, ALONE)
    program.send(number)
    await program.event("drain_started", running=2)
    daemons.open("gate")
    code = await program.exit_code()
    assert await db.all(RUNS) == DONE
    assert await db.value("select count(*) from pgsched.workers") == 0
    said = [
        event["event"] for event in program.events() if event["event"] in ("returned", "cancelled", "tidied", "ended")
    ]
    if number is signal.SIGINT:  # as in every program of asyncio.run()
        assert (said, code) == (["cancelled", "tidied"], -signal.SIGINT)
    else:
        assert (said, code) == (["returned", "tidied", "ended"], 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
async def test_a_program_that_does_more_drains_and_then_ends_by_the_signal(daemons, db, number):
    """Nobody else handles the signal, so without us it would have ended the program."""
    program = await busy(daemons, db, BESIDE)
    program.send(number)
    await program.event("drain_started", running=2)
    daemons.open("gate")
    assert await program.exit_code() == -number
    assert await db.all(RUNS) == DONE
    assert await db.value("select count(*) from pgsched.workers") == 0


async def test_a_second_signal_does_what_it_would_do_without_us(daemons, db):
    program = await busy(daemons, db, ALONE)
    program.send(signal.SIGTERM)
    await program.event("drain_started")
    program.send(signal.SIGTERM)
    assert await program.exit_code() == -signal.SIGTERM
    assert program.events("drain_finished") == []


async def test_nohup_keeps_a_hangup_away(daemons, db):
    program = await busy(daemons, db, "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + ALONE)
    program.send(signal.SIGHUP)
    program.send(signal.SIGTERM)
    await program.event("signal_received", signal="SIGTERM")
    daemons.open("gate")
    assert await program.exit_code() == 0
    assert len(program.events("signal_received")) == 1


async def test_the_programs_own_handler_stays_through_it_and_after_it(daemons, db):
    program = await busy(daemons, db, OWN_HANDLER)
    daemons.open("gate")
    program.send(signal.SIGTERM)
    await program.event("returned", given_back=0)
    await until(lambda: len(program.events("handled")) == 2, "signal after the end")
    daemons.open("gate-2")
    await program.event("still_mine")
    assert await program.exit_code() == 0
    assert await db.all(RUNS) == DONE and program.events("signal_received") == []


async def test_two_schedulers_in_one_process_both_hear_and_both_drain(daemons, db):
    jobs = "select pgsched.enqueue('host-async'), pgsched.enqueue('other-sync')"
    program = await busy(daemons, db, TWO, jobs, ready=2)
    program.send(signal.SIGTERM)
    await until(lambda: len(program.events("drain_started", running=1)) == 2, "two drains")
    daemons.open("gate")
    assert await program.exit_code() == -signal.SIGTERM
    assert len(program.events("signal_received")) == 2
    assert await db.all(RUNS) == [("host-async", "succeeded", 1), ("other-sync", "succeeded", 1)]
    assert await db.value("select count(*) from pgsched.workers") == 0


@pytest.mark.parametrize("how", ["it returns", "Ctrl-C"])
async def test_a_program_that_forgets_it_ends_and_loses_nothing(daemons, db, how):
    """asyncio.run() then cancels all tasks at once: coroutines are given back, and threads may finish."""
    program = await busy(daemons, db, FORGOTTEN.replace("DRAIN", "'20s'"))
    if how == "Ctrl-C":
        program.send(signal.SIGINT)
    else:
        daemons.open("leave")
    await program.event("drain_started")
    await db.until("select status = 'queued' from pgsched.runs where entrypoint = 'host-async'")
    daemons.open("gate")
    assert await program.exit_code() == (-signal.SIGINT if how == "Ctrl-C" else 0)
    assert await db.all(RUNS) == [("host-async", "queued", 0), ("host-sync", "succeeded", 1)]
    assert await db.value("select count(*) from pgsched.workers") == 0


async def test_a_program_that_forgets_it_gives_a_thread_back_that_does_not_finish(daemons, db):
    program = await busy(daemons, db, FORGOTTEN.replace("DRAIN", "'200ms'"))
    daemons.open("leave")
    await program.event("drain_finished")
    assert await program.exit_code() == 0
    assert await db.all(RUNS) == [("host-async", "queued", 0), ("host-sync", "queued", 0)]


async def test_a_run_that_swallows_its_cancellation_does_not_hold_up_a_cancelled_scheduler(daemons, db):
    program = await busy(daemons, db, STUBBORN, "select pgsched.enqueue('stubborn')", many=1)
    daemons.open("leave")
    await program.event("cancelled")
    assert await program.exit_code() == 0
    assert program.events("runs_go_on", count=1)
    assert await db.all(RUNS) == [("stubborn", "queued", 0)]


async def test_pgsched_run_drains_on_a_hangup_unless_nohup_ignores_it(daemons, db):
    daemons.app("@sc.entrypoint('job')\nasync def job(run: Run):\n    note(run, 'began')\n    await opened('gate')\n")
    daemon = await daemons.ready()
    await db.all("select pgsched.enqueue('job')")
    await until(lambda: daemons.notes("began"), "start of the job")
    daemon.send(signal.SIGHUP)
    await daemon.event("drain_started", running=1)
    daemons.open("gate")
    assert await daemon.exit_code() == 0
    assert await db.value("select status from pgsched.runs") == "succeeded"
