-- The outlook after a pass: the clock, and when there is work again.
-- - next_ahead: the next work beyond the horizon
-- - next_near: the next work within it that was not taken (blocked by its overlap, locked by another worker, no free
--   slot)
-- - running_elsewhere: whether other workers have runs going
-- - orphaned: whether the awaited applications have no live worker, or the declarations in force are neither this
--   worker's nor any live worker's
-- - forgotten: whether the worker's own row is gone
-- The resync also records with it that this worker is alive, so one statement a minute does it all.
with recursive unclaimable as materialized (select id from pgsched.unclaimable),
refused as materialized (select id from pgsched.resting where kind = 'schedule' and until > now()),
levels (priority) as (
    (select priority from pgsched.runs where status = 'queued' and not gated order by priority desc limit 1)
    union all
    select (
        select r.priority from pgsched.runs r
        where r.status = 'queued' and not r.gated and r.priority < l.priority
        order by r.priority desc limit 1
    )
    from levels l
    where l.priority is not null
),
seen as (
    update pgsched.workers
    set seen_at = clock_timestamp(), state = %(state)s, running = %(running)s, trouble = %(trouble)s
    where id = %(worker)s and %(touch)s
),
bound as (select now() + %(lookahead)s as horizon),
-- The first gated run within the horizon. A pause holds back fire times that have not begun.
waiting as materialized (
    select r.due_at from pgsched.runs r
    where r.status = 'queued' and r.gated and r.entrypoint = any(%(entrypoints)s)
        and (r.app is null or r.app = %(app)s)
        and r.id not in (select id from unclaimable)
        and (r.limited_by is null or r.limited_by = %(app)s)
        and r.due_at <= (select horizon from bound)
        and (r.attempt > 0 or r.origin is not null or not exists (
            select from pgsched.schedules s where s.id = r.schedule_id and s.status = 'paused'
        ))
    order by r.due_at limit 1
)
select
    clock_timestamp() as now,
    least(
        (select s.next_run::timestamptz from pgsched.schedules s
         where s.status = 'active' and s.entrypoint = any(%(entrypoints)s) and (s.app is null or s.app = %(app)s)
            and coalesce(s.next_run, '-infinity'::timestamptz) > (select horizon from bound)
         order by coalesce(s.next_run, '-infinity'::timestamptz) limit 1),
        (select min(d.due_at) from levels l cross join lateral (
            select r.due_at from pgsched.runs r
            where r.status = 'queued' and not r.gated and r.priority = l.priority and r.entrypoint = any(%(entrypoints)s)
                and (r.app is null or r.app = %(app)s)
                and r.due_at > (select horizon from bound)
            order by r.due_at limit 1
        ) d where l.priority is not null),
        (select r.due_at from pgsched.runs r
         where r.status = 'queued' and r.gated and r.entrypoint = any(%(entrypoints)s)
            and (r.app is null or r.app = %(app)s)
            and (r.limited_by is null or r.limited_by = %(app)s)
            and r.due_at > (select horizon from bound)
         order by r.due_at limit 1),
        -- A run waits for its own earlier attempt. If that one's worker has died, nothing else announces when it stops
        -- counting.
        (select min(b.counts_until) + %(lookahead)s from pgsched.left_behind b cross join lateral (
            select r.status, r.entrypoint, r.app from pgsched.runs r where r.id = b.run_id offset 0
        ) r
         where b.counts_until > now() and r.status = 'queued' and r.entrypoint = any(%(entrypoints)s)
            and (r.app is null or r.app = %(app)s))
    ) as next_ahead,
    least(
        (select coalesce(s.next_run::timestamptz, now()) from pgsched.schedules s
         where s.status = 'active' and s.entrypoint = any(%(entrypoints)s) and (s.app is null or s.app = %(app)s)
            and s.id not in (select id from refused)
            and coalesce(s.next_run, '-infinity'::timestamptz) <= (select horizon from bound)
         order by coalesce(s.next_run, '-infinity'::timestamptz) limit 1),
        (select min(d.due_at) from levels l cross join lateral (
            select r.due_at from pgsched.runs r
            where r.status = 'queued' and not r.gated and r.priority = l.priority and r.entrypoint = any(%(entrypoints)s)
                and (r.app is null or r.app = %(app)s)
                and r.id not in (select id from unclaimable)
                and r.due_at <= (select horizon from bound)
            order by r.due_at limit 1
        ) d where l.priority is not null),
        (select min(w.due_at) from waiting w)
    ) as next_near,
    exists (select from waiting) as gated_near,
    (select min(paused_until) from pgsched.schedules where status = 'paused' and paused_until is not null
        and id not in (select id from refused)) as next_resume,
    exists (select from pgsched.runs where status = 'running'
        and (worker <> %(worker)s or heartbeat_at < now() - interval '10 seconds')) as running_elsewhere,
    case when %(touch)s then cardinality(%(awaited)s::text[]) > 0 and not exists (
        select from pgsched.live_workers w where w.app = any(%(awaited)s)
    ) or exists (
        select from pgsched.workers me
        join pgsched.declarations d on d.app = me.app and d.fingerprint <> me.fingerprint
        where me.id = %(worker)s and not exists (
            select from pgsched.live_workers w where w.app = d.app and w.fingerprint = d.fingerprint
        )
    ) else false end as orphaned,
    not exists (select from pgsched.workers where id = %(worker)s) as forgotten
