-- How many more runs the overlap of each of these schedules allows, without those that allow any number.
select s.id,
    pgsched.overlap_limit(s.overlap)
        - (select count(*) from pgsched.executing e where e.schedule_id = s.id)::int as room
from pgsched.schedules s
where s.id = any(%(ids)s) and s.overlap <> 'allow'
