-- Claims waiting runs of locked schedules, as many as the overlap of each leaves room for. A statement of its own, after
-- the lock, so that what another worker claimed meanwhile is counted. A run between two attempts holds its place
-- before those that never started. ids: only these of them. Of a paused schedule only what had begun, or was asked for, goes on.
with gates as materialized (
    select s.id, s.status,
        pgsched.overlap_limit(s.overlap)
            - (select count(*) from pgsched.executing e where e.schedule_id = s.id) as room
    from pgsched.schedules s
    where s.id = any(%(schedule_ids)s)
),
due as materialized (
    select c.id, c.due_at, c.priority, sum(c.size) over (order by c.due_at > now(), c.priority desc, c.due_at, c.id
        rows between unbounded preceding and current row) - c.size as before
    from gates g
    cross join lateral (
        select r.id, r.due_at, r.priority, pg_column_size(r.args) as size
        from pgsched.runs r
        where r.status = 'queued' and r.gated and r.line is null and r.schedule_id = g.id
            -- One that nobody here can do must not stand before the others.
            and r.entrypoint = any(%(entrypoints)s) and (r.app is null or r.app = %(app)s)
            and r.id not in (select id from pgsched.unclaimable)
            and (r.attempt > 0 or r.due_at <= now() + %(lookahead)s)
            and not (g.status = 'paused' and r.attempt = 0 and r.origin is null)
        order by (r.attempt > 0) desc, r.priority desc, r.due_at, r.id
        limit greatest(g.room, 0)
    ) c
    where c.due_at <= now() + %(lookahead)s and (%(ids)s::bigint[] is null or c.id = any(%(ids)s))
    order by c.due_at > now(), c.priority desc, c.due_at, c.id
    limit %(limit)s
),
held as materialized (
    select r.id from pgsched.runs r
    -- By way of an array, as in claim_due_runs.
    where r.id = any(array(select id from due where before < %(bytes)s)) and r.status = 'queued'
    order by r.id
    for no key update skip locked
),
-- Queued while its entrypoint had no limits yet: it goes and stands in line.
strays as (
    update pgsched.runs r
    set gated = true, limited_by = m.app, line = pgsched.line_for(
        r.entrypoint, r.args, r.schedule_id,
        (select s.overlap from pgsched.schedules s where s.id = r.schedule_id), m.app)
    from held, pgsched.limit_members m
    where r.id = held.id and m.entrypoint = r.entrypoint and m.app = %(app)s and m.limited
)
update pgsched.runs r
set status = 'running',
    attempt = r.attempt + 1,
    token = pgsched.next_token(),
    schedule_version = case
        when r.schedule_id is null or r.origin is not null or r.attempt > 0 or r.stops is not null or r.errors <> '[]'
        then null else (select s.version from pgsched.schedules s where s.id = r.schedule_id) end,
    worker = %(worker)s,
    claimed_at = clock_timestamp(),
    heartbeat_at = clock_timestamp(),
    started_at = null,
    cancel_requested_at = null,
    max_attempts = coalesce(r.max_attempts, e.max_attempts),
    backoff = coalesce(r.backoff, e.backoff),
    max_backoff = coalesce(r.max_backoff, e.max_backoff),
    timeout = coalesce(r.timeout, e.timeout)
from held, unnest(
    %(entrypoints)s::text[], %(max_attempts)s::int[], %(backoffs)s::interval[], %(max_backoffs)s::interval[],
    %(timeouts)s::interval[]
) as e (entrypoint, max_attempts, backoff, max_backoff, timeout)
where r.id = held.id and e.entrypoint = r.entrypoint
    and not exists (
        select from pgsched.limit_members m where m.entrypoint = r.entrypoint and m.app = %(app)s and m.limited
    )
returning r.id, r.schedule_id, r.entrypoint, r.args::text as args_json, r.fire_time, r.previous_fire_time,
    r.due_at, r.attempt, r.token, r.max_attempts, r.backoff, r.max_backoff, r.timeout
