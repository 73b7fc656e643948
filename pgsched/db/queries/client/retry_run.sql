-- Queues a failed or cancelled run again.
select pgsched.retry(%(run_id)s::bigint)
