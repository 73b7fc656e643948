-- Claims these queued runs, except locked ones, and notes at their limits when runs were claimed.
-- A note replaces the whole list, under the lock of the limits. A null in it stands for the time of this claim. That is
-- filled in once all are claimed, so never too early: an UPDATE in WITH runs last if nothing reads from it. Runs that
-- wait for an overlap have no limits, and nothing is noted for them.
-- The UPDATE is written in the same words in claim_due_runs; a test compares the two.
with held as materialized (
    select r.id from pgsched.runs r
    where r.id = any(%(ids)s) and r.status = 'queued'
    order by r.id
    for no key update skip locked
),
noted as (
    update pgsched.limits l
    set started_at = n.started_at, started = n.started
    from (
        select n.gate, array_agg(coalesce(n.started_at, clock_timestamp()) order by n.started_at) as started_at,
            array_agg(n.started order by n.started_at) as started
        from unnest(%(noted)s::text[], %(started_at)s::timestamptz[], %(started)s::int[])
            as n (gate, started_at, started)
        group by 1
    ) n
    where l.gate = n.gate
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
returning r.id, r.schedule_id, r.entrypoint, r.args::text as args_json, r.fire_time, r.previous_fire_time,
    r.due_at, r.attempt, r.token, r.max_attempts, r.backoff, r.max_backoff, r.timeout
