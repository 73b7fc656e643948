-- Locks the next schedules of a time zone that were planned by other rules than these.
-- Leaves rows that somebody has locked to the next look, and those whose new plan the database has refused recently.
select id from pgsched.schedules
where timezone = %(name)s and id > %(after)s and status in ('active', 'paused')
    and case when timed_at > planned_at then false  -- the noted rules belong to a replaced timing
        when zone_rules is null then next_run is not null
        else split_part(zone_rules, ':', 2) <> split_part(%(rules)s, ':', 2) end
    and id not in (select id from pgsched.resting where kind = 'replan' and until > now())
order by id
limit %(limit)s
for no key update skip locked
