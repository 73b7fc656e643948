"""A real PostgreSQL for every test: the server of PGSCHED_TEST_DSN, or one that is started here.

PGSCHED_TEST_POSTGRES names the folder of the programs that are started, by default those of the embedded package.

Each test has a database of its own, with a schema whose name is as hostile as a name can be.
"""

import itertools
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import hypothesis
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from support import baseline
from support.database import Database
from support.servers import running

from pgsched.config import Settings
from pgsched.db import migrate
from pgsched.db.statements.store import Store

hypothesis.settings.register_profile("suite", deadline=None)  # no test asserts a timing
hypothesis.settings.load_profile("suite")

SCHEMA = 'We"ird; schema %s'
_NUMBERS = itertools.count(1)
_GIVEN = os.environ.get("PGSCHED_TEST_DSN")


def elsewhere(dsn: str, database: str) -> str:
    """The DSN of another database of the same server: a URL where it is one, since tests append options to it."""
    if "://" in dsn:
        return urlsplit(dsn)._replace(path=f"/{database}").geturl()
    return make_conninfo(dsn, dbname=database)


@pytest.fixture(scope="session", autouse=True)
def _own_environment() -> Iterator[None]:
    """The outside's PGSCHED_ variables are for the suite: no test sees them, nor does a command that it starts."""
    given = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("PGSCHED_")}
    yield
    os.environ.update(given)


@pytest.fixture(scope="session")
def root() -> Iterator[str]:
    """The DSN of a server for the whole session."""
    if _GIVEN:
        yield _GIVEN
        return
    with running() as dsn:
        with psycopg.connect(dsn, autocommit=True) as connection:
            # No test takes this server's power away; those of the fault suite that do have one of their own.
            connection.execute("alter system set fsync = off")
            connection.execute("alter system set full_page_writes = off")
            connection.execute("select pg_reload_conf()")
        yield dsn


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release before this one, unpacked. A source archive and a shallow clone cannot have it."""
    try:
        return baseline.unpacked(tmp_path_factory.mktemp("baseline"))
    except baseline.UnavailableError as error:
        pytest.skip(f"the release before cannot be built: {error}")


@pytest.fixture(scope="session")
def template(root: str) -> Iterator[str]:
    """A database with a freshly migrated schema: to copy it takes a third of the time that the migrations take."""
    name = f"pgsched_test_{os.getpid()}"
    with psycopg.connect(root, autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        with psycopg.connect(elsewhere(root, name), autocommit=True) as inside:
            inside.execute(migrate.script(SCHEMA).encode())
        yield name
        connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture
def dsn(root: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """A database of the test's own, which has the schema; or the server's own, where a test asks for no schema."""
    if "schema" not in request.fixturenames:
        yield root
        return
    template = request.getfixturevalue("template")
    name = f"{template}_{next(_NUMBERS)}"
    with psycopg.connect(root, autocommit=True) as connection:
        how = sql.SQL("strategy file_copy" if connection.info.server_version >= 150000 else "")
        copy = sql.SQL("create database {} template {} {}")
        connection.execute(copy.format(sql.Identifier(name), sql.Identifier(template), how))
        yield elsewhere(root, name)
        connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture
def schema(dsn: str) -> Iterator[str]:
    """A freshly migrated schema, also where a test module has a server of its own."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        copied = connection.execute("select from pg_namespace where nspname = %s", (SCHEMA,)).fetchone() is not None
        if not copied:
            connection.execute(migrate.script(SCHEMA).encode())  # in half the time that migrate() takes
    yield SCHEMA
    if not copied:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(sql.SQL("drop schema if exists {} cascade").format(sql.Identifier(SCHEMA)))


@pytest.fixture
def settings(dsn: str, schema: str) -> Settings:
    """Settings that lead to the schema."""
    return Settings(dsn=dsn, schema=schema)


@pytest.fixture
def store(schema: str) -> Store:
    return Store(schema)


@pytest.fixture
async def db(dsn: str, schema: str) -> AsyncIterator[Database]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        yield Database(connection, schema)
