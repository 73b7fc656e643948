"""Functions that tests have called in other processes, which import them from here."""

import asyncio
import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

from pgsched import Discard, InvalidArguments, RetryLater, Run, Schedule


class OwnError(ValueError):
    """An error that both sides know."""


def product(run: Run, a: int, b: int = 2) -> dict:
    return {"product": a * b, "pid": os.getpid(), "attempt": run.attempt, "args": dict(run.args)}


def same(value: list) -> list:
    return value


async def slept(run: Run, schedule: Schedule) -> list:
    await asyncio.sleep(0)
    return [run.id, schedule.name, run.fire_time.isoformat(), schedule.created_at.isoformat(), str(run.worker)]


def deep() -> None:
    def inner() -> None:
        secret = "secret" * 3  # noqa: F841 - locals must not be told
        raise OwnError("no such luck")

    inner()


def later() -> None:
    raise RetryLater(timedelta(hours=2), "rate limited")


def discard() -> None:
    raise Discard("gone")


def unfit() -> None:
    raise InvalidArguments("these will never do")


def no_json() -> set:
    return {1}


def system_exit() -> None:
    sys.exit("that is all")


def segfault() -> None:
    ctypes.string_at(0)


def exit_hard() -> None:
    print("about to leave", flush=True)
    os._exit(7)


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def chatter(run: Run) -> None:
    run.log("from the run", "error")
    print("from print")
    print("from stderr", file=sys.stderr)
    logging.getLogger("lib").warning("from logging")
    run.progress(1, 4)
    run.progress(3, 4)


def flood(run: Run) -> None:
    for number in range(20_000):
        run.log(f"line {number}")


def family(run: Run, folder: str) -> None:
    """Starts a child, tells both numbers, and never looks whether it shall stop."""
    child = subprocess.Popen(["sleep", "1000"])
    (Path(folder) / "new").write_text(f"{os.getpid()} {child.pid}")
    (Path(folder) / "new").rename(Path(folder) / f"pids-{run.attempt}")
    if run.attempt == 1:
        time.sleep(1000)
    child.kill()
    child.wait()


def looks(run: Run, folder: str) -> str:
    (Path(folder) / "began").touch()
    while not run.cancelled:
        time.sleep(0.01)
    (Path(folder) / "stopped").touch()
    return "stopped"


async def coroutine(run: Run, folder: str) -> None:
    (Path(folder) / "began").touch()
    try:
        await asyncio.sleep(1000)
    finally:
        (Path(folder) / "stopped").touch()


def finishes(folder: str) -> str:
    """Is done soon after it began, whatever it is told meanwhile."""
    (Path(folder) / "began").touch()
    while not (Path(folder) / "gate").exists():
        time.sleep(0.01)
    return "done"


def pays(run: Run, insert: str, then: str = "") -> str:
    with run.transaction() as connection:
        connection.execute(insert.encode(), ("ann",))
        if then == "raise":
            raise OwnError("before the commit")
    if then == "die":
        os._exit(7)
    return "paid"


async def pays_soon(run: Run, insert: str) -> str:
    async with run.transaction() as connection:
        await connection.execute(insert.encode(), ("ann",))
    return "paid"
