-- How many more runs of these schedules the overlap of each lets run; those that allow it are left out.
select s.id,
    pgsched.overlap_limit(s.overlap)
        - (select count(*) from pgsched.executing e where e.schedule_id = s.id)::int as room
from pgsched.schedules s
where s.id = any(%(ids)s) and s.overlap <> 'allow'
