"""run.transaction() in a process of its own: as in the worker's, and a clear sentence where it cannot be."""

import dataclasses
import uuid

import pytest
from support import jobs as work
from support.workers import working

from pgsched import ProcessExecutor, RemoteError, Retry, Run, Scheduler, connect
from pgsched.db.fence.fence import Fence
from pgsched.db.statements.queries import in_schema
from pgsched.errors import PgschedError
from pgsched.executors.remote import Package, pack
from pgsched.model import Cancellation, Claim

ONCE = Retry(attempts=1)


@pytest.fixture
async def paid(db):
    """A table of the application; returns a function that tells what is in it."""
    await db.all("create table pgsched.paid (who text)")

    async def found():
        return [row[0] for row in await db.all("select who from pgsched.paid order by who")]

    return found


@pytest.fixture
def insert(schema):
    """A statement of the application."""
    return in_schema(b"insert into pgsched.paid values (%s)", schema).decode()


def attempt(claim: Claim, fence: Fence | None, **args: str) -> Run:
    """A run as an executor sees it."""
    return Run(
        id=claim.run_id, entrypoint="job", schedule=None, fire_time=None, previous_fire_time=None,
        attempt=1, token=claim.token, args=args, worker=claim.worker, resources=None, fence=fence,
        cancellation=Cancellation(30),
    )  # fmt: skip


async def claimed(db) -> Claim:
    worker = uuid.uuid4()
    run_id = await db.value(
        "insert into pgsched.runs (entrypoint, status, attempt, token, worker, claimed_at, heartbeat_at)"
        " values ('job', 'running', 1, 1, %s, now(), now()) returning id", worker
    )  # fmt: skip
    return Claim(run_id, 1, worker)


@pytest.mark.parametrize("function", [work.pays, work.pays_soon])
async def test_writes_and_success_commit_together_and_the_worker_hears_of_it(settings, db, paid, insert, function):
    claim, told = await claimed(db), []
    began = await db.value("select now()")
    fence = Fence(settings.dsn, settings.schema, claim, began, committed=lambda: told.append("committed"))
    assert await ProcessExecutor(function).execute(attempt(claim, fence, insert=insert)) == "paid"
    assert told == ["committed"] and await paid() == ["ann"]
    assert await db.one("select status, committed_at is not null, started_at from pgsched.runs") == (
        "succeeded", True, began,
    )  # fmt: skip


async def test_what_the_block_raises_leaves_nothing_behind(settings, db, paid, insert):
    claim, told = await claimed(db), []
    fence = Fence(settings.dsn, settings.schema, claim, committed=lambda: told.append("committed"))
    with pytest.raises(RemoteError, match="before the commit"):
        await ProcessExecutor(work.pays).execute(attempt(claim, fence, insert=insert, then="raise"))
    assert (await paid(), told) == ([], []) and await db.value("select status from pgsched.runs") == "running"


async def test_a_claim_that_is_lost_writes_nothing(settings, db, paid, insert):
    claim = await claimed(db)
    await db.all("update pgsched.runs set token = 2")
    fence = Fence(settings.dsn, settings.schema, claim)
    with pytest.raises(RemoteError, match="no longer this worker's") as caught:
        await ProcessExecutor(work.pays).execute(attempt(claim, fence, insert=insert))
    assert caught.value.error.type == "pgsched.ClaimLost"
    assert await paid() == []


async def test_a_process_that_dies_after_its_commit_has_succeeded(settings, db, paid, insert):
    sc = Scheduler()
    sc.entrypoint("job", executor=ProcessExecutor, retry=ONCE)(work.pays)
    async with working(sc, settings), connect(settings.dsn, schema=settings.schema) as client:
        run_id = await client.enqueue("job", {"insert": insert, "then": "die"})
        await db.until("select reason is not null from pgsched.runs")
        run = await client.get_run(run_id)
    assert (run["status"], run["attempt"], run["errors"]) == ("succeeded", 1, [])
    assert run["reason"].startswith("after its transaction had committed: pgsched.ProcessDied")
    assert await paid() == ["ann"]


async def test_the_dsn_goes_to_no_other_machine(settings, db):
    claim = await claimed(db)
    run = attempt(claim, Fence("postgresql://user:secret@host/db", settings.schema, claim))
    assert "secret" in pack(run, work.chatter, fenced=True)
    there = Package(sent := pack(run, work.chatter), dataclasses.replace(run).journal).run
    assert "secret" not in sent
    with pytest.raises(PgschedError, match="its function runs on another machine"):
        there.transaction()
