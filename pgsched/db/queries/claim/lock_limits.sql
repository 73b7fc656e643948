-- Locks the limits at which a run of this application stands in line, and fewer are running than may be. That
-- look is a filter, on this statement's snapshot; read_lines counts again under the lock. One that another worker has
-- locked is passed over: it is being claimed from. So is one at which the server refuses to have starts noted. Waits for
-- nobody.
with running as materialized (select gate, count(*) as count from pgsched.running_at_limits group by gate)
select l.gate, l.concurrency, l.concurrency_key, l.per_key, l.starts, l.period, l.started_at, l.started,
    clock_timestamp() as now
from pgsched.limits l
where l.gate in (
        select m.gate from pgsched.limit_members m
        where m.app = %(app)s and m.entrypoint = any(%(entrypoints)s)
            -- No EXISTS: that may become a join, with a look at all that stands in line.
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
