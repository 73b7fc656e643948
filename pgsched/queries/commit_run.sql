-- Writes a run's success inside the application's own transaction, under its claim: both commit, or neither does.
-- A beat or a reaper that has the row just now is waited for, and then looked at: that takes read committed.
update pgsched.runs r
set status = 'succeeded', committed_at = clock_timestamp(), finished_at = clock_timestamp(),
    -- By the worker's guess of this clock it may have begun a moment from now.
    started_at = least(coalesce(r.started_at, %(started_at)s::timestamptz), clock_timestamp())
where r.id = %(id)s and r.attempt = %(attempt)s and r.worker = %(worker)s and r.status = 'running'
returning r.id
