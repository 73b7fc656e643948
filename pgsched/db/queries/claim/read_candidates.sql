-- The candidates for a claim, the first ones by fairness.order().
-- - fire times and queued runs: of each lane as many as it has room for
-- - runs that wait for their schedule's overlap: as many as it leaves room for
-- Locks nothing: the chosen ones are checked again under a lock, by the same conditions; a test compares them.
-- Rows that another worker has locked are included, and may be gone by then.
with recursive levels (priority) as (
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
ranks (priority) as (
    (select priority from pgsched.schedules where status = 'active' order by priority desc limit 1)
    union all
    select (
        select s.priority from pgsched.schedules s
        where s.status = 'active' and s.priority < k.priority
        order by s.priority desc limit 1
    )
    from ranks k
    where k.priority is not null
),
-- Schedules are walked one by one, so that one with ten thousand waiting runs costs no more than one with a single run.
waiting (schedule_id) as (
    (select schedule_id from pgsched.runs where %(waiting)s::boolean and status = 'queued' and gated
     order by schedule_id limit 1)
    union all
    select (
        select r.schedule_id from pgsched.runs r
        where r.status = 'queued' and r.gated and r.schedule_id > w.schedule_id
        order by r.schedule_id limit 1
    )
    from waiting w
    where w.schedule_id is not null
),
spans (first, last) as (
    values ('1900-01-01Z', now()), (now() + interval '1 us', now() + %(lookahead)s)
),
steps as materialized (
    select s.first, s.last, l.priority from levels l cross join spans s
    where l.priority is not null order by s.first, l.priority desc
),
turns as materialized (
    select s.first, s.last, k.priority from ranks k cross join spans s
    where k.priority is not null and %(fire_times)s::boolean order by s.first, k.priority desc
),
lanes as materialized (
    select g.room, array_agg(g.entrypoint) as names
    from unnest(%(entrypoints)s::text[], %(lanes)s::int[], %(rooms)s::int[]) as g (entrypoint, lane, room)
    group by g.lane, g.room
),
held as (
    select r.id, s.id as schedule_id, r.entrypoint, r.priority, r.due_at, o.room
    from waiting w
    join pgsched.schedules s on s.id = w.schedule_id
    cross join lateral (
        select pgsched.overlap_limit(s.overlap)
            - (select count(*) from pgsched.executing e where e.schedule_id = s.id)::int as room
    ) o
    cross join lateral (  -- as lock_gated_runs does
        select r.id, r.entrypoint, r.priority, r.due_at
        from pgsched.runs r
        where r.status = 'queued' and r.gated and r.line is null and r.schedule_id = s.id
            and r.entrypoint = any(%(entrypoints)s) and (r.app is null or r.app = %(app)s)
            and r.id not in (select id from pgsched.unclaimable)
            and (r.attempt > 0 or r.due_at <= now() + %(lookahead)s)
            and not (s.status = 'paused' and r.attempt = 0 and r.origin is null)
        order by (r.attempt > 0) desc, r.priority desc, r.due_at, r.id
        limit greatest(0, case when s.overlap = 'allow' then %(limit)s else o.room end)
    ) r
    where r.due_at <= now() + %(lookahead)s
    order by r.due_at > now(), r.priority desc, r.due_at, r.id
    limit %(limit)s
)
select 'fire time' as kind, f.id, f.id as schedule_id, f.entrypoint, f.priority, f.next_run as due_at,
    f.next_run > now() as ahead,
    -- How many more runs the overlap allows, counted as plan.meet() does. If none, the fire time will wait or be
    -- skipped.
    case when f.overlap <> 'allow' then pgsched.overlap_limit(f.overlap)
        - (select count(*) from pgsched.executing e where e.schedule_id = f.id)::int
        - (select count(*) from pgsched.runs r
           where r.schedule_id = f.id and r.status = 'queued' and r.gated and r.origin is null)::int
    end as room
from lanes g
cross join lateral (
    select s.*
    from turns t
    cross join lateral (
        select s.id, s.entrypoint, s.priority, s.next_run, s.overlap
        from pgsched.schedules s
        where s.status = 'active' and s.priority = t.priority
            and coalesce(s.next_run, '-infinity'::timestamptz) between t.first and t.last
            and s.entrypoint = any(g.names) and (s.app is null or s.app = %(app)s)
            and s.id not in (select id from pgsched.resting where kind = 'schedule' and until > now())
            and not (s.timezone = any(%(withheld)s::text[]) and s.entrypoint = any(%(covered)s::text[]))
            and (  -- as lock_due_schedules does
                s.next_run <= now() or s.overlap = 'allow'
                or not exists (select from pgsched.executing e where e.schedule_id = s.id)
            )
            and not (
                s.catch_up = 'all' and s.overlap <> 'allow' and s.next_run < now() - interval '10 seconds'
                and (
                    (select count(*) from pgsched.executing e where e.schedule_id = s.id)
                    + (select count(*) from pgsched.runs r
                       where r.schedule_id = s.id and r.status = 'queued' and r.gated and r.origin is null)
                ) >= pgsched.overlap_limit(s.overlap)
            )
            and (
                select count(*) from pgsched.runs r
                where r.status = 'running' and r.schedule_id = s.id and r.started_at is null
                    and pgsched.withdrawn(r.schedule_version, r.fire_time, s.version, s.timed_version, s.timed_at)
            ) = 0
        order by coalesce(s.next_run, '-infinity'::timestamptz), s.id
        limit g.room
    ) s
    limit g.room
) f
union all
select 'waiting', h.id, h.schedule_id, h.entrypoint, h.priority, h.due_at, h.due_at > now(), h.room from held h
union all
select 'queued', r.id, r.schedule_id, r.entrypoint, r.priority, r.due_at, r.due_at > now(), null
from lanes g
cross join lateral (
    select r.*
    from steps t
    cross join lateral (
        select r.id, r.schedule_id, r.entrypoint, r.priority, r.due_at
        from pgsched.runs r
        where r.status = 'queued' and not r.gated and r.priority = t.priority
            and r.due_at between t.first and t.last
            and r.entrypoint = any(g.names) and (r.app is null or r.app = %(app)s)
            and r.id not in (select id from pgsched.unclaimable)
        order by r.due_at, r.id
        limit g.room
    ) r
    limit g.room
) r
