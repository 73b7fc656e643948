"""The contestants: their adapters, their tables of jobs, and the queries that show that all jobs are done."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, eq=False)
class Contestant:
    """One project that is measured. The top of its adapter says which settings `tuned` has."""

    name: str
    environment: str
    script: str
    jobs: str  # the table whose rows are claimed
    done: str  # a query that is true once no job is left
    gate: str = "exclusive"  # the lock that keeps it from claiming
    defaults: str = "defaults"  # its settings in a few words
    tuned: str = ""  # its documented best settings, if there are any
    registers: float = 1.0  # seconds that a worker may need to be ready with 1,000 schedules
    fills: float = 0.3  # seconds that a client may need to enqueue 1,000 delayed jobs
    work: dict[str, Any] = field(default_factory=dict)  # parameters for each of its workers

    @property
    def key(self) -> str:
        """The part of its databases' names that identifies it."""
        return f"{self.environment}_{self.script.removesuffix('.py').removeprefix('with_')}".replace("-", "_")


def none_left(table: str, where: str = "true") -> str:
    """A query that is true once a table has no rows."""
    return f"select not exists (select from {table} where {where})"


PGSCHED = Contestant(
    "pgsched", "bench", "with_pgsched.py", "pgsched.runs",
    "select not exists (select from pgsched.runs where status = 'queued')"
    " and not exists (select from pgsched.runs where status = 'running')",
    registers=0.8,
)  # fmt: skip
PGQUEUER = Contestant(
    "PGQueuer", "pgqueuer", "with_pgqueuer.py", "pgqueuer", none_left("pgqueuer"),
    defaults="asyncpg, uvloop, batch_size 10, pgq autovac", tuned="batch_size 1,000", registers=1.0,
)  # fmt: skip
PROCRASTINATE = Contestant(
    "procrastinate", "procrastinate", "with_procrastinate.py", "procrastinate_jobs",
    none_left("procrastinate_jobs", "status in ('todo', 'doing')"),
    defaults="psycopg, concurrency 1", tuned="concurrency 30, pool of 10", registers=1.2, fills=0.6,
)  # fmt: skip
APSCHEDULER3 = Contestant(
    "APScheduler 3", "apscheduler3", "with_apscheduler3.py", "apscheduler_jobs", none_left("apscheduler_jobs"),
    gate="access exclusive", defaults="AsyncIOScheduler, SQLAlchemy job store on psycopg, one process",
    tuned="misfire_grace_time None", registers=1.2,
)  # fmt: skip
APSCHEDULER4 = Contestant(
    "APScheduler 4 alpha", "apscheduler4", "with_apscheduler4.py", "jobs", none_left("jobs"),
    defaults="SQLAlchemy data store and broker on asyncpg, one job of a task at once",
    tuned="max_running_jobs None, max_concurrent_jobs 50", registers=4.0,
)  # fmt: skip
BARE_LIMIT = Contestant("the bare limit", "bench", "bare.py", "", "")  # needs an empty database

CONTESTANTS = (PGSCHED, PGQUEUER, PROCRASTINATE, APSCHEDULER3, APSCHEDULER4)
