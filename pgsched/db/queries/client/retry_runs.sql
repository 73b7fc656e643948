-- Queues those of these runs again that failed or were cancelled and that nobody else has locked. Returns their ids.
select queued.id from pgsched.retry_many(%(ids)s::bigint[]) as queued (id)
