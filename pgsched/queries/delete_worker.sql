-- Says that a worker is gone, and forgets those that were not seen for a day and have no session: without the resync a
-- live one is not seen, but its sessions are.
with behind as (
    delete from pgsched.left_behind where worker = %(worker)s
)
delete from pgsched.workers w
where w.id = %(worker)s
    or (w.seen_at < now() - interval '1 day' and not exists (
        select from pg_catalog.pg_stat_activity a where a.application_name = 'pgsched ' || w.id
    ))
