"""Schedules of several kinds to watch: `make demo`, or `pgsched run quickstart:create_scheduler` in this folder.

Stop it with Ctrl-C and start it again: it goes on from there, and records the fire times that it missed.
"""

import asyncio
import time
from datetime import timedelta

from pgsched import Retry, Run, Schedule, Scheduler, every


def create_scheduler() -> Scheduler:
    """The factory: registers functions and schedules, and returns the scheduler."""
    sc = Scheduler()

    @sc.schedule("heartbeat", every(timedelta(seconds=1)), name="every-second")
    async def heartbeat() -> None:
        """The simplest job."""

    @sc.schedule("poll", every(timedelta(seconds=5)), name="every-five-seconds", args={"source": "orders"})
    async def poll(run: Run, source: str) -> dict[str, object]:
        """Gets its argument by name. Its return value is stored: `pgsched runs list` shows it."""
        await asyncio.sleep(0.2)
        return {"source": source, "since": str(run.previous_fire_time)}

    # The sixth field is the seconds: every ten seconds, on the wall clock of Berlin.
    @sc.schedule("report", "* * * * * */10", name="berlin-report", timezone="Europe/Berlin")
    def report(schedule: Schedule) -> str:
        """A plain function runs in a thread, so it may block."""
        time.sleep(0.5)
        return f"read on the clock of {schedule.timezone}"

    @sc.schedule(
        "flaky",
        every(timedelta(seconds=15)),
        name="fails-twice",
        retry=Retry(attempts=3, backoff=timedelta(seconds=1)),
    )
    async def flaky(run: Run) -> str:
        """Fails twice and succeeds the third time."""
        if run.attempt < 3:
            raise ConnectionError("the other side is not there yet")
        return "third time lucky"

    @sc.schedule("rude", every(timedelta(seconds=30)), name="blocks-the-loop")
    async def rude() -> None:
        """Blocks the event loop: it keeps its claim, and the log names this function."""
        time.sleep(3)

    return sc
