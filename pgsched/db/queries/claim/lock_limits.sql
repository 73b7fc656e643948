-- Locks the limits that have runs of this application in line, and fewer running runs than they allow.
-- That check is a filter on this statement's snapshot; read_queues counts again under the lock. Waits for nobody: limits
-- that another worker has locked are passed over, because it is claiming from them. So are limits whose notes of starts
-- the server refuses.
with running as materialized (select gate, count(*) as count from pgsched.running_at_limits group by gate)
select l.gate, l.concurrency, l.concurrency_key, l.per_key, l.starts, l.period, l.started_at, l.started,
    clock_timestamp() as now
from pgsched.limits l
where l.gate in (
        select m.gate from pgsched.limit_members m
        where m.app = %(app)s and m.entrypoint = any(%(entrypoints)s)
            -- No EXISTS: it may become a join that reads all runs in line.
            and (
                select true from pgsched.runs r
                where r.status = 'queued' and r.gated and r.line is not null
                    and r.limited_by = m.app and r.entrypoint = m.entrypoint
                order by -r.priority limit 1
            )
    )
    and l.id not in (select id from pgsched.resting where kind = 'limits' and until > now())
    and (l.concurrency is null
        or coalesce((select r.count from running r where r.gate = l.gate), 0) < l.concurrency)
order by l.gate
for no key update of l skip locked
