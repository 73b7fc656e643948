-- Records which time zones this worker leaves to others.
update pgsched.workers set withheld = %(zones)s where id = %(worker)s and withheld <> %(zones)s::text[]
