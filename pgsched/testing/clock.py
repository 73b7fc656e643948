"""A clock that stands still unless it is moved, under everything that pgsched does in one schema.

The database is pgsched's only clock, so it is the database's that is replaced: in the migrations and in the statements
every now() and clock_timestamp() becomes test_clock(), which reads a table of the schema. Triggers, defaults and SQL
functions thereby go by it too, whoever calls them.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from psycopg import sql

from pgsched.db import migrate
from pgsched.db.session import Connection, Session
from pgsched.db.statements.statements import in_schema
from pgsched.db.statements.store import Store
from pgsched.errors import InvalidArguments
from pgsched.rules import options
from pgsched.worker.clocks import DatabaseClock

_CALL = re.compile(rb"(?<![\w.])(?:now|clock_timestamp)\(\)")
# Two runs that are triggered at one instant must not be the same fire time, nor that of the schedule's own that comes
# at this instant: each is one microsecond earlier than the one before.
_TRIGGER = re.compile(rb"create (?:or replace )?function pgsched\.trigger\(.*?\nend \$\$;", re.S)
_MADE = b"""
create table pgsched.test_time (at timestamptz not null);
create sequence pgsched.test_tick;
create function pgsched.test_clock() returns timestamptz language sql stable as 'select at from pgsched.test_time';
create function pgsched.test_moment() returns timestamptz language sql volatile as
    'select at - nextval(''pgsched.test_tick'') * interval ''1 microsecond'' from pgsched.test_time';
"""


def rewritten(statement: bytes) -> bytes:
    """A statement, written for the schema pgsched, on the test's clock."""
    statement = _TRIGGER.sub(lambda m: _CALL.sub(b"pgsched.test_moment()", m[0]), statement)
    statement = _CALL.sub(b"pgsched.test_clock()", statement)
    # By its change a worker's write is told from a client's, so this one has to go on.
    return statement.replace(b"planned_at = pgsched.test_clock()", b"planned_at = pg_catalog.clock_timestamp()")


async def make_schema(connection: Connection, schema: str, now: datetime | None) -> datetime:
    """Makes a schema of this version that goes by a clock of its own. Returns where that stands: now, by default the
    server's clock."""
    row = await (await connection.execute("select coalesce(%s::timestamptz, clock_timestamp())", (now,))).fetchone()
    assert row is not None
    start: datetime = row[0].astimezone(UTC)
    async with connection.transaction():
        await connection.execute(sql.SQL("create schema {}").format(sql.Identifier(schema)))
        await connection.execute(in_schema(_MADE, schema, parametrised=False))
        await connection.execute(in_schema(b"insert into pgsched.test_time values (%s)", schema), (start,))
    await migrate.migrate(connection, schema, rewrite=rewritten)
    return start


class TestStore(Store):
    """The statements, on the test's clock."""

    __test__ = False  # for pytest, which takes the name for a test's

    def __init__(self, schema: str, app: str = "") -> None:
        super().__init__(schema, app)
        self._queries = {name: in_schema(rewritten(text), schema) for name, text in self.texts().items()}


class StandingClock(DatabaseClock):
    """What a worker knows of the database's clock: exactly where it stands."""

    def __init__(self, start: datetime) -> None:
        super().__init__()
        self.stands = start

    @property
    def known(self) -> bool:
        """Always."""
        return True

    def observe(self, stamp: datetime, before: float, after: float) -> None:
        """It hears of each move at once, and needs no stamps."""

    def monotonic(self, instant: datetime) -> float:
        """What has come has always come, the rest never will by itself."""
        return float("-inf") if instant <= self.stands else float("inf")

    def at(self, monotonic: float) -> datetime | None:
        """The same at any time."""
        return self.stands


class Clock:
    """The clock of a test. It stands still unless it is moved, however long the test takes."""

    def __init__(self, session: Session, schema: str, standing: StandingClock) -> None:
        self._session, self._standing = session, standing
        self._move = in_schema(b"update pgsched.test_time set at = %s", schema)

    @property
    def now(self) -> datetime:
        """Where it stands: aware, in UTC."""
        return self._standing.stands

    async def move_to(self, instant: datetime, *, backward: bool = False) -> None:
        """Moves it to an aware instant, as if no worker had been there meanwhile: run_due() finds what was missed.

        backward: let it go back, as a database's clock may that is set. Raises InvalidArguments.
        """
        to = options.instant("The clock's instant", instant)
        if to is None:
            raise InvalidArguments("The clock's instant is a datetime with a time zone, not None.")
        if to < self.now and not backward:
            raise InvalidArguments(
                f"The clock stands at {self.now}, later than {to}: say backward=True to set it back."
            )
        async with self._session.use() as connection:
            await connection.execute(self._move, (to,))
        self._standing.stands = to

    async def advance(self, by: timedelta) -> None:
        """Moves it forward by so much, like move_to()."""
        if not isinstance(by, timedelta):
            raise InvalidArguments(f"advance() takes a timedelta, not {by!r}.")
        await self.move_to(self.now + by)
