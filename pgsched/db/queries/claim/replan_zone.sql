-- Has locked schedules planned again by these time zone rules, from accounted_through on.
-- As planned_at is set, this does not count as a client's change. From its commit on, a worker with other rules sees
-- these in the row that it locks, and leaves the schedule alone.
update pgsched.schedules s
set next_run = null, moved_from = coalesce(s.next_run, s.moved_from), zone_rules = %(rules)s,
    planned_at = greatest(clock_timestamp(), s.planned_at + interval '1 microsecond')
where s.id = any(%(ids)s)
returning s.id
