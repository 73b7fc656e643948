"""The jobs of every contestant, and how its processes report to the benchmark. Needs nothing but Python.

An adapter (with_*.py) is run by its own environment's interpreter as `with_x.py VERB PARAMETERS`, the parameters
in JSON, the database in BENCH_DSN. All adapters have these verbs:

    install    makes the tables as the project's own documentation does
    enqueue    enqueues a number of jobs, for an instant or for now
    far        inserts far-future jobs or schedules and finished ones, in bulk
    work       runs a worker until SIGTERM: prints `ready`, and at the end the start times of its jobs
    produce    enqueues one job after the other, and prints when

If a project lacks a feature, its adapter answers with a Lack, in a few words.
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
ticks: list[tuple[float, float]] = []  # of a schedule that fires beside a herd: the fire time, and the start
lags: list[tuple[float, float]] = []  # of the event loop: when, and by how many seconds
PULSE = 0.01  # seconds between two looks at the event loop


class Lack(Exception):
    """A feature that this contestant does not have, in a few words."""


def nothing() -> None:
    """The no-op of all contestants: records its start, and reports the last expected one."""
    started.append(time.time())
    if len(started) == expected:
        say(f"all {expected}")


async def sleeper() -> None:
    """A job that reports its start at once and does not end by itself."""
    say(f"started {time.time()!r}")
    await asyncio.sleep(3600)


async def watch_loop() -> None:
    """Notes how late the event loop comes to a timer, until it is cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        aim = loop.time() + PULSE
        await asyncio.sleep(PULSE)
        lags.append((time.time(), loop.time() - aim))


def say(text: str) -> None:
    """Prints a line that the benchmark reads at once."""
    print(text, flush=True)


async def produced(
    count: int,
    pause: float,
    put: Callable[[], Awaitable[Any]],
    put_in_transaction: Callable[[], Awaitable[Callable[[], Awaitable[Any]]]] | None = None,
) -> list[tuple[float, bool]]:
    """Enqueues one job after the other. Returns for each the time of its COMMIT (True) or of its call (False).

    put_in_transaction: begins a transaction, enqueues a job in it and returns a function that commits it. If it is
        given, every second job is enqueued that way.
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
    """Runs the verb of the command line and prints the answer as the last line, in JSON."""
    verb, params = sys.argv[1], json.loads(sys.argv[2])
    try:
        answer = verbs[verb](**params)
        if inspect.iscoroutine(answer):
            answer = asyncio.run(answer)
    except Lack as lack:
        answer = {"lack": str(lack)}
    say(json.dumps(answer))
