"""Nothing depends on a session's settings: every statement works, and means the same, whatever they are.

A row of the table is a way to the server with a round of settings. The rounds give every setting an odd value at once,
those with several odd values another one each. If a row fails, the test looks for the settings that are to blame.
"""

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support.every_statement import APP, Recorder, everything, inline
from support.odd_roles import ENVIRONMENT, SETTINGS, as_options
from support.poolers import KINDS
from support.shell import isolate

from pgsched import connect_sync
from pgsched.db.reaching import BoundedBlocking
from pgsched.db.session import Session, conninfo_for
from pgsched.db.statements.queries import Queries
from pgsched.errors import DatabaseUnavailable

_TIMEOUTS = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout")
# These decide, so they have a test of their own, or only a neighbour leaves them behind.
_APART = (*_TIMEOUTS, "default_transaction_read_only")
# Triggers must fire even then. Only a superuser may set it.
_REPLICA = {"session_replication_role": "replica"}
ODD = {name: value for name, value in SETTINGS.items() if name not in _APART} | {
    "constraint_exclusion": "on", "default_toast_compression": "pglz", "enable_async_append": "off",
    "enable_hashagg": "off", "enable_hashjoin": "off", "enable_indexonlyscan": "off", "enable_indexscan": "off",
    "enable_material": "off", "enable_mergejoin": "off", "enable_nestloop": "off", "enable_sort": "off",
    "gin_fuzzy_search_limit": "1", "gin_pending_list_limit": "64kB", "lc_monetary": "C", "lc_numeric": "C",
    "maintenance_work_mem": "1MB", "standard_conforming_strings": "off", "xmloption": "document",
}  # fmt: skip
# Another value in each round.
ROUNDS: list[dict[str, str]] = [
    dict(zip(("DateStyle", "IntervalStyle", "TimeZone", "default_transaction_isolation", "search_path",
              "client_encoding", "backslash_quote", "extra_float_digits", "bytea_output", "client_min_messages"),
             values, strict=True))
    for values in (
        ("German, DMY", "iso_8601", "Asia/Kathmandu", "serializable", "hostile, pg_catalog", "LATIN1",
         "on", "-15", "escape", "debug5"),
        ("SQL, MDY", "sql_standard", "America/St_Johns", "repeatable read", "nowhere", "SQL_ASCII",
         "off", "3", "hex", "error"),
        ("Postgres, YMD", "postgres_verbose", "Etc/GMT+12", "read uncommitted", "", "EUC_JP",
         "safe_encoding", "0", "escape", "log"),
        ("ISO, DMY", "postgres", "FOO-5:45", "serializable", "hostile, pg_catalog, public", "WIN1252",
         "on", "-15", "hex", "debug1"),
    )
]  # fmt: skip
SHORT = dict.fromkeys(_TIMEOUTS, "1s") | {"lock_timeout": "1ms"}
# Functions and operators that take the place of PostgreSQL's own for a session that has this schema in its path.
HOSTILE = """
create schema hostile;
grant usage on schema hostile to public;
create function hostile.fail() returns boolean language plpgsql as $$ begin raise 'a hostile function'; end $$;
create function hostile.now() returns timestamptz language sql as 'select null::timestamptz where hostile.fail()';
create function hostile.clock_timestamp() returns timestamptz language sql as 'select hostile.now()';
create function hostile.set_config(text, text, boolean) returns text language sql as 'select '''' where hostile.fail()';
create function hostile.current_setting(text) returns text language sql as 'select '''' where hostile.fail()';
create function hostile.pg_backend_pid() returns int language sql as 'select 0 where hostile.fail()';
create function hostile.unnest(bigint[]) returns setof bigint language sql as 'select 0::bigint where hostile.fail()';
"""
OPERATORS = [
    (name, kind) for name in ("=", "<>", "<", ">") for kind in ("bigint", "text", "timestamptz", "uuid", "int")
]


def hostile(connection: psycopg.Connection) -> None:
    for statement in HOSTILE.strip().split(";\n"):
        connection.execute(statement.encode())
    for kind in {kind for _, kind in OPERATORS}:
        connection.execute(
            f"create function hostile.compare({kind}, {kind}) returns boolean language sql"
            " as 'select hostile.fail()'".encode()
        )
    for name, kind in OPERATORS:
        connection.execute(
            f"create operator hostile.{name} (leftarg = {kind}, rightarg = {kind}, function = hostile.compare)".encode()
        )


@pytest.fixture(autouse=True)
def _world(dsn, schema, monkeypatch, tmp_path):
    """An application, in a database of the test's own that has hostile functions."""
    isolate(monkeypatch, tmp_path)
    (tmp_path / "every_app.py").write_text(APP)
    monkeypatch.syspath_prepend(tmp_path)
    with psycopg.connect(dsn, autocommit=True) as connection:
        hostile(connection)


def fitting(dsn: str, settings: Mapping[str, str]) -> dict[str, str]:
    """Those of the settings that this server has."""
    with psycopg.connect(dsn) as connection:
        known = {name.lower() for (name,) in connection.execute("select name from pg_settings").fetchall()}
    return {name: value for name, value in settings.items() if name.lower() in known}


class Neighbour(threading.Thread):
    """Shares the sessions behind a pooler, and leaves its own settings in each of them, again and again."""

    def __init__(self, dsn: str, settings: Mapping[str, str]) -> None:
        super().__init__(daemon=True)
        self._dsn, self._settings = dsn, settings
        self.over, self.began = threading.Event(), threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            with contextlib.suppress(psycopg.Error), psycopg.connect(self._dsn, autocommit=True) as connection:
                connection.prepare_threshold = None
                for setting in itertools.cycle(self._settings.items()):
                    with contextlib.suppress(psycopg.errors.ReadOnlySqlTransaction):
                        connection.execute("select pg_catalog.set_config(%s, %s, false)", setting)
                    self.began.set()
                    if self.over.wait(0.001):
                        return


@contextlib.contextmanager
def neighbour(dsn: str, settings: Mapping[str, str]) -> Iterator[None]:
    there = Neighbour(dsn, settings)
    there.start()
    try:
        assert there.began.wait(20)
        yield
    finally:
        there.over.set()
        there.join(20)


def to_blame(settings: Mapping[str, str], try_with: Callable[[dict[str, str]], None]) -> list[str]:
    """The settings that make it fail, each alone or, if none does, together."""

    def fails(some: dict[str, str]) -> str | None:
        try:
            try_with(some)
        except BaseException as error:
            return f"{type(error).__name__}: {str(error)[:300]}"
        return None

    def halves(some: dict[str, str]) -> list[str]:
        why = fails(some)
        if why is None:
            return []
        if len(some) == 1:
            return [f"{some}: {why}"]
        items = list(some.items())
        middle = len(items) // 2
        return halves(dict(items[:middle])) + halves(dict(items[middle:])) or [f"together, {sorted(some)}: {why}"]

    return halves(dict(settings))


def with_all(settings: Mapping[str, str], try_with: Callable[[dict[str, str]], None]) -> None:
    try:
        try_with(dict(settings))
    except BaseException as error:
        raise AssertionError("\n".join(to_blame(settings, try_with))) from error


_SCHEMAS = (f"table {number}" for number in itertools.count())
seen = Recorder()


@pytest.fixture
def directly(odd_roles, dsn, monkeypatch) -> Callable[[str, int], None]:
    def attempt(kind: str, number: int) -> None:
        def try_with(settings: dict[str, str]) -> None:
            way = dsn
            with pytest.MonkeyPatch.context() as patch, seen.on():
                if kind == "role":
                    way = odd_roles.role(settings)
                elif kind == "database":
                    with psycopg.connect(dsn, autocommit=True) as connection:
                        connection.execute(sql.SQL("alter database {} reset all").format(
                            sql.Identifier(connection.info.dbname)))  # fmt: skip
                    odd_roles.alter_database(settings)
                else:
                    patch.setenv("PGOPTIONS", as_options(settings))
                    for name, value in ENVIRONMENT.items():
                        if name != "PGOPTIONS":
                            patch.setenv(name, value)
                everything(way, next(_SCHEMAS), {k: v for k, v in settings.items() if k != "session_replication_role"})

        more = _REPLICA if kind == "database" else {}
        with_all(fitting(dsn, ODD | ROUNDS[number] | more), try_with)

    return attempt


@pytest.mark.parametrize(("kind", "number"), [("role", 0), ("database", 1), ("environment", 2), ("role", 3)])
def test_directly_and_on_the_callers_own_connection(directly, kind, number):
    directly(kind, number)


def attempt(way: str, settings: Mapping[str, str], **options: Any) -> None:
    with seen.on():
        everything(way, next(_SCHEMAS), **options)


MODES = [("session", "newest, 0"), ("transaction", "newest, 0"), ("transaction", "1.18")]


@pytest.mark.parametrize(("mode", "kind"), MODES)
def test_behind_a_pooler(odd_roles, pgbouncer, dsn, mode, kind):
    (version, options), number = KINDS[kind], MODES.index((mode, kind))
    # A session for each client in session mode; in transaction mode so few that clients change sessions.
    pooler = pgbouncer(dsn, version, pool_mode=mode, default_pool_size=20 if mode == "session" else 3, **options)

    def try_with(settings: dict[str, str]) -> None:
        given = conninfo_to_dict(odd_roles.role(settings))
        attempt(make_conninfo(pooler.dsn, user=given["user"], password=given["password"]), settings)

    with_all(fitting(dsn, ODD | ROUNDS[number]), try_with)


@pytest.mark.parametrize(("kind", "number"), [("1.18", 0), ("newest, 200", 2)])
def test_behind_a_pooler_next_to_a_neighbour_with_other_settings(odd_roles, pgbouncer, dsn, kind, number):
    version, options = KINDS[kind]
    pooler = pgbouncer(dsn, version, pool_mode="transaction", default_pool_size=2, **options)

    def try_with(settings: dict[str, str]) -> None:
        with neighbour(pooler.dsn, settings):
            attempt(pooler.dsn, settings)

    left = ODD | ROUNDS[number] | SHORT | {"default_transaction_read_only": "on"}
    tenant = conninfo_to_dict(odd_roles.role(rights="none"))["user"]
    with_all(fitting(dsn, left) | {"session_authorization": tenant, "role": tenant}, try_with)


@pytest.mark.parametrize("left", ["tenant", "none"])
def test_behind_a_pooler_next_to_a_neighbour_with_another_role(odd_roles, pgbouncer, dsn, left):
    """Our own is that of `alter role … set role`: the user itself has no rights."""
    owner, tenant = (conninfo_to_dict(odd_roles.role(rights=rights))["user"] for rights in ("owner", "none"))
    user = conninfo_to_dict(odd_roles.role({"role": owner}, rights="none"))
    with psycopg.connect(dsn, autocommit=True) as connection:
        grant = sql.SQL("alter role {0} noinherit; grant {1}, {2} to {0}")
        connection.execute(grant.format(*map(sql.Identifier, (user["user"], owner, tenant))))
    pooler = pgbouncer(dsn, pool_mode="transaction", default_pool_size=2)
    way = make_conninfo(pooler.dsn, user=user["user"], password=user["password"])
    with neighbour(way, {"role": tenant if left == "tenant" else "none"}):
        attempt(way, {})


@pytest.mark.parametrize("mode", [None, "transaction"], ids=["directly", "behind a pooler"])
def test_short_timeouts_of_the_role(odd_roles, pgbouncer, dsn, mode):
    pooler = pgbouncer(dsn, pool_mode=mode) if mode is not None else None

    def try_with(settings: dict[str, str]) -> None:
        way = odd_roles.role(settings)
        if pooler is not None:
            given = conninfo_to_dict(way)
            way = make_conninfo(pooler.dsn, user=given["user"], password=given["password"])
        attempt(way, settings, lean=True)

    with_all(fitting(dsn, SHORT | {"transaction_timeout": "1s"}), try_with)


@pytest.mark.parametrize("kind", [None, "1.18", "newest, 0"])
async def test_a_workers_sessions_last_and_read_what_others_have_committed(odd_roles, pgbouncer, dsn, kind):
    way = odd_roles.role({"idle_session_timeout": "300ms", "default_transaction_isolation": "serializable"})
    if kind is not None:
        given = conninfo_to_dict(way)
        pooler = pgbouncer(dsn, KINDS[kind][0], pool_mode="transaction", **KINDS[kind][1])
        way = make_conninfo(pooler.dsn, user=given["user"], password=given["password"])
    session = Session(conninfo_for(way, "pgsched test"), "test")
    for _ in range(2):
        async with session.use() as connection:
            cursor = await connection.execute("select current_setting('transaction_isolation')")
            assert await cursor.fetchone() == ("read committed",)
        await asyncio.sleep(0.7)
    async with session.use():
        assert session.generation == 1
    await session.discard()


async def test_a_worker_does_not_write_where_its_operator_has_made_the_server_read_only(odd_roles, pgbouncer, dsn):
    given = conninfo_to_dict(odd_roles.role({"default_transaction_read_only": "on"}))
    pooler = pgbouncer(dsn, "1.18", pool_mode="transaction")
    way = make_conninfo(pooler.dsn, user=given["user"], password=given["password"])
    session = Session(conninfo_for(f"{way} target_session_attrs=any", "pgsched test"), "test")
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        async with session.use() as connection:
            await connection.execute("create table public.written ()")
    await session.discard()


def test_in_a_clients_transaction_an_application_reads_as_ever(pgbouncer, dsn, schema):
    """pgsched's own cursors read values in binary format there, in which psycopg knows no enum."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create type public.colour as enum ('red')")
    with connect_sync(pgbouncer(dsn, pool_mode="transaction").dsn, schema=schema) as client:
        for _ in range(2):
            with client.transaction() as connection:
                assert connection.execute("select 'red'::public.colour").fetchone() == ("red",)
            client.now()


def test_a_server_that_its_operator_has_made_read_only_is_not_written(pgbouncer, dsn, schema):
    """Since 1.20, PgBouncer itself keeps the setting as it was when its client connected."""
    pooler = pgbouncer(dsn, "1.18", pool_mode="transaction", default_pool_size=1)
    with connect_sync(pooler.dsn, schema=schema, timeout=3) as client:
        client.enqueue("job")
        with psycopg.connect(dsn, autocommit=True) as connection:
            name = sql.Identifier(connection.info.dbname)
            connection.execute(sql.SQL("alter database {} set default_transaction_read_only = on").format(name))
            connection.execute(
                "select pg_terminate_backend(pid, 10000) from pg_stat_activity where pid <> pg_backend_pid()"
                " and datname = current_database()"
            )
        with pytest.raises(DatabaseUnavailable):
            client.enqueue("job")


def test_a_role_that_can_only_read_is_refused_whatever_else_it_has_set(odd_roles, dsn):
    way = odd_roles.role(fitting(dsn, ODD | ROUNDS[0] | {"default_transaction_read_only": "on"}))
    with seen.on(), pytest.raises(psycopg.OperationalError, match="read-only"):
        BoundedBlocking.connect(conninfo_for(way, "pgsched test"))


# SQL for other tools, a question that only a contraction asks, and one during long migrations (test_migrate.py).
SELDOM = {
    "create schema if not exists",
    "select w.host, w.pid, coalesce(w.schema_version, 4) from",
    "select exists (select from pg_stat_activity where pid =",
}


def test_every_statement_was_sent():
    """By the tests of this file before it."""
    assert set(Queries.texts()) - seen.files() == set()
    assert {text for text in inline() if not any(text in each for each in seen.sent)} == SELDOM
