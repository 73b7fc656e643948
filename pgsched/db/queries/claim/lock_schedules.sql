-- Locks the schedules of runs that stand in line, if they have an overlap to check and nobody has them locked.
select s.id from pgsched.schedules s
where s.id = any(%(ids)s) and s.overlap <> 'allow'
order by s.id
for no key update skip locked
