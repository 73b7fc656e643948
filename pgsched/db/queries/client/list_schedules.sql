-- Schedules for people, by name. JSON is read as text, so that no value can break the page.
select id, name, entrypoint, expression, timezone, args::text as args, overlap, catch_up, catch_up_limit, grace,
    jitter, timeout, max_attempts, backoff, max_backoff, starts_at, ends_at, max_runs, run_count, priority, status,
    note, paused_at, resumed_at, paused_until, backlog, retired_at, owner, app, next_run, last_run, last_status,
    accounted_through, timed_at, interruptions::text as interruptions, created_at, updated_at
from pgsched.schedules
where (%(name)s::text is null or name = %(name)s)
    and (%(entrypoint)s::text is null or entrypoint = %(entrypoint)s)
    and (%(status)s::text is null or status = %(status)s)
order by name
