-- Cancels a queued run (cancelled), or asks the worker of a running one to (requested).
select pgsched.cancel(%(run_id)s::bigint)
