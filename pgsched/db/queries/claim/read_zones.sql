-- The time zones of schedules, with the rules noted for each (null: none yet).
-- planned_by: the rules that the zone's fire times were planned by, or must be planned by. A schedule whose new plan
-- the database has refused recently does not count here.
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
