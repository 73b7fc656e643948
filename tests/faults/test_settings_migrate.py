"""`pgsched migrate` through a busy PgBouncer, next to neighbours that use the same sessions."""

import contextlib
import random
import threading

import psycopg
import pytest
from psycopg import sql
from support.poolers import KINDS
from support.shell import invoke

from pgsched.db import migrate

pytestmark = pytest.mark.usefixtures("schema")  # so that each test has a database of its own

ROUNDS = 4
LEFT_BEHIND = {
    "array_nulls": "off", "DateStyle": "German", "IntervalStyle": "iso_8601", "search_path": "nowhere",
    "standard_conforming_strings": "off", "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on", "statement_timeout": "500ms", "lock_timeout": "1ms",
}  # fmt: skip


class Neighbour(threading.Thread):
    """A client of the same role: prepares statements, holds a transaction, and leaves settings in its session."""

    def __init__(self, dsn: str, number: int) -> None:
        super().__init__(name=f"neighbour {number}", daemon=True)
        self._dsn, self._random = dsn, random.Random(number)
        self.over = threading.Event()
        self.turns = 0

    def run(self) -> None:
        while not self.over.is_set():
            with contextlib.suppress(psycopg.Error), psycopg.connect(self._dsn, autocommit=True) as connection:
                while not self.over.is_set() and not connection.closed:
                    self.turns += 1
                    for act in (self._prepare, self._hold, self._set):
                        # Neighbours harm each other, too: a statement is prepared already, or in another session.
                        with contextlib.suppress(psycopg.Error):
                            act(connection)

    def _prepare(self, connection: psycopg.Connection) -> None:
        connection.execute(f"select {self.turns % 7}", prepare=True)

    def _hold(self, connection: psycopg.Connection) -> None:
        with connection.transaction():
            connection.execute("select pg_sleep(0.01)")

    def _set(self, connection: psycopg.Connection) -> None:
        name = self._random.choice(list(LEFT_BEHIND))
        connection.execute("select set_config(%s, %s, false)", (name, LEFT_BEHIND[name]))


@contextlib.contextmanager
def neighbours(dsn: str, count: int = 4):
    """Yields once each of them has done something."""
    all_of_them = [Neighbour(dsn, number) for number in range(count)]
    for each in all_of_them:
        each.start()
    try:
        for each in all_of_them:
            for _ in range(1000):
                if each.turns:
                    break
                each.over.wait(0.02)
            assert each.turns, "a neighbour cannot work"
        yield
    finally:
        for each in all_of_them:
            each.over.set()
        for each in all_of_them:
            each.join(20)


@pytest.mark.parametrize("kind", KINDS)
def test_migrate_and_check_succeed_next_to_busy_neighbours(pgbouncer, dsn, kind):
    version, settings = KINDS[kind]
    pooler = pgbouncer(dsn, version, pool_mode="transaction", default_pool_size=3, **settings)
    with neighbours(pooler.dsn):
        for number in range(ROUNDS):
            given = ("--dsn", pooler.dsn, "--schema", f"round {number}")
            done = invoke("migrate", *given)
            assert (done.exit_code, done.stderr) == (0, ""), done.output
            checked = invoke("migrate", "--check", *given)
            assert (checked.exit_code, checked.stderr) == (0, ""), checked.output
            health = invoke("health", *given)
            assert health.exit_code == 4 and "failed   workers: none is alive" in health.stdout, health.output
    with psycopg.connect(dsn) as connection:
        for number in range(ROUNDS):
            runs = sql.Identifier(f"round {number}", "runs")
            connection.execute(sql.SQL("select from {}").format(runs))


@pytest.mark.parametrize("kind", KINDS)
def test_a_migration_that_takes_long_is_waited_for(dsn, pgbouncer, kind, monkeypatch):
    """The process id that the pooler gives is none of the server's."""
    version, settings = KINDS[kind]
    pooler = pgbouncer(dsn, version, pool_mode="transaction", **settings)
    shipped = migrate.migrations()
    slow = migrate.Migration(len(shipped) + 1, "slow", b"select pg_sleep(2)")
    monkeypatch.setattr(migrate, "migrations", lambda: [*shipped, slow])
    monkeypatch.setattr(migrate, "ASK_AFTER", 0.2)
    monkeypatch.setattr("pgsched.db.reaching.ON_ITS_WAY", 0.2)
    done = invoke("migrate", "--dsn", pooler.dsn, "--schema", "slow")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.endswith(f"Applied {slow.version:04} slow.\n")
