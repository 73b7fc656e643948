-- Locks the next schedules of a time zone that other rules than these have planned. Rows that somebody has locked are left
-- to the next look, and so are those whose new plan the database has refused of late.
select id from pgsched.schedules
where timezone = %(name)s and id > %(after)s and status in ('active', 'paused')
    and case when timed_at > planned_at then false  -- what is noted there is of a timing that holds no more
        when zone_rules is null then next_run is not null
        else split_part(zone_rules, ':', 2) <> split_part(%(rules)s, ':', 2) end
    and id not in (select id from pgsched.resting where kind = 'replan' and until > now())
order by id
limit %(limit)s
for no key update skip locked
