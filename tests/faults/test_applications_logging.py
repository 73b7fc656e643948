"""The application's own logging stays as it has configured it, and the lines of runs are kept all the same."""

import signal

import pytest
from hosts import host

LINES = "select text from pgsched.logs order by id"
JOB = """
@sc.entrypoint("job")
def job():
    logging.getLogger("mine").info("of logging")
    structlog.get_logger().info("of structlog", n=1)
"""
SET_UP = {
    "basicConfig": "logging.basicConfig(filename=FOLDER / 'own', level='INFO', format='own: %(message)s')",
    "addHandler": "file = logging.FileHandler(FOLDER / 'own')\n"
    "file.setFormatter(logging.Formatter('own: %(message)s'))\n"
    "logging.getLogger().addHandler(file)\nlogging.getLogger().setLevel('INFO')",
    "dictConfig": "import logging.config\nlogging.config.dictConfig({'version': 1, 'formatters': {'f': {'format': "
    "'own: %(message)s'}}, 'handlers': {'h': {'class': 'logging.FileHandler', 'filename': FOLDER / 'own', "
    "'formatter': 'f'}}, 'root': {'handlers': ['h'], 'level': 'INFO'}})",
}
IMPORTS = "import logging, structlog\n"


async def ran(daemons, db, *entrypoints):
    for name in entrypoints:
        await db.all("select pgsched.enqueue(%s)", name)
        await db.until("select bool_and(status = 'succeeded') from pgsched.runs")


@pytest.mark.parametrize("how", SET_UP)
async def test_handlers_of_the_factory_get_everything_and_are_the_only_ones(daemons, db, how):
    daemons.app(f"{IMPORTS}{SET_UP[how]}\n{JOB}")
    daemon = await daemons.ready()
    await ran(daemons, db, "job")
    assert await daemon.stop() == 0
    assert "own: of logging\n" in (daemons.folder / "own").read_text()
    assert not daemon.events("of logging"), "not beside the application's own handlers"
    assert daemon.events("of structlog") and daemon.events("run_finished"), "structlog was left to us"
    assert [text for (text,) in await db.all(LINES)] == ["mine: of logging", "of structlog n=1"]


async def test_an_application_that_configures_nothing_gets_lines_of_ours(daemons, db):
    daemons.app(f"{IMPORTS}logging.getLogger('mine').warning('of the import')\n{JOB}")
    daemon = await daemons.ready()
    await ran(daemons, db, "job")
    assert await daemon.stop() == 0
    for event in ("of the import", "of logging", "of structlog"):
        assert len(daemon.events(event)) == 1, daemon.tail()


@pytest.mark.parametrize("changed", ["processors=[to_file]", "wrapper_class=structlog.make_filtering_bound_logger(40)"])
async def test_a_structlog_configuration_of_the_factory_stays(daemons, db, changed):
    daemons.app(
        f"{IMPORTS}def to_file(logger, method, event):\n"
        "    with (FOLDER / 'own').open('a') as file:\n        file.write(event['event'] + '\\n')\n"
        f"    raise structlog.DropEvent\n\nstructlog.configure({changed})\n{JOB}"
    )
    daemon = daemons.start()
    await ran(daemons, db, "job")
    assert await daemon.stop() == 0
    said = [event["event"] for event in daemon.events()]
    assert said == ["of logging"], "only the standard library was left to us"
    if "processors" in changed:
        own = (daemons.folder / "own").read_text().split("\n")
        assert {"worker_ready", "of structlog", "run_finished", "drain_finished"} <= set(own)


@pytest.mark.parametrize("how", ["basicConfig", "dictConfig"])
async def test_a_job_that_sets_up_logging_loses_neither_its_own_lines_nor_those_of_later_runs(daemons, db, how):
    set_up = SET_UP[how].replace("filename=", "force=True, filename=").replace("\n", "\n    ")
    daemons.app(
        f"{IMPORTS}@sc.entrypoint('setup')\ndef setup():\n    {set_up}\n    logging.getLogger('a').info('at once')\n\n"
        "@sc.entrypoint('later')\nasync def later():\n    logging.getLogger('b').info('later')\n"
    )
    daemon = await daemons.ready()
    await ran(daemons, db, "setup", "later")
    assert await daemon.stop() == 0
    assert [text for (text,) in await db.all(LINES)] == ["a: at once", "b: later"]
    assert (daemons.folder / "own").read_text() == "own: at once\nown: later\n"


# --- in somebody else's program ---------------------------------------------------------------------------

PROGRAM = """
CONFIGURED

async def main():
    before = list(logging.getLogger().handlers), logging.getLogger().level, logging.lastResort
    sc = scheduler()

    @sc.entrypoint("job")
    def job():
        logging.getLogger("mine").warning("of a job")
        logging.basicConfig(format="late: %(message)s")
        logging.getLogger("mine").warning("again")

    running = asyncio.create_task(sc.run())
    await sc.ready.wait()
    assert before == (logging.getLogger().handlers, logging.getLogger().level, logging.lastResort)
    say("unchanged", structlog=structlog.is_configured())
    await running

asyncio.run(main())
"""


async def lines_of(daemons, db, configured):
    program = host(daemons, PROGRAM.replace("CONFIGURED", configured))
    await program.event("unchanged", structlog=False)
    await ran(daemons, db, "job")
    program.send(signal.SIGTERM)
    assert await program.exit_code() == -signal.SIGTERM
    assert [text for (text,) in await db.all(LINES)] == ["mine: of a job", "mine: again"]
    return program


async def test_a_host_without_logging_gets_our_events_and_its_logging_works_as_without_us(daemons, db):
    program = await lines_of(daemons, db, "")
    assert program.events("worker_ready"), "nobody else would show that"
    said = program.log.read_text().splitlines()
    assert said.count("of a job") == 1, "by the handler of last resort"
    assert said.count("late: again") == 1, "basicConfig() took effect"
    assert not program.events("drain_finished"), "from then on they go to the handlers that there are"


async def test_a_host_with_handlers_gets_our_events_through_them(daemons, db):
    set_up = "logging.basicConfig(level='INFO', format='host %(name)s %(levelname)s: %(message)s')"
    program = await lines_of(daemons, db, set_up)
    said = program.log.read_text()
    assert (
        "host pgsched INFO: worker_ready worker=" in said and "host pgsched INFO: drain_finished given_back=0" in said
    )
    assert said.count("host mine WARNING: of a job\n") == 1 and "late:" not in said
    assert not program.events("worker_ready")
