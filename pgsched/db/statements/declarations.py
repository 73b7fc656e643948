"""The statements of a start, about declared schedules and limits and their owners."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from psycopg.rows import class_row, dict_row, scalar_row
from psycopg.types.json import Jsonb

from pgsched.db.session import Connection, application_name
from pgsched.db.statements.queries import Queries
from pgsched.model import Schedule
from pgsched.rules import options as definition
from pgsched.rules.deploy import Compared, Holder, Other, Standing


class DeclarationStatements(Queries):
    """One typed method per query file. Methods decide nothing; every write returns whether it landed."""

    async def lock_declarations(self, connection: Connection, app: str) -> None:
        """Locks the application's declarations until this transaction ends. First waits for other transactions that
        have locked them."""
        while True:
            cursor = await connection.execute(self.query("lock_declarations"), {"app": app})
            if cursor.rowcount:
                return
            await connection.execute(self.query("add_declarations"), {"app": app})

    async def find_lock(
        self, connection: Connection, worker: uuid.UUID, owner: str, names: Sequence[str]
    ) -> tuple[str, int, datetime | None] | None:
        """The table or schedule that a start of this owner cannot lock, the process id of the session that has locked
        it, and when that session's transaction began. None if nothing is locked."""
        own = {"own": application_name(worker)}
        for query, params in (
            ("find_table_lock", own | {"schema": self.schema}),
            ("find_row_lock", own | {"owner": owner, "names": list(names)}),
        ):
            for row in await self.rows(connection, query, params):
                return row["what"], row["pid"], row["since"]
        return None

    async def read_declarations(self, connection: Connection, app: str, fingerprint: str) -> Standing:
        """The history of the application's declarations, for a worker whose own have this fingerprint."""
        cursor = connection.cursor(row_factory=class_row(Standing))
        await cursor.execute(self.query("read_declarations"), {"app": app, "fingerprint": fingerprint})
        row = await cursor.fetchone()
        assert row is not None
        return row

    async def record_declarations(self, connection: Connection, app: str, fingerprint: str) -> None:
        """Puts a fingerprint in force for the application."""
        await connection.execute(self.query("record_declarations"), {"app": app, "fingerprint": fingerprint})

    async def read_owners(self, connection: Connection, owner: str, declared: Sequence[str]) -> list[Other]:
        """The other applications that own a name which the owner declares."""
        cursor = connection.cursor(row_factory=class_row(Other))
        await cursor.execute(self.query("read_owners"), {"owner": owner, "declared": list(declared)})
        return await cursor.fetchall()

    async def read_holders(self, connection: Connection, app: str, *, in_force: bool) -> list[Holder]:
        """The live workers of an application; with in_force only those that have the declarations in force."""
        cursor = connection.cursor(row_factory=class_row(Holder))
        await cursor.execute(self.query("read_holders"), {"app": app, "in_force": in_force})
        return await cursor.fetchall()

    async def adopt(self, connection: Connection, old: str, new: str) -> tuple[list[str], int]:
        """Gives everything that one application owns to another, in the caller's transaction. Returns the names of its
        schedules, and how many live runs belonged to none of them."""
        names = connection.cursor(row_factory=scalar_row)
        await names.execute(self.query("adopt_schedules"), {"old": old, "new": new})
        runs = connection.cursor(row_factory=scalar_row)
        await runs.execute(self.query("adopt_runs"), {"old": old, "new": new})
        await self.declare_limits(connection, f"code:{old}", [])  # no application of that name needs them any more
        await connection.execute(self.query("forget_declarations"), {"app": old})
        return await names.fetchall(), await runs.fetchone() or 0

    async def compare_schedules(
        self, connection: Connection, owners: Sequence[str], declared: Sequence[dict[str, Any]]
    ) -> list[Compared]:
        """The schedules that the code declares, and the owners' other schedules, by name. Locks nothing."""
        cursor = connection.cursor(row_factory=dict_row)
        params = {"owners": list(owners), "declared": Jsonb(list(declared))}
        await cursor.execute(self.query("compare_schedules"), params)
        return [_compared(row) for row in await cursor.fetchall()]

    async def upsert_schedules(self, connection: Connection, declared: Sequence[dict[str, Any]]) -> list[str]:
        """Creates or changes declared schedules. Returns the written names; the others belong to another owner."""
        cursor = connection.cursor(row_factory=scalar_row)
        await cursor.execute(self.query("upsert_schedules"), {"declared": Jsonb(list(declared))})
        return await cursor.fetchall()

    async def retire_schedules(self, connection: Connection, owner: str, declared: Sequence[str]) -> list[Schedule]:
        """Finishes the owner's schedules that it no longer declares. Returns them as they were before."""
        cursor = connection.cursor(row_factory=class_row(Schedule))
        await cursor.execute(self.query("retire_schedules"), {"owner": owner, "declared": list(declared)})
        return await cursor.fetchall()

    async def declare_limits(
        self, connection: Connection, owner: str, declared: Sequence[dict[str, Any]]
    ) -> tuple[list[str], list[tuple[str, str]]]:
        """Puts an owner's limits in force, and lifts those that it no longer declares.

        Returns the entrypoints with changes, and the shared limits that another owner had declared differently, with
        that owner.
        """
        params = {"app": _app(owner), "owner": owner, "declared": Jsonb(list(declared))}
        rows = await (await connection.execute(self.query("declare_limits"), params)).fetchall()
        return [row[0] for row in rows if row[0] is not None], [(row[1], row[2]) for row in rows if row[0] is None]

    async def compare_limits(
        self, connection: Connection, owner: str, declared: Sequence[dict[str, Any]]
    ) -> dict[str, dict[str, tuple[Any, Any]]]:
        """The differing limits of each entrypoint: the stored value and the declared one."""
        params = {"app": _app(owner), "declared": Jsonb(list(declared))}
        rows = await self.rows(connection, "compare_limits", params)
        return {
            row["entrypoint"]: {
                name: (_limit(name, was), _limit(name, will))
                for name, was, will in zip(row["names"], row["were"], row["become"], strict=True)
            }
            for row in rows
        }


_DURATIONS = frozenset({"grace", "jitter", "timeout", "backoff", "max_backoff"})
_INSTANTS = frozenset({"starts_at", "ends_at"})


def _app(owner: str) -> str:
    """The name of the application in an owner such as 'code:NAME'."""
    return owner.removeprefix("code:")


def _compared(row: dict[str, Any]) -> Compared:
    options, were, become = row.pop("options"), row.pop("were"), row.pop("become")
    values = zip(options, were, become, strict=True)
    row["run_count"] = row["run_count"] or 0
    row["retired"], row["paused"] = bool(row["retired"]), bool(row["paused"])
    return Compared(**row, changes={name: (_value(name, old), _value(name, new)) for name, old, new in values})


def _limit(name: str, text: str | None) -> Any:
    """A limit's value, from its JSON text."""
    value = definition.parsed(text)
    return timedelta(seconds=float(value)) if name == "period" and value is not None else value


def _value(option: str, text: str | None) -> Any:
    """An option's value, from its JSON text."""
    value = definition.parsed(text)
    if value is not None and option in _DURATIONS:
        return timedelta(seconds=value)
    return datetime.fromisoformat(value) if value is not None and option in _INSTANTS else value
