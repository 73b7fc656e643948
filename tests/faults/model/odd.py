"""Rows that cannot be worked on as they are. They must disturb nobody else."""

import json
from typing import Any

from model.clients import Connection, act
from model.world import World

JOB = "insert into pgsched.runs (entrypoint, args) values (%s, %s::jsonb) returning id"
NOBODY = "insert into pgsched.runs (entrypoint, status) values ('quick', 'running') returning id"
PLAN = """
    insert into pgsched.schedules (name, entrypoint, expression, args, timezone)
    values (%s, 'quick', %s, %s, %s) returning id
"""


@act
async def odd(world: World, connection: Connection, kind: str, state: str, pick: int) -> Any:
    """One such row. That it is refused at once is fine, too."""
    refuse = json.dumps({"refuse": kind.removeprefix("refused "), "state": state, "n": pick})
    name = f"odd {pick} {world.now:.3f}"
    rows: dict[str, tuple[str, ...]] = {
        "unknown entrypoint": (JOB, "nowhere", "{}"),
        "bad args": (JOB, "quick", '{"strange": 1}'),
        "huge args": (JOB, "quick", json.dumps({"n": 1, "padding": "x" * 2_000_000})),
        "attempt": ("insert into pgsched.runs (entrypoint, attempt) values ('quick', 2147483647) returning id",),
        "errors": (
            "insert into pgsched.runs (entrypoint, args, errors) values ('quick', %s, '{}') returning id",
            '{"strange": 1}',
        ),
        "claimed by nobody": (
            "insert into pgsched.runs (entrypoint, status) values ('quick', 'running') returning id",
        ),
        "refused insert": (PLAN, name, "*/2 * * * * *", refuse, "UTC"),
        "refused claim": (JOB, "thread", refuse),
        "refused end": (JOB, "thread", refuse),
        "bad expression": (PLAN, name, "every now and then", "{}", "UTC"),
        "bad zone": (PLAN, name, "* * * * * *", "{}", "Mars/Olympus"),
    }
    statement, *values = rows[kind]
    return await world.rows(connection, statement, *values)
