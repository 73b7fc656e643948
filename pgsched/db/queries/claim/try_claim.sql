-- Changes queued runs as a claim does, in a transaction that is rolled back, to see if the server allows it.
update pgsched.runs r
set status = 'running', attempt = r.attempt + 1, worker = %(worker)s, claimed_at = clock_timestamp(),
    heartbeat_at = clock_timestamp(), started_at = null, cancel_requested_at = null
where r.id = any(%(ids)s) and r.status = 'queued'
