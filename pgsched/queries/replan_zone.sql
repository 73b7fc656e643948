-- Has the next schedules of a time zone planned anew by these rules, from where their fire times are accounted for. Rows
-- that somebody has locked are left to the next look. With planned_at set, it counts as no client's change. From its commit on, a worker with other rules sees them in the row that it locks, and leaves it alone.
with batch as materialized (
    select id from pgsched.schedules
    where timezone = %(name)s and id > %(after)s and status in ('active', 'paused') and next_run is not null
        and not coalesce(timed_at > planned_at, false)
        and (zone_rules is null or split_part(zone_rules, ':', 2) <> split_part(%(rules)s, ':', 2))
    order by id
    limit %(limit)s
    for no key update skip locked
)
update pgsched.schedules s
set next_run = null, moved_from = s.next_run, zone_rules = %(rules)s, planned_at = clock_timestamp()
from batch
where s.id = batch.id
returning s.id
