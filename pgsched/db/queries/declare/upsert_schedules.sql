-- Makes or changes schedules that an application declares.
-- These are the ones that compare_schedules found to differ, so that a restart writes nothing and wakes nobody. A
-- change goes through the trigger, like any client's. Returns the names it wrote. A schedule with another owner is left
-- alone, unless that other application has retired it.
with declared as (
    select * from jsonb_to_recordset(%(declared)s) as d (
        name text, entrypoint text, expression text, timezone text, args jsonb, overlap text, catch_up text,
        catch_up_limit int, grace interval, jitter interval, timeout interval, max_attempts int, backoff interval,
        max_backoff interval, starts_at timestamptz, ends_at timestamptz, max_runs int, priority smallint, owner text, app text)
),
wanted as (
    select name, entrypoint, expression, timezone, args, overlap, catch_up, catch_up_limit,
        grace::pgsched.duration as grace, jitter::pgsched.duration as jitter, timeout::pgsched.duration as timeout,
        max_attempts, backoff::pgsched.duration as backoff, max_backoff::pgsched.duration as max_backoff,
        starts_at::pgsched.instant as starts_at, ends_at::pgsched.instant as ends_at, max_runs, priority, owner, app
    from declared
),
written as (
    insert into pgsched.schedules as s (name, entrypoint, expression, timezone, args, overlap, catch_up,
        catch_up_limit, grace, jitter, timeout, max_attempts, backoff, max_backoff, starts_at, ends_at, max_runs,
        priority, owner, app)
    select * from wanted order by name
    on conflict (name) do update set
        entrypoint = excluded.entrypoint, expression = excluded.expression, timezone = excluded.timezone,
        args = excluded.args, overlap = excluded.overlap, catch_up = excluded.catch_up,
        catch_up_limit = excluded.catch_up_limit, grace = excluded.grace,
        jitter = excluded.jitter, timeout = excluded.timeout, max_attempts = excluded.max_attempts,
        backoff = excluded.backoff, max_backoff = excluded.max_backoff, starts_at = excluded.starts_at,
        ends_at = excluded.ends_at, max_runs = excluded.max_runs, priority = excluded.priority,
        owner = excluded.owner, app = excluded.app,
        -- An invalid one is planned again: the fault may have been in the code, and this may be newer code.
        status = case when s.retired_at is not null and s.paused_at is not null and s.resumed_at is null
                      then 'paused'  -- as it was when it was retired
                      when s.retired_at is not null or s.status = 'invalid' then 'active' else s.status end,
        note = case when s.retired_at is not null then s.paused_note
                    when s.status = 'invalid' then null else s.note end,
        paused_note = null,
        next_run = case when s.retired_at is not null or s.status = 'invalid' then null else s.next_run end,
        retired_at = null
    where s.owner = excluded.owner or (s.retired_at is not null and starts_with(s.owner, 'code:'))
    returning s.name
)
select name from written
