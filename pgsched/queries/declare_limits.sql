-- Puts the limits in force that an application declares for its entrypoints, and lifts those that it declares no more.
-- A row stays, since runs may wait in its lines. Returns the entrypoints of which something changed.
with declared as (
    select d.entrypoint, d.concurrency, d.concurrency_key, d.per_key, d.starts, d.period
    from jsonb_to_recordset(%(declared)s) as d (
        entrypoint text, concurrency int, concurrency_key text[], per_key int, starts int, period interval)
    order by d.entrypoint
),
lifted as (
    update pgsched.limits l
    set concurrency = null, concurrency_key = null, per_key = null, starts = null, period = null,
        started_at = '{}', started = '{}', updated_at = clock_timestamp()
    where l.owner = %(owner)s and l.limited and l.entrypoint not in (select entrypoint from declared)
    returning l.entrypoint
),
written as (
    insert into pgsched.limits as l (entrypoint, owner, concurrency, concurrency_key, per_key, starts, period)
    select d.entrypoint, %(owner)s, d.concurrency, d.concurrency_key, d.per_key, d.starts, d.period from declared d
    on conflict (entrypoint) do update set
        owner = excluded.owner, concurrency = excluded.concurrency, concurrency_key = excluded.concurrency_key,
        per_key = excluded.per_key, starts = excluded.starts, period = excluded.period, updated_at = clock_timestamp()
    where (l.owner, l.concurrency, l.concurrency_key, l.per_key, l.starts, l.period) is distinct from
        (excluded.owner, excluded.concurrency, excluded.concurrency_key, excluded.per_key, excluded.starts,
         excluded.period)
    returning l.entrypoint
)
select entrypoint from lifted union all select entrypoint from written order by 1
