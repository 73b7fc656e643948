-- Queues one run of an entrypoint for each of many arguments; returns the ids in their order.
with made as (
    insert into pgsched.runs (entrypoint, args, due_at, priority)
    select %(entrypoint)s::text, a.args, coalesce(%(due_at)s::timestamptz, clock_timestamp()), %(priority)s::smallint
    from unnest(%(args)s::text[]::jsonb[]) with ordinality as a (args, place)
    order by a.place
    returning id
)
select id from made order by id
