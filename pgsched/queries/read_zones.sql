-- The time zones that schedules are read in, and the digest of the rules by which they were planned; null: none yet.
select s.timezone as name, z.digest
from (select distinct timezone from pgsched.schedules where status in ('active', 'paused')) s
left join pgsched.zones z on z.name = s.timezone
order by 1
