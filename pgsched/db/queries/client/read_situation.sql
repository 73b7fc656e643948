-- The possible reasons why a due fire time of a schedule waits.
-- The clock, whether a live worker has its entrypoint, its live runs (also an ended one whose thread goes on), and why
-- the database refuses its plan.
select clock_timestamp() as now,
    exists (select from pgsched.live_workers w where s.entrypoint = any(w.entrypoints)
            and (s.app is null or s.app = w.app)) as served,
    array(
        -- In parts, because each has an index of its own; combined, they would read all of the schedule's history.
        select id from (
            select e.run_id as id from pgsched.executing e where e.schedule_id = s.id
            union all
            select r.id from pgsched.runs r where r.schedule_id = s.id and r.status = 'queued'
        ) r
        order by id limit 4
    ) as live,
    (select a.reason from pgsched.resting a where a.kind = 'schedule' and a.id = s.id) as refused
from pgsched.schedules s
where s.name = %(name)s::text
