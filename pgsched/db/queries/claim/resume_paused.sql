-- Resumes schedules whose pause has ended; the trigger does the same as for a client's resume.
update pgsched.schedules s
set status = 'active'
from (
    select id from pgsched.schedules
    where status = 'paused' and paused_until <= now()
        and id not in (select id from pgsched.resting where kind = 'schedule' and until > now())
    order by id for no key update skip locked
) over_
where s.id = over_.id
