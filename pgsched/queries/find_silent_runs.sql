-- What a reap pass sees: always one row for the clock, and one for each running run that has been silent.
-- A worker's sessions carry its id in application_name; every role may read that column.
with sessions as materialized (
    select application_name from pg_catalog.pg_stat_activity where application_name like 'pgsched %%'
),
silent as (
    select r.id, r.attempt, r.token, r.worker, r.entrypoint, r.heartbeat_at,
        coalesce(r.max_attempts, 1) as max_attempts,
        coalesce(r.backoff, '1 second') as backoff, coalesce(r.max_backoff, '1 hour') as max_backoff,
        coalesce(w.direct, false) as direct,
        exists (select from sessions where application_name = 'pgsched ' || r.worker) as connected,
        w.heartbeat_interval, w.stall_timeout
    from pgsched.runs r
    left join pgsched.workers w on w.id = r.worker
    where r.status = 'running' and r.heartbeat_at < now() - %(silence)s
    order by r.heartbeat_at
    limit 1000
)
select now() as now, now() - pg_postmaster_start_time() as server_up,
    (select count(*) from pgsched.runs where status = 'running' and worker <> %(worker)s) as elsewhere,
    silent.*
from (select) one
left join silent on true
