-- Changes limits as a claim does, in a transaction that is rolled back, to see if the server allows it.
update pgsched.limits l
set started_at = l.started_at, started = l.started
where l.id = any(%(ids)s)
