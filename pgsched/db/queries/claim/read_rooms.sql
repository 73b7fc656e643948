-- How many more runs of these schedules the overlap of each lets run; those that allow it are left out.
select s.id,
    case when s.overlap ~ '^[0-9]+$' then s.overlap::int else 1 end
        - (select count(*) from pgsched.executing e where e.schedule_id = s.id)::int as room
from pgsched.schedules s
where s.id = any(%(ids)s) and s.overlap <> 'allow'
