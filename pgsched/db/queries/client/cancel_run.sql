-- Cancels a queued run (cancelled), or asks the worker of a running one to cancel it (requested).
select pgsched.cancel(%(run_id)s::bigint)
