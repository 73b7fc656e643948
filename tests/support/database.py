"""A client's plain connection, in the hands of a test."""

import asyncio

import psycopg

from pgsched.db.statements.queries import in_schema


class Database:
    """Statements over one connection, and waits for what they find."""

    def __init__(self, connection: psycopg.AsyncConnection, schema: str) -> None:
        self.connection = connection
        self.schema = schema

    async def all(self, statement: str, *params: object) -> list[tuple]:
        """The rows of a statement that is written for the schema pgsched, with %s for parameters."""
        cursor = await self.connection.execute(in_schema(statement.encode(), self.schema), params)
        return await cursor.fetchall() if cursor.description else []

    async def one(self, statement: str, *params: object) -> tuple:
        rows = await self.all(statement, *params)
        assert len(rows) == 1, rows
        return rows[0]

    async def value(self, statement: str, *params: object) -> object:
        return (await self.one(statement, *params))[0]

    async def until(self, statement: str, *params: object, limit: float = 20.0) -> object:
        """Waits until the statement's one value is true, and returns it."""
        deadline = asyncio.get_running_loop().time() + limit
        while True:
            rows = await self.all(statement, *params)
            if rows and rows[0][0]:
                return rows[0][0]
            if asyncio.get_running_loop().time() > deadline:
                runs = await self.all(
                    "select id, entrypoint, status, attempt, reason, started_at::text, finished_at::text"
                    " from pgsched.runs order by status in ('queued', 'running') desc, id limit 50"
                )
                raise AssertionError(f"within {limit} s it was never true: {statement} {params}; runs: {runs}")
            await asyncio.sleep(0.02)
