"""A failover under real daemons: they fire again in time, nothing is lost or done twice, and everybody moves along.

One failover meets a busy daemon, an idle one, one that starts just then, clients of both kinds, and transactions.
PGSCHED_FAILOVER=all tries the whole table; without it, the lines that differ most are tried. PGSCHED_FAILOVER_TIMES
names a file that gets the seconds from each promotion.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from daemons import until
from failovers import APP, IDLE, SCHEMA, Case, World, asking
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support.clients import KINDS, using
from support.proxies import Proxy, black_hole

from pgsched.db import addresses

SEQUENCES = "select pg_get_serial_sequence('pgsched.runs', 'id')::regclass, 'pgsched.tokens'::regclass"
NAMED = """
import socket
resolve = socket.getaddrinfo

def getaddrinfo(host, *rest, **options):
    hosts = ["127.0.0.2", "127.0.0.1"] if host == "db.test" else [host]
    return [answer for each in hosts for answer in resolve(each, *rest, **options)]

socket.getaddrinfo = getaddrinfo
"""
# All seconds from the first fire time to the last are there once, as a run or as a recorded skip.
ACCOUNTED = """
    select count(*) > 0 and sum(coalesce(skipped_count, 1)) =
        extract(epoch from max(coalesce(skipped_through, fire_time)) - min(fire_time)) + 1
    from pgsched.runs where entrypoint = 'tick'
"""


TABLE = [
    Case(fault, synchronous, hosts)
    for fault in ("dead", "silent", "read-only") for synchronous in (False, True) for hosts in (2, 3)
]  # fmt: skip
CHOSEN = TABLE if os.environ.get("PGSCHED_FAILOVER") == "all" else [
    Case("dead", synchronous=True, hosts=2),
    Case("silent", synchronous=False, hosts=2),
    Case("read-only", synchronous=False, hosts=2),
]  # fmt: skip


@pytest.fixture
def world(tmp_path, servers):
    with contextlib.ExitStack() as stack:

        def make(case):
            made = World(tmp_path, servers, case)
            stack.callback(made.close)
            return made

        addresses.forget()
        yield make


async def first_tick(db, daemons, promoted, limit):
    """Waits until a function runs whose run was claimed from the new primary. Returns when it ran, by its own note."""
    claimed = "select extract(epoch from fire_time) from pgsched.runs where claimed_at > to_timestamp(%s)"

    async def look():
        new = {float(row[0]) for row in await db.all(f"{claimed} and entrypoint = 'tick'", promoted)}
        return [note["at"] for note in daemons.notes("tick") if note["fire_time"] in new]

    async with asyncio.timeout(promoted + limit - time.time()):
        while not (found := await look()):
            await asyncio.sleep(0.05)
    return min(found)


async def enqueued(client):
    """Enqueues a job, within the client's own limit. Returns when that was done."""
    await client.enqueue("job")
    return time.time()


async def numbers(db):
    """The next run id and the next token. A server writes such numbers ahead to its log, so a standby may skip some."""
    return [await db.value("select nextval(%s::text::regclass)", name) for name in await db.one(SEQUENCES)]


async def set_numbers(db, values):
    for name, value in zip(await db.one(SEQUENCES), values, strict=True):
        await db.all("select setval(%s::text::regclass, %s)", name, value)


async def ledger(db, world):
    """Every second is accounted for. No run was executed twice, and no fire time but those that the standby lacked."""
    assert await db.value(ACCOUNTED)
    ticks = [note["fire_time"] for note in world.busy.notes("tick")]
    assert {each for each in ticks if ticks.count(each) > 1} <= world.lacking
    for what in ("job", "began", "ended"):
        runs = [note["run"] for note in world.busy.notes(what)]
        assert len(runs) == len(set(runs)), what
    statuses = await db.all("select distinct status from pgsched.runs where entrypoint = 'tick'")
    assert {status for (status,) in statuses} <= {"succeeded", "skipped", "queued"}  # the last one was given back
    recorded = await db.all(
        "select extract(epoch from fire_time) from pgsched.runs where entrypoint = 'tick' and status = 'succeeded'"
    )
    assert {float(row[0]) for row in recorded} <= set(ticks)


async def everything_ended(db, jobs):
    """The long runs at their first attempt, and each payment once, whatever became of its transaction."""
    ended = "select entrypoint, status, count(*) from pgsched.runs where entrypoint <> 'tick' group by 1, 2 order by 1"
    numbers = {"job": jobs, "long": 2, "pay": 4, "pay-sync": 4, "sync": 2}
    assert await db.all(ended) == [(entrypoint, "succeeded", number) for entrypoint, number in numbers.items()]
    long = "from pgsched.runs where entrypoint in ('long', 'sync')"
    assert await db.all(f"select distinct result, attempt {long} order by 1") == [("afterwards", 1), ("meanwhile", 1)]
    assert await db.one("select count(*), count(distinct run) from pgsched.paid") == (8, 8)


@pytest.mark.slow
@pytest.mark.parametrize("case", CHOSEN, ids=lambda case: case.name)
async def test_everybody_moves_to_the_new_primary(world, case):
    here = world(case)
    daemons = await here.start()
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(using(kind, here.dsn, schema=SCHEMA)) for kind in KINDS]
        for each in clients:
            await each.enqueue("job")
        await here.fail()
        here.busy.open("meanwhile")
        await until(lambda: len(here.busy.notes("ended")) == 2, "ends")
        calls = asyncio.gather(*map(enqueued, clients))  # they wait for a server
        promoted = await here.promote()
        daemons.append(here.fresh.start(dsn=here.standby.dsn, **case.settings))
        db, idle = [await stack.enter_async_context(asking(here.standby, schema)) for schema in (SCHEMA, IDLE)]

        await idle.all("select pgsched.enqueue('job')")
        times = [await first_tick(db, here.busy, promoted, case.limit)]
        await idle.until("select status = 'succeeded' from pgsched.runs", limit=promoted + case.limit - time.time())
        times.append(here.idle.notes("job")[0]["at"])
        times.append(max(await calls))
        for each in clients:
            for entrypoint in ("job", "pay", "pay-sync"):
                await each.enqueue(entrypoint)
        here.busy.open("afterwards")
        await daemons[-1].event("worker_ready")
        live = "select count(*) from pgsched.runs where status in ('queued', 'running') and entrypoint <> 'tick'"
        await db.until(f"select ({live}) = 0", limit=40)
        times.append(time.time())
        await everything_ended(db, jobs=6)
        for daemon in daemons:
            daemon.send(signal.SIGTERM)
        assert [await daemon.exit_code() for daemon in daemons] == [0, 0, 0]
        await ledger(db, here)
    note_times(case.name, [at - promoted for at in times])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all addresses of 127.0.0.0/8")
async def test_one_name_with_a_silent_first_address(world):
    """At the start, and when the balancer behind the second address leads to the new primary."""
    here = world(Case("dead", synchronous=False, hosts=2))
    here.busy.app(NAMED + APP)
    async with Proxy(here.primary.dsn) as proxy:
        port = conninfo_to_dict(proxy.dsn)["port"]
        with black_hole("127.0.0.2", int(port)):
            started = time.time()
            daemon = here.busy.start(dsn=make_conninfo(proxy.dsn, host="db.test"), **here.case.settings)
            async with asking(here.primary, SCHEMA) as db:
                times = [await first_tick(db, here.busy, started, 30) - started]
                await db.until("select count(*) > 0 from pgsched.runs where status = 'succeeded'")  # ends are written
            await here.fail()
            promoted = await here.promote()
            proxy.lead_to(here.standby.dsn)
            async with asking(here.standby, SCHEMA) as db:
                times.append(await first_tick(db, here.busy, promoted, 30) - promoted)
                await db.until("select count(*) > 0 from pgsched.runs where finished_at > to_timestamp(%s)", promoted)
                assert await daemon.stop() == 0
                await ledger(db, here)
    note_times("two addresses", times)


@pytest.mark.slow
async def test_a_standby_that_lacks_claimed_runs_gets_no_wrong_end(world):
    """The new primary gives their ids and tokens out again, to the same worker, whose old functions still go on."""
    here = world(Case("dead", synchronous=False, hosts=2))
    # No beat tells it before the new claims that the old ones are gone: none is due, and no LISTEN asks for one.
    daemon = here.busy.start(
        dsn=here.dsn, listen_dsn=here.primary.dsn, heartbeat_interval="30s", stall_timeout="2m"
    )  # fmt: skip
    await daemon.event("worker_ready")
    enqueue = "select pgsched.enqueue('long', jsonb_build_object('gate', %s::text)) from generate_series(1, 6)"
    async with asking(here.primary, SCHEMA) as db:
        await db.all("update pgsched.schedules set status = 'paused'")
        await db.until("select count(*) = 0 from pgsched.runs where status = 'running'")
        before = await numbers(db)
        here.caught_up()
        here.standby.stop("fast")
        await db.all(enqueue, "old")
        await until(lambda: len(here.busy.notes("began")) == 6, "runs")
    here.primary.stop("immediate")
    here.standby.start()
    here.standby.promote()
    async with asking(here.standby, SCHEMA) as db:
        await set_numbers(db, before)
        await db.all(enqueue, "new")
        await until(lambda: len(here.busy.notes("began")) == 12, "new runs")
        began = [note["run"] for note in here.busy.notes("began")]
        assert sorted(began[:6]) == sorted(began[6:])
        here.busy.open("old")
        await until(lambda: len(daemon.events("claim_lost")) == 6, "old ends")
        here.busy.open("new")
        jobs = "from pgsched.runs where entrypoint = 'long'"
        await db.until(f"select count(*) = 6 and bool_and(status = 'succeeded') {jobs}")
        assert await db.all(f"select distinct result, attempt {jobs}") == [("new", 1)]
        assert await daemon.stop() == 0


def note_times(name, seconds):
    """Keeps how long it took until a tick, an idle daemon's job, the clients' calls, and all ends, for a table."""
    if path := os.environ.get("PGSCHED_FAILOVER_TIMES"):
        with Path(path).open("a") as file:
            file.write(" ".join([name, *(f"{each:.1f}" for each in seconds)]) + "\n")
