"""Who is measured: where each one's adapter is, what its table of jobs is called, how one sees that it is done."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, eq=False)
class Contestant:
    """One project that is measured. What `tuned` means for it stands at the top of its adapter."""

    name: str
    environment: str
    script: str
    jobs: str  # the table whose rows are claimed
    done: str  # a query that is true once no job is left
    gate: str = "exclusive"  # the lock that keeps it from claiming
    defaults: str = "defaults"  # its settings in a few words
    tuned: str = ""  # its documented best, where there is one
    registers: float = 1.0  # seconds that a worker may need to be ready with 1,000 schedules
    fills: float = 0.3  # and a client to put in 1,000 delayed jobs
    work: dict[str, Any] = field(default_factory=dict)  # parameters for each of its workers

    @property
    def key(self) -> str:
        """Its name in the names of databases."""
        return f"{self.environment}_{self.script.removesuffix('.py').removeprefix('with_')}".replace("-", "_")


def none_left(table: str, where: str = "true") -> str:
    """A query that is true once no row of a table is left."""
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
BARE_LIMIT = Contestant("the bare limit", "bench", "bare.py", "", "")  # needs a database, and nothing in it

CONTESTANTS = (PGSCHED, PGQUEUER, PROCRASTINATE, APSCHEDULER3, APSCHEDULER4)
