-- Locks the schedules that a claim pass must plan: due, due within the lookahead, or (fresh) never planned.
-- idle: only those whose overlap lets no run start now (plan.meet() counts the same), or only the others.
-- The order is fairness.order()'s, and each lane gives as many as it has room for: due before not yet due, then
-- priority, due time and id.
-- Ahead of its fire time a schedule is taken only while nothing of it is live, because its overlap cannot be judged
-- earlier. A schedule whose backlog (catch_up all) waits for its own runs could only wait, and would take the place of
-- others; plan.plan() decides the same. Both checks are filters on this statement's snapshot; the plan counts again
-- under the lock. read_candidates has the same conditions; a test compares them.
with recursive ranks (priority) as (
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
turns as materialized (
    select t.fresh, t.first, t.last, k.priority
    from ranks k
    cross join (values
        (true, '-infinity', '-infinity'), (false, '1900-01-01Z', now()),
        (false, now() + interval '1 us', now() + %(lookahead)s)
    ) as t (fresh, first, last)
    where k.priority is not null
    order by t.first, k.priority desc
),
lanes as materialized (
    select g.room, g.fresh, g.idle, array_agg(g.entrypoint) as names
    from unnest(%(entrypoints)s::text[], %(lanes)s::int[], %(rooms)s::int[], %(fresh)s::boolean[], %(idle)s::boolean[])
        as g (entrypoint, lane, room, fresh, idle)
    group by g.lane, g.room, g.fresh, g.idle
)
select s.*
from lanes g
cross join lateral (
    select s.*
    from turns t
    cross join lateral (
        select id, name, entrypoint, expression, timezone, args::text as args_json, overlap, catch_up, catch_up_limit,
            grace, jitter, timeout, max_attempts, backoff, max_backoff, starts_at, ends_at, max_runs, run_count,
            priority, status, note, paused_at, resumed_at, paused_until, owner, next_run, last_run, last_status,
            accounted_through, timed_at, nullif(interruptions, '[]')::text as interruptions_json, created_at, updated_at,
            case when s.planned_at is null then (
                -- Fire times that were claimed and begun for a removed schedule of this name do not run again.
                select max(d.accounted_through) from pgsched.removed d
                where d.name = s.name
            ) end as inherited_through,
            -- The notes of the last plan, unless its timing (such as its zone) has changed since.
            case when timed_at <= planned_at then zone_rules end as zone_rules,
            case when timed_at <= planned_at then next_wall end as next_wall,
            case when timed_at <= planned_at then accounted_wall end as accounted_wall,
            case when timed_at <= planned_at then moved_from end as moved_from
        from pgsched.schedules s
        where s.status = 'active' and s.priority = t.priority
            and coalesce(s.next_run, '-infinity'::timestamptz) between t.first and t.last
            and s.entrypoint = any(g.names) and (s.app is null or s.app = %(app)s)
            and s.id not in (select id from pgsched.resting where kind = 'schedule' and until > now())
            and not (s.timezone = any(%(withheld)s::text[]) and s.entrypoint = any(%(covered)s::text[]))
            and (
                s.next_run is null or s.next_run <= now() or s.overlap = 'allow'
                -- The rows of the view executing, in two looks. The second is made only once, however many schedules
                -- are due.
                or not exists (select from pgsched.runs r where r.status = 'running' and r.schedule_id = s.id)
                and s.id not in (
                    select b.schedule_id from pgsched.left_behind b
                    where b.counts_until > now() and b.schedule_id is not null
                )
            )
            and not (
                s.catch_up = 'all' and s.overlap <> 'allow' and s.next_run < now() - interval '10 seconds'
                and (
                    (select count(*) from pgsched.executing e where e.schedule_id = s.id)
                    + (select count(*) from pgsched.runs r
                       where r.schedule_id = s.id and r.status = 'queued' and r.gated and r.origin is null)
                ) >= pgsched.overlap_limit(s.overlap)
            )
            and (g.idle is null or g.idle = (s.overlap <> 'allow' and (
                (select count(*) from pgsched.executing e where e.schedule_id = s.id)
                + (select count(*) from pgsched.runs r
                   where r.schedule_id = s.id and r.status = 'queued' and r.gated and r.origin is null)
            ) >= pgsched.overlap_limit(s.overlap)))
            -- Not while a withdrawn claim of it waits for its holder's answer. A count, and no EXISTS: that became a
            -- join, which read all running runs for each schedule.
            and (
                select count(*) from pgsched.runs r
                where r.status = 'running' and r.schedule_id = s.id and r.started_at is null
                    and pgsched.withdrawn(r.schedule_version, r.fire_time, s.version, s.timed_version, s.timed_at)
            ) = 0
            and (s.planned_at is not null or not exists (
                select from pgsched.removed d
                join pgsched.runs r on r.status = 'running' and r.schedule_id = d.schedule_id
                where d.name = s.name and r.started_at is null and r.schedule_version is not null
            ))
        order by coalesce(s.next_run, '-infinity'::timestamptz), s.id
        limit g.room
        for no key update skip locked
    ) s
    where t.fresh = g.fresh
    limit g.room
) s
