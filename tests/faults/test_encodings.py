"""A database in another encoding than UTF8 is refused with one sentence, by everything that reaches it."""

import asyncio

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from support.poolers import KINDS
from support.shell import invoke, isolate

from pgsched import connect, connect_sync
from pgsched.errors import ConfigurationError

APP = """
from pgsched import Scheduler
def create_scheduler():
    sc = Scheduler()
    sc.schedule("job", "@daily")(lambda: None)
    return sc
"""


@pytest.fixture(autouse=True)
def _app(monkeypatch, tmp_path):
    isolate(monkeypatch, tmp_path)
    (tmp_path / "encodings_app.py").write_text(APP)
    monkeypatch.syspath_prepend(tmp_path)


def sentence(dsn: str, encoding: str) -> str:
    return (
        f'The database "{conninfo_to_dict(dsn)["dbname"]}" has the encoding {encoding}, which cannot store every text: '
        "pgsched needs a database with the encoding UTF8. Create one with `create database NAME encoding 'UTF8' "
        "template template0`, and let the DSN lead to it."
    )


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_commands_and_clients_refuse_it(odd_roles, encoding):
    dsn = odd_roles.database(encoding=encoding)
    said = f"Error: {sentence(dsn, encoding)}\n"
    for command in (["migrate"], ["migrate", "--check"], ["health"], ["schedules", "list"], ["workers"]):
        refused = invoke(*command, "--dsn", dsn)
        assert (refused.exit_code, refused.output) == (78, said), command

    async def connected() -> None:
        async with connect(dsn):
            pass

    with pytest.raises(ConfigurationError) as error:
        asyncio.run(connected())
    assert str(error.value) == sentence(dsn, encoding)
    with pytest.raises(ConfigurationError) as error, connect_sync(dsn):
        pass
    assert str(error.value) == sentence(dsn, encoding)
    with psycopg.connect(dsn) as connection:
        assert connection.execute("select from pg_namespace where nspname = 'pgsched'").fetchall() == []


def test_so_do_the_commands_that_build_a_scheduler(odd_roles):
    dsn = odd_roles.database(encoding="EUC_JP")
    for command in (["check"], ["run"], ["run", "--migrate"]):
        refused = invoke(command[0], "encodings_app.create_scheduler", *command[1:], "--dsn", dsn)
        assert refused.exit_code == 78
        assert sentence(dsn, "EUC_JP") in refused.stderr


def test_behind_a_pooler_too(odd_roles, pgbouncer):
    dsn = odd_roles.database(encoding="WIN1252")
    for version, settings in KINDS.values():
        refused = invoke("migrate", "--dsn", pgbouncer(dsn, version, pool_mode="transaction", **settings).dsn)
        assert (refused.exit_code, refused.stderr) == (78, f"Error: {sentence(dsn, 'WIN1252')}\n")


def test_in_a_utf8_database_every_text_works_with_any_encoding_of_the_role_and_the_environment(odd_roles, monkeypatch):
    monkeypatch.setenv("PGCLIENTENCODING", "SQL_ASCII")
    dsn = odd_roles.database({"client_encoding": "LATIN1"})
    assert invoke("migrate", "--dsn", dsn).exit_code == 0
    with connect_sync(dsn) as client:
        run = client.enqueue("job", {"text": "5 € 🙂 é"})
        assert client.get_run(run)["args"] == {"text": "5 € 🙂 é"}
