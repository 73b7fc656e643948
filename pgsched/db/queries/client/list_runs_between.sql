-- The records of a schedule's fire times in a time range: runs in it, and skips that reach into it.
-- Without payloads; each run has only the text of its last error.
select r.id, r.schedule_id, s.name as schedule, r.entrypoint, r.fire_time, r.due_at, r.priority, r.origin, r.again,
    r.status, r.reason, r.detail, r.skipped_count, r.skipped_through, r.attempt, r.max_attempts, r.worker,
    r.started_at, r.finished_at, left(r.errors -> -1 ->> 'message', 500) as error, r.unique_key, r.created_at
from pgsched.schedules s
cross join lateral (
    select * from pgsched.runs r
    where r.schedule_id = s.id and r.status <> 'skipped' and r.withdrawn_at is null
        and r.fire_time between %(start)s::timestamptz and %(through)s::timestamptz
    union all
    select * from pgsched.runs r
    where r.schedule_id = s.id and r.withdrawn_at is not null
        and r.fire_time between %(start)s::timestamptz and %(through)s::timestamptz
    union all
    select * from pgsched.runs r
    where r.schedule_id = s.id and r.status = 'skipped'
        and r.fire_time between %(start)s::timestamptz and %(through)s::timestamptz
    union all
    -- Skips that began before the range: if one reaches into it, it is among the last of them.
    select * from (
        select * from pgsched.runs r
        where r.schedule_id = s.id and r.status = 'skipped' and r.fire_time < %(start)s::timestamptz
        order by r.fire_time desc
        limit 100
    ) k
    where k.skipped_through >= %(start)s::timestamptz
) r
where s.name = %(name)s::text
order by r.fire_time, r.again, r.id
limit %(limit)s::int
