-- Locks the schedules a claim pass shall plan: never planned, due, or due within the lookahead.
-- Ahead of its instant a schedule is only taken while nothing of it is live, since its overlap cannot be judged
-- earlier. One whose backlog (catch_up all) waits for its own runs to end can do nothing but wait, and would take the
-- place of others: policy.plan() decides the same. Both looks are filters, on this statement's snapshot; the plan
-- counts again under the lock.
select id, name, entrypoint, expression, timezone, args::text as args_json, overlap, catch_up, catch_up_limit,
    grace, jitter, timeout, max_attempts, backoff, max_backoff, starts_at, ends_at, max_runs, run_count, priority,
    status, note, paused_at, resumed_at, paused_until, owner, next_run, last_run, last_status, accounted_through,
    timed_at, nullif(interruptions, '[]')::text as interruptions_json, created_at, updated_at,
    -- What the last plan noted, unless its timing was changed since: of another zone, say.
    case when timed_at <= planned_at then zone_rules end as zone_rules,
    case when timed_at <= planned_at then next_wall end as next_wall,
    case when timed_at <= planned_at then accounted_wall end as accounted_wall,
    case when timed_at <= planned_at then moved_from end as moved_from
from pgsched.schedules s
where s.status = 'active'
    and coalesce(s.next_run, '-infinity'::timestamptz) <= now() + %(lookahead)s
    and s.entrypoint = any(%(entrypoints)s)
    and (s.app is null or s.app = %(app)s)
    and s.id not in (select id from pgsched.resting where kind = 'schedule' and until > now())
    and (%(priority)s::int is null or s.priority = %(priority)s)
    and not (s.timezone = any(%(withheld)s::text[]) and s.entrypoint = any(%(covered)s::text[]))
    and (
        s.next_run is null or s.next_run <= now() or s.overlap = 'allow'
        or not exists (select from pgsched.runs r where r.schedule_id = s.id and r.status = 'running')
    )
    and not (
        s.catch_up = 'all' and s.overlap <> 'allow' and s.next_run < now() - interval '10 seconds'
        and (
            (select count(*) from pgsched.runs r where r.schedule_id = s.id and r.status = 'running')
            + (select count(*) from pgsched.runs r
               where r.schedule_id = s.id and r.status = 'queued' and r.gated and r.origin is null)
        ) >= case when s.overlap ~ '^[0-9]+$' then s.overlap::int else 1 end
    )
order by coalesce(s.next_run, '-infinity'::timestamptz)
limit %(limit)s
for no key update skip locked
