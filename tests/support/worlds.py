"""Clocks in the hands of a test: this machine's wall and boot time, and the database's, each moved by itself.

The monotonic clock is the real one, so asyncio's timers are too. A machine that was suspended for an hour is one whose
monotonic clock has gone on by nothing while all others have gone on by an hour.
"""

import re
import time
from datetime import timedelta

import psycopg
from psycopg import sql

from pgsched.db import migrate
from pgsched.db.statements.queries import in_schema
from pgsched.worker.clocks import Clocks

HOUR = 3600.0
_CLOCK = re.compile(r"(?<![\w.])(clock_timestamp|now)\(\)")
_SKEW = """
create table pgsched.skew as select interval '0' as by;
create function pgsched.clock_timestamp() returns timestamptz language sql volatile
    as 'select pg_catalog.clock_timestamp() + by from pgsched.skew';
create function pgsched.now() returns timestamptz language sql stable
    as 'select pg_catalog.now() + by from pgsched.skew';
"""


def skewed(statement: str) -> str:
    """The statement, reading the skewed clock."""
    return _CLOCK.sub(r"pgsched.\1()", statement)


def make_skewed(dsn: str, schema: str) -> None:
    """A migrated schema whose every default, trigger and function reads a clock that a test can move."""
    real = migrate.script(schema)
    begun, first, rest = real.partition("create table if not exists")
    own = in_schema(_SKEW.encode(), schema, parametrised=False).decode()
    with psycopg.connect(dsn, autocommit=True) as connection:
        name = sql.Identifier(schema).as_string()
        connection.execute(begun + own + first + _CLOCK.sub(rf"{name}.\1()", rest))


class World(Clocks):
    """A machine and its database. Its changes are made without giving anybody else a turn in between."""

    def __init__(self, dsn: str, schema: str, *, has_boottime: bool = True) -> None:
        self.slept = 0.0
        self.wall_off = 0.0
        self.has_boottime = has_boottime
        self._schema = schema
        self._connection = psycopg.connect(dsn, autocommit=True)

    def wall(self) -> float:
        return time.time() + self.wall_off + self.slept

    def boottime(self) -> float | None:
        return time.monotonic() + 123_456 + self.slept if self.has_boottime else None

    def do(self, statement: str, *params: object) -> None:
        """A statement that another machine sends while this one stands still."""
        self._connection.execute(in_schema(skewed(statement).encode(), self._schema), params)

    def step_database(self, seconds: float) -> None:
        self.do("update pgsched.skew set by = by + %s", timedelta(seconds=seconds))

    def suspend(self, seconds: float = HOUR, *meanwhile: str) -> None:
        """This machine sleeps; meanwhile, others do something."""
        self.step_database(seconds)
        for statement in meanwhile:
            self.do(statement)
        self.slept += seconds

    def close(self) -> None:
        self._connection.close()
