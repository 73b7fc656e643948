-- Queues one run of an entrypoint for each of many arguments; returns the ids in their order.
select pgsched.enqueue_many(
    %(entrypoint)s::text, %(args)s::text[]::jsonb[], %(due_at)s::timestamptz, %(priority)s::int,
    %(unique_keys)s::text[]
)
