-- Removes a worker's row, and forgets workers that have not been seen for a day and have no session.
-- A live worker without the resync is not seen, but its sessions are. Wakes other workers if a run has waited for one
-- of its threads.
-- hanging: the tokens of attempts that go on in its threads. In a daemon they end with the process, a moment after this
-- statement; in a host program they may go on. So they count until the lease ends.
with behind as (
    delete from pgsched.left_behind where worker = %(worker)s and token <> all(%(hanging)s::bigint[]) returning run_id
),
going_on as (
    update pgsched.left_behind set counts_until = clock_timestamp() + %(lease)s
    where worker = %(worker)s and token = any(%(hanging)s::bigint[])
),
gone as (
    delete from pgsched.workers w
    where w.id = %(worker)s
        or (w.seen_at < now() - interval '1 day' and not exists (
            select from pg_catalog.pg_stat_activity a where a.application_name = 'pgsched ' || w.id
        ))
)
select pg_catalog.pg_notify(%(channel)s, '')
from (
    select from behind b cross join lateral (
        select r.status from pgsched.runs r where r.id = b.run_id offset 0
    ) r
    where r.status = 'queued' limit 1
) freed
