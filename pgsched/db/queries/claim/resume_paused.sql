-- Resumes schedules whose pause is over; the trigger does what a client's resume does.
update pgsched.schedules s
set status = 'active'
from (
    select id from pgsched.schedules
    where status = 'paused' and paused_until <= now()
        and id not in (select id from pgsched.resting where kind = 'schedule' and until > now())
    order by id for no key update skip locked
) over_
where s.id = over_.id
