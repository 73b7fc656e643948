"""A clock that stands still until it is moved, for everything that pgsched does in one schema.

pgsched's only clock is the database's, so that one is replaced: in the migrations and statements, every now() and
clock_timestamp() becomes test_clock(), which reads a table of the schema. Triggers, defaults and SQL functions use it
too, no matter which session calls them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from psycopg import sql

from pgsched.db import migrate
from pgsched.db.session import Connection, Session
from pgsched.db.statements.queries import in_schema
from pgsched.errors import InvalidArguments
from pgsched.rules import options

_CALL = re.compile(rb"(?<![\w.])(?:now|clock_timestamp)\(\)")
# Runs that are triggered at one instant must not share a fire time, neither with each other nor with the schedule's own
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
    """A statement for the schema pgsched, rewritten to use the test's clock."""
    statement = _TRIGGER.sub(lambda m: _CALL.sub(b"pgsched.test_moment()", m[0]), statement)
    statement = _CALL.sub(b"pgsched.test_clock()", statement)
    # A change of it marks a worker's write, as opposed to a client's, so this clock must go on.
    return statement.replace(b"planned_at = pgsched.test_clock()", b"planned_at = pg_catalog.clock_timestamp()")


async def make_schema(connection: Connection, schema: str, now: datetime | None) -> datetime:
    """Makes a schema of this version with its own clock. Returns the time that the clock shows: `now`, by default the
    server's time."""
    row = await (await connection.execute("select coalesce(%s::timestamptz, clock_timestamp())", (now,))).fetchone()
    assert row is not None
    start: datetime = row[0].astimezone(UTC)
    async with connection.transaction():
        await connection.execute(sql.SQL("create schema {}").format(sql.Identifier(schema)))
        await migrate.run_script(connection, in_schema(_MADE, schema, parametrised=False))
        await connection.execute(in_schema(b"insert into pgsched.test_time values (%s)", schema), (start,))
    await migrate.migrate(connection, schema, rewrite=rewritten)
    return start


class StandingClock:
    """A worker's knowledge of the database's clock: its exact time, once it is known."""

    def __init__(self) -> None:
        self.stands: datetime | None = None

    @property
    def known(self) -> bool:
        """Whether the clock has been started."""
        return self.stands is not None

    def move(self, instant: datetime) -> None:
        """The clock stands at this instant now."""
        self.stands = instant

    def subscribe(self, stepped: Callable[[float], None]) -> None:
        """Does nothing: the harness looks again after each move."""

    def forget(self) -> None:
        """Does nothing: time does not go on here while a machine sleeps."""

    def observe(self, stamp: datetime, before: float, after: float) -> None:
        """Does nothing: each move sets the clock's time at once, so no stamps are needed."""

    def monotonic(self, instant: datetime) -> float:
        """Minus infinity if the instant has come; else infinity, because it never comes by itself."""
        return float("-inf") if self.stands is not None and instant <= self.stands else float("inf")

    def at(self, monotonic: float) -> datetime | None:
        """The clock's time, the same at any monotonic moment."""
        return self.stands

    def now(self) -> datetime | None:
        """The clock's time."""
        return self.stands


class Clock:
    """The clock of a test. It stands still until it is moved, however long the test takes."""

    def __init__(self, session: Session, schema: str, standing: StandingClock) -> None:
        self._session, self._standing = session, standing  # which has been started
        self._move = in_schema(b"update pgsched.test_time set at = %s", schema)

    @property
    def now(self) -> datetime:
        """The clock's time: aware, in UTC."""
        now = self._standing.now()
        assert now is not None
        return now

    async def move_to(self, instant: datetime, *, backward: bool = False) -> None:
        """Moves the clock to an aware instant, as if no worker had run meanwhile: run_due() finds missed fire times.

        backward: allow an earlier instant, since a database's clock can be set back too. Default False.
        Raises InvalidArguments if the instant is naive or out of range, or is earlier and `backward` is False.
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
        self._standing.move(to)

    async def advance(self, by: timedelta) -> None:
        """Moves the clock forward by a timedelta, like move_to()."""
        if not isinstance(by, timedelta):
            raise InvalidArguments(f"advance() takes a timedelta, not {by!r}.")
        await self.move_to(self.now + by)
