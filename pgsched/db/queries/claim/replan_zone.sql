-- Has locked schedules planned anew by these time zone rules, from where their fire times are accounted for. With
-- planned_at set, it counts as no client's change. From its commit on, a worker with other rules sees them in the row that
-- it locks, and leaves it alone.
update pgsched.schedules s
set next_run = null, moved_from = coalesce(s.next_run, s.moved_from), zone_rules = %(rules)s,
    planned_at = greatest(clock_timestamp(), s.planned_at + interval '1 microsecond')
where s.id = any(%(ids)s)
returning s.id
