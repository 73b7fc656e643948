-- How many more runs of these schedules the overlap of each lets run; those that allow it are left out.
select s.id,
    case when s.overlap ~ '^[0-9]+$' then s.overlap::int else 1 end
        - (select count(*) from pgsched.runs r where r.status = 'running' and r.schedule_id = s.id)::int
        - (select count(*) from pgsched.left_behind b where b.schedule_id = s.id and b.counts_until > now())::int as room
from pgsched.schedules s
where s.id = any(%(ids)s) and s.overlap <> 'allow'
