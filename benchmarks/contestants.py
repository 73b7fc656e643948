"""The contestants: their adapters, their tables of jobs, and the queries that show that all ends are written."""

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
    done: str  # a query that is true once all ends are written, of {total} jobs
    ends: str = ""  # a query that counts the ends in its history, if it keeps one
    gate: str = "exclusive"  # the lock that keeps it from claiming
    defaults: str = "defaults"  # its settings in a few words
    tuned: str = ""  # its documented best settings, if there are any
    registers: float = 1.0  # seconds that a worker may need to be ready with 1,000 schedules
    fills: float = 0.3  # seconds that a client may need to enqueue 1,000 delayed jobs
    work: dict[str, Any] = field(default_factory=dict)  # parameters for each of its workers

    @property
    def key(self) -> str:
        """The part of its databases' names that identifies it."""
        return f"{self.environment}_{self.script.partition('.')[0].removeprefix('with_')}".replace("-", "_")


def none_left(table: str, where: str = "true") -> str:
    """A query that is true once a table has no rows."""
    return f"select not exists (select from {table} where {where})"


# Its storage moves the ends of old batches from the first table to the second one.
AWA_ENDS = (
    "select (select coalesce(sum(completed_count), 0) from awa.receipt_completion_batches)"
    " + (select coalesce(sum(pruned_completed_count), 0) from awa.queue_terminal_rollups)"
)
PGSCHED = Contestant(
    "pgsched", "bench", "with_pgsched.py", "pgsched.runs",
    "select not exists (select from pgsched.runs where status = 'queued')"
    " and not exists (select from pgsched.runs where status = 'running')",
    "select count(*) from pgsched.runs where status = 'succeeded'",
    registers=0.6,
)  # fmt: skip
PGQUEUER = Contestant(
    "PGQueuer", "pgqueuer", "with_pgqueuer.py", "pgqueuer", none_left("pgqueuer"),
    "select count(*) from pgqueuer_log where status = 'successful'",
    defaults="asyncpg, uvloop, batch_size 10, pgq autovac", tuned="batch_size 1,000", registers=1.0,
)  # fmt: skip
PROCRASTINATE = Contestant(
    "procrastinate", "procrastinate", "with_procrastinate.py", "procrastinate_jobs",
    none_left("procrastinate_jobs", "status in ('todo', 'doing')"),
    "select count(*) from procrastinate_jobs where status = 'succeeded'",
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
GRAPHILE = Contestant(
    "graphile-worker", "graphile", "with_graphile.mjs", "graphile_worker._private_jobs",
    none_left("graphile_worker._private_jobs"), defaults="concurrentJobs 1; keeps no history",
    tuned="concurrentJobs 24, maxPoolSize 25, localQueue.size 500, completeJobBatchDelay 0, failJobBatchDelay 0",
)  # fmt: skip
AWA = Contestant(
    "awa", "awa", "with_awa.py", "awa.queue_claimer_leases",
    AWA_ENDS.replace("select", "select {total} =", 1), AWA_ENDS,
    defaults="queue storage, uvloop, max_workers 50",
    tuned="max_workers 1,000, claim_batch_size 1,000, promote_interval_ms 50", fills=1.5,
)  # fmt: skip
BARE_LIMIT = Contestant("the bare limit", "bench", "bare.py", "", "")  # needs an empty database

CONTESTANTS = (PGSCHED, PGQUEUER, GRAPHILE, AWA, PROCRASTINATE, APSCHEDULER3, APSCHEDULER4)
