-- The newest runs for people, skips among them, without their payloads; of each only how its last error reads, and how
-- far it is while it runs. Since: those that ended from then on, and those that have not.
-- However much history there is, each branch walks an index from its newest end and stops. A filter without an index of
-- its own looks at the newest `most` rows of its branch. Of an ended status, the newest are those that ended last.
with given as (
    select s.id as schedule_id from (select) one
    left join pgsched.schedules s on s.name = %(schedule)s::text
),
ended as (
    select e.id
    from unnest('{succeeded,failed,cancelled,skipped}'::text[]) as w (status)
    cross join lateral (
        select x.id
        from (
            select r.id, r.entrypoint, r.finished_at
            from pgsched.runs r
            -- The list is what the index is for; of a value alone the planner could not know.
            where r.status in ('succeeded', 'failed', 'cancelled', 'skipped') and r.status = w.status
            order by r.finished_at desc
            limit case when %(entrypoint)s::text is null then %(limit)s::int else %(most)s::int end
        ) x
        where (%(entrypoint)s::text is null or x.entrypoint = %(entrypoint)s)
            and (%(since)s::timestamptz is null or x.finished_at >= %(since)s)
        order by x.finished_at desc
        limit %(limit)s::int
    ) e
    where %(schedule)s::text is null and (%(status)s::text is not null or %(since)s::timestamptz is not null)
        and w.status = coalesce(%(status)s::text, w.status)
),
live as (
    select r.id, r.schedule_id, r.entrypoint, r.status from pgsched.runs r where r.status = 'running'
    union all
    select r.id, r.schedule_id, r.entrypoint, r.status from pgsched.runs r where r.status = 'queued' and r.gated
    union all
    select r.id, r.schedule_id, r.entrypoint, r.status from pgsched.runs r where r.status = 'queued' and not r.gated
),
of_schedule as (
    select x.id
    from given g
    cross join lateral (
        (select r.id, r.entrypoint, r.status, r.finished_at from pgsched.runs r
         where r.schedule_id = g.schedule_id and r.status <> 'skipped' and r.withdrawn_at is null
         order by r.fire_time desc, r.again desc
         limit case when coalesce(%(entrypoint)s::text, %(status)s, %(since)s::text) is null
               then %(limit)s::int else %(most)s::int end)
        union all
        select r.id, r.entrypoint, r.status, r.finished_at from pgsched.runs r
        where r.schedule_id = g.schedule_id and r.withdrawn_at is not null
        union all
        (select r.id, r.entrypoint, r.status, r.finished_at from pgsched.runs r
         where r.schedule_id = g.schedule_id and r.status = 'skipped'
         order by r.fire_time desc
         limit case when coalesce(%(entrypoint)s::text, %(status)s, %(since)s::text) is null
               then %(limit)s::int else %(most)s::int end)
    ) x
    where (%(entrypoint)s::text is null or x.entrypoint = %(entrypoint)s)
        and (%(status)s::text is null or x.status = %(status)s)
        and (%(since)s::timestamptz is null or x.finished_at is null or x.finished_at >= %(since)s)
),
newest as (
    select x.id
    from (
        select r.id, r.entrypoint from pgsched.runs r
        where coalesce(%(schedule)s::text, %(status)s::text, %(since)s::text) is null
        order by r.id desc
        limit case when %(entrypoint)s::text is null then %(limit)s::int else %(most)s::int end
    ) x
    where %(entrypoint)s::text is null or x.entrypoint = %(entrypoint)s
    order by x.id desc
    limit %(limit)s::int
),
chosen as materialized (
    select id from (
        select id from ended
        union select id from of_schedule
        union select id from newest
        union select l.id from live l, given g
        where coalesce(%(schedule)s::text, %(entrypoint)s::text, %(status)s::text, %(since)s::text) is not null
            and (%(schedule)s::text is null or l.schedule_id = g.schedule_id)
            and (%(entrypoint)s::text is null or l.entrypoint = %(entrypoint)s)
            and (%(status)s::text is null or l.status = %(status)s)
    ) found
    order by id desc
    limit %(limit)s::int
)
select r.id, r.schedule_id, s.name as schedule, r.app, r.entrypoint, r.fire_time, r.due_at, r.priority, r.origin,
    r.again,
    r.status, r.reason, r.detail, r.skipped_count, r.skipped_through, r.attempt, r.max_attempts, r.worker,
    r.started_at, r.finished_at,
    case when r.status = 'running' and r.progressed_at >= r.claimed_at
        then json_build_object('done', r.progress_done, 'total', r.progress_total)::text end as progress,
    left(r.errors -> -1 ->> 'message', 500) as error, r.unique_key, r.created_at
from pgsched.runs r
left join pgsched.schedules s on s.id = r.schedule_id
-- By way of an array, of which a planner expects a few elements.
where r.id = any(array(select id from chosen))
order by r.id desc
