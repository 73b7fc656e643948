"""What the jobs of every contestant do, and how its processes tell the benchmark. Needs nothing but Python.

An adapter (with_*.py) is run by its own environment's interpreter as `with_x.py VERB PARAMETERS`, the parameters
in JSON, the database in BENCH_DSN. Its verbs, the same for all:

    install    the tables, as the project's own documentation makes them
    enqueue    so many jobs, for an instant or for now
    far        far-future jobs or schedules and finished ones, in bulk
    work       a worker until SIGTERM: prints `ready`, in the end when each job started
    produce    one job after the other, printing when each was put

An adapter that lacks something answers with a Lack, in a few words.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

DSN = os.environ.get("BENCH_DSN", "")
started: list[float] = []  # seconds since the epoch by this machine's clock, which is the server's too
expected = int(os.environ.get("BENCH_EXPECTED", "0"))


class Lack(Exception):
    """Something that this contestant does not offer, in a few words."""


def nothing() -> None:
    """The no-op of all contestants: notes when it began, and tells where that was the last one expected."""
    started.append(time.time())
    if len(started) == expected:
        say(f"all {expected}")


async def sleeper() -> None:
    """A job that tells at once when it began, and does not end by itself."""
    say(f"started {time.time()!r}")
    await asyncio.sleep(3600)


def say(text: str) -> None:
    """A line that the benchmark reads at once."""
    print(text, flush=True)


async def produced(
    count: int,
    pause: float,
    put: Callable[[], Awaitable[Any]],
    put_in_transaction: Callable[[], Awaitable[Callable[[], Awaitable[Any]]]] | None = None,
) -> list[tuple[float, bool]]:
    """Puts one job after the other: when, and whether that is when the COMMIT was sent, else when the call began.

    put_in_transaction: begins a transaction, puts a job in it and returns what commits it; then every second job is
    put so.
    """
    calls = []
    for number in range(count):
        if put_in_transaction and number % 2:
            commit = await put_in_transaction()
            at, committing = time.time(), True
            await commit()
        else:
            at, committing = time.time(), False
            await put()
        calls.append((at, committing))
        await asyncio.sleep(pause)
    return calls


def main(verbs: Mapping[str, Callable[..., Any]]) -> None:
    """Does what the command line says and prints the answer as the last line, in JSON."""
    verb, params = sys.argv[1], json.loads(sys.argv[2])
    try:
        answer = verbs[verb](**params)
        if inspect.iscoroutine(answer):
            answer = asyncio.run(answer)
    except Lack as lack:
        answer = {"lack": str(lack)}
    say(json.dumps(answer))
