-- Queues those of some runs again that have failed or been cancelled, and that nobody else has locked; tells which.
select queued.id from pgsched.retry_many(%(ids)s::bigint[]) as queued (id)
