"""Lines and progress of attempts are written in batches, each attempt's under its claim, before its end."""

import psycopg
import pytest
from structlog.testing import capture_logs
from support.lines import LINES, Gate
from support.refusals import events, refuse
from support.workers import until, working

from pgsched import Run, Scheduler
from pgsched.db.statements.queries import in_schema
from pgsched.db.statements.runs import RunStatements
from pgsched.journal import Journal
from pgsched.model import Claim, RunStatus
from pgsched.rules.outcome import Outcome
from pgsched.worker.kit import Kit
from pgsched.worker.run.finisher import Finisher, Landing
from pgsched.worker.run.scribe import Scribe

FAR = {"heartbeat_interval": "30s", "stall_timeout": "1h"}


def noting(real, name, names):
    def called(self, *args):
        names.append(name)
        return real(self, *args)

    return called


@pytest.fixture
def sent(monkeypatch):
    """The names of the statements that go out about runs, in order."""
    names = []
    for name in ("beat", "write_journals", "finish_runs"):
        monkeypatch.setattr(RunStatements, name, noting(getattr(RunStatements, name), name, names))
    return names


class Held:
    """A run that is running, held by a worker of which only the scribe is there."""

    def __init__(self, kit, db):
        self.kit, self.db = kit, db
        self.scribe = Scribe(kit)
        self.journal = Journal()

    async def claim(self, attempt=1):
        run_id = await self.db.value(
            "insert into pgsched.runs (entrypoint, status, attempt, token, worker, claimed_at, heartbeat_at)"
            " values ('job', 'running', %s, %s, %s, now(), now()) returning id",
            attempt, attempt, self.kit.worker,
        )  # fmt: skip
        return Claim(run_id, attempt, self.kit.worker)

    async def texts(self):
        return [text for _, text in await self.db.all(LINES)]


@pytest.fixture
async def held(settings, db):
    kit = Kit.build(Scheduler(), settings)
    yield Held(kit, db)
    await kit.writes.discard()


async def test_who_says_nothing_costs_no_statement(settings, db, client, sent):
    sc = Scheduler()

    def said(run: Run) -> None:
        pass

    gate = Gate(sc, said)
    async with working(sc, settings):
        await client.enqueue("job")
        await until(lambda: sent.count("beat") >= 3)
        gate.go.set()
        await db.until("select status = 'succeeded' from pgsched.runs")
    assert "write_journals" not in sent and sent.count("finish_runs") == 1


async def test_many_lines_of_many_runs_are_one_statement_a_beat(settings, db, client, sent):
    sc = Scheduler()

    def said(run: Run) -> None:
        for n in range(50):
            run.log(f"line {n}")

    gate = Gate(sc, said)
    async with working(sc, settings, **FAR) as worker:
        await client.enqueue_many("job", [{}] * 20)
        await db.until("select count(*) = 20 from pgsched.runs where status = 'running'")
        await until(lambda: len(worker.roster.running()) == 20)
        await until(lambda: all(live.journal.unwritten for live in worker.roster.running()))
        sent.clear()
        await worker.heartbeat.beat()
        assert sent == ["beat", "write_journals"]
        await worker.heartbeat.beat()
        assert sent == ["beat", "write_journals", "beat"]
        gate.go.set()
        await db.until("select count(*) = 20 from pgsched.runs where status = 'succeeded'")
    assert await db.value("select count(*) from pgsched.logs") == 1000
    assert "write_journals" not in sent[3:]  # at the end nothing was left to say


async def test_a_lost_claim_writes_nothing(held):
    claim = await held.claim()
    held.journal.add("mine", "info")
    held.journal.progress = (1.0, 2.0)
    for change in ("token = 2", "worker = gen_random_uuid(), token = 1", "status = 'queued'"):
        await held.db.all(f"update pgsched.runs set {change}")
        assert await held.scribe.write_all([(claim, held.journal)]) == {(claim.run_id, 1)}
    assert held.journal.unwritten and await held.texts() == []
    assert await held.db.value("select progress_done is null from pgsched.runs")


async def test_a_row_that_a_client_has_locked_is_passed_over_and_comes_later(held, dsn, schema):

    mine, other = await held.claim(), await held.claim()
    second = Journal()
    held.journal.add("of the locked", "info")
    second.add("of the other", "info")
    async with await psycopg.AsyncConnection.connect(dsn) as locker:
        await locker.execute(in_schema(b"select from pgsched.runs where id = %s for update", schema), [mine.run_id])
        missed = await held.scribe.write_all([(mine, held.journal), (other, second)])
        assert missed == {(mine.run_id, 1)} and await held.texts() == ["of the other"]
        await locker.rollback()
    assert await held.scribe.write_all([(mine, held.journal)]) == set()
    assert await held.texts() == ["of the other", "of the locked"]


async def test_an_end_waits_for_its_lines_and_holds_up_no_other(held, dsn, schema):

    finisher = Finisher(held.kit)
    mine, other = await held.claim(), await held.claim()
    held.journal.add("last words", "info")
    ends = [Outcome(mine, RunStatus.SUCCEEDED, journal=held.journal), Outcome(other, RunStatus.SUCCEEDED)]
    real = held.kit.store.runs.finish_runs

    async with await psycopg.AsyncConnection.connect(dsn) as locker:
        await locker.execute(in_schema(b"select from pgsched.runs where id = %s for update", schema), [mine.run_id])

        async def freed_in_between(*args):
            if not locker.closed:
                await locker.rollback()  # the row is free again after the lines were refused, before the end is sent
            return await real(*args)

        held.kit.store.runs.finish_runs = freed_in_between
        answers = await finisher.send(ends)
    assert answers == {(mine.run_id, 1): Landing.LOCKED, (other.run_id, 1): Landing.LANDED}
    assert await finisher.send(ends[:1]) == {(mine.run_id, 1): Landing.LANDED}
    assert await held.texts() == ["last words"]


async def test_a_write_whose_answer_was_lost_is_not_written_twice(held):
    claim = await held.claim()
    held.journal.add("a\nb", "info")
    await held.kit.store.runs.write_journals(
        await held.kit.writes.connect(), claim.worker, [(claim, held.journal.read())]
    )
    held.journal.add("c", "info")
    await held.scribe.write_all([(claim, held.journal)])
    assert await held.texts() == ["a", "b", "c"]


async def test_lines_that_the_database_refuses_keep_no_run_from_its_end(held, db):
    await db.all("alter table pgsched.logs add check (text <> 'bad')")
    claims = [await held.claim(), await held.claim()]
    bad, good = Journal(), Journal()
    bad.add("bad", "info")
    good.add("good \0 \udcff", "info")
    with capture_logs() as events:
        assert await held.scribe.write_all([(claims[0], bad), (claims[1], good)]) == set()
    assert [(e["event"], e["run"], e["lines"]) for e in events] == [("lines_not_kept", claims[0].run_id, 1)]
    assert await held.texts() == ["good \\x00 \\udcff"]


async def test_an_attempt_that_was_given_back_and_the_next_of_its_number_keep_their_lines_apart(held, db):
    claim = await held.claim()
    held.journal.add("of the first", "info")
    await held.scribe.write_all([(claim, held.journal)])
    other = await db.value("update pgsched.runs set worker = gen_random_uuid() returning worker")
    again = Journal()
    again.add("of the second", "info")
    said = [(Claim(claim.run_id, 1, other), again.read())]
    assert await held.kit.store.runs.write_journals(await held.kit.writes.connect(), other, said)
    assert await held.texts() == ["of the first", "of the second"]


async def test_two_claims_of_one_worker_and_attempt_number_keep_their_lines_apart(held, db):
    claim = await held.claim()
    held.journal.add("of the first", "info")
    await held.scribe.write_all([(claim, held.journal)])
    token = await db.value("update pgsched.runs set token = 7 returning token")
    again = Journal()
    again.add("of the second", "info")
    assert await held.scribe.write_all([(claim._replace(token=token), again)]) == set()
    assert await held.texts() == ["of the first", "of the second"]


async def test_lines_go_with_their_run(held, db):
    claim = await held.claim()
    held.journal.add("a", "info")
    await held.scribe.write_all([(claim, held.journal)])
    await db.all("delete from pgsched.runs")
    assert await held.texts() == []


async def test_a_line_that_is_refused_costs_no_other_run_its_lines(settings, db):
    sc = Scheduler()

    @sc.entrypoint("talks")
    async def talks(run: Run, text: str):
        run.log(text)

    await refuse(db, "new.text = 'bad'", table="logs", when="insert", state="'XX000'")
    with capture_logs() as logs:
        async with working(sc, settings):
            await db.all(
                "select pgsched.enqueue('talks', jsonb_build_object('text', t)) from unnest('{a,bad,b}'::text[]) t"
            )
            await db.until("select count(*) = 3 from pgsched.runs where status = 'succeeded'")
    assert sorted(await db.all("select text from pgsched.logs")) == [("a",), ("b",)]
    assert len(events(logs, "lines_not_kept")) == 1


async def test_without_a_connection_lines_are_not_kept_and_the_service_goes_on(held, monkeypatch):
    """The very first statement of a connection may be refused, before anything was read."""
    claim = await held.claim()
    held.journal.add("mine", "info")

    async def connect(self):
        raise psycopg.errors.QueryCanceled("the role's statement_timeout is too short")

    monkeypatch.setattr(type(held.kit.writes), "connect", connect)
    with capture_logs() as logs:
        await held.scribe.write_some([(claim, held.journal)])
    assert [entry["run"] for entry in events(logs, "lines_not_kept")] == [claim.run_id]
    assert not held.journal.unwritten
