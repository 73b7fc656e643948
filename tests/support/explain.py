"""Has a worker's own connections explain each statement before they send it: which pages it touches, and how."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import Format

from pgsched.db.statements.queries import Numbered

TYPES = {timedelta: "interval", datetime: "timestamptz", UUID: "uuid", bool: "boolean"}
PLACE = re.compile(r"%\((\w+)\)s")


@dataclass
class Seen:
    """How a statement was planned, and what it did."""

    name: str
    plan: dict[str, Any]

    @property
    def pages(self) -> int:
        """Pages of tables and indexes that it touched, each as often as it came by."""
        return self.plan["Shared Hit Blocks"] + self.plan["Shared Read Blocks"]

    def scans(self, kind: str) -> set[str]:
        """What it scanned so."""
        return {node["Relation Name"] for node in nodes(self.plan) if node["Node Type"] == kind}


@dataclass
class Watch:
    """Explains what is named in `names` (a statement's text: its name), with one plan for all parameters (generic) or
    one for just these."""

    names: dict[bytes, str]
    generic: bool
    seen: list[Seen] = field(default_factory=list)

    def over(self, prepare: Callable[..., Any]) -> Callable[..., Any]:
        """Stands in for session.prepare, so that each session of a worker is watched once it is as it should be."""

        async def prepared(connection: psycopg.AsyncConnection[Any], *limits: Any) -> bool:
            direct: bool = await prepare(connection, *limits)
            mode = "force_generic_plan" if self.generic else "force_custom_plan"
            await connection.execute(f"set plan_cache_mode = {mode}")
            connection.cursor_factory = self.cursor()
            return direct

        return prepared

    def cursor(self) -> type[psycopg.AsyncCursor[Any]]:
        """The cursors of such a connection."""
        watch = self

        class Watched(psycopg.AsyncCursor[Any]):
            async def execute(self, query, params=None, **options):
                if isinstance(query, bytes) and query in watch.names:
                    watch.seen.append(await watch.explain(self.connection, query, params or {}))
                return await super().execute(query, params, **options)

        return Watched

    def raw_cursor(self) -> type[psycopg.AsyncRawCursor[Any]]:
        """Takes the place of store.AsyncRawCursor, which sends statements whose parameters are numbered."""
        watch = self
        numbered = {(found := Numbered.of(query)).text: (query, found.names) for query in self.names}

        class Watched(psycopg.AsyncRawCursor[Any]):
            async def execute(self, query, params=None, **options):
                if query in numbered and self.connection.cursor_factory is not psycopg.AsyncCursor:
                    written, names = numbered[query]
                    given = dict(zip(names, params, strict=True))
                    watch.seen.append(await watch.explain(self.connection, written, given))
                return await super().execute(query, params, **options)

        return Watched

    async def explain(self, connection: psycopg.AsyncConnection[Any], query: bytes, params: dict[str, Any]) -> Seen:
        """Runs it, as it would run now, and takes that back. EXPLAIN alone would plan for these parameters always."""
        given = list(dict.fromkeys(PLACE.findall(query.decode())))
        text = PLACE.sub(lambda place: f"${given.index(place[1]) + 1}", query.decode()).replace("%%", "%")
        types = ", ".join(TYPES.get(type(params[name]), "unknown") for name in given)
        values = sql.SQL(", ").join(sql.Literal(_readable(params[name])) for name in given)
        plain = psycopg.AsyncCursor(connection)
        async with connection.transaction(force_rollback=True):
            await plain.execute((f"prepare watched ({types}) as " if given else "prepare watched as ") + text)
            arguments = sql.SQL("({})").format(values) if given else sql.SQL("")
            await plain.execute(
                sql.SQL("explain (analyze, buffers, timing off, format json) execute watched{}").format(arguments)
            )
            row = await plain.fetchone()
            await plain.execute("deallocate watched")
        assert row is not None
        return Seen(self.names[query], row[0][0]["Plan"])


def _readable(value: Any) -> Any:
    """The list that an array in binary format was made of."""
    if not isinstance(value, bytes) or type(value) is bytes:
        return value
    oid = psycopg.adapters.get_dumper(type(value), PyFormat.BINARY).oid
    return Transformer().get_loader(oid, Format.BINARY).load(value)


def nodes(node: dict[str, Any]) -> list[dict[str, Any]]:
    """A plan's nodes."""
    return [node] + [below for child in node.get("Plans", []) for below in nodes(child)]
