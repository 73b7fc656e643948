-- The time zones that schedules are read in, the rules noted for each (null: none yet), and by which others than these
-- some next_run was planned.
select s.timezone as name, z.digest, z.release,
    array_remove(array_agg(distinct s.zone_rules) filter (
        where s.next_run is not null and s.timed_at <= s.planned_at
    ), null) as planned_by
from pgsched.schedules s
left join pgsched.zones z on z.name = s.timezone
where s.status in ('active', 'paused')
group by s.timezone, z.digest, z.release
order by 1
