-- Queues one run of an entrypoint and returns its id, or that of the live one with the same unique key.
select pgsched.enqueue(
    %(entrypoint)s::text, %(args)s::jsonb, %(due_at)s::timestamptz, %(priority)s::int, %(unique_key)s::text
)
