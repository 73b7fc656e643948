"""Runs that say something, and what is kept of it."""

import asyncio

from pgsched import Retry, Run, Scheduler

ONCE = Retry(attempts=1)
LINES = "select level, text from pgsched.logs order by id"


class Gate:
    """Where a run's function waits until the test lets it go on."""

    def __init__(self, sc: Scheduler, said) -> None:
        self.go = asyncio.Event()

        @sc.entrypoint("job", retry=ONCE)
        async def job(run: Run) -> None:
            said(run)
            await self.go.wait()
