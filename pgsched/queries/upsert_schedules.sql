-- Makes or changes the schedules that an application declares. One that has another owner is left alone and
-- returned. What is unchanged is not written, so that a restart wakes nobody; a change goes through the trigger,
-- like any client's.
with declared as (
    select * from jsonb_to_recordset(%(declared)s) as d (
        name text, entrypoint text, expression text, timezone text, args jsonb, overlap text, catch_up text,
        catch_up_limit int, grace interval, jitter interval, timeout interval, max_attempts int, backoff interval,
        max_backoff interval, starts_at timestamptz, ends_at timestamptz, max_runs int, priority smallint, owner text)
),
wanted as (
    select name, entrypoint, expression, timezone, args, overlap, catch_up, catch_up_limit,
        grace::pgsched.duration as grace, jitter::pgsched.duration as jitter, timeout::pgsched.duration as timeout,
        max_attempts, backoff::pgsched.duration as backoff, max_backoff::pgsched.duration as max_backoff,
        starts_at::pgsched.instant as starts_at, ends_at::pgsched.instant as ends_at, max_runs, priority, owner
    from declared
),
written as (
    insert into pgsched.schedules as s (name, entrypoint, expression, timezone, args, overlap, catch_up,
        catch_up_limit, grace, jitter, timeout, max_attempts, backoff, max_backoff, starts_at, ends_at, max_runs,
        priority, owner)
    select * from wanted order by name
    on conflict (name) do update set
        entrypoint = excluded.entrypoint, expression = excluded.expression, timezone = excluded.timezone,
        args = excluded.args, overlap = excluded.overlap, catch_up = excluded.catch_up,
        catch_up_limit = excluded.catch_up_limit, grace = excluded.grace,
        jitter = excluded.jitter, timeout = excluded.timeout, max_attempts = excluded.max_attempts,
        backoff = excluded.backoff, max_backoff = excluded.max_backoff, starts_at = excluded.starts_at,
        ends_at = excluded.ends_at, max_runs = excluded.max_runs, priority = excluded.priority,
        status = case when s.retired_at is not null or s.status = 'invalid' then 'active' else s.status end,
        note = case when s.retired_at is not null or s.status = 'invalid' then null else s.note end,
        next_run = case when s.retired_at is not null or s.status = 'invalid' then null else s.next_run end,
        retired_at = null
    where s.owner = excluded.owner and (
        s.retired_at is not null
        or s.status = 'invalid'  -- what was wrong may have been the code, and this may be newer code
        or (s.entrypoint, s.expression, s.timezone, s.args, s.overlap, s.catch_up, s.catch_up_limit, s.grace,
            s.jitter, s.timeout, s.max_attempts, s.backoff, s.max_backoff, s.starts_at, s.ends_at, s.max_runs, s.priority)
        is distinct from
        (excluded.entrypoint, excluded.expression, excluded.timezone, excluded.args, excluded.overlap,
            excluded.catch_up, excluded.catch_up_limit, excluded.grace, excluded.jitter, excluded.timeout,
            excluded.max_attempts, excluded.backoff, excluded.max_backoff, excluded.starts_at, excluded.ends_at, excluded.max_runs,
            excluded.priority)
    )
)
select d.name from declared d join pgsched.schedules s on s.name = d.name and s.owner <> d.owner
