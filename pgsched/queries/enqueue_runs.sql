-- Queues one run of an entrypoint for each of many arguments; returns the ids in their order.
with made as (
    insert into pgsched.runs (entrypoint, args, due_at, priority, gated, line)
    select %(entrypoint)s::text, a.args, coalesce(%(due_at)s::timestamptz, clock_timestamp()), %(priority)s::smallint,
        l.entrypoint is not null,
        case when l.entrypoint is not null then 'k' || pgsched.key_of(a.args, l.concurrency_key) end
    from unnest(%(args)s::text[]::jsonb[]) with ordinality as a (args, place)
    left join pgsched.limits l on l.entrypoint = %(entrypoint)s and l.limited
    order by a.place
    returning id
)
select id from made order by id
