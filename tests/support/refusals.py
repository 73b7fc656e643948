"""Somebody's trigger that refuses to have rows written, and the rows that it refuses."""

from pgsched import Retry, Run, Scheduler

STATES = ["P0001", "42501", "42703", "22003", "23503", "0A000", "XX000", "54001", "55000"]


OWN_STATE = "new.args ->> 'state'"  # each bad row has its own


async def refuse(db, what="true", *, table="runs", when="update", state="'P0001'"):
    """A trigger of the application's that refuses to have some rows written, with this SQLSTATE (an expression)."""
    await db.all(
        "create or replace function pgsched.hostile() returns trigger language plpgsql as $$ begin"
        f" if {what} then raise 'not this one' using errcode = {state}; end if;"
        " return case tg_op when 'DELETE' then old else new end; end $$"
    )
    await db.all(
        f"create or replace trigger hostile before {when} on pgsched.{table}"
        " for each row execute function pgsched.hostile()"
    )


async def relent(db, table="runs"):
    await db.all(f"drop trigger hostile on pgsched.{table}")


def events(logs, name):
    return [line for line in logs if line["event"] == name]


async def held(db, worker):
    """Silent runs of a worker, in order; those in the middle are the bad ones."""
    rows = await db.all(
        "insert into pgsched.runs (entrypoint, args, status, attempt, token, worker, claimed_at, heartbeat_at)"
        " select 'job', case when s is null then '{}' else jsonb_build_object('state', s) end, 'running', 1, 1, %s,"
        " now(), now() - interval '10 minutes' from unnest(array[null] || %s::text[] || array[null]) s returning id",
        worker, STATES,
    )  # fmt: skip
    ids = [row[0] for row in rows]
    return ids, ids[1:-1]


def plain(*calls):
    sc = Scheduler(app="plain")

    @sc.entrypoint("job", retry=Retry(attempts=1))
    async def job(run: Run):
        sc.calls.append(run.args)

    sc.calls = list(calls)
    return sc
