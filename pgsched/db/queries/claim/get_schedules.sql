-- The schedules of claimed runs, for functions that ask for their schedule.
select id, name, entrypoint, expression, timezone, args::text as args_json, overlap, catch_up, catch_up_limit,
    grace, jitter, timeout, max_attempts, backoff, max_backoff, starts_at, ends_at, max_runs, run_count, priority,
    status, note, paused_at, resumed_at, paused_until, owner, next_run, last_run, last_status, accounted_through,
    timed_at, nullif(interruptions, '[]')::text as interruptions_json, created_at, updated_at
from pgsched.schedules
where id = any(%(ids)s)
