"""Passes of a worker's parts that send every statement which a running worker sends."""

import asyncio
from datetime import UTC, datetime, timedelta

from pgsched import Scheduler
from pgsched.config import Settings
from pgsched.db import migrate
from pgsched.db.statements.queries import in_schema
from pgsched.journal import Line, Said
from pgsched.model import Claim, Outcome, RunStatus
from pgsched.worker.aside import Kind
from pgsched.worker.claim.careful import Careful
from pgsched.worker.listener import Listener
from pgsched.worker.upkeep.reaper import Reaper
from pgsched.worker.upkeep.retention import Retention
from support.workers import Parts, reap

# What a worker has to do: fire times due, ahead and blocked by an overlap, one that replaces a run, a pause that ends;
# queued jobs, some in lines, some behind their schedule's run; a dead worker's runs; history that is old enough.
WORK = """
insert into pgsched.schedules (name, entrypoint, expression, next_run, planned_at, overlap, status, paused_until)
select kind || n, 'job', '@yearly',
    case kind when 'ahead' then now() + interval '5 seconds' else now() - interval '1 second' end, now(),
    case kind when 'replaces' then 'cancel' when 'waits' then 'queue' else 'skip' end,
    case kind when 'paused' then 'paused' else 'active' end,
    case kind when 'paused' then now() end
from unnest('{due,ahead,replaces,waits,paused}'::text[]) kind, generate_series(1, 5) n;
insert into pgsched.limits (gate, app, entrypoint, owner, concurrency, starts, period)
values ('["app", "limited"]', 'app', 'limited', 'code:app', 50, 100, '1 minute');
insert into pgsched.limit_members values ('limited', 'app', '["app", "limited"]', true);
insert into pgsched.runs (entrypoint, priority, gated, limited_by, line)
select e, n % 3, e = 'limited', case e when 'limited' then 'app' end, case e when 'limited' then 'k' end
from unnest('{job,limited}'::text[]) e, generate_series(1, 10) n;
insert into pgsched.runs (schedule_id, entrypoint, fire_time, status, attempt, worker, heartbeat_at, claimed_at)
select id, 'job', '2020-01-01Z', 'running', 1, gen_random_uuid(), now() - interval '1 minute', now()
from pgsched.schedules where name ~ '^(replaces|waits)';
insert into pgsched.runs (schedule_id, entrypoint, fire_time, origin, gated)
select id, 'job', '2020-01-02Z', 'trigger', true from pgsched.schedules where name ~ '^far 1.?$';
insert into pgsched.runs (schedule_id, entrypoint, fire_time, gated)
select id, 'renamed', '2020-01-03Z', true from pgsched.schedules where name ~ '^waits.?1$';
insert into pgsched.runs (schedule_id, entrypoint, fire_time, origin, gated, limited_by, line)
select id, 'limited', '2020-01-02Z', 'trigger', true, 'app', 's' || id from pgsched.schedules where name ~ '^far 2.?$';
insert into pgsched.runs (schedule_id, entrypoint, fire_time, status, finished_at)
select n, 'job', '2020-01-01Z', 'succeeded', '2020-01-01Z' from generate_series(1, 20) n
"""


async def all_of_a_worker(settings: Settings) -> None:
    """Passes, a resync, beats, ends, what runs say, reaping and retention: every statement once at least."""
    sc = Scheduler(app="app")
    for name in ("job", "limited"):
        sc.entrypoint(name)(nothing)
    # Beats so rare that the reaper misses none of our own, which nobody here sends; and it spares all for as long as
    # the stall timeout after the server's start, which may be just now.
    changes = {"lookahead": "10s", "heartbeat_interval": "20s", "stall_timeout": "500ms"}
    async with Parts(settings, sc, max_running=1000, **changes) as parts:
        kit, store = parts.kit, parts.kit.store
        async with kit.control.use() as connection:
            async with connection.transaction():
                await migrate.run_script(connection, in_schema(WORK.encode(), settings.schema, parametrised=False))
            await Careful(kit, limit=5).find(connection, timedelta(0))
        await parts.dispatcher.claim_pass()  # chosen
        await parts.dispatcher.claim_pass()  # all at once; ends the pause
        listener = Listener(kit, parts.roster, parts.dispatcher)
        await listener.resync()
        await listener.close()
        await reap(Reaper(kit, parts.roster), kit)
        await Retention(kit, asyncio.Event()).round()
        claims = [Claim(run.id, run.token, kit.worker) for run in parts.taken]
        claims, unbegun = claims[:20], claims[20:25]
        now = datetime.now(UTC)
        ends = [Outcome(claim, RunStatus.SUCCEEDED, now, now) for claim in claims]
        async with kit.control.use() as connection:
            await store.runs.beat(connection, kit.worker, [(c.run_id, c.token, now) for c in claims])
            said = Said(1, [Line(now, "info", "a line")], (1.0, 2.0))
            await store.runs.write_journals(connection, kit.worker, [(claim, said) for claim in claims])
            await store.runs.finish_runs(connection, kit.worker, ends)
            await store.runs.look_after_ends(connection, kit.worker, ends)
            await store.claims.pass_tokens(connection, 1)
            await store.runs.give_back_runs(connection, kit.worker, unbegun)
            await kit.aside.put(connection, Kind.SCHEDULE, [(1, ValueError("odd"))])
            await kit.aside.put(connection, Kind.RUN, [(c.run_id, ValueError("odd")) for c in claims])
            await kit.aside.review(connection)


async def nothing() -> None: ...
