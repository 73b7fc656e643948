-- Forgets workers that ended without a goodbye: not seen for ten minutes, without a session, and without a run.
-- Each start does so, because a worker that crashes again and again leaves a row each time. Rows that another start is
-- forgetting right now are left to it.
with behind as (
    delete from pgsched.left_behind where counts_until < now() - interval '1 day'
)
delete from pgsched.workers w
using (
    select id from pgsched.workers
    where seen_at < now() - interval '10 minutes'
        and 'pgsched ' || id not in (
            select application_name from pg_catalog.pg_stat_activity where application_name like 'pgsched %%'
        )
        and id not in (select worker from pgsched.runs where status = 'running' and worker is not null)
    for update skip locked
) gone
where w.id = gone.id
