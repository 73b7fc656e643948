-- Has the next schedules of a time zone planned anew by these rules, from where their fire times are accounted for. Rows
-- that somebody has locked are left to the next look. With planned_at set, it counts as no client's change. From its
-- commit on, a worker with other rules sees them in the row that it locks, and leaves it alone.
with batch as materialized (
    select id from pgsched.schedules
    where timezone = %(name)s and id > %(after)s and status in ('active', 'paused')
        and case when timed_at > planned_at then false  -- what is noted there is of a timing that holds no more
            when zone_rules is null then next_run is not null
            else split_part(zone_rules, ':', 2) <> split_part(%(rules)s, ':', 2) end
    order by id
    limit %(limit)s
    for no key update skip locked
)
update pgsched.schedules s
set next_run = null, moved_from = coalesce(s.next_run, s.moved_from), zone_rules = %(rules)s,
    planned_at = greatest(clock_timestamp(), s.planned_at + interval '1 microsecond')
from batch
where s.id = batch.id
returning s.id
