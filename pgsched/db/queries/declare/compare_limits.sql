-- How the stored limits differ from those that an application declares: one row for each entrypoint with a difference.
-- Each row has all values that differ, as JSON texts in the order of their names; a period is in seconds. Only reads,
-- and locks nothing.
with declared as (
    select d.entrypoint, d.shared, d.concurrency, d.concurrency_key, d.per_key, d.starts, d.period
    from jsonb_to_recordset(%(declared)s) as d (
        entrypoint text, shared text, concurrency int, concurrency_key text[], per_key int, starts int, period interval)
),
stored as (
    select m.entrypoint, l.shared, l.concurrency, l.concurrency_key, l.per_key, l.starts, l.period::interval as period
    from pgsched.limit_members m
    join pgsched.limits l on l.gate = m.gate
    where m.limited and m.app = %(app)s
)
select coalesce(s.entrypoint, d.entrypoint) as entrypoint, c.names, c.were, c.become
from stored s
full join declared d on d.entrypoint = s.entrypoint
cross join lateral (
    select array_agg(name order by name) as names, array_agg(was::text order by name) as were,
        array_agg(will::text order by name) as become
    from (values
        ('concurrency', to_jsonb(s.concurrency), to_jsonb(d.concurrency)),
        ('concurrency_key', to_jsonb(s.concurrency_key), to_jsonb(d.concurrency_key)),
        ('per_key', to_jsonb(s.per_key), to_jsonb(d.per_key)),
        ('starts', to_jsonb(s.starts), to_jsonb(d.starts)),
        ('period', to_jsonb(extract(epoch from s.period)), to_jsonb(extract(epoch from d.period))),
        ('shared', to_jsonb(s.shared), to_jsonb(d.shared))
    ) v (name, was, will)
    where v.was is distinct from v.will
) c
where c.names is not null
order by 1
