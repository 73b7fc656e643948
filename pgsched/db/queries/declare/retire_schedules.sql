-- Finishes the schedules that an application once declared and no longer declares; their history stays.
-- Returns them as they were just before, so that fire times that were due and not claimed can be reported.
with going as materialized (
    select * from pgsched.schedules
    where owner = %(owner)s and retired_at is null and not (name = any(%(declared)s))
    order by id
    for no key update
),
retired as (
    update pgsched.schedules s
    set status = 'finished', note = 'no longer declared by its application', retired_at = clock_timestamp(),
        next_run = null,
        -- A paused schedule comes back paused.
        paused_at = case when going.status = 'paused' then coalesce(s.paused_at, clock_timestamp()) else s.paused_at end,
        paused_note = case when going.status = 'paused' then s.note end
    from going
    where s.id = going.id
    returning s.id
)
select id, name, entrypoint, expression, timezone, args::text as args_json, overlap, catch_up, catch_up_limit,
    grace, jitter, timeout, max_attempts, backoff, max_backoff, starts_at, ends_at, max_runs, run_count, priority,
    status, note, paused_at, resumed_at, paused_until, owner, next_run, last_run, last_status, accounted_through,
    timed_at, nullif(interruptions, '[]')::text as interruptions_json, created_at, updated_at
from going
where id in (select id from retired)
order by id
