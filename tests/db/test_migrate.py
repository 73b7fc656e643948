"""Upgrades: a missing migration is applied once, and a schema of another version is refused and stays unchanged."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support.proxies import Proxy
from support.shell import invoke, isolate

from pgsched.db import failures, migrate
from pgsched.db.migrate import Migration
from pgsched.db.reaching import Bounded, NoAnswer
from pgsched.db.session import Connection, conninfo_for
from pgsched.db.statements.queries import in_schema
from pgsched.errors import DatabaseUnavailable, PgschedError, SchemaError

NAME = f"upgraded {os.getpid()}"
SHIPPED = migrate.migrations()
HERE = len(SHIPPED)


def serving(version: int) -> bytes:
    """The first line of a migration that serves workers from this version on."""
    return b"-- Serves workers built for schema version %d or later.\n" % version


NEXT = Migration(HERE + 1, "added", serving(HERE) + b"alter table pgsched.runs add column added int not null default 7")
AFTER = Migration(HERE + 2, "indexed", serving(HERE) + b"create index runs_added on pgsched.runs (added)")
CONTRACTED = Migration(HERE + 2, "contracted", serving(HERE + 1) + b"alter table pgsched.runs drop column added")


def of(text: str, name: str = NAME) -> bytes:
    return in_schema(text.encode(), name, parametrised=False)


@pytest.fixture
async def connection(dsn) -> AsyncIterator[psycopg.AsyncConnection]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        yield connection
        await connection.execute(sql.SQL("drop schema if exists {} cascade").format(sql.Identifier(NAME)))


@pytest.fixture
def ships(monkeypatch) -> Callable[..., None]:
    """Has pgsched ship these migrations after its own."""
    return lambda *more: monkeypatch.setattr(migrate, "migrations", lambda: [*SHIPPED, *more])


async def rows(connection: psycopg.AsyncConnection, text: str) -> list[tuple]:
    return await (await connection.execute(of(text))).fetchall()


async def everything(connection: psycopg.AsyncConnection) -> list[tuple]:
    """Each object of the schema, by its row in the catalogue, and each applied migration."""
    objects = (
        "select c.relname, c.xmin::text from pg_class c where c.relnamespace = {0} union all"
        " select p.proname, p.xmin::text from pg_proc p where p.pronamespace = {0} union all"
        " select name, checksum || applied_at from pgsched.migrations order by 1, 2"
    )
    return await rows(connection, objects.format(f"(select oid from pg_namespace where nspname = '{NAME}')"))


async def test_a_missing_migration_is_applied_and_what_is_there_stays(connection, ships):
    assert await migrate.migrate(connection, NAME) == SHIPPED
    await connection.execute(of("select pgsched.enqueue('job')"))
    ships(NEXT, AFTER)
    with pytest.raises(SchemaError, match=f"is at version {HERE}, but this pgsched needs {AFTER.version}"):
        await migrate.check(connection, NAME)
    assert await migrate.migrate(connection, NAME) == [NEXT, AFTER]
    assert await rows(connection, "select entrypoint, added from pgsched.runs") == [("job", 7)]
    await migrate.check(connection, NAME)
    assert await migrate.migrate(connection, NAME) == []


async def test_two_that_migrate_at_once_apply_each_migration_once(dsn, connection, ships):
    slow = Migration(NEXT.version, "slow", b"select pg_sleep(0.3); " + NEXT.text)
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as other:
        for missing in (SHIPPED, [slow]):
            done = await asyncio.gather(migrate.migrate(connection, NAME), migrate.migrate(other, NAME))
            assert sorted(done[0] + done[1], key=lambda m: m.version) == missing
            await migrate.check(connection, NAME)
            ships(slow)


async def test_a_lock_that_somebody_holds_is_tried_again_until_it_is_free(dsn, connection, ships, monkeypatch):
    await migrate.migrate(connection, NAME)
    ships(NEXT)
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT", "20ms")
    async with await psycopg.AsyncConnection.connect(dsn) as holder:
        await holder.execute(of("select from pgsched.runs"))
        migrating = asyncio.create_task(migrate.migrate(connection, NAME))
        await asyncio.sleep(0.3)  # some tries: between them nobody waits behind it
        await asyncio.wait_for(holder.execute(of("select pgsched.enqueue('job')")), 5)
        assert not migrating.done()
        await holder.commit()
        assert await asyncio.wait_for(migrating, 20) == [NEXT]


async def test_a_lock_that_never_becomes_free_is_said_and_changes_nothing(dsn, connection, ships, monkeypatch):
    await migrate.migrate(connection, NAME)
    before = await everything(connection)
    ships(NEXT)
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT", "20ms")
    monkeypatch.setattr(migrate, "TRIES", 2)
    async with await psycopg.AsyncConnection.connect(dsn) as holder:
        await holder.execute(of("select from pgsched.runs"))
        with pytest.raises(DatabaseUnavailable, match="Run `pgsched migrate` again when the database is quieter"):
            await migrate.migrate(connection, NAME)
    assert await everything(connection) == before


async def test_a_migration_that_fails_leaves_the_version_before(connection, ships):
    await migrate.migrate(connection, NAME)
    before = await everything(connection)
    ships(Migration(NEXT.version, "wrong", NEXT.text + b"; select 1 / 0"))
    with pytest.raises(psycopg.errors.DivisionByZero):
        await migrate.migrate(connection, NAME)
    assert await everything(connection) == before


REFUSED = [
    ("newer", "insert into pgsched.migrations (version, name, checksum) values (99, 'new', 'x')", "newer than this"),
    ("edited", "update pgsched.migrations set checksum = 'x' where version = 2", "migrations are never edited"),
    ("replaced", "update pgsched.migrations set name = 'initial', checksum = 'x' where version = 1",
     "before 0.1.0, which cannot be upgraded: export the data that you want to keep, drop the schema or choose"),
    ("replaced, and of more versions than these", "update pgsched.migrations set name = 'initial' where version = 1;"
     " insert into pgsched.migrations (version, name, checksum) select n, 'old', 'x' from generate_series(50, 79) n",
     "before 0.1.0, which cannot be upgraded"),
    ("replaced, and of the first version alone", "update pgsched.migrations set name = 'initial' where version = 1;"
     " delete from pgsched.migrations where version > 1", "before 0.1.0, which cannot be upgraded"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "sentence"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
async def test_a_schema_of_another_kind_is_refused_and_not_changed(connection, change, sentence):
    await migrate.migrate(connection, NAME)
    await connection.execute(of(change))
    before = await everything(connection)
    for call in (migrate.check, migrate.migrate):
        with pytest.raises(SchemaError, match=sentence):
            await call(connection, NAME)
    assert await everything(connection) == before


# --- older and newer workers beside each other -------------------------------------------------------------


async def worker(connection: psycopg.AsyncConnection, version: int | None, seen: str = "now()") -> None:
    """The row of a worker of another machine, which was built for a version of the schema."""
    await connection.execute(of(
        "insert into pgsched.workers (id, app, host, pid, version, entrypoints, direct, heartbeat_interval,"
        " stall_timeout, fingerprint, seen_at, schema_version) values (gen_random_uuid(), 'app', 'far', 7, '0.1', '{}',"
        f" true, '1s', '30s', 'f', {seen}, {'null' if version is None else version})"
    ))  # fmt: skip


async def test_a_newer_schema_serves_an_older_pgsched_until_it_is_contracted(connection, ships):
    ships(NEXT, AFTER)
    await migrate.migrate(connection, NAME)
    ships()
    before = await everything(connection)
    assert await migrate.check(connection, NAME) == AFTER.version
    assert await migrate.migrate(connection, NAME) == []  # as `run --migrate` does when an older process starts again
    assert await everything(connection) == before


async def test_an_older_pgsched_refuses_a_contracted_schema(connection, ships):
    ships(NEXT, CONTRACTED)
    await migrate.migrate(connection, NAME)
    ships()
    for call in (migrate.check, migrate.migrate):
        with pytest.raises(SchemaError, match=f"built for {HERE}; it serves those built for {HERE + 1} or later"):
            await call(connection, NAME)
    ships(NEXT)
    assert await migrate.check(connection, NAME) == CONTRACTED.version


async def test_a_migration_without_its_first_line_serves_only_its_own_version(connection, ships):
    ships(Migration(HERE + 1, "mute", b"select 1"))
    await migrate.migrate(connection, NAME)
    ships()
    with pytest.raises(SchemaError, match=f"it serves those built for {HERE + 1} or later"):
        await migrate.check(connection, NAME)


@pytest.mark.parametrize("version", [None, HERE])
async def test_a_contraction_waits_until_no_worker_is_alive_that_it_does_not_serve(connection, ships, version):
    ships(NEXT)
    await migrate.migrate(connection, NAME)
    await worker(connection, version)
    ships(NEXT, CONTRACTED)
    with pytest.raises(
        PgschedError, match=rf"older ones are alive: far \(pid 7, built for {version or 4}\)\. Stop them"
    ):
        await migrate.migrate(connection, NAME)
    assert await rows(connection, "select max(version) from pgsched.migrations") == [(NEXT.version,)]
    await connection.execute(of("update pgsched.workers set seen_at = now() - interval '1 hour'"))
    await worker(connection, NEXT.version)
    assert await migrate.migrate(connection, NAME) == [CONTRACTED]


@pytest.mark.parametrize("name", ["a$$b", "$b0$ $1 $$", "$$"])
async def test_a_schema_may_have_dollar_signs_in_its_name(dsn, name):
    """They end no function's body, in a migration and in the script of all of them."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        for apply in ("migrate", "script"):
            try:
                if apply == "migrate":
                    await migrate.migrate(connection, name)
                else:
                    await connection.execute(migrate.script(name))
                await migrate.check(connection, name)
                assert len(await (await connection.execute(of("select pgsched.enqueue('job')", name))).fetchall()) == 1
            finally:
                await connection.execute(sql.SQL("drop schema if exists {} cascade").format(sql.Identifier(name)))


# --- a migration that takes long ---------------------------------------------------------------------------

SLOW = Migration(HERE + 1, "slow", serving(HERE) + b"select pg_sleep(2)")


class Asked(list):
    """How often the server was asked whether it is at work. The first times, as many as `fail`, it cannot be asked."""

    fail = 0

    async def reach(self, *given: object) -> Connection:
        self.append(given)
        if len(self) <= self.fail:
            raise DatabaseUnavailable("there are too many connections")
        return await failures.reach(*given)


@pytest.fixture
def asked(monkeypatch) -> Asked:
    found = Asked()
    monkeypatch.setattr(migrate, "reach", found.reach)
    monkeypatch.setattr(migrate, "ASK_AFTER", 0.2)  # much sooner than in production
    monkeypatch.setattr("pgsched.db.reaching.ON_ITS_WAY", 0.2)
    return found


@pytest.mark.parametrize("fail", [0, 4], ids=["it answers", "it cannot be asked for a while"])
async def test_a_migration_may_take_longer_than_any_other_statement(dsn, connection, ships, asked, fail):
    await migrate.migrate(connection, NAME)
    ships(SLOW)
    asked.fail = fail
    async with await Bounded.connect(dsn, autocommit=True) as limited:
        limited.limit = 0.5
        assert [each.name for each in await migrate.migrate(limited, NAME)] == ["slow"]
        assert (limited.limit, limited.at_work) == (0.5, None)
    assert len(asked) > max(fail, 1)


async def test_the_server_of_a_service_is_asked_whatever_else_the_service_and_the_environment_say(  # noqa: PLR0917
    dsn, connection, ships, asked, tmp_path, monkeypatch
):
    await migrate.migrate(connection, NAME)
    ships(SLOW)
    given = conninfo_to_dict(dsn)
    host = given.pop("host")
    (tmp_path / "services").write_text(f"[prod]\nhost=/nowhere,{host}\nport=1,5432\n")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    monkeypatch.setenv("PGTARGETSESSIONATTRS", "standby")
    info = conninfo_for(make_conninfo("", **given, service="prod"), "test")
    async with await Bounded.connect(info, autocommit=True) as limited:
        limited.limit = 0.5
        assert [each.name for each in await migrate.migrate(limited, NAME)] == ["slow"]
    assert len(asked) > 1


@pytest.mark.parametrize("arrives", [True, False], ids=["answer-lost", "lost"])
@pytest.mark.parametrize("command", ["migrate", "run"])
async def test_a_migration_whose_answer_is_lost_ends_with_a_sentence(  # noqa: PLR0917
    dsn, connection, ships, asked, monkeypatch, tmp_path, command, arrives
):
    """And it can be tried again."""
    isolate(monkeypatch, tmp_path)
    (tmp_path / "lost_app.py").write_text("from pgsched import Scheduler as create_scheduler\n")
    monkeypatch.syspath_prepend(tmp_path)
    await migrate.migrate(connection, NAME)
    ships(NEXT)
    arguments = ["migrate"] if command == "migrate" else ["run", "lost_app.create_scheduler", "--migrate"]
    async with Proxy(dsn) as proxy:
        proxy.trap(b"added int not null", arrives=arrives)
        where = ("--dsn", proxy.dsn, "--schema", NAME)
        async with asyncio.timeout(60):
            done = await asyncio.to_thread(invoke, *arguments, *where)
    last = done.stderr.splitlines()[-1]
    assert (done.exit_code, done.stdout) == (69, "")
    assert "The database cannot be reached: the server has not answered for 0.2 s. Check that the server" in last
    assert proxy.sprung.is_set() and len(asked) == 1
    assert await migrate.migrate(connection, NAME) == [NEXT]


async def test_a_migration_is_given_up_if_the_server_cannot_be_asked(dsn, connection, ships, asked, monkeypatch):
    await migrate.migrate(connection, NAME)
    ships(NEXT)
    async with Proxy(dsn) as proxy, await Bounded.connect(proxy.dsn, autocommit=True) as limited:
        monkeypatch.setattr(migrate, "_ASK", 0.2)
        limited.limit = 0.5
        proxy.trap(b"added int not null", arrives=True)
        migrating = asyncio.create_task(migrate.migrate(limited, NAME))
        await proxy.sprung.wait()
        proxy.freeze()
        with pytest.raises(NoAnswer):
            await asyncio.wait_for(migrating, 60)
    assert len(asked) == 5
    assert await migrate.migrate(connection, NAME) == [NEXT]
