"""A client in a fork of its process says so, and leaves the parent's sessions alone."""

import asyncio
import subprocess
import sys

import pytest

BOTH = """
import asyncio, os, sys, time
import pgsched

dsn, schema = sys.argv[1:]
SESSION = "select pg_backend_pid()"

def reported(child):
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

def refused(call):
    try:
        call()
    except pgsched.PgschedError as error:
        print(str(error).replace(str(os.getpid()), "CHILD").replace(str(os.getppid()), "PARENT"), flush=True)
"""
SYNC = """
with pgsched.connect_sync(dsn, schema=schema) as client:
    with client.transaction() as connection:
        before = connection.execute(SESSION).fetchone()
    if child := os.fork():
        reported(child)
        with client.transaction() as connection:
            assert connection.execute(SESSION).fetchone() == before
    else:
        refused(client.now)
        refused(lambda: list(client.runs.follow(1)))
        import psycopg
        with psycopg.connect(dsn) as mine:
            client.enqueue("job", connection=mine)  # nothing of the parent's is used
if child:
    print("parent goes on")
"""
ASYNC = """
async def main():
    async with pgsched.connect(dsn, schema=schema) as client:
        async with client.transaction() as connection:
            before = await (await connection.execute(SESSION)).fetchone()
        if child := os.fork():
            reported(child)
            async with client.transaction() as connection:
                assert await (await connection.execute(SESSION)).fetchone() == before
            print("parent goes on")
        else:
            refused(lambda: asyncio.run(client.now()))
            refused(lambda: asyncio.run(client.enqueue("job")))
            asyncio.run(own())
            os._exit(0)

async def own():
    async with pgsched.connect(dsn, schema=schema) as client:
        await client.enqueue("job")

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_forked_client_says_so_and_the_parents_goes_on(dsn, schema, db, kind):
    script = BOTH + (SYNC if kind == "sync" else ASYNC)
    done = await asyncio.to_thread(
        # From Python 3.12 on, a fork of a process with threads is a warning: this fork is what the test is about.
        subprocess.run, [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", script, dsn, schema],
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    sentence = (
        "This client was made in process PARENT and cannot be used in its fork CHILD: make one there, after the fork."
    )
    assert done.stdout.splitlines() == [sentence, sentence, "parent goes on"]
    assert await db.value("select count(*) from pgsched.runs") == 1
