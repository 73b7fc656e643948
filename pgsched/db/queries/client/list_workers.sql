-- The registered workers, and whether the server sees a session of each.
select w.id, w.app, w.project, w.host, w.pid, w.version, w.entrypoints, w.state, w.running, w.trouble, w.direct,
    w.heartbeat_interval, w.stall_timeout, w.fingerprint, w.started_at, w.seen_at, w.tzdata, w.tzdata_from,
    w.tzdata_package, w.withheld,
    (select count(*) from pgsched.left_behind b where b.worker = w.id and b.counts_until > now()) as left_behind,
    exists (
        select from pg_catalog.pg_stat_activity a where a.application_name = 'pgsched ' || w.id
    ) as connected
from pgsched.workers w
order by w.started_at, w.id
