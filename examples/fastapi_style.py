"""An asynchronous web application, written as for FastAPI: a request enqueues a job inside its own transaction.

Run it in this folder:

    export PGSCHED_DSN=postgresql://user@host/database
    pgsched migrate
    pgsched run fastapi_style:create_scheduler &       # the worker
    python fastapi_style.py                            # stands for some requests
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta

from psycopg_pool import AsyncConnectionPool

import pgsched
from pgsched import Client, Retry, Run, Scheduler

# --- the worker -------------------------------------------------------------------------------------------


def create_scheduler() -> Scheduler:
    """The factory. This one has entrypoints only; it could have schedules too."""
    sc = Scheduler()

    @sc.entrypoint("welcome", retry=Retry(attempts=5))
    async def welcome(run: Run, email: str) -> str:
        return f"wrote to {email} at attempt {run.attempt}"  # stored as the run's result

    return sc


# --- the application --------------------------------------------------------------------------------------


@dataclass
class Application:
    """The objects that FastAPI keeps in `app.state`."""

    pool: AsyncConnectionPool
    pgsched: Client


@contextlib.asynccontextmanager
async def lifespan() -> AsyncIterator[Application]:
    """FastAPI(lifespan=…): the pool and the client live as long as the application."""
    dsn = os.environ.get("PGSCHED_DSN", "")
    async with AsyncConnectionPool(dsn, min_size=1, open=False) as pool, pgsched.connect(dsn) as client:
        yield Application(pool, client)


async def sign_up(app: Application, email: str) -> dict[str, int]:  # @app.post("/customers")
    """Commits the customer and the job together, or neither."""
    async with app.pool.connection() as connection:  # a transaction: the block's end commits, an error rolls back
        cursor = await connection.execute("insert into customers (email) values (%s) returning id", (email,))
        [customer] = await cursor.fetchone()
        run = await app.pgsched.enqueue(
            "welcome", {"email": email}, unique_key=f"welcome {customer}", connection=connection
        )
        if "@" not in email:
            raise ValueError(f"{email} is no address")
    return {"customer": customer, "run": run}


async def progress(app: Application, run: int) -> dict[str, object]:  # @app.get("/runs/{run}")
    """A page that waits a little for the end of a run, and shows its status."""
    with contextlib.suppress(TimeoutError):
        await app.pgsched.runs.wait(run, timeout=timedelta(seconds=20))
    row = await app.pgsched.get_run(run)
    return {"status": row["status"], "result": row["result"]}


async def main() -> None:
    """Some requests."""
    async with lifespan() as app:
        async with app.pool.connection() as connection:
            await connection.execute(
                "create table if not exists customers (id bigint generated always as identity, email text not null)"
            )
        made = await sign_up(app, "ada@example.org")
        with contextlib.suppress(ValueError):
            await sign_up(app, "nobody")
        print(await progress(app, made["run"]))


if __name__ == "__main__":
    asyncio.run(main())
