-- Locks the schedules whose pause has ended, except those set aside.
select s.id from pgsched.schedules s
where s.status = 'paused' and s.paused_until <= now()
    and s.id not in (select id from pgsched.resting where kind = 'schedule' and until > now())
order by s.id
limit %(limit)s
for no key update skip locked
