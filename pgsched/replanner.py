"""Notices at the start that a time zone's rules are not those by which its schedules were planned: a tzdata update.

Where two hosts have different rules, each fire time is planned by the worker that claims the one before it, and the
newest start decides what is planned just then.
"""

from __future__ import annotations

from psycopg import sql

from pgsched import log
from pgsched.db import Connection
from pgsched.errors import InvalidExpression
from pgsched.store import Store
from pgsched.zones import digest

_BATCH = 1000


async def notice_zones(connection: Connection, store: Store) -> None:
    """Has the schedules of changed time zones planned anew. Writes nothing where none has changed.

    A zone's digest and its schedules are written in one transaction: who dies in between has done nothing.
    """
    for zone in await store.rows(connection, "read_zones", {}):
        name, known = zone["name"], zone["digest"]
        try:
            ours = digest(name)
        except InvalidExpression:  # the plan will say so
            continue
        if ours == known:
            continue
        async with connection.transaction():
            await connection.execute(store.query("note_zone"), {"name": name, "digest": ours})
            if known is None:
                continue
            count = await _replan(connection, store, name)
            await connection.execute(sql.SQL("notify {}").format(store.channel))
        log.get().warning("time_zone_changed", zone=name, schedules=count)


async def _replan(connection: Connection, store: Store, name: str) -> int:
    after = count = 0
    while True:
        params = {"name": name, "after": after, "limit": _BATCH}
        ids = [row["id"] for row in await store.rows(connection, "replan_zone", params)]
        count += len(ids)
        if len(ids) < _BATCH:
            return count
        after = max(ids)
