"""Odd roles, databases and environments are as odd as they say, and are gone after the test."""

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support.odd_roles import ENVIRONMENT, SETTINGS, OddRoles, as_options, setting

pytestmark = pytest.mark.usefixtures("schema")  # so that each test has a database of its own


def test_the_settings_are_odd_here(dsn):
    assert len(SETTINGS) >= 30
    assert [name for name, value in SETTINGS.items() if setting(dsn, name) == value] == []


@pytest.mark.parametrize("kind", ["role", "database", "own database", "PGOPTIONS"])
def test_new_sessions_have_every_setting(odd_roles, dsn, monkeypatch, kind):
    if kind == "role":
        dsn = odd_roles.role(SETTINGS)
    elif kind == "database":
        dsn = odd_roles.database(SETTINGS)
    elif kind == "own database":
        odd_roles.alter_database(SETTINGS)
    else:
        monkeypatch.setenv("PGOPTIONS", as_options(SETTINGS))
    assert {name: setting(dsn, name) for name in SETTINGS} == SETTINGS


@pytest.mark.parametrize(
    ("variable", "name", "value"),
    [
        ("PGOPTIONS", "IntervalStyle", "sql_standard"),
        ("PGCLIENTENCODING", "client_encoding", "LATIN1"),
        ("PGTZ", "TimeZone", "Asia/Kathmandu"),
        ("PGDATESTYLE", "DateStyle", "German, DMY"),
    ],
)
def test_new_sessions_follow_the_environment(dsn, monkeypatch, variable, name, value):
    assert setting(dsn, name) != value
    monkeypatch.setenv(variable, ENVIRONMENT[variable])
    assert setting(dsn, name) == value


@pytest.mark.parametrize("rights", ["owner", "read", "none"])
def test_the_rights_of_a_role(odd_roles, schema, rights):
    table = psycopg.sql.Identifier(schema, "runs")
    can = []
    with psycopg.connect(odd_roles.role(rights=rights), autocommit=True) as connection:
        for statement in ("select from {}", "delete from {}"):
            try:
                connection.execute(psycopg.sql.SQL(statement).format(table))
                can.append(statement)
            except psycopg.errors.InsufficientPrivilege:
                pass
    assert len(can) == {"owner": 2, "read": 1, "none": 0}[rights]


def test_a_read_only_role_may_read(odd_roles, schema):
    role = odd_roles.role({"default_transaction_read_only": "on"})
    with psycopg.connect(role, autocommit=True) as connection:
        table = psycopg.sql.Identifier(schema, "runs")
        connection.execute(psycopg.sql.SQL("select from {}").format(table))
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            connection.execute(psycopg.sql.SQL("delete from {}").format(table))


def test_a_role_and_a_database_have_a_limit_of_sessions(odd_roles):
    limited, free = odd_roles.role(limit=1), odd_roles.role()
    with psycopg.connect(limited), pytest.raises(psycopg.OperationalError, match="too many connections for role"):
        psycopg.connect(limited)
    name = conninfo_to_dict(odd_roles.database(limit=1))["dbname"]
    inside = make_conninfo(free, dbname=name)
    with psycopg.connect(inside), pytest.raises(psycopg.OperationalError, match="too many connections for database"):
        psycopg.connect(inside)


def test_a_latin1_database_lacks_the_euro(odd_roles):
    with psycopg.connect(odd_roles.database(encoding="LATIN1"), client_encoding="utf8") as connection:
        assert connection.execute("select 'é', octet_length('é')").fetchone() == ("é", 1)
        with pytest.raises(psycopg.errors.UntranslatableCharacter):
            connection.execute("select '€'")


def test_a_sql_ascii_database_stores_bytes_as_they_come(odd_roles):
    with psycopg.connect(odd_roles.database(encoding="SQL_ASCII"), client_encoding="utf8") as connection:
        assert connection.execute("show server_encoding").fetchone() == ("SQL_ASCII",)
        assert connection.execute("select length('é')").fetchone() == (2,)


def test_all_are_gone_afterwards(dsn, schema):
    odd = OddRoles(dsn)
    with psycopg.connect(odd.role()) as connection:
        connection.execute(psycopg.sql.SQL("create table {} ()").format(psycopg.sql.Identifier(schema, "notes")))
        connection.commit()
        connection.execute(psycopg.sql.SQL("select from {}").format(psycopg.sql.Identifier(schema, "notes")))
        odd.role(SETTINGS)
        odd.database(SETTINGS, encoding="LATIN1")
        odd.alter_database(SETTINGS)
        odd.close()  # the first role owns a table, and its session has it locked
        connection.close()
    with psycopg.connect(dsn, autocommit=True) as connection:
        left = "select (select count(*) from pg_roles where rolname like 'odd%'),"
        left += " (select count(*) from pg_database where datname like 'odd%')"
        assert connection.execute(left).fetchone() == (0, 0)
