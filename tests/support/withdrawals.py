"""A fire time that anna has claimed ahead of it, the changes that may come then, and what becomes of both."""

from pgsched.model import Claim, Outcome, RunStatus

AHEAD = "10s"
CHANGES = {
    "alter": "select pgsched.alter('s', '{\"args\": {\"v\": 1}}')",
    "plain update": "update pgsched.schedules set timeout = '1 hour'",
    "pause": "select pgsched.pause('s', 'audit')",
    "remove": "select pgsched.remove('s')",
    "remove and make again": "select pgsched.remove('s'); select pgsched.create_schedule('s', 'job', {at})",
    "retime": "select pgsched.alter('s', '{\"starts_at\": \"2020-01-01T00:00:00Z\"}')",
    # A new timing begins its account anew: only the claim itself says then that the fire time is claimed. Not '@at', of
    # which the same single instant stays accounted for.
    "retime, remove and make again": "select pgsched.alter('s', '{\"starts_at\": \"2020-01-01T00:00:00Z\"}');"
    " select pgsched.remove('s'); select pgsched.create_schedule('s', 'job', {cron})",
    "truncate and make again": "truncate pgsched.schedules; select pgsched.create_schedule('s', 'job', {at})",
    "remove, make again and retime": "select pgsched.remove('s'); select pgsched.create_schedule('s', 'job', {at});"
    " select pgsched.alter('s', '{\"ends_at\": \"2100-01-01T00:00:00Z\"}')",
}
# But for the skip that a schedule made again records of the fire time that the removed one had begun.
ROWS = """
    select status, args, started_at is not null from pgsched.runs
    where detail is distinct from 'a removed schedule of this name had begun it' order by id
"""


async def claimed(db, anna, overlap="skip", catch_up="latest"):
    """A schedule with one fire time, which anna has claimed ahead of it; returns the fire time as an expression."""
    at = await db.value(
        "select '@at ' || to_char(now() at time zone 'UTC' + interval '9 s', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')"
    )
    await db.all(
        "insert into pgsched.schedules (name, entrypoint, expression, overlap, catch_up)"
        " values ('s', 'job', %s, %s, %s)",
        at, overlap, catch_up,
    )  # fmt: skip
    assert await anna.dispatcher.claim_pass() == 1
    return at


async def change(db, name, at):
    cron = "to_char((select max(fire_time) from pgsched.runs) at time zone 'UTC', 'MI HH24 DD MM * SS')"
    if "{cron}" in CHANGES[name]:
        await db.all("update pgsched.schedules set expression = " + cron)
    for statement in CHANGES[name].replace("{at}", f"'{at}'").replace("{cron}", cron).split("; "):
        await db.all(statement)


async def begun(anna):
    """Anna has begun the run, and her next beat says so. Returns what it hears."""
    [run] = anna.taken
    async with anna.kit.writes.use() as connection:
        return await anna.kit.store.runs.beat(connection, anna.kit.worker, [(run.id, run.token, run.due_at)])


async def ended(anna):
    """Anna's run begins, and ends well."""
    await begun(anna)
    [run] = anna.taken
    end = Outcome(Claim(run.id, run.token, anna.kit.worker), RunStatus.SUCCEEDED)
    async with anna.kit.writes.use() as connection:
        assert len(await anna.kit.store.runs.finish_runs(connection, anna.kit.worker, [end], None)) == 1


async def looks(worker, times=2):
    """What a worker claims in some passes."""
    return sum([await worker.dispatcher.claim_pass() for _ in range(times)])
