-- Changes limits as a claim does, in a transaction that is rolled back: shows whether the server lets starts be noted there.
update pgsched.limits l
set started_at = l.started_at, started = l.started
where l.id = any(%(ids)s)
