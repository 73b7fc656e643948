-- Runs that failed or were cancelled, in the order of their ends, for people who may want to retry them.
select r.id, s.name as schedule, r.entrypoint, r.fire_time, r.status, r.reason, r.attempt, r.finished_at,
    left(r.errors -> -1 ->> 'message', 200) as error
from pgsched.runs r
left join pgsched.schedules s on s.id = r.schedule_id
-- The list matches the condition of the index of ended runs; from a value alone the planner could not infer it.
where r.status in ('failed', 'cancelled') and r.status = any (%(statuses)s::text[])
    and (%(ids)s::bigint[] is null or r.id = any (%(ids)s))
    and (%(entrypoint)s::text is null or r.entrypoint = %(entrypoint)s)
    and (%(schedule)s::text is null
         or r.schedule_id = (select id from pgsched.schedules where name = %(schedule)s))
    and (%(since)s::timestamptz is null or r.finished_at >= %(since)s)
    and (%(until)s::timestamptz is null or r.finished_at <= %(until)s)
order by r.finished_at, r.id
