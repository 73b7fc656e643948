-- Gives the live runs of one application that belong to none of its schedules to another: enqueued jobs, and runs whose
-- schedule is gone. Returns how many. One statement and its one snapshot, as in schedule_moved().
with live as materialized (
    select r.id from pgsched.runs r where r.status = 'queued' and r.gated and r.app = %(old)s
    union all
    select r.id from pgsched.runs r where r.status = 'queued' and not r.gated and r.app = %(old)s
    union all
    select r.id from pgsched.runs r where r.status = 'running' and r.app = %(old)s
),
moved as (
    update pgsched.runs r set app = %(new)s
    where r.id = any(array(select id from live)) and r.status in ('queued', 'running') and r.app = %(old)s
    returning r.id
)
select count(*)::int from moved
