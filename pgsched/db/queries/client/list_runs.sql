-- The newest runs for people, skips included, without payloads.
-- Each has only the text of its last error, and its progress while it runs.
-- since: only runs that ended from then on, or have not ended.
-- However much history there is, each branch walks an index from its newest end and stops. A filter without an index
-- looks at the newest `near` runs of its branch, which lie anywhere in the table, and then at the newest `most` runs of
-- all by id, which lie side by side. Within an ended status, the newest runs are those that ended last.
with given as (
    select s.id as schedule_id from (select) one
    left join pgsched.schedules s on s.name = %(schedule)s::text
),
-- The list of statuses matches the conditions of the indexes; from a value alone the planner could not infer it.
ended as (
    select e.id
    from unnest('{succeeded,failed,cancelled,skipped}'::text[]) as w (status)
    cross join lateral (
        (select r.id from pgsched.runs r
         where r.status in ('succeeded', 'failed', 'cancelled', 'skipped') and r.status = w.status
             and r.finished_at >= coalesce(%(since)s::timestamptz, '-infinity') and %(entrypoint)s::text is null
         order by r.finished_at desc
         limit %(limit)s::int)
        union all
        (select r.id from pgsched.runs r
         where r.status in ('failed', 'cancelled') and r.status = w.status and r.entrypoint = %(entrypoint)s::text
             and r.finished_at >= coalesce(%(since)s::timestamptz, '-infinity')
         order by r.finished_at desc
         limit %(limit)s::int)
        union all
        (select x.id
         from (
             select r.id, r.entrypoint, r.finished_at from pgsched.runs r
             where r.status in ('succeeded', 'failed', 'cancelled', 'skipped') and r.status = w.status
                 and r.finished_at >= coalesce(%(since)s::timestamptz, '-infinity')
                 and w.status in ('succeeded', 'skipped') and %(entrypoint)s::text is not null
             order by r.finished_at desc
             limit %(near)s::int
         ) x
         where x.entrypoint = %(entrypoint)s::text
         order by x.finished_at desc
         limit %(limit)s::int)
    ) e
    where %(schedule)s::text is null and (%(status)s::text is not null or %(since)s::timestamptz is not null)
        and w.status = coalesce(%(status)s::text, w.status)
),
of_schedule as (
    select x.id
    from given g
    cross join lateral (
        (select n.id, n.entrypoint, n.status, n.finished_at
         from (
             select r.id, r.entrypoint, r.status, r.finished_at, r.fire_time, r.again from pgsched.runs r
             where r.schedule_id = g.schedule_id and r.status <> 'skipped' and r.withdrawn_at is null
                 and coalesce(%(status)s::text, 'succeeded') = 'succeeded'
             order by r.fire_time desc, r.again desc
             limit case when coalesce(%(entrypoint)s::text, %(status)s::text, %(since)s::timestamptz::text) is null
                   then %(limit)s::int else %(near)s::int end
         ) n
         where (%(entrypoint)s::text is null or n.entrypoint = %(entrypoint)s::text)
             and (%(status)s::text is null or n.status = %(status)s::text)
             and (n.finished_at is null or n.finished_at >= coalesce(%(since)s::timestamptz, '-infinity'))
         order by n.fire_time desc, n.again desc
         limit %(limit)s::int)
        union all
        select r.id, r.entrypoint, r.status, r.finished_at from pgsched.runs r
        where r.schedule_id = g.schedule_id and r.withdrawn_at is not null
        union all
        (select r.id, r.entrypoint, r.status, r.finished_at from pgsched.runs r
         where r.schedule_id = g.schedule_id and r.status = 'skipped'
             and coalesce(%(status)s::text, 'skipped') = 'skipped'
         order by r.fire_time desc
         limit case when coalesce(%(entrypoint)s::text, %(since)s::timestamptz::text) is null
               then %(limit)s::int else %(near)s::int end)
        union all
        select d.id, d.entrypoint, d.status, d.finished_at
        from unnest('{failed,cancelled}'::text[]) as w (status)
        cross join lateral (
            select r.id, r.entrypoint, r.status, r.finished_at from pgsched.runs r
            where r.status in ('failed', 'cancelled') and r.schedule_id = g.schedule_id and r.status = w.status
                and r.finished_at >= coalesce(%(since)s::timestamptz, '-infinity')
            order by r.finished_at desc
            limit case when %(entrypoint)s::text is null then %(limit)s::int else %(near)s::int end
        ) d
        where w.status = %(status)s::text or %(status)s::text is null and %(since)s::timestamptz is not null
    ) x
    where (%(entrypoint)s::text is null or x.entrypoint = %(entrypoint)s::text)
        and (%(status)s::text is null or x.status = %(status)s::text)
        and (x.finished_at is null or x.finished_at >= coalesce(%(since)s::timestamptz, '-infinity'))
),
newest as (
    select x.id
    from (
        select r.id, r.schedule_id, r.entrypoint, r.status, r.finished_at from pgsched.runs r
        where case
            when coalesce(%(schedule)s::text, %(entrypoint)s::text, %(status)s::text, %(since)s::timestamptz::text) is null
                then true
            when %(status)s::text in ('queued', 'running') then false  -- live holds them all
            when %(schedule)s::text is not null  -- the schedule's own indexes suffice, except for these
                then (%(entrypoint)s::text is not null or %(status)s::text = 'succeeded'
                        or %(since)s::timestamptz is not null
                            and coalesce(%(status)s::text, '') not in ('failed', 'cancelled'))
                    and (select schedule_id from given) is not null
                    and (select count(*) from of_schedule) < %(limit)s::int
            else %(entrypoint)s::text is not null and coalesce(%(status)s::text, '') not in ('failed', 'cancelled')
                and (select count(*) from ended) < %(limit)s::int
        end
        order by r.id desc
        limit case when coalesce(%(schedule)s::text, %(entrypoint)s::text) is null
              then %(limit)s::int else %(most)s::int end
    ) x
    where (%(schedule)s::text is null or x.schedule_id = (select schedule_id from given))
        and (%(entrypoint)s::text is null or x.entrypoint = %(entrypoint)s::text)
        and (%(status)s::text is null or x.status = %(status)s::text)
        and (x.finished_at is null or x.finished_at >= coalesce(%(since)s::timestamptz, '-infinity'))
    order by x.id desc
    limit %(limit)s::int
),
-- All live runs, or those of a schedule. Each branch has an index of its own; combined, they would read all of history.
live as (
    select l.id
    from (
        select r.id, r.entrypoint, r.status from pgsched.runs r
        where r.status = 'running' and %(schedule)s::text is null
        union all
        select r.id, r.entrypoint, r.status from pgsched.runs r
        where r.status = 'queued' and r.gated and %(schedule)s::text is null
        union all
        select r.id, r.entrypoint, r.status from pgsched.runs r
        where r.status = 'queued' and not r.gated and %(schedule)s::text is null
        union all
        select s.id, s.entrypoint, s.status
        from given g
        cross join lateral (
            select r.id, r.entrypoint, r.status from pgsched.runs r
            where r.status = 'running' and r.schedule_id = g.schedule_id
            union all
            select r.id, r.entrypoint, r.status from pgsched.runs r
            where r.status = 'queued' and r.schedule_id is not null and r.schedule_id = g.schedule_id
        ) s
    ) l
    where coalesce(%(schedule)s::text, %(entrypoint)s::text, %(status)s::text, %(since)s::timestamptz::text) is not null
        and (%(entrypoint)s::text is null or l.entrypoint = %(entrypoint)s::text)
        and (%(status)s::text is null or l.status = %(status)s::text)
),
chosen as materialized (
    select id from (
        select id from ended
        union select id from of_schedule
        union select id from newest
        union select id from live
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
-- Through an array, because the planner expects an array to be short.
where r.id = any(array(select id from chosen))
order by r.id desc
