-- The silent runs whose claims may be taken now or soon, by id; always at least one row, for the clock.
-- If a worker hangs but is connected, its runs are left out until its stall timeout is near: there may be thousands.
-- A worker's sessions carry its id in application_name, which every role may read. Only their own role may read when a
-- session began and when it last sent a query; without that, nobody vouches for anybody.
with sessions as materialized (
    select application_name as name, min(backend_start) as since, max(query_start) as asked_at
    from pg_catalog.pg_stat_activity where application_name like 'pgsched %%'
    group by 1
),
-- Changes nothing, and fails if a beat would: on a server that is read-only, or behind a lock on the table. Then silence
-- means nothing.
beatable as (
    update pgsched.runs set heartbeat_at = heartbeat_at where false
),
silent as materialized (
    select r.id, r.attempt, r.token, r.worker, r.entrypoint, r.heartbeat_at, a.alive_at,
        coalesce(r.max_attempts, 1) as max_attempts, r.started_at is not null as begun,
        coalesce(r.backoff, '1 second') as backoff, coalesce(r.max_backoff, '1 hour') as max_backoff,
        coalesce(w.direct, false) as direct, s.name is not null as connected,
        w.heartbeat_interval, w.stall_timeout, coalesce(w.machine, '') as machine, coalesce(w.pid, 0) as pid,
        coalesce(w.process_started, '') as process_started, w.route
    from pgsched.runs r
    left join pgsched.workers w on w.id = r.worker
    left join sessions s on s.name = 'pgsched ' || r.worker
    cross join lateral (
        -- A beat that passed over a locked row left its sign of life in the worker's row. A row written by hand has
        -- none.
        select greatest(coalesce(r.heartbeat_at, r.claimed_at, r.created_at), w.passed_at) as alive_at
    ) a
    where r.status = 'running' and a.alive_at < now() - %(silence)s
        and (
            r.worker = %(worker)s
            or s.name is null and (w.direct or w.machine = %(machine)s and w.machine <> '')
            or a.alive_at < now() - (coalesce(w.stall_timeout, %(stall_timeout)s) - 3 * %(silence)s)
        )
        and r.id > %(after)s
        and r.id not in (select id from pgsched.resting where kind = 'reap' and until > now())
    order by r.id
    limit %(limit)s
)
select now() as now, pg_postmaster_start_time() as server_started,
    (select count(*) from pgsched.runs where status = 'running' and worker is distinct from %(worker)s) as elsewhere,
    silent.*,
    -- A worker on the same route vouches if its sessions are older than this silence and in use: the cause that ended
    -- the other sessions has not touched them.
    silent.route <> '' and exists (
        select from pgsched.workers v join sessions s on s.name = 'pgsched ' || v.id
        where v.id <> silent.worker and v.route = silent.route
            and s.since < silent.alive_at and s.asked_at > silent.alive_at
    ) as vouched
from (select) one
left join silent on true
order by silent.id
