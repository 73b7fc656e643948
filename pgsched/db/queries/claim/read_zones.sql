-- The time zones that schedules are read in, the rules noted for each (null: none yet), and the rules by which fire times
-- were planned, or are to be. A schedule whose new plan the database has refused of late has no say: all others have theirs.
select s.timezone as name, z.digest, z.release,
    array_remove(array_agg(distinct s.zone_rules) filter (
        where s.timed_at <= s.planned_at
            and s.id not in (select id from pgsched.resting where kind = 'replan' and until > now())
    ), null) as planned_by
from pgsched.schedules s
left join pgsched.zones z on z.name = s.timezone
where s.status in ('active', 'paused')
group by s.timezone, z.digest, z.release
order by 1
