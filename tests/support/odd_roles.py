"""Roles and databases with odd settings, rights and encodings, and an environment with odd variables."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

# A value that few expect, for settings that a role, a database or PGOPTIONS may set.
SETTINGS = {
    "application_name": "somebody else",
    "array_nulls": "off",
    "backslash_quote": "on",
    "bytea_output": "escape",
    "check_function_bodies": "off",
    "client_encoding": "LATIN1",
    "client_min_messages": "debug1",
    "cursor_tuple_fraction": "1",
    "DateStyle": "German, DMY",
    "default_text_search_config": "pg_catalog.german",
    "default_transaction_deferrable": "on",
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "escape_string_warning": "off",
    "extra_float_digits": "-15",
    "from_collapse_limit": "1",
    "geqo_threshold": "2",
    "idle_in_transaction_session_timeout": "700ms",
    "idle_session_timeout": "700ms",
    "IntervalStyle": "iso_8601",
    "join_collapse_limit": "1",
    "lock_timeout": "50ms",
    "plan_cache_mode": "force_custom_plan",
    "quote_all_identifiers": "on",
    "restrict_nonsystem_relation_kind": "view",
    "row_security": "off",
    "search_path": "nowhere",
    "statement_timeout": "5s",
    "synchronous_commit": "off",
    "TimeZone": "Asia/Kathmandu",
    "transform_null_equals": "on",
    "work_mem": "64kB",
    "xmlbinary": "hex",
}
# Variables that libpq reads at each connect.
ENVIRONMENT = {
    "PGOPTIONS": "-c IntervalStyle=sql_standard -c array_nulls=off",
    "PGCLIENTENCODING": "LATIN1",
    "PGTZ": "Asia/Kathmandu",
    "PGDATESTYLE": "German, DMY",
}
_PASSWORD = "odd"
_NUMBERS = itertools.count(1)


class OddRoles:
    """Makes roles and databases in the server of a DSN, and drops them all in close()."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._roles: list[str] = []
        self._databases: list[str] = []

    def role(self, settings: Mapping[str, str] | None = None, *, rights: str = "owner", limit: int = -1) -> str:
        """Makes a role and returns its DSN of the test's database.

        rights: "owner", those of the database's own user; "read", to read everything; "none".
        limit: the most sessions that it may have; -1 for no limit.
        """
        name = self._name("role")
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            make = sql.SQL("create role {} login password {} connection limit {}")
            connection.execute(make.format(sql.Identifier(name), sql.Literal(_PASSWORD), sql.Literal(limit)))
            self._roles.append(name)
            group = {"owner": connection.info.user, "read": "pg_read_all_data", "none": None}[rights]
            if group is not None:
                grant = sql.SQL("grant {} to {}")
                connection.execute(grant.format(sql.Identifier(group), sql.Identifier(name)))
            self._set(connection, "role", name, settings or {})
        return make_conninfo(self.dsn, user=name, password=_PASSWORD)

    def database(self, settings: Mapping[str, str] | None = None, *, encoding: str = "UTF8", limit: int = -1) -> str:
        """Makes an empty database and returns its DSN. limit: the most sessions that it may have; -1 for no limit."""
        name = self._name("database")
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            make = sql.SQL(
                "create database {} template template0 encoding {} lc_collate 'C' lc_ctype 'C' {} connection limit {}"
            )
            # ICU, which is the default of some servers, lacks some encodings.
            provider = sql.SQL("locale_provider libc" if connection.info.server_version >= 150000 else "")
            known = (sql.Identifier(name), sql.Literal(encoding), provider, sql.Literal(limit))
            connection.execute(make.format(*known))
            self._databases.append(name)
            self._set(connection, "database", name, settings or {})
        return make_conninfo(self.dsn, dbname=name)

    def alter_database(self, settings: Mapping[str, str]) -> None:
        """Gives new sessions in the test's own database these settings. It is dropped after the test."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            self._set(connection, "database", connection.info.dbname, settings)

    def close(self) -> None:
        # The test's own database may be odd by now.
        plain = "-c default_transaction_read_only=off -c lock_timeout=10s -c statement_timeout=30s"
        with psycopg.connect(self.dsn, autocommit=True, options=plain) as connection:
            for name in self._databases:
                connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))
            for name in self._roles:
                end = "select pg_terminate_backend(pid, 10000) from pg_stat_activity where usename = %s"
                connection.execute(end, (name,))
                drop = sql.SQL("drop owned by {0} cascade; drop role {0}")
                connection.execute(drop.format(sql.Identifier(name)))

    @staticmethod
    def _name(kind: str) -> str:
        return f"odd_{kind}_{os.getpid()}_{next(_NUMBERS)}"

    @staticmethod
    def _set(connection: psycopg.Connection, kind: str, name: str, settings: Mapping[str, str]) -> None:
        for setting, value in settings.items():
            alter = sql.SQL("alter {} {} set {} to {}")
            given: sql.Composable = sql.Literal(value)
            if setting == "search_path" and value:
                given = sql.SQL(", ").join(map(sql.Identifier, value.split(", ")))
            connection.execute(alter.format(sql.SQL(kind), sql.Identifier(name), sql.Identifier(setting), given))


def as_options(settings: Mapping[str, str]) -> str:
    """The value of PGOPTIONS that gives new sessions these settings."""
    return " ".join(f"-c {name}=" + value.replace(" ", "\\ ") for name, value in settings.items())


def setting(dsn: str, name: str) -> str:
    """The setting's value in a new session."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute("select current_setting(%s)", (name,)).fetchone()
    assert row is not None
    return str(row[0])
