-- Says that a worker is gone, and forgets those that were not seen for a day and have no session: without the resync a
-- live one is not seen, but its sessions are. Others are woken if a run has waited for a thread of it. hanging: the tokens
-- of what goes on in its threads. In a daemon that ends with the process, a moment after this statement; in a host
-- program it may go on. So it counts on, for as long as lease says.
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
