-- Puts the limits in force that an application declares for its entrypoints, and lifts those that it no longer
-- declares.
-- Rows stay, because runs may wait in their lines. Returns the entrypoints with a change; and the shared names whose
-- limits another application had declared differently, with that owner.
with declared as (
    select d.*,
        case when d.shared is null then jsonb_build_array(%(app)s::text, d.entrypoint) else jsonb_build_array(d.shared) end
            ::text as gate
    from jsonb_to_recordset(%(declared)s) as d (
        entrypoint text, shared text, concurrency int, concurrency_key text[], per_key int, starts int, period interval)
),
lifted as (
    select m.entrypoint, jsonb_build_array(m.app, m.entrypoint)::text as gate
    from pgsched.limit_members m
    where m.app = %(app)s and m.limited and m.entrypoint not in (select entrypoint from declared)
),
wanted as (
    select distinct on (d.gate) d.gate, case when d.shared is null then %(app)s::text end as app,
        case when d.shared is null then d.entrypoint end as entrypoint, d.shared,
        d.concurrency, d.concurrency_key, d.per_key, d.starts, d.period::interval
    from declared d
    union all
    select gate, %(app)s::text, entrypoint, null, null, null, null, null, null from lifted
    order by gate
),
before as materialized (
    select l.gate, l.owner from pgsched.limits l where l.gate in (select gate from wanted where shared is not null)
),
written as (
    insert into pgsched.limits as l
        (gate, app, entrypoint, shared, owner, concurrency, concurrency_key, per_key, starts, period)
    select w.gate, w.app, w.entrypoint, w.shared, %(owner)s, w.concurrency, w.concurrency_key, w.per_key, w.starts,
        w.period
    from wanted w
    on conflict (gate) do update set
        owner = excluded.owner, concurrency = excluded.concurrency, concurrency_key = excluded.concurrency_key,
        per_key = excluded.per_key, starts = excluded.starts, period = excluded.period, updated_at = clock_timestamp()
    where (l.concurrency, l.concurrency_key, l.per_key, l.starts, l.period) is distinct from
        (excluded.concurrency, excluded.concurrency_key, excluded.per_key, excluded.starts, excluded.period)
    returning l.gate, l.shared
),
members as (
    insert into pgsched.limit_members as m (entrypoint, app, gate, limited)
    select d.entrypoint, %(app)s, d.gate, true from declared d
    union all
    select l.entrypoint, %(app)s, l.gate, false from lifted l
    on conflict (entrypoint, app) do update set gate = excluded.gate, limited = excluded.limited
    where (m.gate, m.limited) is distinct from (excluded.gate, excluded.limited)
    returning m.entrypoint
)
select d.entrypoint, null as shared, null as owner from declared d where d.gate in (select gate from written)
union select entrypoint, null, null from members
union
select null, w.shared, b.owner from written w join before b on b.gate = w.gate where b.owner <> %(owner)s
order by 1, 2
