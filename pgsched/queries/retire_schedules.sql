-- Finishes the schedules that an application declared once and declares no more; their history stays.
update pgsched.schedules
set status = 'finished', note = 'no longer declared by its application', retired_at = clock_timestamp(),
    next_run = null
where owner = %(owner)s and retired_at is null and not (name = any(%(declared)s))
returning name
