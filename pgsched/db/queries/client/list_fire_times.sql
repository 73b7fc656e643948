-- Those of these fire times of a schedule that have a run (a skip is none), each with its newest run.
select distinct on (r.fire_time) r.fire_time, r.id, r.status
from pgsched.runs r
where r.schedule_id = (select id from pgsched.schedules where name = %(name)s::text)
    and r.fire_time = any(%(fire_times)s::timestamptz[]) and r.status <> 'skipped' and r.withdrawn_at is null
order by r.fire_time, r.again desc
