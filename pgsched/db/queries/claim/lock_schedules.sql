-- Locks the schedules of runs that stand in line, where their overlap has to be looked at and nobody has them locked.
select s.id from pgsched.schedules s
where s.id = any(%(ids)s) and s.overlap <> 'allow'
order by s.id
for no key update skip locked
