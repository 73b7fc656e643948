-- The newest runs for people, skips among them, without their payloads; of each only how its last error reads, and how
-- far it is while it runs. Since: those that ended from then on, and those that have not.
select r.id, r.schedule_id, s.name as schedule, r.entrypoint, r.fire_time, r.due_at, r.priority, r.origin, r.again,
    r.status, r.reason, r.detail, r.skipped_count, r.skipped_through, r.attempt, r.max_attempts, r.worker,
    r.started_at, r.finished_at,
    case when r.status = 'running' and r.progressed_at >= r.claimed_at
        then json_build_object('done', r.progress_done, 'total', r.progress_total)::text end as progress,
    left(r.errors -> -1 ->> 'message', 500) as error, r.unique_key, r.created_at
from pgsched.runs r
left join pgsched.schedules s on s.id = r.schedule_id
where (%(schedule)s::text is null
       or r.schedule_id = (select id from pgsched.schedules where name = %(schedule)s))
    and (%(entrypoint)s::text is null or r.entrypoint = %(entrypoint)s)
    and (%(status)s::text is null or r.status = %(status)s)
    and (%(since)s::timestamptz is null or r.finished_at is null or r.finished_at >= %(since)s)
order by r.id desc
limit %(limit)s::int
