-- Locks the limits of entrypoints at which a run stands in line, and fewer are running than may be. That
-- look is a filter, on this statement's snapshot; read_lines counts again under the lock. One that another worker has
-- locked is passed over: it is being claimed from. Waits for nobody.
select l.entrypoint, l.concurrency, l.concurrency_key, l.per_key, l.starts, l.period, l.started_at, l.started,
    clock_timestamp() as now
from pgsched.limits l
where l.entrypoint = any(%(entrypoints)s)
    -- No EXISTS: that may become a join, with a look at all that stands in line.
    and (
        select true from pgsched.runs r
        where r.status = 'queued' and r.gated and r.line is not null and r.entrypoint = l.entrypoint
        order by -r.priority limit 1
    )
    and (
        l.concurrency is null
        or (select count(*) from pgsched.runs r where r.status = 'running' and r.entrypoint = l.entrypoint)
            < l.concurrency
    )
order by l.entrypoint
for no key update skip locked
