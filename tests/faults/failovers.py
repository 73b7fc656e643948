"""The world of a failover test: a primary, its standby, the daemons on them, and the ways in which a primary ends."""

import contextlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

import psycopg
from daemons import Daemons, until
from psycopg import sql
from support.database import Database
from support.proxies import black_hole
from support.servers import Servers, several

from pgsched.db import migrate

SCHEMA = 'We"ird; schema %s'
IDLE = "idle"  # the schema of the idle daemon, which hears nothing of the busy one
APP = """
def record(run, what):
    line = {"what": what, "run": run.id, "attempt": run.attempt, "worker": str(run.worker), "at": time.time(),
            "fire_time": run.fire_time and run.fire_time.timestamp()}
    with (FOLDER / "notes").open("a") as file:
        file.write(json.dumps(line) + "\\n")

PAY = sql.SQL("insert into {}.paid values (%s)").format(sql.Identifier(os.environ["FAULTS_SCHEMA"].replace("%", "%%")))

@sc.schedule("tick", "* * * * * *", name="tick", retry=Retry(attempts=1))
async def tick(run: Run):
    record(run, "tick")

@sc.entrypoint("job", retry=Retry(attempts=1))
async def job(run: Run):
    record(run, "job")

@sc.entrypoint("long", retry=Retry(attempts=1))
async def long(run: Run, gate: str):
    record(run, "began")
    await opened(gate)
    record(run, "ended")
    return gate

@sc.entrypoint("sync", retry=Retry(attempts=1))
def sync(run: Run, gate: str):
    record(run, "began")
    while not (FOLDER / gate).exists():
        time.sleep(0.02)
    record(run, "ended")
    return gate

@sc.entrypoint("pay", retry=Retry(attempts=5, backoff=timedelta(milliseconds=50)))
async def pay(run: Run, gate: str | None = None):
    async with run.transaction() as connection:
        await connection.execute(PAY, (run.id,))
        record(run, "paying")
        if gate:
            await opened(gate)

@sc.entrypoint("pay-sync", retry=Retry(attempts=5, backoff=timedelta(milliseconds=50)))
def pay_sync(run: Run, gate: str | None = None):
    with run.transaction() as connection:
        connection.execute(PAY, (run.id,))
        record(run, "paying")
        while gate and not (FOLDER / gate).exists():
            time.sleep(0.02)
"""
QUIET = """
@sc.entrypoint("job", retry=Retry(attempts=1))
async def job(run: Run):
    with (FOLDER / "notes").open("a") as file:
        file.write(json.dumps({"what": "job", "at": time.time()}) + "\\n")
"""


# A worker of another application, which starts during the failover: it reaps, and takes no work.
FRESH = "sc = Scheduler(app='fresh')"


@dataclass(frozen=True)
class Case:
    """fault: what becomes of the old primary. hosts: how many are in the DSN; of three, the second is none at all."""

    fault: str
    synchronous: bool
    hosts: int

    @property
    def silent(self):
        return self.fault == "silent"

    @property
    def name(self):
        kind = "synchronous" if self.synchronous else "asynchronous"
        return f"{self.fault}-{kind}-{self.hosts} hosts"

    @property
    def limit(self):
        """Within so many seconds after the promotion a function runs."""
        return 30 if self.silent else 15

    @property
    def settings(self):
        """A run is taken away sooner than in earnest, so that an outage is longer than that; if it takes no longer
        to find the new primary."""
        return {"heartbeat_interval": "500ms", "stall_timeout": "30s" if self.silent else "3s"}


def prepared(dsn, schema):
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(migrate.script(schema).encode())
        name = sql.Identifier(schema)
        connection.execute(sql.SQL("create table {}.paid (run bigint)").format(name))


@contextlib.asynccontextmanager
async def asking(server, schema):
    """The schema on a server, in the hands of the test."""
    async with await psycopg.AsyncConnection.connect(server.dsn, autocommit=True) as connection:
        yield Database(connection, schema)


class World:
    """A primary and its standby, a busy and an idle daemon, and a DSN that leads to both servers.

    lacking: the fire times that were executed and that the standby did not know of when it was promoted.
    """

    def __init__(self, folder: Path, servers: Servers, case: Case) -> None:
        self.case, self.primary = case, servers.primary
        for schema in (SCHEMA, IDLE):
            prepared(self.primary.dsn, schema)
        self.busy, self.idle = self._daemons(folder / "busy", SCHEMA, APP), self._daemons(folder / "idle", IDLE, QUIET)
        self.fresh = self._daemons(folder / "fresh", SCHEMA, FRESH)
        self.standby = servers.standby(synchronous=case.synchronous)
        self._stack = contextlib.ExitStack()
        none = self._stack.enter_context(black_hole()) if case.silent else 1
        between = [f"host=127.0.0.1 port={none}"] * (case.hosts - 2)
        self.dsn = several([self.primary.dsn, *between, self.standby.dsn])
        self.lacking: set[float] = set()

    def _daemons(self, folder, schema, app):
        folder.mkdir()
        daemons = Daemons(folder, self.primary.dsn, schema)
        daemons.app(app)
        return daemons

    def close(self):
        for daemons in (self.busy, self.idle, self.fresh):
            daemons.close()
        self._stack.close()

    async def start(self):
        """The busy daemon and the idle one, which are ready, and have their hands full."""
        both = [each.start(dsn=self.dsn, **self.case.settings) for each in (self.busy, self.idle)]
        for daemon in both:
            await daemon.event("worker_ready")
        # Runs that end while the database is away, and after that; transactions that are open meanwhile.
        with psycopg.connect(self.primary.dsn, autocommit=True) as connection:
            for entrypoint in ("long", "sync", "pay", "pay-sync"):
                # A transaction on a silent server takes its whole limit to be given up, so it goes on at once.
                late = "meanwhile" if self.case.silent and entrypoint.startswith("pay") else "afterwards"
                for gate in ("meanwhile", late):
                    enqueue = sql.SQL("select {}.enqueue({}, {})")
                    args = sql.Literal(json.dumps({"gate": gate}))
                    connection.execute(enqueue.format(sql.Identifier(SCHEMA), entrypoint, args))
        await until(lambda: len(self.busy.notes("began")) == len(self.busy.notes("paying")) == 4, "runs")
        await until(lambda: len(self.busy.notes("tick")) >= 2, "ticks")
        return both

    async def fail(self):
        """The old primary dies, falls silent or turns read-only."""
        self.caught_up()
        {"dead": lambda: self.primary.stop("immediate"), "silent": self.primary.freeze,
         "read-only": self.primary.read_only}[self.case.fault]()  # fmt: skip
        if self.case.fault == "read-only":
            self.caught_up()

    async def promote(self):
        """Makes the standby the primary, after longer than a stall timeout unless that takes too long. Returns when."""
        async with asking(self.standby, SCHEMA) as db:
            if not self.case.silent:
                await db.until("select clock_timestamp() - max(heartbeat_at) > interval '3.5 s' from pgsched.runs")
            rows = await db.all("select extract(epoch from fire_time) from pgsched.runs where fire_time is not null")
        self.lacking = {note["fire_time"] for note in self.busy.notes("tick")} - {float(row[0]) for row in rows}
        self.standby.promote()
        return time.time()

    def caught_up(self):
        """Waits until the standby has all that was committed until now."""
        with psycopg.connect(self.primary.dsn, autocommit=True) as connection:
            [position] = connection.execute("select pg_current_wal_lsn()::text").fetchone()
        self.standby.until("select pg_last_wal_replay_lsn() >= %s::pg_lsn", position)
