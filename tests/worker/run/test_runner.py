"""The runner finds the executor, takes what was claimed, and lets no more be claimed than may be lost."""

import asyncio

import psycopg
from support.workers import soon, until, working

from pgsched import Executor, Run, Scheduler
from pgsched.db.statements.claims import ClaimStatements
from pgsched.worker.run import runner as runner_module


async def test_own_executor_given_as_class_and_as_object(settings, db):
    class Loud(Executor):
        async def execute(self, run: Run):
            return ["loud", await self.call(run)]

    class Quiet(Executor):
        def __init__(self, word: str) -> None:  # does not call the base: it need not know of it
            self.word = word

        async def execute(self, run: Run):
            return [self.word, run.entrypoint]

    sc = Scheduler()

    @soon(sc, "a", executor=Loud)
    def a():
        return 1

    soon(sc, "a", executor=Quiet("quiet"), name="other")(a)
    async with working(sc, settings):
        await db.until("select count(*) = 2 from pgsched.runs where status = 'succeeded'")
        await db.all("select pgsched.enqueue('a')")
        await db.until("select count(*) = 3 from pgsched.runs where status = 'succeeded'")
    results = [r[0] for r in await db.all("select result from pgsched.runs order by result")]
    assert results == [1, ["loud", 1], ["quiet", "a"]]


async def test_what_is_claimed_and_cannot_be_taken_is_given_back_and_costs_no_attempt(settings, db, monkeypatch):
    sc = Scheduler()

    @sc.entrypoint("job")
    async def job(): ...

    real, lost = ClaimStatements.get_schedules, []

    async def dies(self, connection, ids):
        if not lost:
            lost.append(ids)
            connection.pgconn.finish()
            raise psycopg.OperationalError("gone")
        return await real(self, connection, ids)

    monkeypatch.setattr(ClaimStatements, "get_schedules", dies)
    async with working(sc, settings):
        await db.all("select pgsched.create_schedule('s', 'job', '@yearly', options => '{\"overlap\": \"allow\"}')")
        await db.until("select next_run is not null from pgsched.schedules")  # then nothing else is due
        await db.all("select pgsched.trigger('s')")
        await db.until("select status = 'succeeded' from pgsched.runs")
    assert lost and await db.one("select attempt, errors from pgsched.runs") == (1, [])


async def test_a_lost_run_that_is_claimed_here_again_does_not_end_the_worker(settings, db):
    sc = Scheduler()
    first, release = asyncio.Event(), asyncio.Event()

    @sc.entrypoint("job")
    async def job(run: Run):
        if run.attempt == 1:
            first.set()
            try:
                await asyncio.sleep(60)
            finally:
                await release.wait()  # takes its time to end
        return run.attempt

    async with working(sc, settings) as worker:
        await db.all("select pgsched.enqueue('job')")
        await first.wait()
        await db.all("update pgsched.runs set status = 'queued', worker = null")  # as a reaper elsewhere
        await db.until("select status = 'succeeded' and result = '2' from pgsched.runs")
        release.set()
        await until(lambda: not worker.roster.attempts)
        assert worker.roster.slots_used == 0
        await db.all("select pgsched.enqueue('job')")
        await until(lambda: worker.roster.attempts)


async def test_while_ends_cannot_be_written_no_more_is_claimed_than_may_be_lost(settings, db, monkeypatch):
    monkeypatch.setattr(runner_module, "UNWRITTEN", 30)
    sc = Scheduler()

    @sc.entrypoint("job")
    async def job(): ...

    async with working(sc, settings, max_running=10) as worker:
        async with worker.kit.writes.use():  # ends and beats have to wait
            await db.all("select pgsched.enqueue_many('job', array_fill('{}'::jsonb, array[100]))")
            await until(lambda: worker.runner.room == 0 and not worker.roster.slots_used)
            assert await worker.dispatcher.claim_pass() == 0
            assert worker.finisher.pending == 30
        await db.until("select count(*) = 100 from pgsched.runs where status = 'succeeded'")
