-- Changes of a schedule what `changes` names (its keys are columns) and leaves the rest as it is; the trigger has
-- it planned anew where its timing changed. Returns the id, no row where there is no such schedule.
update pgsched.schedules s
set (entrypoint, expression, timezone, args, overlap, catch_up, catch_up_limit, grace, jitter, timeout,
     max_attempts, backoff, max_backoff, starts_at, ends_at, max_runs, priority) = (
    select n.entrypoint, n.expression, n.timezone, n.args, n.overlap, n.catch_up, n.catch_up_limit, n.grace,
        n.jitter, n.timeout, n.max_attempts, n.backoff, n.max_backoff, n.starts_at, n.ends_at, n.max_runs,
        n.priority
    from jsonb_populate_record(s, %(changes)s::jsonb) n
)
where s.name = %(name)s::text
returning s.id
