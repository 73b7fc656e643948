"""Runs that are claimed, the workers that claimed them, and what is told of them, as rows."""

import uuid

from pgsched.model import Process
from pgsched.worker.run.finisher import Finisher
from pgsched.worker.whereabouts import Whereabouts

ROW = "select status, attempt, worker, result, errors, heartbeat_at, finished_at from pgsched.runs order by id"


async def running(db, worker, count=1, *, attempt=1, silent=0.0, **values):
    """Runs that a worker has claimed; returns their ids."""
    names = "".join(f", {name}" for name in values)
    rows = await db.all(
        "insert into pgsched.runs (entrypoint, status, attempt, token, max_attempts, worker, claimed_at, heartbeat_at"
        f"{names})"
        " select 'job', 'running', %s, %s, 3, %s, now(), clock_timestamp() - %s * interval '1 second'"
        f"{', %s' * len(values)} from generate_series(1, %s) returning id",
        attempt, attempt, worker, silent, *values.values(), count,
    )  # fmt: skip
    return [row[0] for row in rows]


async def dead_worker(db, *, direct=True, process=Process.ENDED, route=""):
    """A worker that is registered and has no session. Of its process this one can see as much as is given."""
    worker, own = uuid.uuid4(), Whereabouts.own()
    machine = "another" if process is Process.UNKNOWN else own.machine
    started = own.started if process is Process.ALIVE else "1"
    await db.all(
        "insert into pgsched.workers (id, app, host, pid, version, entrypoints, direct, heartbeat_interval,"
        " stall_timeout, machine, process_started, route)"
        " values (%s, 'a', 'h', %s, '0', '{}', %s, '1s', '30s', %s, %s, %s)",
        worker, own.pid, direct, machine, started, route,
    )  # fmt: skip
    return worker


async def finish(kit, *outcomes):
    answers = await Finisher(kit).send(outcomes)
    return {run_id for (run_id, _), landed in answers.items() if landed}
