-- Queues one run of an entrypoint. Returns its id and true, or the id of the run that has the unique key and false.
select e.run_id, e.queued from pgsched.enqueue_unique(
    %(entrypoint)s::text, %(args)s::jsonb, %(due_at)s::timestamptz, %(priority)s::int, %(unique_key)s::text,
    %(app)s::text, %(unique)s::text
) e
